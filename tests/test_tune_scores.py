"""Scores: withheld slices judge without bias, and tell a better flow from a worse one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dpsw_ray.base.errors import UserError
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.private.latents import bounded
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.slicing.histogram import add_histograms
from dpsw_ray.tables.release import Release
from dpsw_ray.tune.scores import HeldOut, withhold

CLASSES, DIM = 2, 4


def latents(records: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two lumps in the ball, sorted by class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), records // CLASSES)
    centres = np.array([[0.5, 0, 0, 0], [-0.3, 0.3, 0, 0]])
    return bounded(centres[labels] + shift + 0.15 * rng.standard_normal((len(labels), DIM)), labels)


def true_release(records: tuple[np.ndarray, np.ndarray], noise: float, epsilon: float = 1.0) -> Release:
    """A release without its noise, which says that it has some."""
    grid = BinGrid(32, 1.0)
    plan = HistogramPlan.make(
        release_id="r", dim=DIM, frames=8, grid=grid, classes=CLASSES, class_conditional=True,
        relation="replace_one", epsilon=epsilon, delta=1e-5, seed=0,
    )  # fmt: skip
    counts = np.zeros(plan.cells, np.int64)
    add_histograms(*records, plan.directions[0], grid, grid.table, counts[0])
    release = Release.from_plan(plan, counts, {"publishable": True})
    return dataclasses.replace(release, cell_noise=noise * 65536)


def noisy(release: Release, seed: int) -> Release:
    noise = np.random.default_rng(seed).standard_normal(release.counts.shape) * release.cell_noise
    return dataclasses.replace(release, counts=release.counts + np.rint(noise).astype(np.int64))


def squared(release: Release, particles: tuple[np.ndarray, np.ndarray], query: bool = False) -> float:
    parts = (release, release) if query else withhold(release, 0.25)
    score = HeldOut(*parts, *latents(1000, seed=5)).score(*particles)
    return score * abs(score)


def test_whole_frames_are_withheld_and_nothing_is_in_both_parts() -> None:
    fitted, held = withhold(true_release(latents(100, 0), 0.0), 0.3)
    assert (fitted.directions.shape[1], held.directions.shape[1]) == (24, 8)
    frame = held.directions[0, :DIM]
    assert frame @ frame.T == pytest.approx(np.eye(DIM), abs=1e-6)
    together = np.concatenate([fitted.counts, held.counts], axis=2)
    assert (together == true_release(latents(100, 0), 0.0).counts).all()
    with pytest.raises(UserError, match="leaves none for the flow"):
        withhold(true_release(latents(100, 0), 0.0), 0.99)


@pytest.mark.parametrize("query", [False, True])
def test_the_score_of_the_truth_is_zero_on_average_whatever_the_noise(query: bool) -> None:
    records = latents(1000, seed=0)
    exact = true_release(records, noise=3.0)
    assert squared(dataclasses.replace(exact, cell_noise=0.0), records, query) == pytest.approx(
        0.0, abs=1e-12
    )
    scores = np.array([squared(noisy(exact, seed), records, query) for seed in range(60)])
    assert abs(scores.mean()) < 4 * scores.std() / len(scores) ** 0.5
    worse = latents(1000, seed=1, shift=0.05)
    without = np.array([squared(noisy(exact, seed), worse, query) for seed in range(60)])
    assert without.mean() - scores.mean() > 10 * (without - scores).std() / len(scores) ** 0.5


def test_without_noise_it_is_near_the_sliced_distance_it_stands_for() -> None:
    """A small common shift moves every projection by <theta, shift>: W2^2 over frames is |shift|^2 / d."""
    records, shift = latents(4000, seed=0), 0.02
    moved = (records[0] + shift, records[1])
    exact = true_release(records, noise=0.0)
    expected = 4 * shift**2 / DIM
    assert 0.3 * expected < squared(exact, moved) < 1.2 * expected


def test_a_query_without_classes_judges_particles_with_classes() -> None:
    records = latents(1000, seed=0)
    pooled = (records[0], np.zeros(len(records[1]), np.int32))
    exact = true_release(pooled, noise=0.0)
    query = dataclasses.replace(exact, counts=np.ascontiguousarray(exact.counts[:, :1]))
    assert squared(query, records, query=True) == pytest.approx(0.0, abs=1e-12)
    assert squared(query, latents(1000, seed=1, shift=0.1), query=True) > 1e-3


def test_a_worse_flow_scores_worse_through_the_noise() -> None:
    exact = true_release(latents(1000, seed=0), noise=3.0)
    for seed in range(10):
        scores = [squared(noisy(exact, seed), latents(1000, seed=2, shift=s)) for s in (0.0, 0.05, 0.1)]
        assert scores == sorted(scores)
