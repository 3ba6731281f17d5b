"""DPSWflow-r over histograms: sums over secret Poisson samples, plus noise, with fresh directions in every round.

Statement
    Relations: `zero_out`, `add_remove`. Unit: record.
    Bound: a record is in each round's sample with probability q, in secret, and then adds what it adds to DPSWflow-h
        (`dpsw_ray.methods.dpswflow_h.mechanism`): K rows of squared norm at most `row_norm_sq`.
    Sensitivity (L2): sqrt(K * row_norm_sq).
    Noise: one Gaussian per cell and round, drawn once, rounded to the integers (post-processing).
    Event: `SampledGaussianEvent` over all rounds.
    Source: Mironov, Talwar and Zhang (2019); Zhu, Dong and Wang (2022).

The sample comes from the release's noise key and is never stored. Records that are not in it do the same work, into
cells that are thrown away, so that its size does not show in the running time.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.methods.dpswflow_h.mechanism import cell_blocks, check_dimension
from dpsw_ray.methods.dpswflow_r.plan import SampledHistogramPlan
from dpsw_ray.privacy.noise import NoiseKey, lattice_gaussian, poisson_sample
from dpsw_ray.private.held import Batches, HeldRecords
from dpsw_ray.private.noise import NoiseSecret
from dpsw_ray.release.question import Question
from dpsw_ray.slicing.histogram import add_histograms

__all__ = ["message", "noise", "sampled_sums"]


def message(
    held: HeldRecords, question: Question, number: int, state: None, plan: SampledHistogramPlan
) -> tuple[NDArray[np.int64], None]:
    """See `private.answering.Mechanism`."""
    return sampled_sums(held.batches, plan, number, held.start, held.key, held.threads), None


def sampled_sums(
    batches: Batches, plan: SampledHistogramPlan, question: int, start: int, key: NoiseKey, threads: int = 1
) -> NDArray[np.int64]:
    """Sums the sampled records' contributions: PRIVATE, it must not leave the shard un-noised and unmasked.

    Args:
        batches: the shard's bounded latents and labels.
        plan: what is released.
        question: its number.
        start: number of the shard's first row among all.
        key: the release's noise key; every shard holds it.
        threads: threads to use.

    Returns:
        Array of size [rounds of the question, C, K, bins].
    """
    rounds = plan.rounds(question)
    _, classes, directions, bins = plan.cells
    total = np.zeros((rounds.stop - rounds.start, classes + 1, directions, bins), dtype=np.int64)
    samples = key.derive(plan.digest().encode())
    for latents, labels in batches:
        check_dimension(latents, plan)
        blocks = cell_blocks(labels, plan)
        for number in range(rounds.start, rounds.stop):
            member = poisson_sample(samples.derive(b"sample %d" % number), plan.rate, start, len(latents))
            chosen = np.where(member & (blocks >= 0), blocks, np.int32(classes)).astype(np.int32)
            out = total[number - rounds.start]
            add_histograms(latents, chosen, plan.directions[number], plan.grid, plan.table, out, threads)
        start += len(latents)
    return total[:, :classes].copy()


def noise(secret: NoiseSecret, plan: SampledHistogramPlan, number: int) -> NDArray[np.int64]:
    """The noise of a question's rounds, indexed by round and cell: the same key and plan give the same bits.

    Returns:
        Array of size [rounds of the question, C, K, bins].
    """
    assert isinstance(secret, NoiseKey), "these plans draw their noise from a key"
    bound_key = secret.derive(plan.digest().encode())
    shape = plan.cells[1:]
    rounds = plan.rounds(number)
    return np.stack(
        [
            lattice_gaussian(
                bound_key.derive(b"noise %d" % drawn), plan.noise_std, 0, math.prod(shape)
            ).reshape(shape)
            for drawn in range(rounds.start, rounds.stop)
        ]
    )
