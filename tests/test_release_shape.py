from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dpsw_ray.slicing.directions import haar_frames, round_to_lattice
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.slicing.histogram import add_histograms
from dpsw_ray.tables.quantiles import _least_risk, smoothing_matrix
from dpsw_ray.tables.shape import _posterior, _quadratic, _sizes, references, references_of

GRID = BinGrid(32, 1.0)
DIM = 5
DIRECTIONS = haar_frames(10, DIM, seed=0)
KERNEL = smoothing_matrix(GRID)
CENTRES = (np.arange(KERNEL.shape[1]) - (KERNEL.shape[1] - 1) / 2) * GRID.width
MEAN = np.array([[0.3, -0.2, 0.1, 0.0, 0.2], [-0.1, 0.4, 0.0, 0.2, 0.0]])
ROOTS = np.array([np.diag([0.25, 0.15, 0.1, 0.1, 0.05]), np.diag([0.05, 0.1, 0.2, 0.1, 0.2])])


def histograms(records: int = 8_000) -> NDArray[np.float64]:
    """Exact histograms [2, K, bins] of two Gaussian classes, of mass one."""
    rng = np.random.default_rng(1)
    tables = np.zeros((2, len(DIRECTIONS), GRID.bins), np.int64)
    for c in range(2):
        points = MEAN[c] + rng.standard_normal((records, DIM)) @ ROOTS[c]
        points /= np.maximum(1.0, np.linalg.norm(points, axis=1, keepdims=True) * (1 + 1e-6))
        labels = np.full(records, c, np.int32)
        add_histograms(round_to_lattice(points), labels, DIRECTIONS, GRID, GRID.table, tables)
    return tables / (SCALE * records)


@pytest.mark.parametrize(("level", "allowed"), [(0.002, 0.02), (0.03, 0.04)])
def test_mean_and_spread_of_every_slice_are_found_under_the_noise(level: float, allowed: float) -> None:
    y = histograms()
    noisy = y + np.random.default_rng(2).normal(0, level, y.shape)
    found = references(noisy, np.full(2, level), GRID, KERNEL, DIRECTIONS)
    assert (found >= 0).all()
    assert np.allclose(found.sum(axis=2), 1.0)
    mean = found @ CENTRES
    spread = np.sqrt(np.maximum(found @ CENTRES**2 - mean**2, 0.0))
    for c in range(2):
        assert np.sqrt(np.mean((mean[c] - DIRECTIONS @ MEAN[c]) ** 2)) < allowed
        truth = np.sqrt(np.einsum("ki,ij,kj->k", DIRECTIONS, ROOTS[c] @ ROOTS[c], DIRECTIONS))
        assert np.sqrt(np.mean((spread[c] - truth) ** 2)) < allowed
        # Another spread along every direction, and not their mean.
        assert np.corrcoef(spread[c], truth)[0, 1] > 0.8


def test_fitted_slices_correct_what_one_likely_shape_makes_of_two_lumps() -> None:
    rng = np.random.default_rng(1)
    lumps = np.array([[0.5, 0.3, 0.0, 0.0, 0.0], [-0.4, 0.0, 0.3, 0.0, 0.2]])
    points = lumps[(rng.random(8_000) < 0.5).astype(int)] + 0.1 * rng.standard_normal((8_000, DIM))
    points /= np.maximum(1.0, np.linalg.norm(points, axis=1, keepdims=True) * (1 + 1e-6))
    points = round_to_lattice(points)
    table = np.zeros((1, len(DIRECTIONS), GRID.bins), np.int64)
    add_histograms(points, np.zeros(8_000, np.int32), DIRECTIONS, GRID, GRID.table, table)
    y, level = table / (SCALE * 8_000), np.full(1, 0.004)
    y += rng.normal(0, level[0], y.shape)
    likely = references(y, level, GRID, KERNEL, DIRECTIONS)
    fit = _least_risk(y[0], KERNEL, likely[0], float(level[0]))
    found = references_of(fit.density[None], y, level, GRID, KERNEL, DIRECTIONS)
    assert (found >= 0).all() and np.allclose(found.sum(axis=2), 1.0)
    exact = np.cumsum(table[0] / (SCALE * 8_000), axis=1)
    errors = [np.square(np.cumsum(shape[0] @ KERNEL.T, axis=1) - exact).mean() for shape in (likely, found)]
    assert errors[1] < 0.5 * errors[0]


