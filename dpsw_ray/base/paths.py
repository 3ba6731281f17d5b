"""Paths as people give them: what the file system, a config file and a message can all hold."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from pathlib import Path
from typing import Literal

from dpsw_ray.base.errors import UserError

__all__ = ["absolute_path", "path_from_environment", "path_mistake"]

_LONGEST, _LONGEST_NAME = 4096, 255  # bytes of a path and of a name in it, as Linux has them


def path_mistake(text: str, kind: Literal["file", "folder", "any"] = "any") -> str | None:
    """What is wrong with a path, beginning with a verb; None where it can be used.

    Args:
        text: the path.
        kind: what has to be there, if anything is: a pipe or a device would give nothing, or never end.
    """
    if not text.strip():
        return "must be a path, found nothing"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        return f"must be a path in UTF-8 without control characters, found {ascii(text)[:80]}"
    if len(text.encode()) >= _LONGEST or any(len(part.encode()) > _LONGEST_NAME for part in text.split("/")):
        most = f"{_LONGEST} bytes, {_LONGEST_NAME} for a name in it"
        return f"must be a path of at most {most}, found {len(text):,} characters"
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        return f"must be a path, found {text}: {text.split('/')[0]} is no user of this machine"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return (
            f"must be a path, found {text}: its links lead round in a circle"
            if error.errno == errno.ELOOP
            else None
        )
    if not {"file": stat.S_ISREG, "folder": stat.S_ISDIR, "any": bool}[kind](mode):
        return f"must be a {kind}, found {text}, which is something else"
    return None


def absolute_path(path: str | Path) -> Path:
    """The path from the root on, `~` written out."""
    return Path(path).expanduser().absolute()


def path_from_environment(variable: str, kind: Literal["file", "folder"]) -> Path | None:
    """The absolute path in an environment variable; None where it is not set, or empty.

    Args:
        variable: its name.
        kind: what has to be there, if anything is.

    Raises:
        UserError: it holds no path.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    if mistake := path_mistake(text, kind):
        raise UserError(f"The environment's {variable} {mistake}.")
    return absolute_path(text)
