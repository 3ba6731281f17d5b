"""Attacks on the releases themselves: the private wing's own code on a worst-case pair of neighbours.

DPSWgen makes the releases of DPSWflow-r and reads nothing else, so their audits are its own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.audit.attack import Attack, Randomness, Scores
from dpsw_ray.base.errors import UserError
from dpsw_ray.methods.dpswflow.mechanism import batch_of_rows, noisy_histograms
from dpsw_ray.methods.dpswflow.plan import Law, RowPlan, row_grid
from dpsw_ray.methods.dpswflow_h.mechanism import bound, noise
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.methods.dpswflow_r import mechanism as samples
from dpsw_ray.methods.dpswflow_r.plan import SampledHistogramPlan
from dpsw_ray.privacy.events import DpPcaEvent, NoiseKind, SlicedHistogramEvent
from dpsw_ray.privacy.losses import Gaussian
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.private import moments
from dpsw_ray.private.latents import BALL, NULL, bounded
from dpsw_ray.private.noise import draw_secret
from dpsw_ray.release.moments import RATIO, Lattice, MomentsPlan
from dpsw_ray.slicing.directions import LATTICE, haar_frames, iid_directions, round_to_lattice
from dpsw_ray.slicing.grid import SCALE, BinGrid

__all__ = [
    "histogram_plan",
    "mixture_ratio",
    "moments_plan",
    "noisy_moments",
    "noisy_projections",
    "row_plan",
    "sampled_histograms",
    "sampled_plan",
    "sliced_histogram",
]

Array = NDArray[np.float64]
Records = tuple[Array, NDArray[np.int32]]


def sliced_histogram(plan: HistogramPlan, relation: Relation) -> Attack:
    """The release itself: `private.mechanism.bound` on real records, its `noise` from a fresh secret in every run.

    Pair: the record with the largest table among many, in one class and in another; against the null record or
    none under the other relations. Score: matched filter, the likelihood ratio (of lattice noise, but for the
    rounding). Both worlds of a run see the same noise, which halves the time; the bounds allow it.

    Args:
        plan: class-conditional, with at least two classes.
        relation: of the pair.
    """
    first, second = (bound(records, plan).ravel() for records in _worst_pair(plan, relation))
    matched = (second - first).astype(np.float64)

    def scores(runs: int, source: Randomness) -> Scores:
        null, alternative = np.empty(runs), np.empty(runs)
        for run in range(runs):
            # Exact discrete noise has entropy of its own: no seed repeats it.
            secret = source.key.derive(b"run %d" % run) if plan.noise == "gaussian" else draw_secret(plan)
            drawn = noise(secret, plan).ravel()
            null[run], alternative[run] = matched @ (first + drawn), matched @ (second + drawn)
        return null, alternative

    name = "sliced_histogram" if plan.noise == "gaussian" else "sliced_histogram_discrete"
    return Attack(name, (plan.event,), relation, scores)


def histogram_plan(relation: Relation, level: float, kind: NoiseKind = "gaussian") -> HistogramPlan:
    """A small release of two classes, so that runs are cheap; the noise is `level` times the sensitivity."""
    grid, directions = BinGrid(8, 0.5), haar_frames(2, 2, seed=0)
    noiseless = SlicedHistogramEvent(len(directions), grid.row_norm_sq, 0.0)
    return HistogramPlan(
        release_id="audit",
        directions=directions[None],
        grid=grid,
        table=grid.table,
        classes=2,
        class_conditional=True,
        noise_std=math.sqrt(noiseless.sensitivity_sq(relation)) * level,
        noise=kind,
    )


def _worst_pair(plan: HistogramPlan, relation: Relation) -> tuple[list[Records], list[Records]]:
    dim = plan.directions.shape[2]
    rng = np.random.default_rng(0)
    points = rng.standard_normal((2000, dim))
    points *= rng.uniform(0.2, 1, (2000, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    points, _ = bounded(
        np.concatenate([points, np.eye(dim), -np.eye(dim)]), np.zeros(len(points) + 2 * dim, np.int32)
    )

    def one(point: Array, label: int) -> Records:
        return point[None], np.array([label], np.int32)

    tables = (bound([one(point, 0)], plan).astype(np.float64) for point in points)
    largest = points[int(np.argmax([np.vdot(table, table) for table in tables]))]
    others = (points[:5], np.zeros(5, np.int32))
    target = [others, one(largest, 0)]
    match relation:
        case "replace_one":
            return target, [others, one(largest, plan.classes - 1)]
        case "zero_out":
            return [others, one(largest, NULL)], target
        case "add_remove":
            return [others], target


def noisy_moments(plan: MomentsPlan, relation: Relation) -> Attack:
    """DP-PCA: `private.moments` with a fresh key in every run.

    Pair: records at the rim whose inner product is -k^2, as far apart as the sensitivity allows; or one and none (the
    null record adds the same). They lie between all axes, so that most of what changes is beside the diagonal, where
    noise too small is easiest to miss. Score: likelihood ratio, but for the rounding. Both worlds of a run see the same
    noise.

    Args:
        plan: of records in an even number of dimensions.
        relation: of the pair.
    """
    cosine = -(RATIO**-2)
    across = np.resize([1.0, -1.0], plan.dim) / math.sqrt(plan.dim)
    pair = np.stack([np.abs(across), cosine * np.abs(across) + math.sqrt(1 - cosine**2) * across])
    pair = round_to_lattice(pair * BALL)
    label = np.zeros(1, np.int32)
    absent = [(pair[:1], np.full(1, NULL, np.int32))] if relation == "zero_out" else []
    start = [(pair[:1], label)] if relation == "replace_one" else absent
    first, second = (moments.moment_sums(world, plan) for world in (start, [(pair[1:], label)]))
    rows, columns = np.triu_indices(plan.dim + 1)
    matched = (second - first) * np.where(rows == columns, 1.0, 2.0)

    def scores(runs: int, source: Randomness) -> Scores:
        shown = np.empty((2, runs))
        for run in range(runs):
            drawn = moments.noise(source.key.derive(b"run %d" % run), plan)
            shown[:, run] = (first + drawn) @ matched, (second + drawn) @ matched
        return shown[0], shown[1]

    return Attack("dp_pca", (plan.event,), relation, scores)


def moments_plan(relation: Relation, level: float, dim: int = 8) -> MomentsPlan:
    """Moments in so many dimensions, on the lattice of a plan; the noise is `level` times the sensitivity."""
    ((loss, _),) = DpPcaEvent(1.0).costs(relation)[0].items()
    assert isinstance(loss, Gaussian)
    lattice = Lattice.fitting(1 / level, loss.mu, MomentsPlan("audit", dim, 0.0).cells[0])
    if lattice is None:
        raise UserError(
            f"dp_pca has no noise of {level:.3g} times its sensitivity: choose a larger --epsilon."
        )
    return MomentsPlan("audit", dim, level * loss.mu * lattice.longest**2, lattice)


def noisy_projections(plan: RowPlan, relation: Relation, record: Array | None = None) -> Attack:
    """DPSWflow and DPSWflow-r: `private.rows.noisy_histograms` with a fresh key in every run, all epochs shown.

    Pair: a record at the end of a radius against the other end of the diameter, or against zero. The other records are
    one for each batch but its own and say nothing. Score: likelihood ratio of the noisy projections, but for their
    place inside a bin. Both worlds of a run see the same noise. Iid directions are drawn anew in every run, after the
    records, and shown.

    Args:
        plan: what is released; as many records are put in as an epoch has batches.
        relation: of the pair.
        record: array of size [d]; default: the end of the first axis.
    """
    dim = plan.directions.shape[2]
    end = np.eye(dim)[0] * BALL if record is None else record
    start = -end if relation == "replace_one" else 0 * end
    middle, change = (start + end) / 2, end - start
    others = np.zeros((plan.batches - 1, dim))
    worlds = [round_to_lattice(np.vstack([target, others])) for target in (start, end)]
    labels = np.zeros(plan.batches, np.int32)
    centres = plan.grid.low + plan.grid.width * (np.arange(plan.grid.bins) + 0.5)
    variance = (plan.noise_std * LATTICE) ** 2

    def scores(runs: int, source: Randomness) -> Scores:
        shown = np.zeros((2, runs))
        for run in range(runs):
            key = source.key.derive(b"run %d" % run)
            current = plan if plan.law == "haar" else _redrawn(plan, source.rng.bytes(16).hex())
            for epoch in range(plan.epochs):
                batch = int(batch_of_rows(current, epoch, plan.batches)[0])
                along = current.directions[epoch * plan.batches + batch]
                for world, latents in enumerate(worlds):
                    tables = noisy_histograms([(latents, labels)], current, epoch, 0, len(latents), key)
                    row = tables[batch, 0] @ centres / SCALE
                    shown[world, run] += (row - along @ middle) @ (along @ change) / variance
        return shown[0], shown[1]

    return Attack(f"noisy_projections_{plan.law}", (plan.event,), relation, scores)


def row_plan(law: Law, level: float, epochs: int = 2) -> RowPlan:
    """Small releases of two batches in each epoch; the noise on a projection is `level` times the latents' radius."""
    rounds, directions, dim = 2 * epochs, 12, 4
    if law == "haar":
        drawn = haar_frames(rounds * directions // dim, dim, seed=0)
    else:
        drawn = iid_directions(rounds * directions, dim, "audit")
    grid = row_grid(level)
    drawn = drawn.reshape(rounds, directions, dim)
    return RowPlan(
        "audit", drawn, grid, grid.table, 1, False, level / LATTICE, "gaussian", epochs=epochs, law=law
    )


def _redrawn(plan: RowPlan, release_id: str) -> RowPlan:
    rounds, directions, dim = plan.directions.shape
    drawn = iid_directions(rounds * directions, dim, release_id)
    return replace(plan, release_id=release_id, directions=drawn.reshape(plan.directions.shape))


def sampled_histograms(plan: SampledHistogramPlan, relation: Relation) -> Attack:
    """DPSWflow-r over secret samples: `dpswflow_r.mechanism`'s sums and noise with a fresh key in every run.

    Pair: a record with a large table, or none (the null record adds the same). Score: likelihood ratio of the mixture
    along the record's table, added over the rounds. Both worlds of a run see the same noise.

    Args:
        plan: what is released; its rate is that of the sample.
        relation: of the pair.
    """
    record = (round_to_lattice(np.eye(plan.directions.shape[2])[:1] * BALL / 2), np.zeros(1, np.int32))
    absent = [(record[0], np.full(1, NULL, np.int32))] if relation == "zero_out" else []
    sure, anyone = replace(plan, rate=1.0), NoiseKey.from_seed(0)
    questions = range(plan.questions)
    tables = np.concatenate([samples.sampled_sums([record], sure, q, 0, anyone) for q in questions]).astype(
        np.float64
    )
    tables = tables.reshape(len(tables), -1)
    shift = np.linalg.norm(tables, axis=1)

    def scores(runs: int, source: Randomness) -> Scores:
        shown = np.empty((2, runs))
        for run in range(runs):
            key = source.key.derive(b"run %d" % run)
            drawn = np.concatenate([samples.noise(key, plan, q) for q in questions])
            for world, batches in enumerate((absent, [record])):
                sums = np.concatenate([samples.sampled_sums(batches, plan, q, 0, key) for q in questions])
                along = np.einsum("tc,tc->t", (sums + drawn).reshape(tables.shape), tables) / shift
                shown[world, run] = mixture_ratio(along, plan.rate, shift, plan.noise_std).sum()
        return shown[0], shown[1]

    return Attack("sampled_histograms", (plan.event,), relation, scores)


def sampled_plan(level: float) -> SampledHistogramPlan:
    """Four small rounds; the noise is `level` times the sensitivity of one."""
    rounds, dim = 4, 2
    grid, directions = BinGrid(8, 0.5), haar_frames(2 * rounds, dim, seed=0)
    per_round = directions.reshape(rounds, -1, dim)
    std = level * math.sqrt(per_round.shape[1] * grid.row_norm_sq)
    return SampledHistogramPlan("audit", per_round, grid, grid.table, 1, False, std, "gaussian", rate=0.25)


def mixture_ratio(shown: Array, sampling: float, shift: float | Array, noise_std: float) -> Array:
    """Log of ((1 - q) N(0, s^2) + q N(shift, s^2)) over N(0, s^2), at what was shown."""
    exponent = (2 * shown - shift) * shift / (2 * noise_std**2)
    return np.asarray(np.logaddexp(np.log1p(-sampling), math.log(sampling) + exponent))
