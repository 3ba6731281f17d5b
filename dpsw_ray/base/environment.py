"""What a command is started with: arguments, and variables that libraries read before anything else is checked."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.base.numerals import plain_number
from dpsw_ray.base.paths import path_mistake

__all__ = ["check_arguments", "check_environment"]

_THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MOST_THREADS = 4096
_TEMPORARY = 1 << 16  # bytes that a folder for temporary files must take


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuses what no message, file or data base of ours could hold.

    Raises:
        UserError: an argument is no UTF-8, or has control characters.
    """
    for argument in arguments:
        if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n" for c in argument):
            raise UserError(
                f"An argument is no text in UTF-8 without control characters, found {argument!a}."
            )


def check_environment() -> None:
    """Refuses values of the environment's variables that libraries would fail on when they are loaded.

    Raises:
        UserError: a number of threads that is none, or a `TMPDIR` where nothing can be written.
    """
    for name in _THREADS:
        text = os.environ.get(name, "")
        # OpenMP takes a list, a number for each level of nested loops.
        counts = [plain_number(part.strip()) for part in text.split(",")] if text.strip() else []
        if not all(isinstance(count, int) and 1 <= count <= _MOST_THREADS for count in counts):
            raise UserError(
                f"The environment's {name} must be a whole number from 1 to {_MOST_THREADS}, found {shown(text)}: set "
                "it to the number of threads, or leave it unset."
            )
    folder = os.environ.get("TMPDIR")
    if not folder:
        return
    mistake = path_mistake(folder)
    if mistake is None and not Path(folder).is_dir():
        mistake = f"must be a folder that exists, found {shown(folder)}"
    if mistake is not None:
        raise UserError(f"The environment's TMPDIR {mistake}.")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TEMPORARY))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise UserError(
            f"The environment's TMPDIR must be a folder for temporary files, found {shown(folder)}, where none can be "
            f"written ({reason})."
        ) from None
