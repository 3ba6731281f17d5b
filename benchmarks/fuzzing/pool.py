"""Processes that try cases one by one and may crash, hang or run out of memory without harm to the others."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self

__all__ = ["FOUND", "VERDICTS", "Attempt", "Outcome", "Pool", "Verdict"]

Verdict = Literal[
    "accepted", "lasting", "refused", "traceback", "exit", "hang", "crash", "changed", "result", "message"
]
VERDICTS: dict[Verdict, str] = {
    "accepted": "accepted",
    "lasting": "accepted, stopped at the time limit",
    "refused": "refused with one sentence",
    "traceback": "traceback",
    "exit": "another exit code",
    "hang": "hang",
    "crash": "crash by a signal",
    "changed": "a file changed that should not",
    "result": "accepted, with another result",
    "message": "message of several lines, unprintable or too long",
}
FOUND: tuple[Verdict, ...] = ("traceback", "exit", "hang", "crash", "changed", "result", "message")
"""What must not be."""

MEMORY = 8 << 30
"""Bytes of address space of a process; it takes 6 GiB for libraries and threads."""
FILE = 256 << 20
"""Bytes of the largest file that a process may write."""
IDLE_S = 6.0
"""A case that uses no processor for so long waits for something that does not come."""
SHARE = 400
"""Cases that a process tries before another one takes its place."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "OMP_WAIT_POLICY": "passive",
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore::FutureWarning",
    "RAY_ADDRESS": "none",  # a config that turns to Ray is refused, where it would start one
}
_LOADED = (
    "dpsw_ray.pipeline.run",
    "dpsw_ray.pipeline.reevaluate",
    "dpsw_ray.experiment.compare",
    "dpsw_ray.tune.sweep",
    "dpsw_ray.federated.world",
)


class Attempt(NamedTuple):
    """What came of a case in its process: the verdict, what was seen, and what to group it by."""

    verdict: Verdict
    detail: str = ""
    cause: str = ""


class Outcome(NamedTuple):
    """What came of a case."""

    name: str
    verdict: Verdict
    detail: str
    cause: str
    seconds: float


class Case(Protocol):
    """An input."""

    @property
    def name(self) -> str:
        """By which `--only` repeats it."""

    @property
    def limit_s(self) -> float:
        """Processor time after which it hangs; four times as long by the clock."""

    @property
    def lasting(self) -> bool:
        """Whether it may compute for longer: then it is stopped and counts as that."""

    def attempt(self, place: Path) -> Attempt:
        """Tries it in an empty folder, in a process that it may end."""


class Pool:
    """Some processes, kept from one round of cases to the next."""

    def __init__(self, scratch: Path, processes: int = 2) -> None:
        """Starts them.

        Args:
            scratch: for the cases' folders; what a case leaves is removed.
            processes: at a time.
        """
        os.environ |= _QUIET
        self._workers = [_Worker(scratch / f"worker{number}") for number in range(processes)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, cases: Iterable[Case]) -> Iterator[Outcome]:
        """Tries all cases, each in a folder of its own, and yields their outcomes as they come."""
        waiting = iter(cases)
        busy = [worker for worker in self._workers if worker.give(next(waiting, None))]
        while busy:
            ready = wait([worker.connection for worker in busy], timeout=0.25)
            for worker in list(busy):
                outcome = worker.take() if worker.connection in ready else worker.overdue()
                if outcome is not None:
                    yield outcome
                    if not worker.give(next(waiting, None)):
                        busy.remove(worker)


class _Worker:
    """One process, and the case that it tries."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._case: Case | None = None
        self._tried = 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._folder), daemon=False)
        self._process.start()
        theirs.close()
        self._ready = False

    def give(self, case: Case | None) -> bool:
        self._case = case
        if case is None:
            return False
        if self._tried and self._tried % SHARE == 0:
            self.end()
            self._start()
        self._tried += 1
        if not self._ready:  # a start takes seconds, which are not the case's
            self.connection.recv()
            self._ready = True
        self._began = self._moved = time.monotonic()
        self._cpu = self._last = _processor_s(self._process.pid)
        self.connection.send(case)
        return True

    def take(self) -> Outcome:
        """The outcome of the case, be it that its process is gone."""
        try:
            return self._outcome(*self.connection.recv())
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode or 0
            log = (self._folder / "log").read_bytes()[-2000:].decode(errors="replace")
            if code >= 0:
                raise RuntimeError(f"The harness fails at {self._case}: {log}") from None
            reason = signal.Signals(-code).name
            self.end()
            self._start()
            return self._outcome("crash", f"{reason}\n{log}", reason)

    def overdue(self) -> Outcome | None:
        """The outcome of a case that takes too long: its process is killed."""
        assert self._case is not None
        now, used = time.monotonic(), _processor_s(self._process.pid)
        if used > self._last:
            self._last, self._moved = used, now
        verdict: Verdict
        if now - self._moved > IDLE_S:
            verdict, reason = "hang", "waits for ever"
        elif used - self._cpu > self._case.limit_s or now - self._began > 4 * self._case.limit_s:
            verdict = "lasting" if self._case.lasting else "hang"
            reason = f"more than {self._case.limit_s:g} s of processor time"
        else:
            return None
        self.end()
        self._start()
        return self._outcome(verdict, reason, reason)

    def _outcome(self, verdict: Verdict, detail: str, cause: str) -> Outcome:
        assert self._case is not None
        shutil.rmtree(self._folder / "place", ignore_errors=True)
        return Outcome(self._case.name, verdict, detail, cause, time.monotonic() - self._began)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()
        shutil.rmtree(self._folder / "place", ignore_errors=True)


def _processor_s(process: int | None) -> float:
    """Processor time of a process and of its children that have ended."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _work(connection: Connection, folder: Path) -> None:
    (folder / "temporary").mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder / "temporary")
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    for name in _LOADED:
        importlib.import_module(name)
    connection.send("ready")
    number = 0
    while True:
        try:
            case: Case = connection.recv()
        except EOFError:
            return
        number += 1
        place = folder / "place" / str(number)  # another path each time: nothing is remembered by path
        place.mkdir(parents=True)
        connection.send(case.attempt(place))
        shutil.rmtree(place, ignore_errors=True)
