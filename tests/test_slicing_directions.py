from __future__ import annotations

import numpy as np
import pytest

from dpsw_ray.slicing.directions import LATTICE, haar_frames, round_to_lattice, spread_frames
from dpsw_ray.slicing.grid import PHASES, SCALE, BinGrid
from dpsw_ray.slicing.histogram import add_histograms


@pytest.mark.parametrize("dim", [2, 8, 48])
def test_every_frame_is_orthonormal(dim: int) -> None:
    frames = haar_frames(5, dim, seed=3).reshape(5, dim, dim)
    grams = frames @ frames.transpose(0, 2, 1)
    assert np.abs(grams - np.eye(dim)).max() < dim * LATTICE


def test_directions_live_on_the_lattice() -> None:
    directions = haar_frames(3, 8, seed=0)
    assert np.array_equal(directions / LATTICE, np.rint(directions / LATTICE))
    assert np.array_equal(round_to_lattice(directions), directions)


def test_directions_follow_from_the_seed() -> None:
    assert np.array_equal(haar_frames(4, 8, seed=7), haar_frames(4, 8, seed=7))
    assert not np.array_equal(haar_frames(4, 8, seed=7), haar_frames(4, 8, seed=8))


def test_directions_have_the_moments_of_the_uniform_distribution() -> None:
    frames, dim = 4_000, 4
    directions = haar_frames(frames, dim, seed=1)
    assert np.abs(directions.mean(axis=0)).max() < 5 / np.sqrt(dim * frames * dim)
    assert np.abs((directions[::dim] ** 2).mean(axis=0) - 1 / dim).max() < 5 / np.sqrt(frames * dim)
    # Without the sign correction QR prefers one sign on the diagonal.
    assert np.abs(directions.reshape(frames, dim, dim).mean(axis=0)).max() < 5 / np.sqrt(frames * dim)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_rows_of_the_table_are_masses(smoothing: float) -> None:
    grid = BinGrid(64, smoothing)
    assert grid.table.shape == (PHASES, 2 * grid.margin + 1)
    assert (grid.table >= 0).all()
    assert (grid.table.sum(axis=1) == SCALE).all()
    # A record in the mirrored phase adds the mirrored row, up to the unit that completes the sum.
    assert np.abs(grid.table - grid.table[::-1, ::-1]).max() <= 1


@pytest.mark.parametrize(
    ("smoothing", "beta"),
    [(0.0, 1.0), (0.5, 0.718), (1.0, 0.5205), (2.0, 0.3736), (4.0, 0.265), (8.0, 0.188)],
)
def test_smoothing_shrinks_the_sensitivity(smoothing: float, beta: float) -> None:
    assert BinGrid(96, smoothing).beta == pytest.approx(beta, abs=6e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_record_on_the_rim_keeps_all_its_mass(smoothing: float, sign: int) -> None:
    grid = BinGrid(48, smoothing)
    latent = round_to_lattice(np.array([[sign * (1 - 1e-6), 0.0]]))
    out = np.zeros((1, 1, grid.bins), dtype=np.int64)
    add_histograms(latent, np.zeros(1, np.int32), np.array([[1.0, 0.0]]), grid, grid.table, out)
    phase = PHASES - 1 if sign > 0 else 0
    at = grid.bins - len(grid.table[0]) if sign > 0 else 0
    assert out.sum() == SCALE
    assert np.array_equal(out[0, 0, at : at + grid.table.shape[1]], grid.table[phase])


@pytest.mark.parametrize(("frames", "dim"), [(1, 8), (12, 8), (5, 3), (2, 40)])
def test_spread_frames_are_orthonormal_and_repeatable(frames: int, dim: int) -> None:
    drawn = spread_frames(frames, dim, seed=3)
    assert drawn.shape == (frames * dim, dim)
    grams = drawn.reshape(frames, dim, dim) @ drawn.reshape(frames, dim, dim).transpose(0, 2, 1)
    assert np.abs(grams - np.eye(dim)).max() < 1e-7
    assert np.array_equal(drawn, spread_frames(frames, dim, seed=3))
    assert np.array_equal(drawn, round_to_lattice(drawn))


def test_spread_frames_lie_further_apart_than_random_ones() -> None:
    def nearness(directions: np.ndarray) -> float:
        cosines = (directions @ directions.T) ** 8
        return float(cosines.sum() - np.trace(cosines))

    for seed in range(5):
        assert nearness(spread_frames(16, 8, seed)) < 0.85 * nearness(haar_frames(16, 8, seed))
