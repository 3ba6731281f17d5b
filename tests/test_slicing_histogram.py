from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from dpsw_ray.slicing import histogram_torch
from dpsw_ray.slicing.directions import haar_frames, round_to_lattice
from dpsw_ray.slicing.grid import PHASES, SCALE, BinGrid
from dpsw_ray.slicing.histogram import add_histograms

GRID = BinGrid(32, 1.0)
CLASSES = 3


def records(n: int = 2_000, dim: int = 8, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((n, dim))
    latents *= (1 - 1e-6) * rng.random((n, 1)) / np.linalg.norm(latents, axis=1, keepdims=True)
    return round_to_lattice(latents), rng.integers(-1, CLASSES, n).astype(np.int32)


def histogram(
    latents: NDArray[np.float64],
    labels: NDArray[np.int32],
    directions: NDArray[np.float64],
    grid: BinGrid = GRID,
    threads: int = 1,
) -> NDArray[np.int64]:
    out = np.zeros((CLASSES, len(directions), grid.bins), dtype=np.int64)
    add_histograms(latents, labels, directions, grid, grid.table, out, threads)
    return out


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0, 2.0])
def test_histogram_is_that_of_plain_numpy(smoothing: float) -> None:
    grid, directions = BinGrid(32, smoothing), haar_frames(2, 8, seed=0)
    latents, labels = records()
    expected = np.zeros((CLASSES, len(directions), grid.bins), dtype=np.int64)
    fine = np.floor((latents @ directions.T - grid.low) * (PHASES / grid.width)).astype(int)
    for i, j in zip(*np.nonzero(np.repeat(labels[:, None] >= 0, len(directions), axis=1)), strict=True):
        first = fine[i, j] // PHASES - grid.margin
        expected[labels[i], j, first : first + grid.table.shape[1]] += grid.table[fine[i, j] % PHASES]
    assert np.array_equal(histogram(latents, labels, directions, grid), expected)


def test_histogram_does_not_depend_on_who_sums_what() -> None:
    directions = haar_frames(3, 8, seed=0)
    latents, labels = records()
    whole = histogram(latents, labels, directions)
    cuts = [0, 1, 700, 1_999, len(latents)]
    parts = [histogram(latents[a:b], labels[a:b], directions) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(sum(parts), whole)
    order = np.random.default_rng(1).permutation(len(latents))
    assert np.array_equal(histogram(latents[order], labels[order], directions), whole)
    split = [histogram(latents, labels, directions[a:b]) for a, b in [(0, 5), (5, 6), (6, 24)]]
    assert np.array_equal(np.concatenate(split, axis=1), whole)
    for threads in (2, 3, 100):
        assert np.array_equal(histogram(latents, labels, directions, threads=threads), whole)


def test_projections_on_the_lattice_are_exact_in_any_order() -> None:
    directions, (latents, _) = haar_frames(2, 48, seed=0), records(dim=48)
    forwards = latents @ directions.T
    backwards = np.zeros_like(forwards)
    for k in reversed(range(48)):
        backwards += latents[:, k, None] * directions[:, k]
    assert np.array_equal(forwards, backwards)


def test_every_record_adds_the_same_mass_and_null_records_none() -> None:
    directions = haar_frames(2, 8, seed=0)
    latents, labels = records()
    counts = histogram(latents, labels, directions)
    for c in range(CLASSES):
        assert (counts[c].sum(axis=1) == SCALE * (labels == c).sum()).all()
    assert not histogram(latents, np.full_like(labels, -1), directions).any()


EVERY_GRID = [(smoothing, dim) for smoothing in (0.0, 1.0, 2.5) for dim in (3, 8, 48)]


@pytest.mark.parametrize(("smoothing", "dim"), EVERY_GRID)
def test_torch_gives_the_same_bits(smoothing: float, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_bits("cpu", smoothing, dim, monkeypatch)


@pytest.mark.parametrize(("smoothing", "dim"), EVERY_GRID)
def test_cuda_gives_the_same_bits(
    cuda: str, smoothing: float, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_bits(cuda, smoothing, dim, monkeypatch)


def check_bits(device: str, smoothing: float, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram_torch, "_PAIRS", 10_000)  # several batches in one call
    grid, directions = BinGrid(32, smoothing), haar_frames(3, dim, seed=0)
    latents, labels = records(dim=dim)
    sums = histogram_torch.TorchHistograms(directions, grid, grid.table, CLASSES, device)
    for a, b in itertools.pairwise([0, 700, 700, 1_999, len(latents)]):
        sums.add(latents[a:b], labels[a:b])
    assert np.array_equal(sums.total(), histogram(latents, labels, directions, grid))
    assert np.array_equal(sums.total(), sums.total())


def test_torch_refuses_the_kernel_of_another_grid() -> None:
    with pytest.raises(ValueError, match="not one of a grid with margin 4"):
        histogram_torch.TorchHistograms(haar_frames(1, 8, 0), GRID, BinGrid(32, 0.0).table, 1, "cpu")
