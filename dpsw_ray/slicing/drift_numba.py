"""The drift on CPU: blocks of particles against groups of directions, in passes the compiler can vectorise.

Projections, displacements and their sums are multiples of a fixed unit below 2^53 of it, so float64 holds them
exactly in any order: such sums may be contracted and re-associated freely (`_EXACT`). The few formulas that round
(cell index, interpolation, the map of the edges) may not, and are those of `drift_torch`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.drift import COST_UNIT, DISPLACEMENT_UNIT, DRIFT_UNIT, Slices, check_particles
from dpsw_ray.slicing.grid import PHASES, SCALE

__all__ = ["ROWS", "NumbaBlock", "drift_numba", "map_histograms"]

ROWS = 4096
"""Particles moved at a time."""

_BLOCK = 512  # particles: what a pass reads and writes of them stays in the nearest caches
_GROUP = 16  # directions summed in float64 before a flush to int64: 2^-46 * 2^53 bounds their exact sums
_LANES = 8  # coordinates multiplied in one pass; particles and directions are padded with zeros
_HELD_BYTES = 256 << 20  # of projections kept between counting and displacing
_CLOSE_GROUPS = (
    4  # of directions, for each thread, whose projections are still in the caches when they are used
)
_SMALL_BYTES = 4 << 20  # of sums that stay in the caches while every group of directions passes over them
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
def _count_block(x, offsets, theta, first, last, low, width, margin, kernel_t, z, bins_of, counts):  # type: ignore[no-untyped-def]
    """Counts the directions `first` to `last`, whole groups: masses and smoothed masses to `counts` [2, C, K, bins].

    Particles outside, directions inside: a block of particles is fetched once for all directions.
    """
    bins = counts.shape[3]
    histogram = np.empty((last - first, bins * PHASES), np.int32)
    buffer, mass, coarse = np.empty(PHASES), np.empty(bins), np.empty(bins)
    cells = np.empty(_BLOCK, np.int32)
    for c in range(offsets.size - 1):
        begin, end = offsets[c], offsets[c + 1]
        if begin == end:
            continue
        histogram[:] = 0
        for s in range(begin, end, _BLOCK):
            e = min(end, s + _BLOCK)
            for j in range(first, last, 2):
                _project(x, s, e, theta[j : j + 2], z[j : j + 2], s)
                for g in range(j, j + 2):
                    _count(z[g, s:e], low, PHASES / width, bins_of[g, s:e], cells, histogram[g - first])
        for g in range(first, min(last, counts.shape[2])):
            _smooth(histogram[g - first], margin, kernel_t, buffer, mass, coarse)
            for b in range(bins):
                counts[0, c, g, b] = np.int64(mass[b])
                counts[1, c, g, b] = np.int64(coarse[b])


@numba.njit(nogil=True, cache=True)
def _displace_block(offsets, theta, first, last, z, bins_of, nodes, rise, total):  # type: ignore[no-untyped-def]
    """Moves the particles `first` to `last` along all counted directions."""
    for c in range(offsets.size - 1):
        begin, end = max(first, offsets[c]), min(last, offsets[c + 1])
        for s in range(begin, end, _BLOCK):
            e = min(end, s + _BLOCK)
            for j in range(0, theta.shape[0], _GROUP):
                for g in range(j, min(j + _GROUP, nodes.shape[1])):
                    _interpolate(z[g, s:e], bins_of[g, s:e], nodes[c, g], rise[c, g])
                _accumulate(z[j : j + _GROUP], s, e, theta[j : j + _GROUP], total, s)


@numba.njit(nogil=True, cache=True)
def _map_histograms(counts, sizes, cdf, edges, width, nodes, rise, cost, unit):  # type: ignore[no-untyped-def]
    for c in range(sizes.size):
        if sizes[c]:
            for g in range(counts.shape[2]):
                squared = _nodes(
                    counts[0, c, g],
                    counts[1, c, g],
                    sizes[c],
                    cdf[c, g],
                    edges,
                    width,
                    nodes[c, g],
                    rise[c, g],
                )
                cost[c] += np.int64(np.rint(squared / unit))


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


def map_histograms(
    counts: NDArray[np.int64], sizes: NDArray[np.int64], slices: Slices
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What the particles' histograms along some directions say about where particles go.

    Args:
        counts: array of size [2, C, K, bins]: the particles in every bin, and their mass behind the kernel, of all
            particles together.
        sizes: array of size [C], how many particles that is.
        slices: the targets along these directions.

    Returns:
        Displacements at the bins' ends, array of size [C, K, bins + 1] in DISPLACEMENT_UNIT; the sum over directions of
        the squared sliced distance, array of size [C] in COST_UNIT.
    """
    _, classes, count, bins = counts.shape
    nodes, rise = np.zeros((classes, count, bins + 1)), np.zeros((classes, count, bins))
    cost = np.zeros(classes, dtype=np.int64)
    grid = slices.grid
    _map_histograms(
        _read_only(counts), _read_only(sizes), _read_only(slices.cdf), _read_only(grid.edges), grid.width, nodes, rise,
        cost, COST_UNIT,
    )  # fmt: skip
    return nodes, cost


