from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from dpsw_ray.slicing.directions import haar_frames, round_to_lattice
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.slicing.histogram import add_histograms
from dpsw_ray.tables.quantiles import denoise
from dpsw_ray.tables.release import Release

GRID = BinGrid(32, 1.0)
DIRECTIONS = haar_frames(8, 8, seed=0)
MANIFEST = {"publishable": False}


@cache
def exact_counts() -> NDArray[np.int64]:
    """Three classes of a few thousand records; the last one has none."""
    rng = np.random.default_rng(0)
    labels = rng.choice(2, 9_000, p=[0.6, 0.4]).astype(np.int32)
    centres = rng.standard_normal((2, 3, 8))
    centres /= np.linalg.norm(centres, axis=2, keepdims=True)
    x = centres[labels, rng.integers(0, 3, len(labels))] + 0.2 * rng.standard_normal((len(labels), 8))
    x = round_to_lattice(x * (1 - 1e-6) / np.linalg.norm(x, axis=1, keepdims=True))
    counts = np.zeros((3, len(DIRECTIONS), GRID.bins), dtype=np.int64)
    add_histograms(x, labels, DIRECTIONS, GRID, GRID.table, counts)
    return counts


def release(noise_in_records: float, seed: int = 0) -> Release:
    std = noise_in_records * SCALE
    noise = np.random.default_rng(seed).normal(0, std, exact_counts().shape) if std else 0.0
    counts = exact_counts() + np.rint(noise).astype(np.int64)
    return Release(DIRECTIONS[None].copy(), counts[None], GRID.table.copy(), GRID, std, MANIFEST)


def cumulate(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    density = counts / counts.sum(axis=-1, keepdims=True)
    return np.concatenate([np.zeros((*counts.shape[:-1], 1)), np.cumsum(density, axis=-1)], axis=-1)


def simplex(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean projection of each row onto the simplex."""
    ordered = -np.sort(-rows, axis=-1)
    excess = (np.cumsum(ordered, axis=-1) - 1) / np.arange(1, rows.shape[-1] + 1)
    support = (ordered > excess).sum(axis=-1, keepdims=True)
    return np.maximum(rows - np.take_along_axis(excess, support - 1, axis=-1), 0.0)


def sliced_w2(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Root mean square over the slices of the W2 distance between CDFs [K, bins + 1]."""
    levels = (np.arange(2_000) + 0.5) / 2_000
    squared = [
        np.mean((np.interp(levels, u, GRID.edges) - np.interp(levels, v, GRID.edges)) ** 2)
        for u, v in zip(a, b, strict=True)
    ]
    return float(np.sqrt(np.mean(squared)))


@pytest.mark.parametrize("noise", [0.0, 1.0, 20.0, 1e4])
def test_cdfs_rise_from_0_to_1(noise: float) -> None:
    targets = denoise(release(noise))[0]
    cdf = targets.slices.cdf
    assert np.isfinite(cdf).all()
    assert (cdf[..., 0] == 0).all()
    assert (cdf[..., -1] == 1).all()
    assert (np.diff(cdf, axis=-1) >= 0).all()
    assert targets.weights.sum() == pytest.approx(1)
    assert (targets.weights >= 0).all()


def test_an_exact_table_passes_unchanged() -> None:
    targets = denoise(release(0.0))[0]
    expected = cumulate(exact_counts()[:2].astype(np.float64))
    assert np.abs(targets.slices.cdf[:2] - expected).max() < 1e-12
    records = exact_counts()[:, 0].sum(axis=1) / SCALE
    assert np.allclose(targets.weights, records / records.sum(), atol=1e-12)


@pytest.mark.parametrize("noise", [5.0, 20.0, 60.0])
def test_shared_shape_beats_projecting_each_slice_alone(noise: float) -> None:
    noisy = release(noise)
    fitted = denoise(noisy)[0].slices.cdf
    for c in range(2):
        truth = cumulate(exact_counts()[c].astype(np.float64))
        total = noisy.counts[0, c].sum(axis=1).mean()
        alone = cumulate(simplex(noisy.counts[0, c] / total))
        assert sliced_w2(fitted[c], truth) < 0.8 * sliced_w2(alone, truth)


@pytest.mark.parametrize("noise", [0.0, 5.0, 20.0])
def test_a_class_without_records_gets_no_weight(noise: float) -> None:
    targets = denoise(release(noise))[0]
    assert targets.weights[2] == 0
    assert targets.weights[:2] == pytest.approx([0.6, 0.4], abs=0.03)
    assert np.isfinite(targets.slices.cdf).all()


def test_the_same_release_gives_the_same_targets() -> None:
    a, b = denoise(release(20.0))[0], denoise(release(20.0))[0]
    assert np.array_equal(a.slices.cdf, b.slices.cdf)
    assert np.array_equal(a.weights, b.weights)


def test_classes_too_small_to_be_seen_alone_share_a_fit() -> None:
    counts = np.repeat(exact_counts()[:1] // 20, 8, axis=0)  # eight classes of a few hundred records
    std = 150.0 * SCALE
    noisy = counts + np.rint(np.random.default_rng(0).normal(0, std, counts.shape)).astype(np.int64)
    noisy_release = Release(DIRECTIONS[None].copy(), noisy[None], GRID.table.copy(), GRID, std, MANIFEST)
    targets = denoise(noisy_release)[0]
    assert targets.weights == pytest.approx(np.full(8, 1 / 8))
    truth = cumulate(counts[0].astype(np.float64))
    uniform = np.tile(np.linspace(0, 1, GRID.bins + 1), (len(DIRECTIONS), 1))
    assert sliced_w2(targets.slices.cdf[0], truth) < 0.5 * sliced_w2(uniform, truth)


def test_rounds_are_tables_of_one_distribution_and_are_fitted_together() -> None:
    halves = [np.arange(32), np.arange(32, 64)]
    whole = release(40.0)
    parts = Release(
        np.stack([DIRECTIONS[half] for half in halves]),
        np.stack([whole.counts[0][:, half] for half in halves]),
        GRID.table.copy(), GRID, whole.cell_noise, MANIFEST,
    )  # fmt: skip
    together = denoise(whole)[0]
    rounds = denoise(parts)
    for targets, half in zip(rounds, halves, strict=True):
        assert np.allclose(targets.slices.cdf, together.slices.cdf[:, half])
        assert np.allclose(targets.weights, together.weights)


def test_pulling_harder_brings_the_slices_nearer_to_what_they_share() -> None:
    noisy = release(10.0)
    loose, fitted, tight = (denoise(noisy, strength)[0].slices.cdf[0] for strength in (0.01, 1.0, 100.0))
    assert np.abs(tight - fitted).max() > 1e-4
    assert np.abs(loose - fitted).max() > 1e-4
