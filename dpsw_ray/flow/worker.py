"""One worker of the flow: a block of directions, and the drift of all particles along them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.drift_numba import drift_numba

__all__ = ["DriftWorker"]

Drift = tuple[NDArray[np.int64], NDArray[np.int64]]


class DriftWorker:
    """Holds slices of a release, never a record: a plain class that an actor wraps."""

    def __init__(self, slices: Slices, kernel: str = "auto", threads: int = 1) -> None:
        """Takes its block of directions.

        Args:
            slices: directions and target CDFs.
            kernel: `numba` (CPU), `torch` (CUDA where there is a GPU, else CPU), or `auto`: Torch where this
                process has a GPU, Numba elsewhere.
            threads: threads of the CPU kernel.
        """
        self._drift = self._choose(slices, kernel, threads)

    def drift(self, particles: NDArray[np.float64], offsets: NDArray[np.int64]) -> Drift:
        """This block's contribution for all particles; see `slicing.drift_numba.drift_numba`."""
        return self._drift(particles, offsets)

    @staticmethod
    def _choose(slices: Slices, kernel: str, threads: int) -> Callable[..., Drift]:
        if kernel != "numba":
            import torch

            from dpsw_ray.slicing.drift_torch import TorchDrift

            if kernel == "torch" or torch.cuda.is_available():
                return TorchDrift(slices, "cuda" if torch.cuda.is_available() else "cpu")
        return lambda particles, offsets: drift_numba(particles, offsets, slices, threads)