class NumbaBlock:
    """A block of particles that stays where it is from step to step, and adds up its displacements.

    Attributes:
        offsets: array of size [C + 1]: class c owns the particles offsets[c] to offsets[c + 1] of the block.
    """

    def __init__(self, particles: NDArray[np.float64], offsets: NDArray[np.int64], threads: int = 1) -> None:
        """Takes the particles.

        Args:
            particles: array of size [n, d] in the unit ball, on the lattice, sorted by class.
            offsets: array of size [C + 1].
            threads: threads to use; the result does not depend on it.
        """
        n, self._dim = particles.shape
        self.offsets = _read_only(offsets)
        self._threads = threads
        self._x = np.zeros((self._dim + -self._dim % _LANES, n))
        self.put(0, particles)
        self._total: NDArray[np.int64]
        self._z: NDArray[np.float64]
        self._bins_of: NDArray[np.int16]
        self._theta: NDArray[np.float64]
        self._rest()

    def put(self, first: int, particles: NDArray[np.float64]) -> None:
        """Places particles [m, d] from the `first` on."""
        for s in range(0, len(particles), ROWS):
            rows = check_particles(particles[s : s + ROWS])
            self._x[: self._dim, first + s : first + s + len(rows)] = rows.T

    def at_once(self) -> int:
        """How many directions `count` may be asked for: their projections are kept, in bounded memory."""
        fit = _HELD_BYTES // (max(1, self._x.shape[1]) * (self._z.itemsize + self._bins_of.itemsize))
        return int(max(fit // _GROUP, self._threads)) * _GROUP

    def count(self, slices: Slices) -> NDArray[np.int64]:
        """Counts the block's projections along all directions of `slices`, whose targets are not looked at.

        Returns:
            Array of size [2, C, K, bins], to be added up over blocks; see `map_histograms`.
        """
        count, grid = len(slices.directions), slices.grid
        padded = count + -count % _GROUP
        if len(self._z) != padded:
            # The rest of an incomplete group adds nothing: zeros stay finite whatever is added to them.
            self._z = np.zeros((padded, self._x.shape[1]))
            self._bins_of = np.zeros(self._z.shape, np.int16)
        self._theta = np.zeros((padded, len(self._x)))
        self._theta[:count, : self._dim] = slices.directions
        counts = np.zeros((2, len(self.offsets) - 1, count, grid.bins), dtype=np.int64)
        kernel_t = slices.kernel.T.astype(np.float64, order="C")

        def work(first: int, last: int) -> None:
            _count_block(
                self._x, self.offsets, self._theta, first * _GROUP, last * _GROUP, grid.low, grid.width, grid.margin,
                kernel_t, self._z, self._bins_of, counts,
            )  # fmt: skip

        self._divide(padded // _GROUP, work)
        return counts

    def displace(self, nodes: NDArray[np.float64]) -> None:
        """Adds the displacements along the counted directions, `nodes` being those of `map_histograms`."""
        rise = np.diff(nodes, axis=2)
        nodes = _read_only(nodes)

        def work(first: int, last: int) -> None:
            _displace_block(
                self.offsets, self._theta, first, last, self._z, self._bins_of, nodes, rise, self._total
            )

        self._divide(self._x.shape[1], work)

    def drift(self, slices: Slices) -> NDArray[np.int64]:
        """Adds the displacements along all directions of `slices`, for a block that holds its classes whole.

        Returns:
            The sum over directions of the squared sliced distance, array of size [C] in COST_UNIT.
        """
        if self._total.nbytes <= _SMALL_BYTES:
            return self._add(slices)
        sizes = np.diff(self.offsets)
        step = min(self.at_once(), _CLOSE_GROUPS * _GROUP * self._threads)
        cost = np.zeros(len(sizes), dtype=np.int64)
        for first in range(0, len(slices.directions), step):
            part = slices.select(slice(first, first + step))
            nodes, more = map_histograms(self.count(part), sizes, part)
            self.displace(nodes)
            cost += more
        return cost

    def move(
        self, step: Callable[[NDArray[np.float64], NDArray[np.int64], int], NDArray[np.float64]]
    ) -> None:
        """Takes the step that the added displacements are for, and forgets them.

        Args:
            step: gives the new positions [m, d] of m particles, from their positions, their displacements in
                DRIFT_UNIT and the number of the first.
        """
        x = self._x[: self._dim]
        for s in range(0, x.shape[1], ROWS):
            rows = slice(s, s + ROWS)
            before, total = np.ascontiguousarray(x[:, rows].T), np.ascontiguousarray(self._total[:, rows].T)
            x[:, rows] = step(before, total, s).T
        self._total[:] = 0

    def positions(self, first: int = 0, last: int | None = None) -> NDArray[np.float64]:
        """The particles `first` to `last`: array of size [m, d]. To be asked for between two steps."""
        self._rest()
        return np.ascontiguousarray(self._x[: self._dim, first:last].T)

    def displacements(self) -> NDArray[np.int64]:
        """What was added since the last step: array of size [n, d] in DRIFT_UNIT."""
        return np.ascontiguousarray(self._total.T)

    def _rest(self) -> None:
        """Gives memory back until it is needed: zeros that nobody has written to take none."""
        n = self._x.shape[1]
        self._total = np.zeros((self._dim, n), dtype=np.int64)
        self._z, self._bins_of = np.zeros((0, n)), np.zeros((0, n), np.int16)
        self._theta = np.zeros((0, len(self._x)))

    def _add(self, slices: Slices) -> NDArray[np.int64]:
        """`drift` in one pass over groups of directions, each thread with sums of its own."""
        grid, count = slices.grid, len(slices.directions)
        directions = np.zeros((count, len(self._x)))
        directions[:, : self._dim] = slices.directions
        kernel_t = slices.kernel.T.astype(np.float64, order="C")
        cdf, edges, ends = _read_only(slices.cdf), _read_only(grid.edges), self.offsets
        costs: list[NDArray[np.int64]] = []
        totals: list[NDArray[np.int64]] = []

        def work(first: int, last: int) -> None:
            total = self._total if first == 0 else np.zeros_like(self._total)
            cost = np.zeros(len(ends) - 1, dtype=np.int64)
            _drift(
                self._x, ends, directions, first, last, grid.low, grid.width, grid.margin, kernel_t, cdf, edges, total,
                cost, COST_UNIT,
            )  # fmt: skip
            costs.append(cost)
            if first:
                totals.append(total)

        self._divide(count, work)
        for total in totals:
            self._total += total
        return np.asarray(sum(costs, np.zeros(len(ends) - 1, dtype=np.int64)))

    def _divide(self, whole: int, work: Callable[[int, int], None]) -> None:
        """Gives each thread its part of `whole`."""
        cuts = sorted({whole * i // self._threads for i in range(self._threads + 1)})
        pool = _pool(self._threads - 1) if len(cuts) > 2 else None
        others = [pool.submit(work, *cut) for cut in itertools.pairwise(cuts[1:])] if pool else []
        if whole:
            work(cuts[0], cuts[1])
        for other in others:
            other.result()


def drift_numba(
    particles: NDArray[np.float64], offsets: NDArray[np.int64], slices: Slices, threads: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sums displacements over all directions, exactly.

    Args:
        particles: array of size [n, d] in the unit ball, on the lattice, sorted by class.
        offsets: array of size [C + 1]: class c owns the particles offsets[c] to offsets[c + 1].
        slices: the targets.
        threads: threads to use; the result does not depend on it.

    Returns:
        Array of size [n, d] in DRIFT_UNIT and array of size [C] in COST_UNIT; see `drift_reference`.
    """
    block = NumbaBlock(particles, offsets, threads)
    cost = block.drift(slices)
    return block.displacements(), cost


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view: Numba compiles for writable and read-only arrays anew, and workers receive the latter."""
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept from step to step: starting threads takes as long as part of a step."""
    return ThreadPoolExecutor(threads)
