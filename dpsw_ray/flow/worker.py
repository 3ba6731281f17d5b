"""The flow's workers: one holds directions and is handed particles, one keeps particles. Neither sees a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.flow.step import Course, Step
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.drift_numba import NumbaBlock, drift_numba

__all__ = ["BlockWorker", "DriftWorker"]

Drift = tuple[NDArray[np.int64], NDArray[np.int64]]


class DriftWorker:
    """Holds a block of directions with their targets: a plain class that an actor wraps."""

    def __init__(self, rounds: Sequence[Slices], start: int, kernel: str = "auto", threads: int = 1) -> None:
        """Takes its block of directions.

        Args:
            rounds: directions and target CDFs of every round.
            start: number of the block's first direction in its round.
            kernel: `numba` (CPU), `torch` (CUDA where there is a GPU, else CPU), or `auto`: Torch where this
                process has a GPU, Numba elsewhere.
            threads: threads of the CPU kernel.
        """
        self._rounds = rounds
        self._start = start
        self._device = _device(kernel)
        self._threads = threads
        self._made: tuple[int, Callable[..., Drift]] | None = None

    def drift(
        self,
        particles: NDArray[np.float64],
        offsets: NDArray[np.int64],
        number: int = 0,
        chosen: NDArray[np.int64] | None = None,
    ) -> Drift:
        """This block's contribution for all particles; see `slicing.drift_numba.drift_numba`.

        Args:
            particles: array of size [n, d].
            offsets: array of size [C + 1].
            number: of the round.
            chosen: numbers of the round's directions to use, in ascending order; None for all.
        """
        if chosen is None:
            if self._made is None or self._made[0] != number:
                self._made = number, self._prepare(self._rounds[number])
            return self._made[1](particles, offsets)
        count = len(self._rounds[number].directions)
        mine = chosen[(chosen >= self._start) & (chosen < self._start + count)] - self._start
        if not len(mine):
            return np.zeros(particles.shape, np.int64), np.zeros(len(offsets) - 1, np.int64)
        return self._prepare(self._rounds[number].select(mine))(particles, offsets)

    def _prepare(self, slices: Slices) -> Callable[..., Drift]:
        if self._device is not None:
            from dpsw_ray.slicing.drift_torch import TorchDrift

            return TorchDrift(slices, self._device)
        return lambda particles, offsets: drift_numba(particles, offsets, slices, self._threads)


class Block(Protocol):
    """`slicing.drift_numba.NumbaBlock` or `slicing.drift_torch.TorchBlock`."""

    offsets: NDArray[np.int64]

    def at_once(self) -> int: ...
    def put(self, first: int, particles: NDArray[np.float64]) -> None: ...
    def count(self, slices: Slices) -> NDArray[np.int64]: ...
    def displace(self, nodes: NDArray[np.float64]) -> None: ...
    def drift(self, slices: Slices) -> NDArray[np.int64]: ...
    def move(self, step: Step) -> None: ...
    def positions(self, first: int = 0, last: int | None = None) -> NDArray[np.float64]: ...


class BlockWorker:
    """Keeps a block of particles from step to step: a plain class that an actor wraps.

    What it keeps is lost with it. Every call therefore names where in the flow the worker must be, and a worker that is
    somewhere else, or was built anew, answers None: the driver then loads all blocks and repeats the steps since. So a
    call that was repeated behind its back moves no particle twice.
    """

    def __init__(
        self, rounds: Sequence[Slices], course: Course, kernel: str = "auto", threads: int = 1
    ) -> None:
        """Takes what does not change; there are no particles before `load`.

        Args:
            rounds: directions of every round, and the targets of the classes that the worker holds whole (none where
                it only counts).
            course: of the flow.
            kernel: as for `DriftWorker`.
            threads: threads of the CPU kernel.
        """
        self._rounds = rounds
        self._course = course
        self._device = _device(kernel)
        self._threads = threads
        self._block: Block | None = None
        self._offset = 0
        self._classes = slice(0, 0)
        self._at: tuple[int, int, bool] | None = None  # step, its first direction to count, nodes are owed
        self._put: tuple[int, int] | None = None  # step, and how many particles of it are there

    def load(self, step: int, offsets: NDArray[np.int64], first: int, classes: tuple[int, int]) -> int:
        """Makes room for a block of particles as it is before a step; `put` places them.

        Args:
            step: number of the step.
            offsets: array of size [C' + 1], where in the block its classes begin and end.
            first: number of the block's first particle among all.
            classes: number of its first class, and of the one after its last.

        Returns:
            How many directions `turn` may count.
        """
        self._at = None
        nowhere = np.zeros((int(offsets[-1]), self._course.dim))
        if self._device is None:
            self._block = NumbaBlock(nowhere, offsets, self._threads)
        else:
            from dpsw_ray.slicing.drift_torch import TorchBlock

            self._block = TorchBlock(nowhere, offsets, self._device)
        self._offset = first
        self._classes = slice(*classes)
        self._put = step, 0
        return self._block.at_once()

    def put(self, step: int, first: int, particles: NDArray[np.float64]) -> bool | None:
        """Places some particles of the block, array of size [m, d]: the next ones after those that are there."""
        if self._block is None or self._put != (step, first):
            return None
        self._block.put(first, particles)
        self._put = step, first + len(particles)
        if first + len(particles) == self._block.offsets[-1]:
            self._at = step, 0, False
        return True

    def advance(self, step: int, count: int) -> list[NDArray[np.int64]] | None:
        """Takes `count` steps from `step` on, alone: the block's classes are whole.

        Returns:
            For every step the cost of each of its classes; see `slicing.drift_numba.NumbaBlock.drift`.
        """
        if self._block is None or self._at != (step, 0, False):
            return None
        costs = []
        for number in range(step, step + count):
            self._at = None
            slices, chosen = self._rounds[self._course.round(number)], self._course.chosen(number)
            costs.append(self._block.drift(slices if chosen is None else slices.select(chosen)))
            self._block.move(self._course.step(number, self._offset))
            self._at = number + 1, 0, False
        return costs

    def turn(
        self, step: int, first: int, last: int, nodes: NDArray[np.float64] | None
    ) -> NDArray[np.int64] | None:
        """Displaces along the directions that were counted last, then counts the next ones.

        Args:
            step: number of the step.
            first: of the step's directions, the first to count.
            last: the one after the last.
            nodes: array of size [C, K', bins + 1], what all workers' counts of the last turn came to; None after `load`
                and `finish`.

        Returns:
            Array of size [2, C', K', bins]; see `slicing.drift_numba.map_histograms`.
        """
        if self._block is None or self._at != (step, first, nodes is not None):
            return None
        self._at = None
        if nodes is not None:
            self._displace(nodes, first, step)
        slices, chosen = self._rounds[self._course.round(step)], self._course.chosen(step)
        part = slices.select(slice(first, last) if chosen is None else chosen[first:last])
        counts = self._block.count(part)
        self._at = (step, last, True) if last < self._course.used else (step + 1, 0, True)
        return counts

    def finish(self, step: int, nodes: NDArray[np.float64]) -> bool | None:
        """Displaces along the directions that were counted last before `step`, so that it can begin."""
        if self._block is None or self._at != (step, 0, True):
            return None
        self._at = None
        self._displace(nodes, 0, step)
        self._at = step, 0, False
        return True

    def positions(self, step: int, first: int, last: int) -> NDArray[np.float64] | None:
        """The particles `first` to `last` of the block before a step: array of size [m, d]."""
        if self._block is None or self._at != (step, 0, False):
            return None
        return self._block.positions(first, last)

    def chosen(self, step: int, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Some particles of the block, by their numbers in it, before a step: array of size [m, d]."""
        if self._block is None or self._at != (step, 0, False):
            return None
        return self._block.positions()[rows]

    def _displace(self, nodes: NDArray[np.float64], first: int, step: int) -> None:
        assert self._block is not None
        self._block.displace(np.ascontiguousarray(nodes[self._classes]))
        if first == 0:  # those were the last of the step before
            self._block.move(self._course.step(step - 1, self._offset))


def _device(kernel: str) -> str | None:
    """Where Torch computes; None for the Numba kernel."""
    if kernel == "numba":
        return None
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "cpu" if kernel == "torch" else None
