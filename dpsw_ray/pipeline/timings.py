"""Where a run's time goes, as far as it may be told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dpsw_ray.cluster import Cluster

__all__ = ["Timings"]


@dataclass
class Timings:
    """Seconds by phase. Phases that touch private records are left out where their length would tell of them."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, *, hidden: bool = False, on: Cluster | None = None) -> Iterator[None]:
        """Counts what runs inside, unless it is hidden.

        Args:
            name: of the phase.
            hidden: its length would tell of private records, such as how many there are.
            on: a cluster that works in this phase: its time is then divided into what the workers computed, what went
                into moving arguments and results (and waiting for the slowest), and what this process did.
        """
        start, before = time.perf_counter(), on.meter if on else None
        yield
        parts = {"": time.perf_counter() - start}
        if on is not None and before is not None:
            spent = on.meter - before
            parts = {
                ": kernels": spent.worked,
                ": communication": max(0.0, spent.waited - spent.worked),
                ": driver": max(0.0, parts[""] - spent.waited),
            }
        if not hidden:
            self.seconds |= {name + part: round(seconds, 3) for part, seconds in parts.items()}
