"""The flow divided by directions, particles and classes: the same bits, also when workers lose what they keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpsw_ray.cluster import Cluster, LocalCluster, WorkerDied, WorkerGroup, open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.flow import movers
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.division import divide
from dpsw_ray.flow.particles import initial
from dpsw_ray.flow.points import Points
from dpsw_ray.flow.solver import _certain, _stalled, solve
from dpsw_ray.flow.step import Course
from dpsw_ray.flow.worker import BlockWorker
from dpsw_ray.slicing import drift_numba
from dpsw_ray.slicing.directions import LATTICE, haar_frames
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.quantiles import Targets

MODES = ("directions", "particles", "classes")


def targets(dim: int = 5, frames: int = 7, smoothing: float = 1.0, seed: int = 0) -> Targets:
    """Three classes, of which the second is empty."""
    grid = BinGrid(32, smoothing)
    directions = haar_frames(frames, dim, seed)
    cdf = np.sort(np.random.default_rng(seed).random((3, len(directions), grid.bins + 1)), axis=-1)
    cdf[..., :4], cdf[..., -4:] = 0.0, 1.0
    return Targets(Slices(directions, grid, grid.table, cdf), np.array([0.3, 0.0, 0.7]))


def flow(
    rounds: list[Targets], parallel: str, cluster: Cluster | int, threads: int = 1, **more: Any
) -> Points:
    keys = {name: more.pop(name) for name in list(more) if name in FlowConfig.model_fields}
    config = FlowConfig.model_validate({"particles": 211, "steps": 6, "parallel": parallel} | keys)
    own = LocalCluster(cluster) if isinstance(cluster, int) else cluster
    return solve(rounds, config, sphere=True, seed=3, cluster=own, threads=threads, **more)


def same(first: Points, second: Points) -> bool:
    return (
        first.particles.tobytes() == second.particles.tobytes()
        and first.labels.tolist() == second.labels.tolist()
        and first.distances == second.distances
        and first.stopped == second.stopped
    )


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks are moved in one pass; large ones a group of directions at a time."""
    if request.param == "large":
        monkeypatch.setattr(drift_numba, "_SMALL_BYTES", 0)
        monkeypatch.setattr(drift_numba, "_CLOSE_GROUPS", 1)
        monkeypatch.setattr(drift_numba, "_HELD_BYTES", 1)
        monkeypatch.setattr(movers, "_PIECE_BYTES", 8 * 5 * 50)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"diffusion": 1e-3},
        {"subset": 20, "diffusion": 1e-3},
        {"kernel": "torch", "diffusion": 1e-3},
        {"class_balance": "equal", "schedule": "cosine"},
        {"steps": 60, "patience": 3, "tolerance": 0.1},
    ],
)
def test_every_division_gives_the_same_bits(size: None, keys: dict[str, Any]) -> None:
    expected = flow([targets()], "directions", 1, **keys)
    for parallel in (*MODES, "auto"):
        for workers, threads in ((1, 1), (2, 1), (3, 2)):
            assert same(flow([targets()], parallel, workers, threads, **keys), expected)


@pytest.mark.parametrize("parallel", MODES)
def test_more_workers_than_there_is_work_are_no_mistake(parallel: str) -> None:
    expected = flow([targets()], "directions", 1, particles=40, steps=2)
    assert same(flow([targets()], parallel, 50, particles=40, steps=2), expected)


@pytest.mark.parametrize("smoothing", [0.0, 2.5])
@pytest.mark.parametrize("dim", [2, 8, 48])
def test_so_do_several_rounds_of_any_smoothing_and_dimension(size: None, smoothing: float, dim: int) -> None:
    rounds = [targets(dim, 3, smoothing, seed) for seed in range(3)]
    expected = flow(rounds, "directions", 1, steps=7, subset=dim + 1, diffusion=1e-3)
    for parallel in MODES[1:]:
        for workers in (1, 2, 5):
            found = flow(rounds, parallel, workers, steps=7, subset=dim + 1, diffusion=1e-3)
            assert same(found, expected)


def test_wiener_noise_belongs_to_the_particle() -> None:
    """Blocks that begin inside what one generator draws, and blocks that hold several of its draws."""
    expected = flow([targets()], "directions", 1, particles=9_000, steps=2, diffusion=1e-3)
    for workers in (2, 4):
        found = flow([targets()], "particles", workers, particles=9_000, steps=2, diffusion=1e-3)
        assert same(found, expected)
    course = Course(FlowConfig(diffusion=1e-3), 35, 5, 1, True, 3)
    start = initial(9_000, 5, True, 3)
    still = np.zeros(start.shape, np.int64)
    whole = course.step(4)(start, still)
    part = course.step(4, offset=5_000)(start[5_000:], still[5_000:])
    assert np.array_equal(part, whole[5_000:])
    assert not np.array_equal(course.step(5)(start, still), whole)


