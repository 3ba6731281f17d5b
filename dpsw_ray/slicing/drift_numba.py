"""The drift on CPU: one fused loop per direction, in which everything stays in the cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.drift import COST_UNIT, DISPLACEMENT_UNIT, DRIFT_UNIT, Slices
from dpsw_ray.slicing.grid import PHASES, SCALE

__all__ = ["drift_numba"]

_BLOCK = 1024  # particles: a block's projections and sums stay in the first-level cache
_GROUP = (
    16  # directions summed in float64 before a flush to int64: 2^-46 * 2^53 bounds the group's exact sums
)


@numba.njit(nogil=True, cache=True)
def _nodes(fine, count, margin, kernel, cdf, edges, width, coarse, out):  # type: ignore[no-untyped-def]
    """Displacements at the bins' ends, in DISPLACEMENT_UNIT, from the fine histogram; returns the squared distance."""
    bins = edges.size - 1
    taps = kernel.shape[1]
    coarse[:] = 0
    for b in range(margin, bins - margin):
        for p in range(PHASES):
            here = np.int64(fine[b * PHASES + p])
            if here != 0:
                for tap in range(taps):
                    coarse[b - margin + tap] += here * kernel[p, tap]
    inverse = 1.0 / (np.float64(count) * SCALE)
    risen = np.int64(0)
    left = right = 0
    for b in range(bins + 1):
        u = risen * inverse
        x = edges[b]
        # `left` and `right` only ever move up: u and cdf are both non-decreasing.
        while left < bins and cdf[left] < u:
            left += 1
        low = edges[left]
        if left > 0 and cdf[left] >= u:
            low = edges[left - 1] + width * (u - cdf[left - 1]) / (cdf[left] - cdf[left - 1])
        while right <= bins and cdf[right] <= u:
            right += 1
        if right > bins:
            high = edges[bins]
        else:
            high = edges[right - 1] + width * (u - cdf[right - 1]) / (cdf[right] - cdf[right - 1])
        out[b] = (min(max(x, low), high) - x) / DISPLACEMENT_UNIT
        if b < bins:
            risen += coarse[b]
    out[bins + 1] = out[bins]
    cost = 0.0
    for b in range(margin, bins - margin):
        here = np.int64(0)
        for p in range(PHASES):
            here += fine[b * PHASES + p]
        cost += here * (out[b] * out[b] + out[b] * out[b + 1] + out[b + 1] * out[b + 1])
    return cost * DISPLACEMENT_UNIT * DISPLACEMENT_UNIT / (3.0 * count)


@numba.njit(nogil=True, cache=True)
def _drift(xt, offsets, directions, low, width, margin, kernel, cdf, edges, total, cost):  # type: ignore[no-untyped-def]
    dim = xt.shape[0]
    count = directions.shape[0]
    bins = edges.size - 1
    largest = 0
    for c in range(offsets.size - 1):
        largest = max(largest, offsets[c + 1] - offsets[c])
    fine = np.zeros((2, bins * PHASES), np.int32)
    coarse = np.zeros(bins, np.int64)
    nodes = np.zeros((_GROUP, bins + 2))
    z = np.empty((_GROUP, largest))
    sums = np.empty((dim, _BLOCK))
    to_fine = PHASES / width
    to_bin = 1.0 / width
    for c in range(offsets.size - 1):
        first = offsets[c]
        n = offsets[c + 1] - first
        if n == 0:
            continue
        for j0 in range(0, count, _GROUP):
            group = min(_GROUP, count - j0)
            for g in range(group):
                fine[:] = 0
                for s in range(0, n, _BLOCK):
                    e = min(n, s + _BLOCK)
                    zb = z[g, s:e]
                    zb[:] = 0.0
                    for k in range(dim):
                        t = directions[j0 + g, k]
                        xb = xt[k, first + s : first + e]
                        for i in range(e - s):
                            zb[i] += xb[i] * t
                    for i in range(e - s):
                        zb[i] -= low
                    # Two histograms in turn: neighbours in one bin would wait for each other's store.
                    for i in range(0, e - s - 1, 2):
                        fine[0, np.int32(zb[i] * to_fine)] += 1
                        fine[1, np.int32(zb[i + 1] * to_fine)] += 1
                    if (e - s) % 2:
                        fine[0, np.int32(zb[e - s - 1] * to_fine)] += 1
                for f in range(fine.shape[1]):
                    fine[0, f] += fine[1, f]
                j = j0 + g
                squared = _nodes(fine[0], n, margin, kernel, cdf[c, j], edges, width, coarse, nodes[g])
                cost[c] += np.int64(np.rint(squared / COST_UNIT))
            for s in range(0, n, _BLOCK):
                e = min(n, s + _BLOCK)
                sums[:] = 0.0
                for g in range(group):
                    zb = z[g, s:e]
                    node = nodes[g]
                    for i in range(e - s):
                        f = zb[i] * to_bin
                        b = np.int32(f)
                        zb[i] = np.rint(node[b] + (f - b) * (node[b + 1] - node[b]))
                    for k in range(dim):
                        t = directions[j0 + g, k]
                        row = sums[k]
                        for i in range(e - s):
                            row[i] += zb[i] * t
                for k in range(dim):
                    row = sums[k]
                    into = total[k, first + s : first + e]
                    for i in range(e - s):
                        into[i] += np.int64(row[i] * (DISPLACEMENT_UNIT / DRIFT_UNIT))


def drift_numba(
    particles: NDArray[np.float64], offsets: NDArray[np.int64], slices: Slices, threads: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sums displacements over all directions, exactly.

    Args:
        particles: array of size [n, d] in the unit ball, on the lattice, sorted by class.
        offsets: array of size [C + 1]: class c owns the particles offsets[c] to offsets[c + 1].
        slices: the targets.
        threads: directions are divided among this many threads; the result does not depend on it.

    Returns:
        Array of size [n, d] in DRIFT_UNIT and array of size [C] in COST_UNIT; see `drift_reference`.
    """
    n, dim = particles.shape
    xt = np.ascontiguousarray(particles.T)
    grid = slices.grid
    blocks = [block for block in np.array_split(np.arange(len(slices.directions)), threads) if len(block)]

    def work(block: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        part = slice(int(block[0]), int(block[-1]) + 1)
        total = np.zeros((dim, n), dtype=np.int64)
        cost = np.zeros(len(offsets) - 1, dtype=np.int64)
        _drift(
            xt, offsets, slices.directions[part], grid.low, grid.width, grid.margin, slices.kernel,
            slices.cdf[:, part], grid.edges, total, cost,
        )  # fmt: skip
        return total, cost

    if len(blocks) == 1:
        parts = [work(blocks[0])]
    else:
        with ThreadPoolExecutor(len(blocks)) as pool:
            parts = list(pool.map(work, blocks))
    total, cost = parts[0]
    for other_total, other_cost in parts[1:]:
        total += other_total
        cost += other_cost
    return np.ascontiguousarray(total.T), cost
