"""The driver's side of a division: takes steps on a cluster, and brings workers back that have lost their particles."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.cluster.groups import Args, Cluster, WorkerDied, WorkerGroup
from dpsw_ray.flow.division import Division
from dpsw_ray.flow.step import Course
from dpsw_ray.flow.worker import BlockWorker, DriftWorker
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.drift_numba import map_histograms
from dpsw_ray.tables.quantiles import Targets

__all__ = ["Mover", "open_mover"]

_CALL_S = 0.5  # of steps in one call: what a person waits to see that something moves
_PIECE_BYTES = 8 << 20  # of particles in one call: more would stand in memory beside the block
_REPEATED = 5  # steps that are repeated before the driver knows their particles: another loss costs no more
_MOST_LOSSES = 5  # one after the other at the same step: what dies that often dies of the step itself

Costs = list[NDArray[np.int64]]
T = TypeVar("T")


class Mover(Protocol):
    """Particles on their course."""

    def advance(self, most: int) -> Costs:
        """Takes one step or more, at most `most`.

        Returns:
            For every step that was taken the cost of each class, array of size [C] in COST_UNIT.
        """

    def particles(self) -> NDArray[np.float64]:
        """Where they are: array of size [n, d]. Costs a transfer where workers keep them."""

    def some(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Where those with these numbers, in ascending order, are: array of size [m, d]. No other is transferred."""

    def close(self) -> None:
        """Lets the workers forget everything."""


def open_mover(
    division: Division,
    cluster: Cluster,
    rounds: Sequence[Targets],
    course: Course,
    offsets: NDArray[np.int64],
    particles: NDArray[np.float64],
    step: int,
    *,
    threads: int,
) -> Mover:
    """Puts the work on a cluster.

    Args:
        division: of the work.
        cluster: who computes.
        rounds: the targets.
        course: of the flow.
        offsets: array of size [C + 1]: class c owns the particles offsets[c] to offsets[c + 1].
        particles: array of size [n, d], where they are before `step`.
        step: number of the step.
        threads: threads per worker.
    """
    if division.by == "directions":
        return _ByDirections(cluster, rounds, course, offsets, particles, step, threads)
    return _Blocks(division, cluster, rounds, course, offsets, particles, step, threads)


