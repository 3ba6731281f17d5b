"""Errors that are sentences for the person who made the mistake."""

from __future__ import annotations

import errno
import os
from typing import Any

__all__ = ["PrivateSideError", "UserError", "explain_os_error", "named", "one_line", "shown"]


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


def one_line(text: str, most: int = 1000) -> str:
    """Text for a message: one line of at most `most` characters, with escapes for what cannot be printed."""
    text = " ".join(text[: 4 * most].split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(value: Any) -> str:
    """A value as its author wrote it, more or less, in one short line that can be printed."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section of keys"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a whole number of more than 30 digits"
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:79]}…")
    if isinstance(value, list | tuple):
        items = [shown(item) for item in value[:20]]
        return one_line(f"[{', '.join(items)}{', …' if len(value) > 20 else ''}]", 80)
    return one_line(str(value), 80)


def named(key: str) -> str:
    """A key for a message: as it is, unless it is very long or cannot be printed."""
    return key if len(key) <= 80 and key.isprintable() else shown(key)


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
