"""When a worker counts as slow, and when as lost; what is said about it: one line each, to whoever watches the run."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from dpsw_ray.config.run import ClusterConfig

__all__ = ["GONE", "Pace", "Patience", "init_failed", "reason", "say"]

GONE = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
"""What Ray raises when a worker is gone, or its answer is."""

_LOGGER = logging.getLogger("dpsw_ray.cluster")
_SLOWER, _CALLS, _WORK_S = 3.0, 10, 10.0  # than the others, in so many calls and seconds: said once
_LONGER = 20.0  # than ever before: lost


def say(line: str) -> None:
    """Tells what happened to the cluster; nothing of it may depend on a record."""
    _LOGGER.warning(line)


def reason(error: RayError) -> str:
    """Why a worker is gone, in words; Ray's own text fills a page."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        return "its machine ran out of memory, and Ray ended it"
    if isinstance(error, NodeDiedError) or "node has died" in text:
        return "its machine left the cluster"
    if isinstance(error, ActorUnavailableError):
        return "it cannot be reached"
    if isinstance(error, ObjectLostError):
        return "its answer was lost with its machine"
    return "its process was killed, or crashed"


def init_failed(error: RayError) -> bool:
    """Whether a worker could not even be made, which another attempt would not change."""
    return not isinstance(error, GONE) or getattr(error, "actor_init_failed", False) is True


@dataclass(frozen=True)
class Patience:
    """How long to wait for an answer.

    Attributes:
        limit: seconds after which a worker counts as lost.
        notice: seconds after which a worker that alone has not answered is called slow; None for never.
    """

    limit: float
    notice: float | None = None


@dataclass
class _Record:
    calls: int = 0
    longest: float = 0.0
    seconds: dict[int, float] = field(default_factory=dict)
    told: bool = False


class Pace:
    """How fast a group's workers are, by method; nothing is kept of methods of the private wing."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._records: dict[str, _Record] = {}

    def patience(self, method: str, *, hidden: bool) -> Patience:
        """How long to wait for this method.

        The first call may take `cluster.call_timeout_s`. Later ones are known: one that takes twenty times as long as
        any before, and `cluster.timeout_s` on top, has stopped.
        """
        limit, notice = self._config.call_timeout_s, self._config.timeout_s
        if hidden:  # how long such calls take may tell how many records there are
            return Patience(limit)
        record = self._records.get(method)
        if record is not None and record.calls:
            limit = min(limit, notice + _LONGER * record.longest)
        return Patience(limit, notice)

    def note(self, method: str, seconds: Mapping[int, float]) -> tuple[int, float, float] | None:
        """Counts a call.

        Args:
            method: that was called.
            seconds: in each worker's own code, by rank.

        Returns:
            Once in a method's life the rank of a worker that is much slower than the others, its seconds per call and
            theirs.
        """
        record = self._records.setdefault(method, _Record())
        record.calls += 1
        record.longest = max(record.longest, *seconds.values())
        if record.calls > 1:  # the first one compiles
            for rank, each in seconds.items():
                record.seconds[rank] = record.seconds.get(rank, 0.0) + each
        if record.told or record.calls < _CALLS or len(record.seconds) < 2:
            return None
        slowest = max(record.seconds, key=record.seconds.__getitem__)
        own = record.seconds[slowest]
        others = statistics.median(total for rank, total in record.seconds.items() if rank != slowest)
        if own < max(_WORK_S, _SLOWER * others):
            return None
        record.told = True
        return slowest, own / (record.calls - 1), others / (record.calls - 1)

    def forget(self) -> None:
        """Starts anew: a worker that was rebuilt has to warm up."""
        self._records = {name: _Record(told=record.told) for name, record in self._records.items()}
