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
_NARROW = 1 << 14  # records, or users' messages, whose sums fit 32 bits
_FEW = 32
"""Records of a user whose average single precision rounds down right: their sum and a half have at most 22 bits, the
product with the share is off by 2^-23 of itself, below 2^-7 of a step, and half a share is at least 2^-6 of one."""
_LOG_PAIRS = 7  # positions in a pair of cells: twice `PHASES`
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
    pairs, bins, waste = table.shape[1], out.shape[2], out.shape[0] - 1
    size, words = count * bins, bins // 2
    z, fine = np.empty(count), np.empty(count, np.int32)
    squares = np.empty(count, np.int64)
    packed = np.zeros(size // 2, np.int64)
    # Seen as one row each, so that the loops over all cells are single ones.
    flat, message, wide = packed.view(np.int32), np.zeros(size, np.int32), np.zeros(size)
    by_direction = message.reshape((count, bins))
    sums = np.zeros((out.shape[0], size), np.int32)
    widened, added = False, 0
    for user in range(roles.shape[0]):
        role = roles[user]
        begin, end = offsets[user], offsets[user + 1]
        counted = 0
        for i in range(begin, end):
            if labels[i] >= 0:
                counted += 1
        if role == 0 or counted == 0:
            continue
        weight = max(counted, full)
        share = 1.0 / (weight * step)
        squares[:] = 0
        i = begin
        while i < end:
            label = labels[i]
            if label < 0:
                i += 1
                continue
            inside = 0
            while i < end and labels[i] == label:
                z[:] = 0.0
                k = 0
                while k + 4 <= dim:
                    a, b = latents[i, k] * LATTICE, latents[i, k + 1] * LATTICE
                    c, d = latents[i, k + 2] * LATTICE, latents[i, k + 3] * LATTICE
                    for j in range(count):
                        z[j] += (
                            a * directions_t[k, j]
                            + b * directions_t[k + 1, j]
                            + c * directions_t[k + 2, j]
                            + d * directions_t[k + 3, j]
                        )
                    k += 4
                while k < dim:
                    a = latents[i, k] * LATTICE
                    for j in range(count):
                        z[j] += a * directions_t[k, j]
                    k += 1
                for j in range(count):  # z > low: truncation is the floor
                    fine[j] = np.int32((z[j] - low) * inverse_step) - margin * PHASES
                for j in range(count):
                    # Without a sign, an index needs no look whether it counts from the end.
                    place = np.uint64(fine[j])
                    row = table[place & np.uint64(2 * PHASES - 1)]
                    first = np.uint64(j * words) + (place >> np.uint64(_LOG_PAIRS))
                    if (
                        pairs == 5
                    ):  # a number known to the compiler makes one block of additions without a loop
                        for pair in range(5):
                            packed[first + np.uint64(pair)] += row[np.uint64(pair)]
                    elif pairs == 7:
                        for pair in range(7):
                            packed[first + np.uint64(pair)] += row[np.uint64(pair)]
                    else:
                        for pair in range(pairs):
                            packed[first + np.uint64(pair)] += row[np.uint64(pair)]
                i += 1
                inside += 1
                if inside == _NARROW:
                    for cell in range(size):
                        wide[cell] += flat[cell]
                        flat[cell] = 0
                    inside, widened = 0, True
            block = sums[label if role == 1 else waste]
            # Whole sums, at least half a share away from the next whole number: the exact floor, in either precision.
            if widened:
                for cell in range(size):
                    message[cell] = np.int32((wide[cell] + flat[cell] + 0.5) * share)
                    wide[cell] = 0.0
            elif weight <= _FEW:
                half, narrow = np.float32(0.5), np.float32(share)
                for cell in range(size):
                    message[cell] = np.int32((np.float32(flat[cell]) + half) * narrow)
            else:
                for cell in range(size):
                    message[cell] = np.int32((flat[cell] + 0.5) * share)
            for cell in range(size):
                block[cell] += message[cell]
                flat[cell] = 0
            widened = False
            for j in range(count):
                square = np.int64(0)
                for cell in range(bins):
                    square += np.int64(by_direction[j, cell]) * np.int64(by_direction[j, cell])
                squares[j] += square
        for j in range(count):
            if squares[j] > largest:
                over[user] = True
        added += 1
        if added == _NARROW:
            out += sums.reshape(out.shape)
            sums[:] = 0
            added = 0
    out += sums.reshape(out.shape)


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
    """Adds every present user's message to `out`; see `message.user_message` for one.

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
    # Two cells in one 64-bit word: half the additions. A row begins at an even cell or at an odd one.
    halves = np.zeros((2, PHASES, taps + 1), dtype=np.int32)
    halves[0, :, :taps] = halves[1, :, 1:] = kernel
    table = halves.view(np.int64).reshape(2 * PHASES, -1)
    padded = -(-(out.shape[2] + 1) // 2) * 2
    step = 2.0 ** (16 - precision)
    starts = range(0, len(directions), _BLOCK)
    over = np.zeros((len(starts), len(roles)), dtype=np.bool_)

    def work(block: int) -> None:
        part = slice(starts[block], starts[block] + _BLOCK)
        transposed = np.ascontiguousarray(directions[part].T)
        sums = np.zeros((out.shape[0] + 1, transposed.shape[1], padded), dtype=np.int64)
        _add(
            latents, labels, offsets, roles, transposed, grid.low, PHASES / grid.width, grid.margin, table,
            full_weight_at, step, largest_norm_sq, sums, over[block],
        )  # fmt: skip
        out[:, part] += sums[:-1, :, : out.shape[2]]

    if threads == 1:
        for block in range(len(starts)):
            work(block)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(len(starts))))
    return np.asarray(over.any(axis=0))
