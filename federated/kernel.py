"""Sums of users' messages: every user's averaged bin vectors, rounded down, added up; exact for any division."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.slicing.grid import PHASES, BinGrid

__all__ = ["ABSENT", "DECOY", "PRESENT", "add_users"]

ABSENT, PRESENT, DECOY = 0, 1, 2
"""Of a user: sends nothing; its message is added; does the same work, into cells that are thrown away."""

_BLOCK = 32  # directions at a time: their cells of one user stay in the first-level cache
_NARROW = 1 << 14  # records whose sums fit 32 bits
_LOG_PHASES = 6
_MOST_RECORDS = 1 << 30  # of one user: below it, and only there, the quotients below are exact


@numba.njit(nogil=True, cache=True)
def _add(  # type: ignore[no-untyped-def]
    latents,
    labels,
    offsets,
    roles,
    directions_t,
    low,
    inverse_step,
    margin,
    table,
    full,
    step,
    largest,
    out,
    over,
):
    dim, count = directions_t.shape
    width, bins, waste = table.shape[1], out.shape[2], out.shape[0] - 1
    size = count * bins
    z, fine = np.empty(count), np.empty(count, np.int32)
    squares = np.empty((count, bins))
    cells = np.zeros((count, bins), np.int32)
    wide = np.zeros((count, bins))
    # Seen as one row each, so that the loops over all cells are single ones.
    flat, flat_squares, flat_wide = cells.reshape(size), squares.reshape(size), wide.reshape(size)
    widened = False
    for user in range(roles.shape[0]):
        role = roles[user]
        begin, end = offsets[user], offsets[user + 1]
        counted = 0
        for i in range(begin, end):
            if labels[i] >= 0:
                counted += 1
        if role == 0 or counted == 0:
            continue
        share = 1.0 / (max(counted, full) * step)
        squares[:] = 0.0
        i = begin
        while i < end:
            label = labels[i]
            if label < 0:
                i += 1
                continue
            inside = 0
            while i < end and labels[i] == label:
                z[:] = 0.0
                for k in range(dim):
                    x = latents[i, k] * LATTICE
                    for j in range(count):
                        z[j] += x * directions_t[k, j]
                for j in range(count):
                    fine[j] = np.int32((z[j] - low) * inverse_step)  # z > low: truncation is the floor
                for j in range(count):
                    row = table[fine[j] & (PHASES - 1)]
                    # Without a sign, an index needs no look whether it counts from the end.
                    first = np.uint64(j * bins + (fine[j] >> _LOG_PHASES) - margin)
                    if width == 8:  # a number known to the compiler becomes one or two wide additions
                        for tap in range(8):
                            flat[first + np.uint64(tap)] += row[np.uint64(tap)]
                    elif width == 16:
                        for tap in range(16):
                            flat[first + np.uint64(tap)] += row[np.uint64(tap)]
                    else:
                        for tap in range(width):
                            flat[first + np.uint64(tap)] += row[np.uint64(tap)]
                i += 1
                inside += 1
                if inside == _NARROW:
                    for c in range(size):
                        flat_wide[c] += flat[c]
                        flat[c] = 0
                    inside, widened = 0, True
            sums = out[label if role == 1 else waste].reshape(size)
            if widened:
                for c in range(size):
                    value = np.floor((flat_wide[c] + flat[c] + 0.5) * share)
                    flat_squares[c] += value * value
                    sums[c] += value
                    flat_wide[c] = 0.0
            else:
                for c in range(size):
                    # Whole sums, at least half a share away from the next whole number: the exact floor.
                    value = np.floor((flat[c] + 0.5) * share)
                    flat_squares[c] += value * value
                    sums[c] += value
            flat[:] = 0
            widened = False
        for j in range(count):
            square, total = squares[j], 0.0
            for b in range(bins):
                total += square[b]
            if total > largest:
                over[user] = True


def add_users(
    latents: NDArray[np.int32],
    labels: NDArray[np.int32],
    offsets: NDArray[np.int64],
    roles: NDArray[np.uint8],
    directions: NDArray[np.float64],
    grid: BinGrid,
    kernel: NDArray[np.int64],
    out: NDArray[np.int64],
    *,
    full_weight_at: int = 1,
    precision: int = 16,
    largest_norm_sq: int,
    threads: int = 1,
) -> NDArray[np.bool_]:
    """Adds every present user's message to `out`; see `federated.message.user_message` for one.

    Args:
        latents: array of size [n, d], in multiples of 2^-26, norms below 1; a user's records are neighbours.
        labels: array of size [n], the cell block of each record, equal ones of a user side by side; negative:
            a record that does not count.
        offsets: array of size [users + 1]: user u owns the records offsets[u] to offsets[u + 1].
        roles: array of size [users]: `ABSENT`, `PRESENT` or `DECOY`.
        directions: array of size [K, d] on the lattice.
        grid: bins and smoothing.
        kernel: array of size [PHASES, taps], the integer rows (`BinGrid.table`).
        out: array of size [C, K, bins], changed in place.
        full_weight_at: records from which on a user has full weight.
        precision: bits of a user's whole mass in one direction.
        largest_norm_sq: that a message's squared norm in a direction must not pass.
        threads: directions are divided among this many threads.

    Returns:
        Array of size [users]: whose message passed the bound in some direction. `out` is then of no use.

    Raises:
        ValueError: a kernel of another grid, or a user with more records than can be averaged exactly.
    """
    if kernel.shape != (PHASES, 2 * grid.margin + 1):
        raise ValueError(f"the kernel has shape {kernel.shape}, not one of a grid with margin {grid.margin}")
    if len(offsets) > 1 and int(np.diff(offsets).max()) > _MOST_RECORDS:
        raise ValueError("a user has more than 2^30 records")
    taps = kernel.shape[1]
    width = taps if taps == 1 or taps > 16 else -(-taps // 8) * 8
    table = np.zeros((PHASES, width), dtype=np.int32)
    table[:, :taps] = kernel
    step = 2.0 ** (16 - precision)
    starts = range(0, len(directions), _BLOCK)
    over = np.zeros((len(starts), len(roles)), dtype=np.bool_)

    def work(block: int) -> None:
        part = slice(starts[block], starts[block] + _BLOCK)
        transposed = np.ascontiguousarray(directions[part].T)
        # Whole numbers below 2^53 in float64: exact, and quicker than int64 here. The last bins are for the zeros that
        # fill a row of the table up.
        sums = np.zeros((out.shape[0] + 1, transposed.shape[1], out.shape[2] + width - taps))
        _add(
            latents, labels, offsets, roles, transposed, grid.low, PHASES / grid.width, grid.margin, table,
            full_weight_at, step, float(largest_norm_sq), sums, over[block],
        )  # fmt: skip
        out[:, part] += sums[:-1, :, : out.shape[2]].astype(np.int64)

    if threads == 1:
        for block in range(len(starts)):
            work(block)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(len(starts))))
    return np.asarray(over.any(axis=0))
