"""Broken twins: mechanisms that look right and are not, each caught by an audit or by a check that forbids it.

Every twin is judged by the claim of the intact mechanism, with as many runs as the intact one, which passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from support import small

from dpsw_ray.audit import low_bits, releases
from dpsw_ray.audit.attack import Attack, Randomness, Scores
from dpsw_ray.audit.bounds import shared_confidence
from dpsw_ray.audit.low_bits import discrete_parity, gaussian_grid, gaussian_parity, moments_parity
from dpsw_ray.audit.mechanisms import (
    discrete_gaussian,
    dp_sgd,
    gaussian,
)
from dpsw_ray.audit.pipeline import audit_pipeline
from dpsw_ray.audit.releases import (
    histogram_plan,
    moments_plan,
    noisy_moments,
    noisy_projections,
    row_plan,
    sampled_histograms,
    sampled_plan,
    sliced_histogram,
)
from dpsw_ray.audit.result import AuditResult, audit
from dpsw_ray.base.errors import PrivateSideError
from dpsw_ray.base.progress import Progress
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import import_dataset, open_dataset
from dpsw_ray.data.parts import write_part
from dpsw_ray.data.split import record_digests
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy import noise
from dpsw_ray.privacy.events import (
    DiscreteGaussianEvent,
    DpSgdEvent,
    GaussianEvent,
    SlicedHistogramEvent,
)
from dpsw_ray.privacy.noise import NoiseKey, lattice_gaussian
from dpsw_ray.privacy.relations import RELATIONS, Relation
from dpsw_ray.private import moments
from dpsw_ray.private.latents import BALL
from dpsw_ray.private.records import open_private_records
from dpsw_ray.release.moments import Lattice, MomentsPlan
from dpsw_ray.slicing.directions import haar_frames, iid_directions, round_to_lattice
from dpsw_ray.slicing.grid import BinGrid

CONFIDENCE = shared_confidence(1 - 1e-6, 20)


def judged(attack: Attack, honest: Attack, runs: int = 10_000) -> AuditResult:
    """The attack, held against what the honest mechanism is charged."""
    claimed = dataclasses.replace(attack, events=honest.events, relation=honest.relation)
    return audit(claimed, runs, CONFIDENCE, 1e-5, seed=1)


def assert_caught(broken: Attack, honest: Attack, runs: int = 10_000) -> None:
    assert judged(broken, honest, runs).refuted
    assert not judged(honest, honest, runs).refuted


def test_half_the_noise_of_the_release_itself() -> None:
    plan = histogram_plan("replace_one", 1.0)
    halved = dataclasses.replace(plan, noise_std=plan.noise_std / 2)
    assert_caught(sliced_histogram(halved, "replace_one"), sliced_histogram(plan, "replace_one"))


def test_half_the_noise_of_an_exact_discrete_sampler() -> None:
    honest, halved = (
        discrete_gaussian(DiscreteGaussianEvent("table", {"zero_out": 256}, std), "zero_out")
        for std in (16.0, 8.0)
    )
    assert_caught(halved, honest, runs=30_000)


def test_half_the_noise_of_a_training_run() -> None:
    honest, halved = (dp_sgd(DpSgdEvent(0.2, std, 10), "zero_out") for std in (1.0, 0.5))
    assert_caught(halved, honest)


@pytest.mark.parametrize("steps", [2, 5])
def test_noise_drawn_anew_in_every_step_and_charged_once(steps: int) -> None:
    honest = sliced_histogram(histogram_plan("replace_one", 1.0), "replace_one")

    def averaged(runs: int, source: Randomness) -> Scores:
        drawn = [
            honest.scores(runs, dataclasses.replace(source, key=source.key.derive(b"step %d" % step)))
            for step in range(steps)
        ]
        return sum(null for null, _ in drawn), sum(alternative for _, alternative in drawn)  # type: ignore[return-value]

    assert_caught(dataclasses.replace(honest, scores=averaged), honest, runs=6000)


def test_a_sensitivity_off_by_sqrt_2() -> None:
    """A record replaced, charged as a record removed."""
    plan = histogram_plan("zero_out", 1.0)
    assert_caught(sliced_histogram(plan, "replace_one"), sliced_histogram(plan, "zero_out"))


def test_a_sensitivity_off_by_sqrt_2_is_caught_at_epsilon_1() -> None:
    event = GaussianEvent(
        "vector", {"zero_out": 2.0**17, "replace_one": 2.0**17 * np.sqrt(2)}, 2.0**17 / 0.268
    )
    assert_caught(gaussian(event, "replace_one"), gaussian(event, "zero_out"), runs=100_000)


def test_moments_of_records_that_nobody_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records 1.3 times as long as the ball: their moments are 1.7 times as far apart."""
    plan = moments_plan("replace_one", 1.0)
    honest = noisy_moments(plan, "replace_one")
    monkeypatch.setattr(releases, "BALL", 1.3)
    assert_caught(noisy_moments(plan, "replace_one"), honest)


