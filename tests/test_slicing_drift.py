from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.slicing import drift_torch
from dpsw_ray.slicing.directions import haar_frames, round_to_lattice
from dpsw_ray.slicing.drift import COST_UNIT, DRIFT_UNIT, Slices, drift_reference
from dpsw_ray.slicing.drift_numba import NumbaBlock, drift_numba, map_histograms
from dpsw_ray.slicing.drift_torch import TorchBlock, TorchDrift
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.slicing.histogram import add_histograms


def points(n: int, dim: int, seed: int = 0) -> NDArray[np.float64]:
    x = np.random.default_rng(seed).standard_normal((n, dim))
    return round_to_lattice(x * (1 - 1e-6) / np.linalg.norm(x, axis=1, keepdims=True))


def random_slices(count: int, dim: int, grid: BinGrid, classes: int, seed: int = 0) -> Slices:
    """CDFs with empty stretches at both ends and in the middle."""
    directions = haar_frames(-(-count // dim), dim, seed)[:count]
    cdf = np.sort(np.random.default_rng(seed).random((classes, count, grid.bins + 1)), axis=-1)
    cdf[..., :3], cdf[..., -2:] = 0.0, 1.0
    cdf[..., 8:11] = cdf[..., 8:9]
    return Slices(directions, grid, grid.table, cdf)


def slices_of(latents: NDArray[np.float64], directions: NDArray[np.float64], grid: BinGrid) -> Slices:
    counts = np.zeros((1, len(directions), grid.bins), dtype=np.int64)
    add_histograms(latents, np.zeros(len(latents), np.int32), directions, grid, grid.table, counts)
    risen = np.concatenate([np.zeros((1, len(directions), 1)), np.cumsum(counts, axis=2)], axis=2)
    return Slices(directions, grid, grid.table, risen * (1.0 / (SCALE * len(latents))))


CASES = [  # particles, directions, dim, bins, smoothing
    (700, 16, 8, 32, 1.0),
    (700, 15, 3, 32, 0.0),
    (1_300, 33, 11, 64, 2.0),
    (500, 50, 48, 20, 0.5),
    (1, 1, 2, 32, 1.0),
]
OFFSETS = [(0, 1), (0, 0.3, 0.3, 1)]  # shares of the particles; the second has an empty class


def case(
    n: int, count: int, dim: int, bins: int, smoothing: float, shares: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.int64], Slices]:
    offsets = np.array([int(share * n) for share in shares])
    return points(n, dim), offsets, random_slices(count, dim, BinGrid(bins, smoothing), len(shares) - 1)


@pytest.mark.parametrize("shares", OFFSETS)
@pytest.mark.parametrize("sizes", CASES)
def test_kernels_agree_with_each_other_and_with_the_definition(
    sizes: tuple[int, int, int, int, float], shares: tuple[float, ...]
) -> None:
    x, offsets, slices = case(*sizes, shares)
    total, cost = drift_numba(x, offsets, slices)
    torch_total, torch_cost = TorchDrift(slices, "cpu")(x, offsets)
    assert np.array_equal(total, torch_total)
    assert np.array_equal(cost, torch_cost)
    expected, squared = drift_reference(x, offsets, slices)
    tolerance = 1e-5 * len(slices.directions)
    assert np.abs(total * DRIFT_UNIT - expected).max() < tolerance
    assert np.abs(cost * COST_UNIT - squared).max() < tolerance


@pytest.mark.parametrize("sizes", CASES)
def test_cuda_agrees_with_the_cpu(sizes: tuple[int, int, int, int, float], cuda: str) -> None:
    x, offsets, slices = case(*sizes, OFFSETS[1])
    total, cost = drift_numba(x, offsets, slices)
    cuda_total, cuda_cost = TorchDrift(slices, cuda)(x, offsets)
    assert np.abs(cuda_total - total).max() * DRIFT_UNIT < 1e-6
    assert np.abs(cuda_cost - cost).max() * COST_UNIT < 1e-6


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("sizes", CASES)
def test_blocks_of_particles_count_alike_and_move_alike(
    sizes: tuple[int, int, int, int, float], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_blocks(sizes, "cpu", threads, monkeypatch)


@pytest.mark.parametrize("sizes", CASES)
def test_blocks_on_cuda_count_alike_and_move_alike(
    sizes: tuple[int, int, int, int, float], cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_blocks(sizes, cuda, 1, monkeypatch)


def check_blocks(
    sizes: tuple[int, int, int, int, float], device: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Histograms of blocks add up to those of all particles, and what they say moves each as it would move there."""
    monkeypatch.setattr(drift_torch, "_ROWS", 300)
    x, offsets, slices = case(*sizes, OFFSETS[1])
    expected, cost = drift_numba(x, offsets, slices)
    cut = len(x) // 3
    ends = [np.clip(offsets, a, b) - a for a, b in ((0, cut), (cut, len(x)))]
    blocks: list[Any] = [NumbaBlock(x[:cut], ends[0], threads), TorchBlock(x[cut:], ends[1], device)]
    assert all(block.at_once() % 16 == 0 for block in blocks)
    found = np.zeros_like(cost)
    first = -(-len(slices.directions) // 3)
    for part in (slices.select(slice(0, first)), slices.select(slice(first, None))):
        if not len(part.directions):
            continue
        counts = sum(block.count(part) for block in blocks)
        nodes, more = map_histograms(counts, np.diff(offsets), part)
        found += more
        for block in blocks:
            block.displace(nodes)
    assert np.array_equal(found, cost)
    totals: list[NDArray[np.int64]] = []

    class Note:
        """A step that stays where it is, and says what it was asked to move."""

        def __call__(self, particles: Any, total: Any, first: int) -> Any:
            totals.append(total.copy())
            return particles

        def on_device(self, particles: Any, total: Any, first: int) -> Any:
            totals.append(total.cpu().numpy())
            return particles

    for block in blocks:
        block.move(Note())
    assert np.array_equal(np.concatenate(totals), expected)
    assert np.array_equal(np.concatenate([block.positions() for block in blocks]), x)


@pytest.mark.parametrize("threads", [2, 3, 7, 64])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    x, offsets, slices = case(1_300, 33, 8, 32, 1.0, OFFSETS[1])
    total, cost = drift_numba(x, offsets, slices)
    other_total, other_cost = drift_numba(x, offsets, slices, threads=threads)
    assert np.array_equal(total, other_total)
    assert np.array_equal(cost, other_cost)


@pytest.mark.parametrize("kernel", ["numba", "torch"])
def test_blocks_of_directions_add_up_to_the_whole(kernel: str) -> None:
    x, offsets, slices = case(1_300, 33, 8, 32, 1.0, OFFSETS[1])

    def drift(part: Slices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return drift_numba(x, offsets, part) if kernel == "numba" else TorchDrift(part, "cpu")(x, offsets)

    total, cost = drift(slices)
    parts = [drift(slices.select(slice(a, b))) for a, b in [(0, 1), (1, 20), (20, 33)]]
    assert np.array_equal(total, sum(part for part, _ in parts))
    assert np.array_equal(cost, sum(part for _, part in parts))


def test_order_of_the_particles_does_not_matter() -> None:
    x, offsets, slices = case(1_300, 16, 8, 32, 1.0, OFFSETS[0])
    order = np.random.default_rng(1).permutation(len(x))
    total, cost = drift_numba(x, offsets, slices)
    permuted, permuted_cost = drift_numba(x[order], offsets, slices)
    assert np.array_equal(permuted, total[order])
    assert np.array_equal(permuted_cost, cost)


def test_read_only_arguments_are_welcome() -> None:
    x, offsets, slices = case(700, 16, 8, 32, 1.0, OFFSETS[0])
    total, _ = drift_numba(x, offsets, slices)
    for array in (x, offsets, slices.directions, slices.cdf, slices.kernel):
        array.setflags(write=False)
    assert np.array_equal(drift_numba(x, offsets, slices)[0], total)


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 2.0])
def test_particles_that_have_arrived_stay(smoothing: float) -> None:
    x, grid = points(3_000, 8), BinGrid(32, smoothing)
    slices = slices_of(x, haar_frames(4, 8, seed=0), grid)
    total, cost = drift_numba(x, np.array([0, len(x)]), slices)
    assert np.abs(total).max() * DRIFT_UNIT / len(slices.directions) < 1e-6
    assert cost[0] * COST_UNIT < 1e-9


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_particles_move_towards_a_shifted_target(smoothing: float) -> None:
    grid, theta = BinGrid(64, smoothing), np.array([[1.0, 0.0]])
    x = round_to_lattice(points(5_000, 2) * 0.25)
    shifted = round_to_lattice(x + np.array([0.5, 0.0]))
    total, _ = drift_numba(x, np.array([0, len(x)]), slices_of(shifted, theta, grid))
    moves = total[:, 0] * DRIFT_UNIT
    # At the support's ends the target's quantile is a whole interval, and the nearest of its points is the edge
    # itself: particles in the outermost occupied bins go part of the way only.
    inside = np.abs(x[:, 0]) < 0.25 - 2 * grid.width
    assert inside.sum() > 2_000
    assert moves[inside] == pytest.approx(0.5, abs=0.01)
    assert (moves > 0).all()
    assert (moves < 0.51).all()
    assert not total[:, 1].any()


def test_an_empty_stretch_of_the_target_is_jumped() -> None:
    """Two lumps with nothing between: particles in the gap go to one or the other, none stays or is lost."""
    grid, theta = BinGrid(64, 0.0), np.array([[1.0]])
    goal = np.concatenate([np.full(500, -0.75), np.full(500, 0.75)])[:, None]
    x = round_to_lattice(np.linspace(-0.2, 0.2, 1_000)[:, None])
    total, _ = drift_numba(x, np.array([0, len(x)]), slices_of(round_to_lattice(goal), theta, grid))
    moved = (x + total * DRIFT_UNIT)[:, 0]
    # Displacements are linear inside a bin: only the bin that holds the jump may land between the lumps.
    settled = np.abs(np.abs(moved) - 0.75) < 2 * grid.width
    assert settled[np.abs(x[:, 0]) > grid.width].all()
    assert np.isfinite(moved).all()
    assert np.abs(moved).max() < 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, 1.5])
def test_what_lies_outside_the_ball_never_reaches_a_kernel(value: float) -> None:
    """A cell is looked up without any check: such a particle would be counted outside the histogram's memory."""
    x, offsets, slices = case(*CASES[0], OFFSETS[0])
    x[17, 3] = value
    block = NumbaBlock(points(len(x), x.shape[1]), offsets)
    for enter in (
        lambda: drift_numba(x, offsets, slices),
        lambda: block.put(0, x),
        lambda: TorchDrift(slices, "cpu")(x, offsets),
        lambda: TorchBlock(x, offsets, "cpu"),
    ):
        with pytest.raises(UserError, match="outside the unit ball"):
            enter()
