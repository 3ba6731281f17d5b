"""Noisy moments of every class: those of `dp_pca`, in the block of the record's class.

Statement
    Relations: `replace_one`, `zero_out`, `add_remove`. Unit: record.
    Bound: a record is in one class, and adds there what it adds to the moments of `dp_pca`
        (`dpsw_ray.private.moments`): v v^T of a whole vector of length at most L.
    Sensitivity (L2, entries beside the diagonal times sqrt(2)): L^2 for `add_remove` and `zero_out`; sqrt(2) L^2 for
        `replace_one`, in one class as there, and in two because the blocks are orthogonal.
    Noise: as there, on every block.
    Event: `DpPcaEvent` with radius L.
    Source: Dwork, Talwar, Thakurta and Zhang (2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.methods.gaussian.plan import ClassMomentsPlan
from dpsw_ray.private.held import Batches, HeldRecords
from dpsw_ray.private.latents import NULL
from dpsw_ray.private.moments import moment_sums, noise
from dpsw_ray.release.question import Question

__all__ = ["class_sums", "message", "noise"]


def message(
    held: HeldRecords, question: Question, number: int, state: None, plan: ClassMomentsPlan
) -> tuple[NDArray[np.int64], None]:
    """See `private.answering.Mechanism`."""
    return class_sums(held.batches, plan), None


def class_sums(batches: Batches, plan: ClassMomentsPlan) -> NDArray[np.int64]:
    """Sums the bounded contributions of records by class: PRIVATE, it must not leave the shard un-noised.

    Args:
        batches: bounded latents [n, d] and labels [n]; a record without a class of the public list adds nothing.
        plan: what is released.

    Returns:
        Array of size `plan.cells`.
    """
    total = np.zeros(plan.cells, dtype=np.int64)
    for latents, labels in batches:
        for block in range(plan.blocks):
            total[block] += moment_sums([(latents, _within(labels, block, plan))], plan)
    return total


def _within(labels: NDArray[np.int32], block: int, plan: ClassMomentsPlan) -> NDArray[np.int32]:
    """Labels of which all but those of a block say that their records add nothing."""
    if not plan.classes:
        return labels
    return np.where(labels == block, labels, np.int32(NULL)).astype(np.int32)
