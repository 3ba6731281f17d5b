"""DPSWflow and DPSWflow-r: noisy projections, of which the histogram on a public grid is published.

Statement
    Relations: `replace_one`, `zero_out`; rows can be counted, so not `add_remove`. Unit: record.
    Bound: a record is in one batch of every epoch, by a public random permutation of the rows, and adds there one
        row of K projections <theta_j, x>, in multiples of 2^-26.
    Sensitivity (L2, of one epoch): for Haar frames 2 sqrt(K / d) under `replace_one`, sqrt(K / d) under `zero_out`;
        for iid directions the same with K / d replaced by a sum of Beta variables (`SlicedGaussianEvent`).
    Noise: one Gaussian per (epoch, row, direction), drawn once, added by the shard that owns the row, rounded to the
        lattice (post-processing), as is the histogram.
    Event: `SlicedGaussianEvent`, once for every epoch: a neighbour changes one batch, and all batches are alike.
    Source: Rakotomamonjy and Ralaivola (2021) for the mechanism; the accounting is `docs/privacy.md`, 2.3 and 2.4.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.methods.dpswflow.plan import RowPlan
from dpsw_ray.methods.dpswflow_h.mechanism import check_dimension
from dpsw_ray.privacy.noise import NoiseKey, lattice_gaussian
from dpsw_ray.private.held import Batches, HeldRecords
from dpsw_ray.release.question import Question
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.slicing.grid import SCALE

__all__ = ["batch_of_rows", "message", "noisy_histograms"]


def message(
    held: HeldRecords, question: Question, number: int, state: None, plan: RowPlan
) -> tuple[NDArray[np.int64], None]:
    """See `private.answering.Mechanism`; there is no `noise`, it is on the rows."""
    return noisy_histograms(held.batches, plan, number, held.start, held.rows, held.key), None


def noisy_histograms(
    batches: Batches, plan: RowPlan, epoch: int, start: int, rows: int, key: NoiseKey
) -> NDArray[np.int64]:
    """Projects a shard's records, adds the rows' noise, and counts the noisy projections.

    Args:
        batches: the shard's bounded latents; labels are not looked at.
        plan: what is released.
        epoch: which one.
        start: number of the shard's first row among all.
        rows: number of rows of all shards, which is public under the relations that rows have.
        key: the release's noise key; every shard holds it.

    Returns:
        Array of size [batches of an epoch, 1, K, bins], `SCALE` per record: already private.
    """
    _, _, directions, bins = plan.cells
    first = epoch * plan.batches
    batch = batch_of_rows(plan, epoch, rows)
    noise_key = key.derive(plan.digest().encode()).derive(b"epoch %d" % epoch)
    total = np.zeros((plan.batches, 1, directions, bins), dtype=np.int64)
    cell = np.arange(directions) * bins
    for latents, _ in batches:
        check_dimension(latents, plan)
        count = len(latents)
        noise = lattice_gaussian(noise_key, plan.noise_std, start * directions, count * directions)
        noise = noise.reshape(count, directions)
        mine = batch[start : start + count]
        start += count
        for number in np.unique(mine):
            members = mine == number
            # Exact on the lattice of latents and directions, so that a retry has the same bits.
            projections = latents[members] @ plan.directions[first + number].T
            noisy = np.rint(projections / LATTICE).astype(np.int64) + noise[members]
            position = np.floor((noisy * LATTICE - plan.grid.low) / plan.grid.width)
            cells = np.clip(position, 0, bins - 1).astype(np.intp) + cell
            counts = np.bincount(cells.ravel(), minlength=directions * bins)
            total[number, 0] += SCALE * counts.reshape(directions, bins)
    return total


def batch_of_rows(plan: RowPlan, epoch: int, rows: int) -> NDArray[np.int64]:
    """The batch of every row in an epoch: array of size [rows], a public random division into even parts."""
    if plan.batches == 1:
        return np.zeros(rows, dtype=np.int64)
    digest = hashlib.sha256(f"{plan.digest()} batches of epoch {epoch}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    return np.asarray(rng.permutation(rows) % plan.batches)
