"""The flow: the same bits for any number of workers, exact resuming, and where it arrives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support import flip

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DamagedFile, read_arrays, write_arrays
from dpsw_ray.cluster import LocalCluster, open_cluster
from dpsw_ray.config.fields import MOST_STEP
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.particles import RADIUS, allocate, confine, initial
from dpsw_ray.flow.points import Points
from dpsw_ray.flow.solver import flow_steps, solve
from dpsw_ray.flow.step import Course, Step
from dpsw_ray.slicing.directions import LATTICE, haar_frames, round_to_lattice
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.drift_numba import drift_numba
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.slicing.histogram import add_histograms
from dpsw_ray.tables.quantiles import Targets

DIM = 4
SCHEDULES = ("constant", "cosine", "inverse")


def targets(
    points: np.ndarray, labels: np.ndarray, frames: int = 6, bins: int = 32, smoothing: float = 1.0
) -> Targets:
    """Noise-free targets of points [n, DIM] with classes 0 and 1."""
    grid = BinGrid(bins, smoothing)
    directions = haar_frames(frames, DIM, 1)
    table = np.zeros((2, len(directions), bins), np.int64)
    add_histograms(points, labels.astype(np.int32), directions, grid, grid.table, table)
    cdf = np.zeros((2, len(directions), bins + 1))
    cdf[..., 1:] = np.cumsum(table, axis=2) / np.maximum(table.sum(axis=2, keepdims=True), 1)
    weights = np.bincount(labels, minlength=2) / len(labels)
    return Targets(Slices(directions, grid, grid.table, cdf), weights)


def blobs(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (np.arange(n) < n // 4).astype(int)
    x = rng.standard_normal((n, DIM)) * 0.2 + np.where(labels[:, None] == 1, 1.0, -1.0) * np.eye(1, DIM)
    return confine(x, sphere=True), labels


def run(config: FlowConfig, size: int = 1, checkpoint: Path | None = None) -> Points:
    return solve(
        [targets(*blobs())], config, sphere=True, seed=3, cluster=LocalCluster(size), checkpoint=checkpoint
    )


def test_allocation_follows_the_shares_and_loses_no_particle() -> None:
    assert np.diff(allocate(np.array([0.5, 0.3, 0.2, 0.0]), 11, "released")).tolist() == [6, 3, 2, 0]
    assert np.diff(allocate(np.array([0.7, 0.3, 0.0]), 9, "equal")).tolist() == [5, 4, 0]
    assert allocate(np.array([1.0]), 1, "released").tolist() == [0, 1]


@pytest.mark.parametrize("sphere", [True, False])
def test_particles_stay_where_the_latents_live_and_on_the_lattice(sphere: bool) -> None:
    rng = np.random.default_rng(0)
    points = confine(np.vstack([np.zeros((1, DIM)), rng.standard_normal((99, DIM))]), sphere)
    norms = np.linalg.norm(points, axis=1)
    assert (norms <= RADIUS + DIM * LATTICE).all()
    if sphere:
        assert np.allclose(norms, RADIUS, atol=DIM * LATTICE)
    assert np.array_equal(points, round_to_lattice(points))


def test_the_flow_arrives() -> None:
    result = run(FlowConfig(particles=400, steps=400, tolerance=0.01))
    assert result.distances[0] > 0.3
    assert result.distances[-1] < 0.02
    assert "stopped falling" in result.stopped
    points, labels = blobs()
    for c in (0, 1):
        gap = result.particles[result.labels == c].mean(axis=0) - points[labels == c].mean(axis=0)
        assert np.abs(gap).max() < 0.02


def test_a_flow_that_has_arrived_stays() -> None:
    points, labels = blobs()
    order = np.argsort(labels, kind="stable")
    from dpsw_ray.flow.worker import DriftWorker

    offsets = np.array([0, (labels == 0).sum(), len(labels)])
    total, cost = DriftWorker([targets(points, labels).slices], 0, "numba").drift(points[order], offsets)
    assert not total.any() and not cost.any()


@pytest.mark.parametrize("diffusion", [0.0, 1e-4])
def test_any_number_of_workers_gives_the_same_bits(diffusion: float) -> None:
    config = FlowConfig(particles=101, steps=8, diffusion=diffusion)
    expected = run(config)
    for size in (2, 3, 40):
        result = run(config, size)
        assert np.array_equal(result.particles, expected.particles)
        assert result.distances == expected.distances


def test_ray_gives_the_bits_of_the_local_executor(ray_session: None) -> None:
    config = FlowConfig(particles=101, steps=5)
    with open_cluster(ClusterConfig(actors=2)) as cluster:
        result = solve([targets(*blobs())], config, sphere=True, seed=3, cluster=cluster)
    assert np.array_equal(result.particles, run(config).particles)


def test_numba_and_torch_give_the_same_bits() -> None:
    numba = run(FlowConfig(particles=101, steps=5, kernel="numba"))
    torch = run(FlowConfig(particles=101, steps=5, kernel="torch"))
    assert np.array_equal(numba.particles, torch.particles)


def test_resuming_gives_the_bits_of_an_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FlowConfig(particles=101, steps=30, diffusion=1e-4, patience=30)
    expected = run(config)
    calls = []

    def interrupt(distance: float) -> None:
        calls.append(distance)
        if len(calls) == 28:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(
            [targets(*blobs())], config, sphere=True, seed=3, cluster=LocalCluster(1),
            checkpoint=tmp_path / "flow.npz", on_step=interrupt,
        )  # fmt: skip
    assert (tmp_path / "flow.npz").exists()
    result = run(config, checkpoint=tmp_path / "flow.npz")
    assert np.array_equal(result.particles, expected.particles)
    assert result.distances == expected.distances


def test_a_checkpoint_of_another_flow_is_not_used(tmp_path: Path) -> None:
    run(FlowConfig(particles=50, steps=5), checkpoint=tmp_path / "flow.npz")
    other = FlowConfig(particles=50, steps=5, step_size=1.0)
    assert np.array_equal(run(other, checkpoint=tmp_path / "flow.npz").particles, run(other).particles)


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a checkpoint")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _nan(path: Path) -> None:
    stored = read_arrays(path)
    stored["particles"][3] = np.nan
    write_arrays(path, stored)  # with its digest: somebody else's flow went wrong


def _other_values(path: Path) -> None:
    stored = dict(np.load(path))
    stored["particles"][3] *= 0.5
    np.savez(path, **stored)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [_garbage, _empty, _cut, _nan, _other_values, _pipe])
def test_a_damaged_checkpoint_costs_time_only(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    config, path = FlowConfig(particles=50, steps=5), tmp_path / "flow.npz"
    expected = run(config, checkpoint=path)
    damage(path)
    found = run(config, checkpoint=path)
    assert np.array_equal(found.particles, expected.particles) and found.distances == expected.distances
    assert [record.message for record in caplog.records] == [
        f"{path} is damaged or cannot be read: the flow starts anew, which charges nothing."
    ]
    assert np.array_equal(run(config, checkpoint=path).particles, expected.particles)
    assert len(caplog.records) == 1


def test_every_changed_bit_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "flow.npz"
    run(FlowConfig(particles=50, steps=5), checkpoint=path)
    whole, held = path.read_bytes(), read_arrays(path)
    for place in np.random.default_rng(0).choice(8 * len(whole), 250, replace=False):
        flip(path, int(place))
        with contextlib.suppress(DamagedFile):  # else a date of the archive's, or the name of the digest
            found = read_arrays(path)
            assert all(np.array_equal(found[name], array) for name, array in held.items())
        path.write_bytes(whole)


def test_wiener_noise_spreads_particles_and_schedules_differ() -> None:
    still = run(FlowConfig(particles=100, steps=20))
    moved = run(FlowConfig(particles=100, steps=20, diffusion=1e-3))
    assert moved.distances[-1] > still.distances[-1]
    schedules = [FlowConfig.model_validate({"particles": 50, "steps": 10, "schedule": s}) for s in SCHEDULES]
    assert len({run(config).particles.tobytes() for config in schedules}) == 3


def test_a_default_flow_takes_every_round_once_and_lets_noisy_rounds_average_out() -> None:
    config = FlowConfig(particles=50)
    assert (flow_steps(config, 1), flow_steps(config, 500)) == (300, 500)
    assert flow_steps(FlowConfig(steps=7), 500) == 7
    rng = np.random.default_rng(0)
    points, labels = blobs()
    calm = targets(points, labels)
    batches = [
        np.concatenate([rng.choice(np.flatnonzero(labels == c), 15) for c in (0, 1)]) for _ in range(60)
    ]
    noisy = [Targets(targets(points[b], labels[b]).slices, calm.weights) for b in batches]

    def left(schedule: str) -> float:
        """Distance to the targets without noise, where a flow towards the noisy ones ends."""
        made = solve(
            noisy,
            FlowConfig.model_validate({"particles": 400, "schedule": schedule}),
            sphere=True,
            seed=3,
            cluster=LocalCluster(1),
        )
        _, cost = drift_numba(made.particles, np.searchsorted(made.labels, [0, 1, 2]), calm.slices)
        return float(cost.sum())

    assert left("auto") == left("inverse") < left("constant") / 2


def test_distances_are_right_where_the_noise_is_a_hundred_times_the_latents() -> None:
    """Sums over many particles, classes and directions pass 2^63 of the smallest unit."""
    grid = BinGrid(64, 7.4)
    directions = haar_frames(32, DIM, 1)
    far = np.zeros((1, len(directions), 65))
    far[..., -1] = 1.0  # all mass at the far end
    slices = Slices(directions, grid, grid.table, far)
    assert slices.fits()
    config = FlowConfig(particles=40_000, steps=1)
    made = solve([Targets(slices, np.ones(1))], config, sphere=True, seed=0, cluster=LocalCluster(1))
    reach = -grid.low
    assert reach - 1 < made.distances[0] < reach + 1


def test_noise_beyond_what_the_drift_can_add_up_is_refused_with_what_helps() -> None:
    grid = BinGrid(402, 50.0)
    directions = haar_frames(400, DIM, 1)
    slices = Slices(directions, grid, grid.table, np.linspace(0, 1, 403)[None, None].repeat(1600, axis=1))
    with pytest.raises(UserError, match=r"choose a larger privacy\.epsilon or fewer directions"):
        solve([Targets(slices, np.ones(1))], FlowConfig(), sphere=True, seed=0, cluster=LocalCluster(1))


def test_initial_particles_follow_the_seed() -> None:
    assert np.array_equal(initial(10, 3, True, 1), initial(10, 3, True, 1))
    assert not np.array_equal(initial(10, 3, True, 1), initial(10, 3, True, 2))
    assert np.linalg.norm(initial(1000, 3, False, 1), axis=1).min() < 0.5


@pytest.mark.parametrize("sphere", [True, False])
def test_a_step_out_of_the_range_of_numbers_is_refused(sphere: bool) -> None:
    at = initial(10, DIM, sphere, 0)
    total = np.full(at.shape, 2**40, dtype=np.int64)
    for step in (
        Step(0, 1e300, 0.0, sphere, 0),
        Step(0, 1e-16, 1e308, sphere, 0),
        Step(0, np.nan, 0.0, sphere, 0),
    ):
        with pytest.raises(UserError, match=r"choose a smaller flow\.step_size or flow\.diffusion"):
            step(at, total)
        with pytest.raises(UserError, match=r"choose a smaller flow\.step_size or flow\.diffusion"):
            step.on_device(torch.from_numpy(at), torch.from_numpy(total))
    largest = Course(FlowConfig(step_size=MOST_STEP, diffusion=MOST_STEP), 24, DIM, 1, sphere, 0).step(0)
    assert np.linalg.norm(largest(at, np.full(at.shape, 2**62, dtype=np.int64)), axis=1).max() <= 1


def test_a_release_that_holds_no_number_is_refused() -> None:
    goal = targets(*blobs())
    goal.slices.cdf[0, 3, 5] = np.nan
    config = FlowConfig(particles=20, steps=2)
    with pytest.raises(UserError, match="something that is no number"):
        solve([goal], config, sphere=True, seed=0, cluster=LocalCluster(1))
