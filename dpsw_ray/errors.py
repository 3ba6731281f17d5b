"""Errors that are sentences for the person who made the mistake."""

from __future__ import annotations

import errno
import os

__all__ = ["PrivateSideError", "UserError", "explain_os_error"]


class UserError(Exception):
    """A mistake the user can mend: one sentence saying which key or file, what was found, what would be right.

    The command line prints it and exits with code 2, without a traceback. The text must never contain a
    private record or a statistic of private records.
    """


class PrivateSideError(UserError):
    """Something failed inside the private wing.

    Carries the step and the type of the failure only: the original text and traceback could quote a record,
    so they stay in a log inside the private folder.
    """


_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def explain_os_error(error: OSError) -> str:
    """Returns one sentence for an operating-system error met while reading or writing files.

    The error's own text stays out where it is not the system's: a library's could quote a record.
    """
    where = f" at {error.filename}" if error.filename else ""
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in _DISK_FULL:
        return (
            f"The disk is full or over quota{where} ({reason}): free some space or choose another "
            "place; nothing that existed before was changed."
        )
    if error.errno in _FORBIDDEN:
        return f"The operating system refused access{where} ({reason}): mend the permissions or choose another place."
    return f"The operating system refused{where}: {reason}."
