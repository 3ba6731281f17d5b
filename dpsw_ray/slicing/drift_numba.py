"""The drift on CPU: blocks of particles against groups of directions, in passes the compiler can vectorise.

Projections, displacements and their sums are multiples of a fixed unit below 2^53 of it, so float64 holds them
exactly in any order: such sums may be contracted and re-associated freely (`_EXACT`). The few formulas that round
(cell index, interpolation, the map of the edges) may not, and are those of `drift_torch`.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.drift import COST_UNIT, DISPLACEMENT_UNIT, DRIFT_UNIT, Slices
from dpsw_ray.slicing.grid import PHASES, SCALE

__all__ = ["drift_numba"]

_BLOCK = 512  # particles: what a pass reads and writes of them stays in the nearest caches
_GROUP = 16  # directions summed in float64 before a flush to int64: 2^-46 * 2^53 bounds their exact sums
_LANES = 8  # coordinates multiplied in one pass; particles and directions are padded with zeros
_EXACT = {"contract", "reassoc", "nsz"}


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_EXACT)
def _project(x, start, stop, theta, z, at):  # type: ignore[no-untyped-def]
    """Projects particles on two directions, a coordinate being loaded once for both, to `z[:, at:]`."""
    n = stop - start
    z0, z1 = z[0, at : at + n], z[1, at : at + n]
    for k in range(0, x.shape[0], _LANES):
        x0, x1, x2, x3 = x[k, start:stop], x[k + 1, start:stop], x[k + 2, start:stop], x[k + 3, start:stop]
        x4, x5, x6, x7 = (
            x[k + 4, start:stop],
            x[k + 5, start:stop],
            x[k + 6, start:stop],
            x[k + 7, start:stop],
        )
        t, u = theta[0, k : k + _LANES], theta[1, k : k + _LANES]
        t0, t1, t2, t3, t4, t5, t6, t7 = t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]
        u0, u1, u2, u3, u4, u5, u6, u7 = u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7]
        if k == 0:
            z0[:] = 0.0
            z1[:] = 0.0
        for i in range(n):
            a = x0[i] * t0 + x1[i] * t1 + x2[i] * t2 + x3[i] * t3
            b = x0[i] * u0 + x1[i] * u1 + x2[i] * u2 + x3[i] * u3
            a += x4[i] * t4 + x5[i] * t5 + x6[i] * t6 + x7[i] * t7
            b += x4[i] * u4 + x5[i] * u5 + x6[i] * u6 + x7[i] * u7
            z0[i] += a
            z1[i] += b


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _count(z, low, to_fine, bins, cells, histogram):  # type: ignore[no-untyped-def]
    """Counts fine cells; replaces projections by bins and, in `z`, the share of the bin that lies below.

    Dividing by PHASES, a power of two, is exact: bin and share are those of the position in bins.
    """
    n = z.size
    for i in range(n):
        position = (z[i] - low) * to_fine
        cell = np.int32(position)
        b = cell // np.int32(PHASES)
        cells[i] = cell
        bins[i] = b
        z[i] = position * (1.0 / PHASES) - b
    for i in range(n):
        histogram[np.uint64(cells[i])] += np.int32(1)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_EXACT)
def _smooth(histogram, margin, kernel_t, buffer, mass, coarse):  # type: ignore[no-untyped-def]
    """Sums the fine cells of every bin into `mass` and, through the integer kernel, into `coarse`: exact."""
    bins = mass.size
    mass[:] = 0.0
    coarse[:] = 0.0
    for b in range(margin, bins - margin):
        cells = histogram[b * PHASES : (b + 1) * PHASES]
        here = 0.0
        for p in range(PHASES):
            buffer[p] = cells[p]
            here += buffer[p]
        if here == 0.0:
            continue
        mass[b] = here
        for tap in range(kernel_t.shape[0]):
            row = kernel_t[tap]
            add = 0.0
            for p in range(PHASES):
                add += buffer[p] * row[p]
            coarse[b - margin + tap] += add


@numba.njit(nogil=True, cache=True)
def _nodes(mass, coarse, count, cdf, edges, width, out, rise):  # type: ignore[no-untyped-def]
    """Displacements at the bins' ends and their rise across each bin, in DISPLACEMENT_UNIT.

    Returns the squared distance.
    """
    bins = edges.size - 1
    inverse = 1.0 / (np.float64(count) * SCALE)
    risen = 0.0
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
    cost = 0.0
    for b in range(bins):
        rise[b] = out[b + 1] - out[b]
        cost += mass[b] * (out[b] * out[b] + out[b] * out[b + 1] + out[b + 1] * out[b + 1])
    return cost * DISPLACEMENT_UNIT * DISPLACEMENT_UNIT / (3.0 * count)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _interpolate(z, bins, nodes, rise):  # type: ignore[no-untyped-def]
    """Replaces shares of bins by whole displacements."""
    n = z.size
    for i in range(n):
        b = np.uint64(bins[i])
        z[i] = nodes[b] + z[i] * rise[b]
    for i in range(n):
        z[i] = np.rint(z[i])


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_EXACT)
def _accumulate(z, start, stop, theta, total, at):  # type: ignore[no-untyped-def]
    """Adds a group's displacements along its directions; unrolled, so that a sum never leaves its register."""
    n = stop - start
    z0, z1, z2, z3 = z[0, start:stop], z[1, start:stop], z[2, start:stop], z[3, start:stop]
    z4, z5, z6, z7 = z[4, start:stop], z[5, start:stop], z[6, start:stop], z[7, start:stop]
    z8, z9, z10, z11 = z[8, start:stop], z[9, start:stop], z[10, start:stop], z[11, start:stop]
    z12, z13, z14, z15 = z[12, start:stop], z[13, start:stop], z[14, start:stop], z[15, start:stop]
    for k in range(total.shape[0]):
        t = theta[:, k]
        t0, t1, t2, t3, t4, t5, t6, t7 = t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]
        t8, t9, t10, t11, t12, t13, t14, t15 = t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15]
        into = total[k, at : at + n]
        for i in range(n):
            s = z0[i] * t0 + z1[i] * t1 + z2[i] * t2 + z3[i] * t3
            s += z4[i] * t4 + z5[i] * t5 + z6[i] * t6 + z7[i] * t7
            s += z8[i] * t8 + z9[i] * t9 + z10[i] * t10 + z11[i] * t11
            s += z12[i] * t12 + z13[i] * t13 + z14[i] * t14 + z15[i] * t15
            into[i] += np.int64(s * (DISPLACEMENT_UNIT / DRIFT_UNIT))


