"""DP-PCA: the sum of v v^T over records v = (x, k) of bounded length, plus noise.

Statement
    Relations: `replace_one`, `zero_out`, `add_remove`. Unit: record.
    Bound: a record's coordinates in the unit ball are cut to whole multiples of 1 / STEPS, towards zero, so that the
        integer vector is at most STEPS long, and LONGEST with the constant k, exactly: 24^2 + 7^2 = 25^2.
    Sensitivity (L2, of the upper triangle with entries beside the diagonal times sqrt(2), which is the matrix's
        Frobenius norm): LONGEST^2 for `add_remove` and `zero_out`; sqrt(2) LONGEST^2 for `replace_one`, because
        |v v^T - w w^T|^2 = |v|^4 + |w|^4 - 2 <v, w>^2. It is reached: by <x, y> = -k^2.
    Noise: one Gaussian per entry of the triangle, drawn once, of standard deviation s on the diagonal and s / sqrt(2)
        beside it (as if the entry had been multiplied by sqrt(2)), rounded to the integers of the sums.
    Event: `DpPcaEvent` with radius LONGEST.
    Source: Dwork, Talwar, Thakurta and Zhang (2014); the extension by a constant is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.privacy.noise import NoiseKey, lattice_gaussian
from dpsw_ray.private.latents import CHUNK, NULL
from dpsw_ray.private.mechanism import Batches
from dpsw_ray.release.moments import CONSTANT, STEPS, MomentsPlan

__all__ = ["moment_noise", "moment_sums"]


def moment_sums(batches: Batches, plan: MomentsPlan) -> NDArray[np.int64]:
    """Sums the bounded contributions of records: PRIVATE, it must not leave the shard un-noised.

    Args:
        batches: bounded records [n, p] and labels [n], of which only `NULL` counts: such a record adds nothing.
        plan: what is released.

    Returns:
        The upper triangle, array of size `plan.cells`.

    Raises:
        RuntimeError: the records are of another dimension than the plan's.
    """
    size = plan.dim + 1
    total = np.zeros((size, size), dtype=np.int64)
    for records, labels in batches:
        if records.shape[1] != plan.dim:
            raise RuntimeError("the records are not of the plan's dimension")
        whole = np.full((len(records), size), float(CONSTANT))
        whole[:, :-1] = np.trunc(records * STEPS)
        whole[labels == NULL] = 0.0
        for start in range(0, len(whole), CHUNK):
            block = whole[start : start + CHUNK]
            # At most 8,192 products below 2^34: float64 adds them exactly, in any order.
            total += (block.T @ block).astype(np.int64)
    return total[np.triu_indices(size)]


def moment_noise(key: NoiseKey, plan: MomentsPlan) -> NDArray[np.int64]:
    """The release's noise, indexed by cell: the same key and plan give the same bits on every retry.

    Returns:
        Array of size `plan.cells`.
    """
    bound_key = key.derive(plan.digest().encode())
    rows, columns = np.triu_indices(plan.dim + 1)
    on, beside = (
        lattice_gaussian(bound_key.derive(label), std, 0, len(rows))
        for label, std in ((b"diagonal", plan.noise_std), (b"beside", plan.beside_std))
    )
    return np.where(rows == columns, on, beside)
