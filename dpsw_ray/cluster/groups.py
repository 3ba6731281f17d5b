"""Clusters and worker groups, and the ones that live in this process."""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from dpsw_ray.base.errors import UserError

__all__ = [
    "Cluster",
    "LocalCluster",
    "Meter",
    "Outcome",
    "WorkerDied",
    "WorkerGroup",
    "attempt",
    "collect",
    "per_rank",
    "secret",
    "timed",
]

Args = tuple[Any, ...] | Sequence[tuple[Any, ...]]
Outcome = tuple[bool, Any]
"""What a worker hands back: (True, result) or (False, error); failures travel as values, never as raised."""


class WorkerDied(UserError):
    """A worker's process or machine is gone, and with it what it held."""

    def __init__(
        self,
        rank: int,
        size: int = 1,
        doing: str = "",
        why: str = "killed, out of memory, or its machine left the cluster",
    ) -> None:
        super().__init__(rank, size, doing, why)
        self.rank = rank
        self.why = why

    @property
    def event(self) -> str:
        """What happened, without advice."""
        rank, size, doing, why = self.args
        during = f" during {doing}" if doing else ""
        return f"Worker {rank} of {size} died{during}: {why}"

    def __str__(self) -> str:
        return f"{self.event}; start the run again (fewer cluster.actors use less memory)."


@dataclass(frozen=True)
class Meter:
    """Where the time of a cluster's calls went; calls into the private wing are not in it.

    Attributes:
        worked: seconds in the workers' own code, of the slowest one in each call.
        waited: seconds that the driver waited for calls, the workers' included.
    """

    worked: float = 0.0
    waited: float = 0.0

    def __add__(self, other: Meter) -> Meter:
        return Meter(self.worked + other.worked, self.waited + other.waited)

    def __sub__(self, other: Meter) -> Meter:
        return Meter(self.worked - other.worked, self.waited - other.waited)


class WorkerGroup(Protocol):
    """One object per rank, each living in a worker."""

    @property
    def size(self) -> int:
        """How many objects."""

    def call(self, method: str, args: Args = (), *, retry: bool = False) -> list[Any]:
        """Calls a method on every object and waits for all of them.

        Arrays in arguments and results are read-only snapshots, in this process as on a cluster.

        Args:
            method: its name.
            args: one tuple for everybody, or a list with one tuple per rank.
            retry: rebuild dead workers and repeat their part of the call, a few times, as long as the cluster
                has room for them. For pure methods only: the rebuilt object knows nothing but its factory's
                arguments.

        Returns:
            The results in rank order.

        Raises:
            UserError: of the lowest rank that raised one, as itself; any other error as a RuntimeError with
                its type, place and message.
            WorkerDied: a worker is gone, or did not answer in time (and `retry` was not asked for, or did not
                help).
        """

    def rebuild(self) -> None:
        """Replaces dead workers and builds their objects anew from the factory and its arguments."""

    def close(self) -> None:
        """Forgets the objects; the workers stay."""


class Cluster(Protocol):
    """A fixed number of workers, each holding any number of objects."""

    @property
    def size(self) -> int:
        """How many workers."""

    @property
    def meter(self) -> Meter:
        """Where the time went so far."""

    def show(self, figures: Mapping[str, float]) -> None:
        """Hands figures of the public wing to the cluster's own metrics, where it has any."""

    def spawn(self, factory: Callable[..., object], kwargs_per_rank: Sequence[dict[str, Any]]) -> WorkerGroup:
        """Builds `factory(**kwargs)` for every rank; rank r lives in worker r modulo the cluster's size."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function once, in worker 0."""

    def close(self) -> None:
        """Ends the workers, and only what this cluster started."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Outcome:
    """Runs a function in a worker; an exception becomes a value without traceback, cause or notes.

    A traceback that crosses processes is text and may quote a record: it stays where it was raised.
    """
    try:
        return True, function(*args, **kwargs)
    except Exception as error:
        return False, _portable(error)


def timed(function: Callable[..., Any], *args: Any) -> Outcome:
    """What `attempt` gives; a result comes as a pair with the seconds it took."""
    start = time.perf_counter()
    succeeded, value = attempt(function, *args)
    return succeeded, (value, time.perf_counter() - start) if succeeded else value


def secret(factory: Callable[..., object], method: str) -> bool:
    """Whether a method is one of the private wing, of which nobody may say how long it takes."""
    return bool(getattr(getattr(factory, method, None), "sealed", False))


def _portable(error: Exception) -> Exception:
    if isinstance(error, UserError | OSError):
        try:
            copy: Exception = pickle.loads(pickle.dumps(error))
            if type(copy) is type(error) and str(copy) == str(error):
                copy.__dict__.pop("__notes__", None)
                return copy
        except Exception:  # an exotic constructor: the sentence is what matters
            pass
    if isinstance(error, UserError):
        return UserError(str(error))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename
    ]
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return RuntimeError(f"{type(error).__name__}{where}: {error}")


def collect(outcomes: Sequence[Outcome]) -> list[Any]:
    """Returns the results, or raises the first failure."""
    for succeeded, value in outcomes:
        if not succeeded:
            raise value
    return [value for _, value in outcomes]


def per_rank(args: Args, size: int) -> list[tuple[Any, ...]]:
    """Spreads the arguments of a call over the ranks."""
    if isinstance(args, tuple):
        return [args] * size
    if len(args) != size:
        raise ValueError(f"{len(args)} argument tuples for {size} workers")
    return list(args)


def _snapshot(value: Any) -> Any:
    """Copies arrays and locks them, as a trip through an object store would."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
        return value
    if type(value) in (tuple, list):
        return type(value)(_snapshot(item) for item in value)
    if type(value) is dict:
        return {key: _snapshot(item) for key, item in value.items()}
    return value


class _LocalGroup:
    def __init__(self, cluster: LocalCluster, factory: Callable[..., object], parts: list[Any]) -> None:
        self._cluster = cluster
        self._factory = factory
        self._parts = parts

    @property
    def size(self) -> int:
        return len(self._parts)

    def call(self, method: str, args: Args = (), *, retry: bool = False) -> list[Any]:
        start = time.perf_counter()
        snapshots = per_rank(_snapshot(args), self.size)
        pairs = zip(self._parts, snapshots, strict=True)
        found = collect([timed(getattr(part, method), *own) for part, own in pairs])
        results = [_snapshot(result) for result, _ in found]
        if not secret(self._factory, method):
            worked = sum(seconds for _, seconds in found)
            self._cluster.meter += Meter(worked, time.perf_counter() - start)
        return results

    def rebuild(self) -> None:
        pass

    def close(self) -> None:
        self._parts = []


class LocalCluster:
    """Workers in this process, one after the other: the same results without Ray."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.meter = Meter()

    @property
    def size(self) -> int:
        """How many workers."""
        return self._size

    def show(self, figures: Mapping[str, float]) -> None:
        """Nobody looks at this process."""

    def spawn(self, factory: Callable[..., object], kwargs_per_rank: Sequence[dict[str, Any]]) -> WorkerGroup:
        """See `Cluster.spawn`."""
        parts = collect([attempt(factory, **kwargs) for kwargs in kwargs_per_rank])
        return _LocalGroup(self, factory, parts)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """See `Cluster.run`."""
        return _snapshot(collect([attempt(function, *_snapshot(args))])[0])

    def close(self) -> None:
        """Nothing was started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