@numba.njit(nogil=True, cache=True)
def _drift(x, offsets, directions, first, last, low, width, margin, kernel_t, cdf, edges, total, cost, unit):  # type: ignore[no-untyped-def]
    """Adds the directions `first` to `last`; `x`, `directions` and `total` are padded; `unit` is that of `cost`."""
    bins = edges.size - 1
    largest = 0
    for c in range(offsets.size - 1):
        largest = max(largest, offsets[c + 1] - offsets[c])
    histogram = np.empty((_GROUP, bins * PHASES), np.int32)
    buffer, mass, coarse = np.empty(PHASES), np.empty(bins), np.empty(bins)
    nodes, rise = np.empty((_GROUP, bins + 1)), np.empty((_GROUP, bins))
    cells = np.empty(_BLOCK, np.int32)
    theta = np.empty((_GROUP, directions.shape[1]))
    z, bins_of = np.zeros((_GROUP, largest)), np.empty((_GROUP, largest), np.int16)
    for c in range(offsets.size - 1):
        begin, n = offsets[c], offsets[c + 1] - offsets[c]
        for j in range(first, last if n else first, _GROUP):
            group = min(_GROUP, last - j)
            theta[:group] = directions[j : j + group]
            theta[group:] = 0.0  # the rest of an incomplete group adds nothing
            histogram[:] = 0
            for s in range(0, n, _BLOCK):
                e = min(n, s + _BLOCK)
                for g in range(0, group, 2):
                    _project(x, begin + s, begin + e, theta[g : g + 2], z[g : g + 2], s)
                for g in range(group):
                    _count(z[g, s:e], low, PHASES / width, bins_of[g, s:e], cells, histogram[g])
            for g in range(group):
                _smooth(histogram[g], margin, kernel_t, buffer, mass, coarse)
                squared = _nodes(mass, coarse, n, cdf[c, j + g], edges, width, nodes[g], rise[g])
                cost[c] += np.int64(np.rint(squared / unit))
            for s in range(0, n, _BLOCK):
                e = min(n, s + _BLOCK)
                for g in range(group):
                    _interpolate(z[g, s:e], bins_of[g, s:e], nodes[g], rise[g])
                _accumulate(z, s, e, theta, total, begin + s)


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
    grid, count = slices.grid, len(slices.directions)
    padding = -dim % _LANES
    x = np.zeros((dim + padding, n))
    x[:dim] = particles.T
    directions = np.zeros((count, dim + padding))
    directions[:, :dim] = slices.directions
    kernel_t = slices.kernel.T.astype(np.float64, order="C")
    cdf, edges, ends = _read_only(slices.cdf), _read_only(grid.edges), _read_only(offsets)

    def work(first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        total = np.zeros((dim, n), dtype=np.int64)
        cost = np.zeros(len(offsets) - 1, dtype=np.int64)
        _drift(
            x, ends, directions, first, last, grid.low, grid.width, grid.margin, kernel_t, cdf, edges, total, cost,
            COST_UNIT,
        )  # fmt: skip
        return total, cost

    cuts = [count * i // threads for i in range(threads + 1)]
    others = [_pool(threads - 1).submit(work, cuts[i], cuts[i + 1]) for i in range(1, threads)]
    total, cost = work(cuts[0], cuts[1])
    for other in others:
        other_total, other_cost = other.result()
        total += other_total
        cost += other_cost
    return np.ascontiguousarray(total.T), cost


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view: Numba compiles for writable and read-only arrays anew, and workers receive the latter."""
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept from step to step: starting threads takes as long as part of a step."""
    return ThreadPoolExecutor(threads)
