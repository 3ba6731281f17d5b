"""Cases that do something to the process that tries them: a module of their own, as that process imports it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzzing.pool import Attempt


@dataclass(frozen=True)
class Doing:
    """A case that does something to its own process."""

    name: str
    what: Callable[[], object]
    limit_s: float = 5.0
    lasting: bool = False

    def attempt(self, place: Path) -> Attempt:
        self.what()
        return Attempt("accepted")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def compute() -> None:
    while True:
        pass


def wait() -> None:
    time.sleep(100)
