"""Errors that are sentences for the person who made the mistake."""

from __future__ import annotations

import errno

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


def explain_os_error(error: OSError) -> str:
    """Returns one sentence for an operating-system error met while reading or writing files."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in _DISK_FULL:
        return (
            f"The disk is full or over quota{where} ({error.strerror}): free some space or choose another "
            "--output; nothing that existed before was changed."
        )
    return f"The operating system refused{where}: {error.strerror or type(error).__name__}."
