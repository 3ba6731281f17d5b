"""DPSWflow-h: the sum of smoothed sliced histograms, plus noise.

Statement
    Relations: `replace_one`, `zero_out`, `add_remove`. Unit: record.
    Bound: one record adds to each of K directions one row of the integer table (`BinGrid.table`), in the block
        of its class, or nothing at all. Rows are non-negative with squared norm at most `row_norm_sq`.
    Sensitivity (L2, squared, lattice units): K * row_norm_sq for `add_remove` and `zero_out`;
        2 * K * row_norm_sq for `replace_one`, because ||a - b||^2 <= ||a||^2 + ||b||^2 for non-negative a, b,
        a change of class included.
    Noise: one number per cell, drawn once per release. `gaussian`: a Gaussian, rounded to the integers
        (post-processing). `discrete_gaussian`: the discrete Gaussian on the integers, sampled exactly.
    Event: `gaussian`: Gaussian mechanism with mu = sensitivity / noise_std. `discrete_gaussian`: zero-concentrated
        with rho = sensitivity^2 / (2 noise_std^2), which only holds because sums and noise are integers.
    Source: Dong, Roth and Su (2022), Theorem 2.7; Canonne, Kamath and Steinke (2020), Theorem 14. The target is
        that of the Gaussian-smoothed sliced Wasserstein distance (Rakotomamonjy and Ralaivola 2021).

`bound` touches the records. `noise` is what a secret stands for: the same numbers however often it is asked. Nothing
else touches records or draws noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from dpsw_ray.data.records import NULL
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy.discrete import NoiseTable
from dpsw_ray.privacy.noise import lattice_gaussian
from dpsw_ray.private.held import Batches, HeldRecords
from dpsw_ray.private.noise import NoiseSecret
from dpsw_ray.release.question import Question
from dpsw_ray.slicing.histogram import add_histograms
from dpsw_ray.slicing.histogram_torch import TorchHistograms
from dpsw_ray.tables.plan import SlicesPlan

__all__ = [
    "bound",
    "cell_blocks",
    "check_dimension",
    "message",
    "noise",
]


def message(
    held: HeldRecords, question: Question, number: int, state: None, plan: HistogramPlan
) -> tuple[NDArray[np.int64], None]:
    """See `private.answering.Mechanism`."""
    return bound(held.batches, plan, held.threads)[None], None


def bound(batches: Batches, plan: HistogramPlan, threads: int = 1) -> NDArray[np.int64]:
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
    add, total = _adder(plan, threads)
    for latents, labels in batches:
        check_dimension(latents, plan)
        add(latents, cell_blocks(labels, plan))
    return total()


def _adder(
    plan: HistogramPlan, threads: int
) -> tuple[Callable[[NDArray[np.float64], NDArray[np.int32]], None], Callable[[], NDArray[np.int64]]]:
    """What adds records, and what then gives their sum: on the worker's GPU where it has one, to the same bits."""
    if torch.cuda.is_available():
        sums = TorchHistograms(plan.directions[0], plan.grid, plan.table, plan.classes, "cuda")
        return sums.add, sums.total
    total = np.zeros(plan.cells[1:], dtype=np.int64)

    def add(latents: NDArray[np.float64], labels: NDArray[np.int32]) -> None:
        add_histograms(latents, labels, plan.directions[0], plan.grid, plan.table, total, threads)

    return add, lambda: total


def check_dimension(latents: NDArray[np.float64], plan: SlicesPlan) -> None:
    """Refuses latents that are not the plan's.

    Raises:
        RuntimeError: they are of another dimension than its directions.
    """
    if latents.shape[1] != plan.directions.shape[2]:
        raise RuntimeError("the latents are not of the plan's dimension")


def cell_blocks(labels: NDArray[np.int32], plan: SlicesPlan) -> NDArray[np.int32]:
    """The cell block each record adds to, -1 for none: array of size [n]."""
    if plan.class_conditional:
        return np.where(labels < plan.classes, labels, np.int32(-1)).astype(np.int32)
    return np.where(labels == NULL, np.int32(-1), np.int32(0)).astype(np.int32)


def noise(secret: NoiseSecret, plan: SlicesPlan, number: int = 0) -> NDArray[np.int64]:
    """The release's noise, indexed by cell: the same secret and plan give the same bits on every retry.

    Returns:
        Array of size [C, K, bins].

    Raises:
        ValueError: the secret is of another kind of noise than the plan's, or of other cells.
    """
    if isinstance(secret, NoiseTable) != (plan.noise == "discrete_gaussian"):
        raise ValueError(f"the noise secret is not one of {plan.noise} noise")
    if isinstance(secret, NoiseTable):
        return secret.cells().reshape(plan.cells[1:])
    bound_key = secret.derive(plan.digest().encode())
    return lattice_gaussian(bound_key, plan.noise_std, 0, math.prod(plan.cells)).reshape(plan.cells[1:])
