"""DPSWflow-h: the sum of smoothed sliced histograms, plus Gaussian noise.

Statement
    Relations: `replace_one`, `zero_out`, `add_remove`. Unit: record.
    Bound: one record adds to each of K directions one row of the integer table (`BinGrid.table`), in the block
        of its class, or nothing at all. Rows are non-negative with squared norm at most `row_norm_sq`.
    Sensitivity (L2, squared, lattice units): K * row_norm_sq for `add_remove` and `zero_out`;
        2 * K * row_norm_sq for `replace_one`, because ||a - b||^2 <= ||a||^2 + ||b||^2 for non-negative a, b,
        a change of class included.
    Noise: one Gaussian per cell, drawn once per release, rounded to the integers (post-processing).
    Event: Gaussian mechanism with mu = sensitivity / noise_std.
    Source: Gaussian mechanism, Dong, Roth and Su (2022), Theorem 2.7; the target is that of the Gaussian-smoothed
        sliced Wasserstein distance (Rakotomamonjy and Ralaivola 2021).

Two functions, `bound` and `noise`, and nothing else touches records or draws noise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.privacy.noise import NoiseKey, lattice_gaussian
from dpsw_ray.private.latents import NULL
from dpsw_ray.release.plan import ReleasePlan
from dpsw_ray.slicing.histogram import add_histograms

__all__ = ["bound", "noise"]


def bound(
    batches: Iterable[tuple[NDArray[np.float64], NDArray[np.int32]]], plan: ReleasePlan, threads: int = 1
) -> NDArray[np.int64]:
    """Sums the bounded contributions of records: PRIVATE, it must not leave the shard un-noised.

    Args:
        batches: bounded latents [n, d] and labels [n]. `NULL` records add nothing; where the release is
            class-conditional, neither do records without a known class.
        plan: what is released.
        threads: threads to use.

    Returns:
        Array of size [C, K, bins].

    Raises:
        RuntimeError: the latents are of another dimension than the plan's directions.
        ValueError: the plan's table is not one of its grid.
    """
    total = np.zeros(plan.cells, dtype=np.int64)
    for latents, labels in batches:
        if latents.shape[1] != plan.directions.shape[1]:
            raise RuntimeError("the latents are not of the plan's dimension")
        if plan.class_conditional:
            blocks = np.where(labels < plan.classes, labels, np.int32(-1)).astype(np.int32)
        else:
            blocks = np.where(labels == NULL, np.int32(-1), np.int32(0))
        add_histograms(latents, blocks, plan.directions, plan.grid, plan.table, total, threads)
    return total


def noise(key: NoiseKey, plan: ReleasePlan) -> NDArray[np.int64]:
    """The release's noise, indexed by cell: the same key and plan give the same bits on every retry.

    Returns:
        Array of size [C, K, bins].
    """
    bound_key = key.derive(plan.digest().encode())
    return lattice_gaussian(bound_key, plan.noise_std, 0, int(np.prod(plan.cells))).reshape(plan.cells)