@pytest.mark.parametrize("sphere", [True, False])
def test_a_step_on_a_device_ends_a_lattice_step_away_at_most(sphere: bool) -> None:
    course = Course(FlowConfig(diffusion=1e-2), 35, 48, 1, sphere, 3)
    start = initial(500, 48, sphere, 3)
    start[0] = 0.0
    total = np.random.default_rng(0).integers(-(2**46), 2**46, start.shape)
    total[0] = 0
    for step in (course.step(0), Course(FlowConfig(), 35, 48, 1, sphere, 3).step(0)):
        found = step.on_device(torch.from_numpy(start), torch.from_numpy(total)).numpy()
        assert np.abs(found - step(start, total)).max() <= LATTICE


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("parallel", MODES)
def test_cuda_moves_particles_as_the_cpu_does(parallel: str) -> None:
    expected = flow([targets()], parallel, 2, kernel="numba", diffusion=1e-3)
    found = flow([targets()], parallel, 2, kernel="torch", diffusion=1e-3)
    assert np.abs(found.particles - expected.particles).max() < 1e-5
    assert found.distances == pytest.approx(expected.distances, abs=1e-5)
    assert same(flow([targets()], parallel, 2, kernel="torch", diffusion=1e-3), found)


def test_resuming_in_another_division_gives_the_bits_of_an_uninterrupted_run(tmp_path: Path) -> None:
    expected = flow([targets()], "directions", 1, steps=30, diffusion=1e-4, patience=30)
    seen: list[float] = []

    def interrupt(distance: float) -> None:
        seen.append(distance)
        if len(seen) == 28:
            raise KeyboardInterrupt

    for number, (before, after) in enumerate([("particles", "classes"), ("classes", "particles")]):
        more: dict[str, Any] = {"steps": 30, "diffusion": 1e-4, "patience": 30}
        more["checkpoint"] = tmp_path / f"{number}.npz"
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            flow([targets()], before, 2, on_step=interrupt, **more)
        assert more["checkpoint"].exists()
        assert same(flow([targets()], after, 3, **more), expected)


@pytest.mark.parametrize("parallel", MODES)
def test_who_watches_sees_every_step(parallel: str) -> None:
    seen: list[tuple[int, bytes]] = []
    made = flow([targets()], parallel, 2, watch=lambda step, x: seen.append((step, x.tobytes())))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][1] == made.particles.tobytes()
    alone: list[bytes] = []
    flow([targets()], "directions", 1, watch=lambda step, x: alone.append(x.tobytes()))
    assert [x for _, x in seen] == alone


class Forgetful:
    """A group in which workers lose what they keep: a call before which they are built anew, without being told."""

    def __init__(
        self, group: WorkerGroup, build: Callable[[], WorkerGroup], when: Callable[[int], bool]
    ) -> None:
        self._group, self._build, self._when = group, build, when
        self._calls = 0
        self.lost = 0

    @property
    def size(self) -> int:
        return self._group.size

    def call(self, method: str, args: Any = (), *, retry: bool = False) -> list[Any]:
        self._calls += 1
        if self._when(self._calls):
            rank = self._calls % self.size
            self._group._parts[rank] = self._build()._parts[rank]  # type: ignore[attr-defined]
            self.lost += 1
        return self._group.call(method, args, retry=retry)

    def rebuild(self) -> None:
        self._group.rebuild()

    def close(self) -> None:
        self._group.close()


class ForgetfulCluster(LocalCluster):
    def __init__(self, size: int, when: Callable[[int], bool]) -> None:
        super().__init__(size)
        self._when = when
        self.groups: list[Forgetful] = []

    def spawn(self, factory: Callable[..., object], kwargs_per_rank: Any) -> WorkerGroup:
        build = super().spawn
        group = build(factory, kwargs_per_rank)
        self.groups.append(Forgetful(group, lambda: build(factory, kwargs_per_rank), self._when))
        return self.groups[-1]


@pytest.mark.parametrize("parallel", ["particles", "classes"])
def test_workers_that_lose_their_particles_are_brought_back_to_the_same_bits(
    size: None, parallel: str, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"steps": 55, "diffusion": 1e-3, "patience": 55}
    expected = flow([targets()], "directions", 1, **keys)
    rng = np.random.default_rng(0)
    cluster = ForgetfulCluster(3, lambda call: rng.random() < 0.02)
    found = flow([targets()], parallel, cluster, checkpoint=tmp_path / "flow.npz", **keys)
    assert cluster.groups[0].lost >= 1
    assert same(found, expected)


