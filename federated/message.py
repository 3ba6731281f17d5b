"""One user's message, and the server's step: the interface that any federated release is made of.

Statement
    Relations: `replace_one`, `zero_out`. Unit: user.
    Bound: a user's message is the average of its records' bin vectors, rounded down cell by cell. By convexity its
        norm in each direction is at most that of one row of the table, however many records it has; so a message of
        non-negative integers with sum at most 2^precision and squared norm at most `norm_sq` in each direction
        is all that the server takes, and the check is on the integers that are sent.
    Sensitivity (L2, squared): K * norm_sq for `zero_out`, twice that for `replace_one`; (L1) K * 2^precision, or
        twice that.

Whoever is not in the right form is refused and counted, never mended: what a wrong message meant nobody knows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.release.form import Form
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.slicing.histogram import add_histograms

__all__ = ["TAMPERINGS", "tampered", "user_message"]


def user_message(
    latents: NDArray[np.float64],
    blocks: NDArray[np.int32],
    directions: NDArray[np.float64],
    grid: BinGrid,
    kernel: NDArray[np.int64],
    classes: int,
    *,
    full_weight_at: int = 1,
    precision: int = 16,
) -> NDArray[np.int64]:
    """What one user sends: a function of its records alone.

    Args:
        latents: array of size [n, d], bounded and on the lattice; perhaps none.
        blocks: array of size [n], the cell block of each record; negative: does not count.
        directions: array of size [K, d].
        grid: bins and smoothing.
        kernel: the integer rows in use.
        classes: C.
        full_weight_at: users with fewer records that count weigh less; nobody weighs more than one.
        precision: bits of a user's whole mass.

    Returns:
        Array of size [C, K, bins], non-negative.
    """
    sums = np.zeros((classes, len(directions), grid.bins), dtype=np.int64)
    add_histograms(latents, blocks.astype(np.int32), directions, grid, kernel, sums)
    counted = int((blocks >= 0).sum())
    return sums // (max(counted, full_weight_at, 1) << (16 - precision))


TAMPERINGS = 6
"""The ways in which a simulated message is wrong."""


def tampered(form: Form, how: int) -> NDArray[Any]:
    """What a broken or dishonest device sends, whatever its user has: what is refused tells of no record.

    Args:
        form: of a right message.
        how: 0 to `TAMPERINGS` - 1.
    """
    classes, directions, bins = form.shape
    match how:
        case 0:
            return np.full(form.shape, form.mass + 1, dtype=np.int64)  # to weigh more than others
        case 1:
            return np.full(form.shape, -1, dtype=np.int64)
        case 2:
            return np.full(form.shape, np.nan)
        case 3:
            return np.zeros((classes, directions - 1, bins), dtype=np.int64)
        case 4:
            return np.full(form.shape, 2**62, dtype=np.int64)  # whose squares would wrap around
        case _:
            return np.full(form.shape, 0.5)
