"""DPSWflow-r over histograms: sums over secret Poisson samples, plus noise, with fresh directions in every round.

Statement
    Relations: `zero_out`, `add_remove`. Unit: record.
    Bound: a record is in each round's sample with probability q, in secret, and then adds what it adds to DPSWflow-h
        (`dpsw_ray.private.mechanism`): K rows of squared norm at most `row_norm_sq`.
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

from dpsw_ray.privacy.noise import NoiseKey, lattice_gaussian, poisson_sample
from dpsw_ray.private.mechanism import Batches, cell_blocks, check_dimension
from dpsw_ray.release.plan import SampledHistogramPlan
from dpsw_ray.slicing.histogram import add_histograms

__all__ = ["sampled_noise", "sampled_sums"]


def sampled_sums(
    batches: Batches, plan: SampledHistogramPlan, message: int, start: int, key: NoiseKey, threads: int = 1
) -> NDArray[np.int64]:
    """Sums the sampled records' contributions: PRIVATE, it must not leave the shard un-noised and unmasked.

    Args:
        batches: the shard's bounded latents and labels.
        plan: what is released.
        message: which of its messages.
        start: number of the shard's first row among all.
        key: the release's noise key; every shard holds it.
        threads: threads to use.

    Returns:
        Array of size [rounds of the message, C, K, bins].
    """
    rounds = plan.rounds(message)
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


def sampled_noise(key: NoiseKey, plan: SampledHistogramPlan, message: int) -> NDArray[np.int64]:
    """The noise of a message's rounds, indexed by round and cell: the same key and plan give the same bits.

    Returns:
        Array of size [rounds of the message, C, K, bins].
    """
    bound_key = key.derive(plan.digest().encode())
    shape = plan.cells[1:]
    rounds = plan.rounds(message)
    return np.stack(
        [
            lattice_gaussian(
                bound_key.derive(b"noise %d" % number), plan.noise_std, 0, math.prod(shape)
            ).reshape(shape)
            for number in range(rounds.start, rounds.stop)
        ]
    )
