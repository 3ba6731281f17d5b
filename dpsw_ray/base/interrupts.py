"""Ctrl-C, and SIGTERM as another Ctrl-C: how schedulers, and `ray job stop`, ask a process to end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["exit_code", "heed_sigterm", "own_sigterm"]

_seen = threading.Event()


def heed_sigterm() -> None:
    """Makes SIGTERM end this process as Ctrl-C does: files closed, workers let go, one line; see `exit_code`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def exit_code() -> int:
    """Of a process that was interrupted: 130, or 143 where SIGTERM did it."""
    return 128 + (signal.SIGTERM if _seen.is_set() else signal.SIGINT)


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Keeps our answer to SIGTERM over `ray.init`, which puts in one of its own: an end without a word."""
    ours = signal.getsignal(signal.SIGTERM) is _interrupt
    try:
        yield
    finally:
        if ours:
            heed_sigterm()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _seen.set()
    answer = signal.getsignal(signal.SIGINT)  # Ray Tune has one of its own while trials run
    if callable(answer):
        answer(signal.SIGINT, frame)
    else:  # a background job's: ignored
        raise KeyboardInterrupt
