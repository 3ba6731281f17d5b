"""Sums of smoothed sliced histograms over records: int64, exact, the same for any order and any sharding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.grid import PHASES, BinGrid

__all__ = ["add_histograms"]


@numba.njit(nogil=True, cache=True)
def _add(latents, labels, directions_t, low, inverse_step, margin, table, out):  # type: ignore[no-untyped-def]
    n, dim = latents.shape
    count = directions_t.shape[1]
    taps = table.shape[1]
    z = np.empty(count)
    for i in range(n):
        label = labels[i]
        if label < 0:
            continue
        z[:] = 0.0
        for k in range(dim):
            x = latents[i, k]
            for j in range(count):
                z[j] += x * directions_t[k, j]
        for j in range(count):
            fine = np.int64((z[j] - low) * inverse_step)  # z > low: truncation is the floor
            row = table[fine % PHASES]
            first = fine // PHASES - margin
            for tap in range(taps):
                out[label, j, first + tap] += row[tap]


def add_histograms(
    latents: NDArray[np.float64],
    labels: NDArray[np.int32],
    directions: NDArray[np.float64],
    grid: BinGrid,
    kernel: NDArray[np.int64],
    out: NDArray[np.int64],
    threads: int = 1,
) -> None:
    """Adds every record's smoothed bin vectors to `out`.

    Args:
        latents: array of size [n, d] on the lattice of `round_to_lattice`, norms below 1.
        labels: array of size [n], the cell block of each record; negative: a null record, which adds nothing.
        directions: array of size [K, d] on the lattice.
        grid: bins and smoothing.
        kernel: array of size [PHASES, taps], the integer rows to bin with (`BinGrid.table`).
        out: array of size [C, K, bins], changed in place.
        threads: directions are divided among this many threads.

    Raises:
        ValueError: the kernel is not one of the grid: its rows would reach beyond the bins.
    """
    if kernel.shape != (PHASES, 2 * grid.margin + 1):
        raise ValueError(f"the kernel has shape {kernel.shape}, not one of a grid with margin {grid.margin}")
    blocks = np.array_split(np.arange(len(directions)), min(threads, len(directions)))

    def work(block: NDArray[np.intp]) -> None:
        part = slice(int(block[0]), int(block[-1]) + 1)
        transposed = np.ascontiguousarray(directions[part].T)
        _add(latents, labels, transposed, grid.low, PHASES / grid.width, grid.margin, kernel, out[:, part])

    if len(blocks) == 1:
        work(blocks[0])
    else:
        with ThreadPoolExecutor(len(blocks)) as pool:
            list(pool.map(work, blocks))
