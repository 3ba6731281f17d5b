"""Sums of smoothed sliced histograms in Torch operations, for CUDA: exact, so with the bits of `slicing.histogram`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dpsw_ray.slicing.drift_torch import smoothing_matrix
from dpsw_ray.slicing.grid import PHASES, BinGrid

__all__ = ["TorchHistograms"]

_PAIRS = 1 << 24  # of records and directions at a time: bounds the memory of what is between two operations


class TorchHistograms:
    """Counts records in the fine cells of every class and direction; smooths once, when all are counted."""

    def __init__(
        self,
        directions: NDArray[np.float64],
        grid: BinGrid,
        kernel: NDArray[np.int64],
        classes: int,
        device: str = "cuda",
    ) -> None:
        """Makes room on the device: 8 bytes for every class, direction and fine cell.

        Args:
            directions: array of size [K, d] on the lattice.
            grid: bins and smoothing.
            kernel: array of size [PHASES, taps], the integer rows to bin with (`BinGrid.table`).
            classes: number of cell blocks C.
            device: of Torch.

        Raises:
            ValueError: the kernel is not one of the grid: its rows would reach beyond the bins.
        """
        if kernel.shape != (PHASES, 2 * grid.margin + 1):
            raise ValueError(
                f"the kernel has shape {kernel.shape}, not one of a grid with margin {grid.margin}"
            )
        self._device = device
        self._grid = grid
        self._directions = torch.as_tensor(directions.copy(), device=device)
        self._smooth = smoothing_matrix(grid, kernel, device)
        shape = (classes, len(directions), grid.bins * PHASES)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(self, latents: NDArray[np.float64], labels: NDArray[np.int32]) -> None:
        """Counts records.

        Args:
            latents: array of size [n, d] on the lattice of `round_to_lattice`, norms below 1.
            labels: array of size [n], the cell block of each record; negative: a null record, which is not counted.
        """
        known = labels >= 0
        blocks = torch.as_tensor(labels[known].astype(np.int64), device=self._device)
        x = torch.as_tensor(latents[known], device=self._device)
        count, cells = self._counts.shape[1:]
        step = max(1, _PAIRS // count)
        first_cell = torch.arange(count, device=self._device) * cells
        for s in range(0, len(x), step):
            z = x[s : s + step] @ self._directions.T
            fine = ((z - self._grid.low) * (PHASES / self._grid.width)).to(torch.int64)
            fine += blocks[s : s + step, None] * (count * cells) + first_cell
            self._counts.view(-1).index_add_(0, fine.view(-1), torch.ones_like(fine).view(-1))

    def total(self) -> NDArray[np.int64]:
        """The sums: array of size [C, K, bins]."""
        total = np.empty((*self._counts.shape[:2], self._grid.bins), dtype=np.int64)
        for block, counts in zip(total, self._counts, strict=True):
            # Integers below 2^53 in float64: the products and sums are exact, and cuBLAS has no integer product.
            block[:] = (counts.double() @ self._smooth).to(torch.int64).cpu().numpy()
        return total