def test_moments_without_noise_beside_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = moments_plan("replace_one", 1.0)
    honest = noisy_moments(plan, "replace_one")
    drawn = releases.moments.noise
    beside = np.flatnonzero(np.not_equal(*np.triu_indices(plan.dim + 1)))

    def partial(key: NoiseKey, plan: MomentsPlan) -> np.ndarray:
        noise = drawn(key, plan)
        noise[beside] = 0
        return noise

    broken = dataclasses.replace(honest, scores=noisy_moments(plan, "replace_one").scores)
    intact = judged(honest, honest)
    monkeypatch.setattr(releases.moments, "noise", partial)
    assert judged(broken, honest).refuted
    assert not intact.refuted


@pytest.mark.parametrize("relation", RELATIONS)
def test_moments_with_noise_beside_the_diagonal_too_small_by_sqrt_2(
    relation: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = moments_plan(relation, 1.0)
    honest = noisy_moments(plan, relation)
    assert not judged(honest, honest).refuted
    monkeypatch.setattr(MomentsPlan, "beside_std", property(lambda plan: plan.noise_std / 2))
    assert judged(honest, honest).refuted


def edge_plan(level: float) -> HistogramPlan:
    """One dimension: a record at the end of the ball is at the edge of every direction."""
    grid, directions = BinGrid(16, 1.0), haar_frames(4, 1, seed=0)
    noiseless = SlicedHistogramEvent(len(directions), grid.row_norm_sq, 0.0)
    std = level * noiseless.sensitivity_sq("add_remove") ** 0.5
    return HistogramPlan("twin", directions[None], grid, grid.table, 1, False, std)


def test_tails_clamped_into_the_edge_bins_at_the_interiors_sensitivity() -> None:
    plan = edge_plan(1.0)
    margin = plan.grid.margin
    at_edge = round_to_lattice(np.array([[BALL - 1e-7]]))
    table = bound([(at_edge, np.zeros(1, np.int32))], plan)
    clamped = table[:, :, margin:-margin].copy()
    clamped[:, :, 0] += table[:, :, :margin].sum(axis=2)
    clamped[:, :, -1] += table[:, :, -margin:].sum(axis=2)

    def attack(record: np.ndarray) -> Attack:
        matched = record.ravel().astype(np.float64)

        def scores(runs: int, source: Randomness) -> Scores:
            drawn = lattice_gaussian(source.key, plan.noise_std, 0, 2 * runs * matched.size).reshape(
                2, runs, -1
            )
            return drawn[0] @ matched, (drawn[1] + matched) @ matched

        return Attack("edge", (plan.event,), "add_remove", scores)

    assert_caught(attack(clamped), attack(table))


def test_the_plan_charges_the_table_in_use_whatever_it_is() -> None:
    """A table whose rows are heaped up as at an edge costs more by itself; only a forged event hides it."""
    plan = edge_plan(1.0)
    heaped = plan.table.copy()
    centre = plan.grid.margin
    heaped[:, centre] += heaped[:, :centre].sum(axis=1)
    heaped[:, :centre] = 0
    clamped = dataclasses.replace(plan, table=heaped)
    assert clamped.event.row_norm_sq == (heaped**2).sum(axis=1).max() > 2 * plan.event.row_norm_sq
    twin = sliced_histogram(clamped, "add_remove")
    assert not judged(twin, twin, 10_000).refuted
    assert_caught(twin, sliced_histogram(plan, "add_remove"), runs=10_000)


def to_even(key: NoiseKey, std: float, start: int, count: int) -> np.ndarray:
    """Noise as it is usually drawn: a double, rounded to the nearest integer, ties to even."""
    drawn = np.random.default_rng(int.from_bytes(key.secret, "little")).standard_normal(count)
    return np.rint(std * drawn).astype(np.int64)


def test_ties_of_large_noise_rounded_to_even(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = gaussian_parity("replace_one", 100.0)
    assert not judged(honest, honest, 300).refuted
    monkeypatch.setattr(low_bits, "lattice_gaussian", to_even)
    assert judged(gaussian_parity("replace_one", 100.0, std=2.0**46), honest, 300).refuted


def test_noise_so_large_that_doubles_are_seen_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties are rounded upwards here, so parities tell nothing; the grid of the doubles does."""
    monkeypatch.setattr(noise, "MAX_STD", 2.0**50)
    std = next(
        near
        for near in (3 * 2.0**45 / noise.drawn_std(1.0) * (1 + step * 2.0**-53) for step in (0, 1, -1))
        if noise.drawn_std(near) == 3 * 2.0**45
    )
    honest = gaussian_grid("replace_one", 100.0)
    assert judged(gaussian_grid("replace_one", 100.0, std), honest, 300).refuted
    assert not judged(gaussian_parity("replace_one", 100.0, std), honest, 300).refuted


def test_moments_on_a_lattice_that_is_too_fine_for_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = moments_parity("replace_one", 2000.0)
    assert not judged(honest, honest, 1500).refuted
    finest = Lattice()
    fine = MomentsPlan("twin", 128, 8000.0 * np.sqrt(2) * finest.longest**2, finest)
    monkeypatch.setattr(moments, "lattice_gaussian", to_even)
    assert judged(moments_parity("replace_one", 2000.0, fine), honest, 1500).refuted


def test_exact_noise_that_prefers_even_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = discrete_parity("replace_one", 100.0)
    assert not judged(honest, honest, 200).refuted
    drawn = low_bits.discrete_gaussian

    def even_at_times(std: float, count: int) -> np.ndarray:
        noise = drawn(std, count)
        noise[::5] &= ~1
        return noise

    monkeypatch.setattr(low_bits, "discrete_gaussian", even_at_times)
    assert judged(honest, honest, 200).refuted


@pytest.mark.parametrize("law", ["haar", "iid"])
def test_half_the_noise_on_projections(law: Literal["haar", "iid"]) -> None:
    plan = row_plan(law, 2.0)
    halved = dataclasses.replace(plan, noise_std=plan.noise_std / 2)
    assert_caught(noisy_projections(halved, "replace_one"), noisy_projections(plan, "replace_one"), runs=3000)


def test_epochs_of_projections_charged_as_one() -> None:
    """The literature's: the same records projected again and again with fresh noise, at the price of one release."""
    once, often = (noisy_projections(row_plan("haar", 4.0, epochs), "zero_out") for epochs in (1, 6))
    assert_caught(often, once, runs=3000)


def test_a_projected_record_replaced_and_charged_as_zeroed() -> None:
    plan = row_plan("haar", 3.0)
    assert_caught(noisy_projections(plan, "replace_one"), noisy_projections(plan, "zero_out"), runs=3000)


def test_a_public_seed_for_iid_directions() -> None:
    """Who knows the directions beforehand puts the record where they are densest."""
    drawn = iid_directions(32, 8, "twin").reshape(2, 16, 8)
    plan = dataclasses.replace(row_plan("iid", 1.5, epochs=1), directions=drawn)
    first = plan.directions[0]
    _, strength, axes = np.linalg.svd(first)
    assert strength[0] > 1.4 * np.sqrt(len(first) / len(axes))
    known = dataclasses.replace(plan, law="haar", directions=np.stack([first] * plan.batches))
    placed = noisy_projections(known, "zero_out", axes[0] * BALL)
    assert_caught(placed, noisy_projections(plan, "zero_out"), runs=15_000)


def test_half_the_noise_on_secret_samples() -> None:
    plan = sampled_plan(1.0)
    halved = dataclasses.replace(plan, noise_std=plan.noise_std / 2)
    assert_caught(sampled_histograms(halved, "zero_out"), sampled_histograms(plan, "zero_out"), runs=4000)


def test_a_public_sampling_mask_with_amplification_claimed() -> None:
    plan = sampled_plan(0.8)
    honest = sampled_histograms(plan, "zero_out")
    shift = plan.noise_std / 0.8

    def seeing(runs: int, source: Randomness) -> Scores:
        """A sum that the record is in is shown as such: two Gaussians in place of a mixture."""
        member = source.rng.random((runs, len(plan.directions))) < plan.rate
        drawn = source.rng.normal(0, plan.noise_std, (2, *member.shape))
        drawn[1] += shift
        null, alternative = (member * (2 * drawn - shift)).sum(axis=2)
        return null, alternative

    assert_caught(dataclasses.replace(honest, scores=seeing), honest, runs=6000)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    home = tmp_path_factory.mktemp("twins")
    return small("cluster.executor=local", f"paths.home={home}", "privacy.epsilon=5")


@pytest.mark.parametrize("attempt", ["run", "audit"])
def test_an_overlapping_split_is_refused_before_anything_is_released(
    tmp_path: Path, attempt: str, config: RunConfig
) -> None:
    """The twin: a public record among the private ones, its digest too, as a second random split would leave it."""
    config = small("cluster.executor=local", f"paths.home={tmp_path}")
    import_dataset(config.data, tmp_path, "replace_one")
    data = open_dataset(config.data, tmp_path, "replace_one")
    assert data is not None
    private = open_private_records(data.private_dir)
    values, labels = private.values.copy(), private.labels.copy()
    values[0] = data.public().values[0]
    schema = data.info.schema
    write_part(
        data.private_dir, values.reshape(len(values), -1), labels, record_digests(values, schema), mode=0o600
    )
    attempts: dict[str, Callable[[], object]] = {
        "run": lambda: run(config, tmp_path / "run", Progress(quiet=True)),
        "audit": lambda: audit_pipeline(config, confidence=0.999, runs=20, progress=Progress(quiet=True)),
    }
    with pytest.raises(PrivateSideError, match="records in common with the public or test part"):
        attempts[attempt]()
    assert not (tmp_path / "run" / "release" / "manifest.json").exists()


def test_a_pipeline_that_adds_a_hundredth_of_its_noise(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: plans that are charged for a hundred times the noise the shards add."""

    def found() -> AuditResult:
        return audit_pipeline(config, confidence=0.9999, runs=40, canaries=10, progress=Progress(quiet=True))

    assert not found().refuted
    event = HistogramPlan.event.fget
    assert event is not None
    monkeypatch.setattr(
        HistogramPlan,
        "event",
        property(lambda plan: dataclasses.replace(event(plan), noise_std=100 * plan.noise_std)),
    )
    caught = found()
    assert caught.refuted and caught.mu_lower > 2 * caught.claimed_mu