class _ByDirections:
    """The driver keeps the particles; a call is a pure function of them."""

    def __init__(
        self,
        cluster: Cluster,
        rounds: Sequence[Targets],
        course: Course,
        offsets: NDArray[np.int64],
        particles: NDArray[np.float64],
        step: int,
        threads: int,
    ) -> None:
        self._course, self._offsets = course, offsets
        self._particles, self._step = particles, step
        cuts = np.linspace(0, course.directions, min(cluster.size, course.directions) + 1).astype(int)
        blocks = [slice(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
        self._workers = cluster.spawn(
            DriftWorker,
            [
                {
                    "rounds": [targets.slices.select(block) for targets in rounds],
                    "start": block.start,
                    "kernel": course.config.kernel,
                    "threads": threads,
                }
                for block in blocks
            ],
        )

    def advance(self, most: int) -> Costs:
        step, course = self._step, self._course
        parts = self._workers.call(
            "drift", (self._particles, self._offsets, course.round(step), course.chosen(step)), retry=True
        )
        total = sum(part for part, _ in parts)  # int64: the same bits in any order
        self._particles = course.step(step)(self._particles, total)
        self._step += 1
        return [sum(part for _, part in parts)]

    def particles(self) -> NDArray[np.float64]:
        return self._particles

    def some(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._particles[rows]

    def close(self) -> None:
        self._workers.close()


class _Blocks:
    """The workers keep the particles.

    A worker that died is built anew without them. The driver knows all particles of some earlier step, loads every
    worker with its block of those, and repeats the steps since: to the same bits, as a step is a pure function.
    """

    def __init__(
        self,
        division: Division,
        cluster: Cluster,
        rounds: Sequence[Targets],
        course: Course,
        offsets: NDArray[np.int64],
        particles: NDArray[np.float64],
        step: int,
        threads: int,
    ) -> None:
        self._rounds, self._course, self._offsets = rounds, course, offsets
        self._blocks = [_block(offsets, int(a), int(b)) for a, b in itertools.pairwise(division.cuts)]
        self._alone = division.by == "classes"
        self._known = step, particles
        self._step = self._furthest = step
        self._losses = 0
        self._steps_per_call = 1
        self._nodes: NDArray[np.float64] | None = None
        self._at_once = 0
        self._workers: WorkerGroup = cluster.spawn(
            BlockWorker,
            [
                {
                    "rounds": [self._held(targets.slices, block["classes"]) for targets in rounds],
                    "course": course,
                    "kernel": course.config.kernel,
                    "threads": threads,
                }
                for block in self._blocks
            ],
        )
        self._load()

    def advance(self, most: int) -> Costs:
        start = time.perf_counter()
        count = min(most, self._steps_per_call)
        costs = self._there(lambda: self._take(count))
        took = time.perf_counter() - start
        self._steps_per_call = max(
            1, self._steps_per_call // 2 if took > _CALL_S else 2 * self._steps_per_call
        )
        return costs

    def particles(self) -> NDArray[np.float64]:
        if self._known[0] != self._furthest:
            self._known = self._furthest, self._there(self._collect)
        return self._known[1]

    def some(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        if self._known[0] == self._furthest:
            return self._known[1][rows]
        return self._there(lambda: self._choose(rows))

    def close(self) -> None:
        self._workers.close()

    def _held(self, slices: Slices, classes: tuple[int, int]) -> Slices:
        """What a worker needs of a round: targets only where nobody else has to be asked."""
        cdf = slices.cdf[slice(*classes) if self._alone else slice(0, 0)]
        return Slices(slices.directions, slices.grid, slices.kernel, np.ascontiguousarray(cdf))

    def _there(self, act: Callable[[], T | None]) -> T:
        """Acts after the last step that was taken; brings workers back there first when one has lost its block."""
        while True:
            if self._step < self._furthest:
                count = min(_REPEATED, self._furthest - self._step)
                if (particles := self._repeat(self._step + count)) is not None:
                    self._known, self._losses = (self._step, particles), 0
                    continue
            elif (result := act()) is not None:
                if self._step > self._furthest:
                    self._furthest, self._losses = self._step, 0
                return result
            self._load()

    def _repeat(self, goal: int) -> NDArray[np.float64] | None:
        while self._step < goal:
            if self._take(goal - self._step) is None:
                return None
        return self._collect()

    def _load(self) -> None:
        """Gives every worker its block of the particles that are known."""
        (step, particles), placed = self._known, False
        while not placed:
            self._step, self._nodes = step, None
            loads = [
                (step, block["offsets"], block["rows"].start, block["classes"]) for block in self._blocks
            ]
            self._at_once = min(self._workers.call("load", loads, retry=True))
            placed = all(
                self._ask("put", [(step, first, particles[rows]) for first, rows in pieces]) is not None
                for pieces in self._pieces()
            )

    def _pieces(self) -> Iterator[list[tuple[int, slice]]]:
        """For every block where a piece of it begins, and the rows of all particles that it is; piece by piece."""
        each = max(1, _PIECE_BYTES // (8 * self._course.dim))
        sizes = [block["rows"].stop - block["rows"].start for block in self._blocks]
        for first in range(0, max(sizes), each):
            bounds = [(min(first, size), min(first + each, size)) for size in sizes]
            starts = [block["rows"].start for block in self._blocks]
            yield [(a, slice(start + a, start + b)) for start, (a, b) in zip(starts, bounds, strict=True)]

    def _take(self, count: int) -> Costs | None:
        """Takes at most `count` steps; None when a worker has lost its block."""
        if not self._alone:
            cost = self._exchange()
            return None if cost is None else [cost]
        answers = self._ask("advance", (self._step, count))
        if answers is None:
            return None
        costs = np.zeros((count, len(self._offsets) - 1), np.int64)
        for block, answer in zip(self._blocks, answers, strict=True):
            costs[:, slice(*block["classes"])] = answer
        self._step += count
        return list(costs)

    def _exchange(self) -> NDArray[np.int64] | None:
        """Takes one step, a group of directions at a time: as many as workers hold the projections of."""
        step, course = self._step, self._course
        slices, chosen, sizes = (
            self._rounds[course.round(step)].slices,
            course.chosen(step),
            np.diff(self._offsets),
        )
        cost = np.zeros(len(sizes), dtype=np.int64)
        for first in range(0, course.used, self._at_once):
            last = min(first + self._at_once, course.used)
            answers = self._ask("turn", (step, first, last, self._nodes))
            if answers is None:
                return None
            counts = np.zeros((2, len(sizes), last - first, slices.grid.bins), dtype=np.int64)
            for block, answer in zip(self._blocks, answers, strict=True):
                counts[:, slice(*block["classes"])] += answer  # int64: the same bits in any order
            part = slices.select(slice(first, last) if chosen is None else chosen[first:last])
            self._nodes, more = map_histograms(counts, sizes, part)
            cost += more
        self._step += 1
        return cost

    def _finish(self) -> bool:
        """Ends the step that an exchange left open; False when a worker has lost its block."""
        if self._nodes is not None and self._ask("finish", (self._step, self._nodes)) is None:
            return False
        self._nodes = None
        return True

    def _choose(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if not self._finish():
            return None
        bounds = [(block["rows"].start, block["rows"].stop) for block in self._blocks]
        wanted = [(self._step, rows[(rows >= start) & (rows < stop)] - start) for start, stop in bounds]
        parts = self._ask("chosen", wanted)
        return None if parts is None else np.concatenate(parts)

    def _collect(self) -> NDArray[np.float64] | None:
        if not self._finish():
            return None
        particles = np.empty((int(self._offsets[-1]), self._course.dim))
        for pieces in self._pieces():
            wanted = [(self._step, first, first + rows.stop - rows.start) for first, rows in pieces]
            parts = self._ask("positions", wanted)
            if parts is None:
                return None
            for (_, rows), part in zip(pieces, parts, strict=True):
                particles[rows] = part
        return particles

    def _ask(self, method: str, args: Args) -> list[Any] | None:
        answers = self._workers.call(method, args, retry=True)
        lost = [rank for rank, answer in enumerate(answers) if answer is None]
        if not lost:
            return answers
        self._losses += 1
        if self._losses > _MOST_LOSSES:
            raise WorkerDied(lost[0], len(answers), f"step {self._furthest + 1} of the flow, again and again")
        return None


def _block(offsets: NDArray[np.int64], first: int, last: int) -> dict[str, Any]:
    """Rows, classes and the classes' places in it of the block of particles `first` to `last`."""
    lowest = int(np.searchsorted(offsets, first, side="right")) - 1
    highest = int(np.searchsorted(offsets, last, side="left"))
    return {
        "rows": slice(first, last),
        "classes": (lowest, highest),
        "offsets": np.clip(offsets[lowest : highest + 1], first, last) - first,
    }