def test_the_quadratic_form_of_the_variances_is_told_from_their_noise() -> None:
    cosines = DIRECTIONS @ DIRECTIONS.T
    truth = np.stack([np.einsum("ki,ij,kj->k", DIRECTIONS, root @ root, DIRECTIONS) for root in ROOTS])
    assert np.allclose(_quadratic(truth, cosines, DIM), truth, atol=1e-6)
    noisy = truth + np.random.default_rng(3).normal(0, 0.01, truth.shape)
    found = _quadratic(noisy, cosines, DIM)
    assert np.mean((found - truth) ** 2) < 0.5 * np.mean((noisy - truth) ** 2)


def test_the_posterior_is_that_of_the_dense_linear_system() -> None:
    rng = np.random.default_rng(0)
    count, degrees = 6, 2
    cosines = haar_frames(3, 2, 0) @ haar_frames(3, 2, 0).T
    kernels = [cosines**2 + 0.1 * np.eye(count), cosines**4 + 0.1 * np.eye(count)]
    slopes = rng.standard_normal((2, count, 9, degrees))
    gram = np.einsum("ckbl,ckbm->cklm", slopes, slopes)
    right = rng.standard_normal((2, count, degrees))
    sizes = np.array([[0.5, 0.1], [2.0, 0.01]])
    found = _posterior(gram, right, kernels, sizes)
    for c in range(2):
        prior = np.zeros((count, degrees, count, degrees))
        data = np.zeros_like(prior)
        for i in range(degrees):
            prior[:, i, :, i] = sizes[c, i] * kernels[i]
        for k in range(count):
            data[k, :, k, :] = gram[c, k]
        size = count * degrees
        precision = np.linalg.inv(prior.reshape(size, size)) + data.reshape(size, size)
        dense = np.linalg.solve(precision, right[c].ravel()).reshape(count, degrees)
        assert np.abs(found[c] - dense).max() < 1e-3 * np.abs(dense).max()


def test_the_sizes_of_coefficients_are_estimated_without_bias() -> None:
    rng = np.random.default_rng(0)
    cosines = DIRECTIONS @ DIRECTIONS.T
    kernels = [cosines, cosines**3]
    truth = np.array([0.3, 0.05])
    slopes = rng.standard_normal((1, len(DIRECTIONS), 9, 2))
    gram = np.einsum("ckbl,ckbm->cklm", slopes, slopes)
    found = []
    for _ in range(300):
        c = np.stack(
            [np.sqrt(a) * np.linalg.cholesky(k + 1e-9 * np.eye(len(k))) @ rng.standard_normal(len(k))
             for a, k in zip(truth, kernels, strict=True)], axis=-1,
        )[None]  # fmt: skip
        noise = np.einsum("ckbl,ckb->ckl", slopes, rng.standard_normal(slopes.shape[:3]))
        found.append(_sizes(gram, np.einsum("cklm,ckm->ckl", gram, c) + noise, kernels))
    assert np.mean(found, axis=0) == pytest.approx(truth, rel=0.25)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(("frames", "dim"), [(1, 2), (1, 3), (2, 2), (6, 8)])
@pytest.mark.parametrize("level", [1e-4, 0.3, 30.0])
def test_tables_of_one_point_or_of_noise_alone_have_references(
    classes: int, frames: int, dim: int, level: float
) -> None:
    directions = haar_frames(frames, dim, seed=1)
    for seed in range(3):
        y = np.zeros((classes, len(directions), GRID.bins))
        y[..., GRID.bins // 2] = seed % 2
        y += np.random.default_rng(seed).normal(0, level, y.shape)
        found = references(y, np.full(classes, level), GRID, KERNEL, directions)
        assert np.isfinite(found).all() and (found >= 0).all()
        assert np.allclose(found.sum(axis=2), 1.0)
