"""DP-PCA: the sum of v v^T over records v = (x, k) of bounded length, plus noise.

Statement
    Relations: `replace_one`, `zero_out`, `add_remove`. Unit: record.
    Bound: a record's coordinates in the unit ball are cut to whole multiples of 1 / S, towards zero, so that the
        integer vector is at most S long, and L with the constant k, exactly, as S, k and L are 24, 7 and 25 times a
        whole number: 24^2 + 7^2 = 25^2.
    Sensitivity (L2, of the upper triangle with entries beside the diagonal times sqrt(2), which is the matrix's
        Frobenius norm): L^2 for `add_remove` and `zero_out`; sqrt(2) L^2 for `replace_one`, because
        |v v^T - w w^T|^2 = |v|^4 + |w|^4 - 2 <v, w>^2. It is reached: by <x, y> = -k^2.
    Noise: one number per entry of the triangle, drawn once, of standard deviation s on the diagonal and s / sqrt(2)
        beside it (as if the entry had been multiplied by sqrt(2)). `gaussian`: rounded to the integers of the sums.
        `discrete_gaussian`: sampled exactly on the integers, of sigma s and s / sqrt(2).
    Event: `DpPcaEvent` with radius L.
    Source: Dwork, Talwar, Thakurta and Zhang (2014); the extension by a constant is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.privacy.discrete import NoiseTable
from dpsw_ray.privacy.noise import lattice_gaussian
from dpsw_ray.private.held import Batches, HeldRecords
from dpsw_ray.private.latents import CHUNK, NULL
from dpsw_ray.private.noise import NoiseSecret
from dpsw_ray.release.moments import MomentsPlan
from dpsw_ray.release.question import Question

__all__ = ["message", "moment_sums", "noise"]


def message(
    held: HeldRecords, question: Question, number: int, state: None, plan: MomentsPlan
) -> tuple[NDArray[np.int64], None]:
    """See `private.answering.Mechanism`."""
    return moment_sums(held.batches, plan), None


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
        whole = np.full((len(records), size), float(plan.lattice.constant))
        whole[:, :-1] = np.trunc(records * plan.lattice.steps)
        whole[labels == NULL] = 0.0
        for start in range(0, len(whole), CHUNK):
            block = whole[start : start + CHUNK]
            # At most 8,192 products below 2^34: float64 adds them exactly, in any order.
            total += (block.T @ block).astype(np.int64)
    return total[np.triu_indices(size)]


def noise(secret: NoiseSecret, plan: MomentsPlan, number: int = 0) -> NDArray[np.int64]:
    """The release's noise, indexed by cell: the same secret and plan give the same bits on every retry.

    Returns:
        Array of size `plan.cells`.
    """
    rows, columns = np.triu_indices(plan.dim + 1)
    on = rows == columns
    blocks = plan.cells[:-1]  # of plans that have some
    drawn = np.empty(plan.cells, dtype=np.int64)
    if isinstance(secret, NoiseTable):
        parts = np.split(secret.cells(), [plan.stretches[0][1]])
    else:
        key = secret.derive(plan.digest().encode())
        labels = (b"diagonal", b"beside")
        parts = [
            lattice_gaussian(key.derive(label), std, 0, count)
            for label, (std, count) in zip(labels, plan.stretches, strict=True)
        ]
    drawn[..., on], drawn[..., ~on] = (part.reshape(*blocks, -1) for part in parts)
    return drawn
