"""What may leave the private wing when something goes wrong: the step and the kind of failure, no more."""

from __future__ import annotations

import functools
import os
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from dpsw_ray.base.errors import PrivateSideError, UserError, explain_os_error
from dpsw_ray.base.files import DamagedFile

__all__ = ["sealed"]

P = ParamSpec("P")
T = TypeVar("T")


def sealed(step: str, log: Callable[..., Path] | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Wraps a function of the private wing so that its exceptions carry nothing of the records.

    A library's exception may quote the value it choked on, and its traceback travels with it. `UserError`s
    are written by this package and pass; an `OSError` becomes a sentence on the file; anything else becomes a
    `PrivateSideError` naming the step alone, as the exception's type may depend on a record. The full text is kept in
    `errors.log` in a private folder, readable by its owner only. Warnings, which would end in a log and may depend on
    records or quote them, are silenced.

    Args:
        step: what is being done, in words.
        log: from the wrapped function's arguments to the folder of `errors.log`; default: the `private_dir` of the
            object whose method it is, if it has one.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            folder = log(*args, **kwargs) if log else getattr(args[0], "private_dir", None) if args else None
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return function(*args, **kwargs)
            except DamagedFile:  # which of the files it is would tell of the number of records
                safe: UserError = PrivateSideError(
                    f"The private side failed while {step}: a file in {folder or 'its folder'} is missing or damaged; "
                    "restore the folder from a copy."
                )
            except UserError as error:
                safe = type(error)(*error.args)
            except OSError as error:
                if isinstance(folder, Path) and Path(str(error.filename)).is_relative_to(folder):
                    error.filename = str(folder)  # the number of a chunk would tell of the number of records
                safe = UserError(explain_os_error(error))
            except Exception:
                where = _keep(folder, step) if isinstance(folder, Path) else ""
                safe = PrivateSideError(f"The private side failed while {step}{where}.")
            # Raised outside the handlers: no __context__, and so no local variables, travel with it.
            raise safe

        wrapper.sealed = True  # type: ignore[attr-defined]  # how long it takes is nobody's business either
        return wrapper

    return decorate


def _keep(folder: Path, step: str) -> str:
    log = folder / "errors.log"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(fd, "a") as stream:
            stream.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {step}\n{traceback.format_exc()}\n")
    except OSError:
        return ""
    return f"; the details are in {log}"
