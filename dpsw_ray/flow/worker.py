"""One worker of the flow: a block of directions, and the drift of all particles along them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.drift_numba import drift_numba

__all__ = ["DriftWorker"]

Drift = tuple[NDArray[np.int64], NDArray[np.int64]]


class DriftWorker:
    """Holds slices of a release, never a record: a plain class that an actor wraps."""

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
        self._kernel = kernel
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
        if self._kernel != "numba":
            import torch

            from dpsw_ray.slicing.drift_torch import TorchDrift

            if self._kernel == "torch" or torch.cuda.is_available():
                return TorchDrift(slices, "cuda" if torch.cuda.is_available() else "cpu")
        return lambda particles, offsets: drift_numba(particles, offsets, slices, self._threads)