def test_what_always_loses_its_particles_ends_with_a_sentence() -> None:
    with pytest.raises(WorkerDied, match=r"Worker \d of 3 died during step 1 of the flow, again and again"):
        flow([targets()], "particles", ForgetfulCluster(3, lambda call: True))


def test_a_block_that_is_somewhere_else_moves_nothing() -> None:
    goal = targets()
    course = Course(FlowConfig(), len(goal.slices.directions), 5, 1, True, 3)
    worker = BlockWorker([goal.slices], course, "numba")
    start = initial(20, 5, True, 3)
    assert worker.turn(0, 0, 35, None) is worker.advance(0, 1) is worker.positions(0, 0, 20) is None
    assert worker.put(0, 0, start) is None
    worker.load(0, np.array([0, 5, 5, 20]), 0, (0, 3))
    assert worker.put(1, 0, start) is worker.put(0, 5, start[5:]) is None
    assert worker.put(0, 0, start[:8])
    assert worker.turn(0, 0, 35, None) is worker.put(0, 0, start[:8]) is None
    assert worker.put(0, 8, start[8:])
    nodes = np.zeros((3, 35, 33))
    assert worker.turn(1, 0, 35, None) is worker.turn(0, 0, 35, nodes) is worker.finish(0, nodes) is None
    counts = worker.turn(0, 0, 35, None)
    assert counts is not None
    assert counts[0].sum(axis=2).tolist() == [[5] * 35, [0] * 35, [15] * 35]
    assert worker.turn(0, 0, 35, None) is worker.advance(1, 1) is worker.positions(1, 0, 20) is None
    assert worker.finish(1, nodes)
    assert worker.finish(1, nodes) is None
    positions = worker.positions(1, 0, 20)
    assert positions is not None
    assert np.abs(positions - start).max() <= 2 * LATTICE  # nowhere to go, and back onto the sphere


def test_killed_actors_are_brought_back_to_the_same_bits(ray_session: None) -> None:
    import ray

    keys: dict[str, Any] = {"steps": 32, "diffusion": 1e-3, "patience": 32}
    expected = flow([targets()], "directions", 1, **keys)
    taken: list[float] = []
    with open_cluster(ClusterConfig(actors=2, cpus_per_actor=0.5)) as cluster:

        def kill(distance: float) -> None:
            taken.append(distance)
            if len(taken) in (13, 26):
                ray.kill(cluster._hosts[len(taken) % 2])  # type: ignore[attr-defined]

        assert same(flow([targets()], "particles", cluster, on_step=kill, **keys), expected)
    assert taken == expected.distances


@given(
    st.lists(st.floats(0.5, 1.0), min_size=1, max_size=40),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.005, 0.1]),
)
def test_steps_are_taken_at_once_only_where_none_of_them_could_be_the_last(
    distances: list[float], patience: int, tolerance: float
) -> None:
    """The worst that may come: no distance that is still unknown falls."""
    config = FlowConfig(patience=patience, tolerance=tolerance)
    if _stalled(distances, config):
        return
    count = _certain(distances, config)
    worst = [*distances, *[10.0] * count]
    assert count >= 1
    assert not any(_stalled(worst[: len(distances) + taken], config) for taken in range(count))


def choice(particles: int, directions: int, workers: int, classes: int = 1, **more: Any) -> Any:
    offsets = np.linspace(0, particles, classes + 1).astype(np.int64)
    return divide(
        FlowConfig(), offsets, directions=directions, dim=8, bins=32, workers=workers, **more
    )  # fmt: skip


def test_auto_divides_what_is_worth_it_and_says_what_is_not() -> None:
    assert choice(1_000_000, 4096, 2).by == "particles"
    many = choice(1_000_000, 4096, 64)
    assert many.by == "particles" and 8 <= many.workers <= 64
    alone = choice(10_000, 256, 2)
    assert (alone.by, alone.workers) == ("classes", 1)
    assert "One of 2 workers moves all particles" in alone.why and "flow.parallel: auto" in alone.why
    assert choice(10_000, 256, 2, classes=10).cuts.tolist() == [0, 5_000, 10_000], "classes exchange nothing"
    assert choice(200_000, 256, 4, classes=2).by == "particles", "two classes leave two of four without work"
    assert choice(500, 200_000, 4).by == "directions"
    assert choice(10_000, 256, 1).why == "", "nobody is left without work"
    assert choice(100_000, 1024, 2, gpu=True).workers == 1
