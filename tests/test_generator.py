"""DPSWgen: where the training arrives, exact resuming, and what is drawn from a generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_manifest, write_manifest
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.flow.particles import RADIUS, confine, initial
from dpsw_ray.generator.config import GeneratorConfig
from dpsw_ray.generator.network import Generator
from dpsw_ray.generator.rounds import Rounds, quantiles
from dpsw_ray.generator.training import train_generator
from dpsw_ray.slicing.directions import LATTICE, haar_frames, round_to_lattice
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.slicing.histogram import add_histograms
from dpsw_ray.tables.quantiles import Targets

DIM = 4
SMALL = GeneratorConfig(noise_dim=4, hidden=(32, 64), steps=12, batch_size=60)


def targets(
    points: np.ndarray, labels: np.ndarray, frames: int = 4, smoothing: float = 1.0, seed: int = 1
) -> Targets:
    """Noise-free targets of points [n, d]."""
    classes, grid = int(labels.max()) + 1, BinGrid(32, smoothing)
    directions = haar_frames(frames, points.shape[1], seed)
    table = np.zeros((classes, len(directions), grid.bins), np.int64)
    add_histograms(points, labels.astype(np.int32), directions, grid, grid.table, table)
    cdf = np.zeros((classes, len(directions), grid.bins + 1))
    cdf[..., 1:] = np.cumsum(table, axis=2) / table.sum(axis=2, keepdims=True)
    return Targets(Slices(directions, grid, grid.table, cdf), np.bincount(labels) / len(labels))


def blobs(n: int = 4_000, sphere: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Two lumps on opposite sides, a quarter of the points in the second."""
    rng = np.random.default_rng(0)
    labels = (np.arange(n) < n // 4).astype(int)
    away = np.where(labels[:, None] == 1, 0.7, -0.7) * np.eye(1, DIM)
    return confine(rng.standard_normal((n, DIM)) * 0.15 + away, sphere), labels


def together(sphere: bool = True, **options: float) -> Targets:
    points, labels = blobs(sphere=sphere)
    return targets(points, np.zeros_like(labels), **options)  # type: ignore[arg-type]


def several() -> list[Targets]:
    points, labels = blobs()
    return [targets(points, labels, frames=1, seed=seed) for seed in range(5)]


@pytest.mark.parametrize("sphere", [True, False])
def test_the_generator_arrives(sphere: bool) -> None:
    distances: list[float] = []
    config = GeneratorConfig(noise_dim=8, hidden=(64, 128), steps=400)
    generator = train_generator([together(sphere)], config, sphere=sphere, seed=0, on_step=distances.append)
    assert len(distances) == 400
    assert np.mean(distances[-20:]) < distances[0] / 5
    truth = blobs(sphere=sphere)[0]
    start = sliced_wasserstein(initial(4_000, DIM, sphere, 0), truth, 200, 0)
    assert sliced_wasserstein(generator.sample(4_000, 1), truth, 200, 0) < 0.15 * start


def test_classes_are_learnt_apart_from_rounds_of_few_directions() -> None:
    config = GeneratorConfig(noise_dim=8, hidden=(64, 128), steps=400)
    generator = train_generator(several(), config, sphere=True, seed=0)
    points, labels = blobs()
    drawn = generator.sample(len(labels), 1, labels)
    for c in (0, 1):
        assert sliced_wasserstein(drawn[labels == c], points[labels == c], 200, 0) < 0.06
    assert sliced_wasserstein(drawn[labels == 0], points[labels == 1], 200, 0) > 0.5


def test_a_class_without_a_share_in_a_round_takes_no_part_in_it() -> None:
    first = several()[0]
    prepared = Rounds([Targets(first.slices, np.array([1.0, 0.0])), first], 60, "cpu")
    assert prepared[0].offsets == (0, 60, 60)
    assert prepared[1].offsets == (0, 30, 60)
    assert prepared[0].labels.tolist() == [0] * 60
    assert prepared[0].quantiles.shape == (DIM, 60)


def test_quantiles_invert_the_cdf() -> None:
    cdf = np.array([[0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]])
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    expected = [[0.25, 0.75, 2.25, 2.75], [1.125, 1.375, 1.625, 1.875]]
    assert np.allclose(quantiles(cdf, edges, 4), expected)


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 2.0])
def test_smoothing_adds_the_variance_that_the_released_cdfs_have(smoothing: float) -> None:
    points = initial(20_000, DIM, False, 0)
    released = targets(points, np.zeros(len(points), int), frames=16, smoothing=smoothing)
    prepared = Rounds([released], 4_000, "cpu")[0]
    seen = prepared.quantiles.double().var(dim=1, correction=0).mean().item()
    own = float((points @ released.slices.directions.T).var(axis=0).mean())
    assert seen - own == pytest.approx(prepared.spread**2, rel=0.08)


def test_the_seed_decides_the_weights() -> None:
    drawn = [train_generator([together()], SMALL, sphere=True, seed=seed).sample(50, 0) for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_the_number_of_threads_does_not_matter() -> None:
    before = torch.get_num_threads()
    drawn, inside = [], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            generator = train_generator(
                [together()], SMALL, sphere=True, seed=1,
                on_step=lambda distance: inside.append(torch.get_num_threads()),
            )  # fmt: skip
            drawn.append(generator.sample(50, 0))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert set(inside) == {1}
    assert np.array_equal(drawn[0], drawn[1])


def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"steps": 260})
    rounds, path = several(), tmp_path / "generator.npz"
    expected: list[float] = []
    labels = np.arange(40) % 2
    whole = train_generator(rounds, config, sphere=True, seed=1, on_step=expected.append)

    seen: list[float] = []

    def interrupt(distance: float) -> None:
        seen.append(distance)
        if len(seen) == 255:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_generator(rounds, config, sphere=True, seed=1, checkpoint=path, on_step=interrupt)
    assert len(np.load(path)["distances"]) == 250
    again: list[float] = []
    resumed = train_generator(rounds, config, sphere=True, seed=1, checkpoint=path, on_step=again.append)
    assert again == expected
    assert np.array_equal(resumed.sample(40, 0, labels), whole.sample(40, 0, labels))


def test_a_checkpoint_of_another_training_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "generator.npz"
    train_generator([together()], SMALL, sphere=True, seed=1, checkpoint=path)
    others = [
        ([together(smoothing=2.0)], SMALL, 1),
        ([together()], SMALL.model_copy(update={"learning_rate": 1e-2}), 1),
        ([together()], SMALL, 2),
    ]
    for rounds, config, seed in others:
        expected = train_generator(rounds, config, sphere=True, seed=seed)
        found = train_generator(rounds, config, sphere=True, seed=seed, checkpoint=path)
        assert np.array_equal(found.sample(20, 0), expected.sample(20, 0))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_checkpoint_costs_time_only(
    tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "generator.npz"
    expected = train_generator([together()], SMALL, sphere=True, seed=1, checkpoint=path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    found = train_generator([together()], SMALL, sphere=True, seed=1, checkpoint=path)
    assert np.array_equal(found.sample(20, 0), expected.sample(20, 0))
    assert [record.message for record in caplog.records] == [
        f"{path} is damaged or cannot be read: the training starts anew, which charges nothing."
    ]


@pytest.mark.parametrize("sphere", [True, False])
def test_samples_lie_where_the_latents_live_and_on_the_lattice(sphere: bool) -> None:
    drawn = train_generator([together(sphere)], SMALL, sphere=sphere, seed=0).sample(1_500, 3)
    norms = np.linalg.norm(drawn, axis=1)
    assert drawn.shape == (1_500, DIM) and drawn.dtype == np.float64
    assert (norms <= RADIUS + DIM * LATTICE).all()
    assert not sphere or np.allclose(norms, RADIUS, atol=DIM * LATTICE)
    assert np.array_equal(drawn, round_to_lattice(drawn))


def test_more_samples_begin_with_the_fewer_ones() -> None:
    generator = train_generator([together()], SMALL, sphere=True, seed=0)
    many = generator.sample(2_500, 3)
    assert np.array_equal(many[:1_100], generator.sample(1_100, 3))
    assert not np.array_equal(many[:10], generator.sample(10, 4))
    assert len(np.unique(many, axis=0)) == 2_500
    assert generator.sample(0, 3).shape == (0, DIM)


def test_a_conditional_generator_needs_a_label_for_each_sample() -> None:
    generator = train_generator(several(), SMALL, sphere=True, seed=0)
    assert generator.classes == 2
    for labels in (None, np.zeros(4, int), np.full(5, 2), np.full(5, -1)):
        with pytest.raises(ValueError, match="labels"):
            generator.sample(5, 0, labels)


def test_a_stored_generator_draws_the_same_samples(tmp_path: Path) -> None:
    generator = train_generator(several(), SMALL, sphere=True, seed=0)
    generator.save(tmp_path / "generator")
    labels = np.arange(30) % 2
    loaded = Generator.load(tmp_path / "generator")
    assert np.array_equal(loaded.sample(30, 5, labels), generator.sample(30, 5, labels))


def test_a_folder_that_is_no_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generator\.json is missing"):
        Generator.load(tmp_path)
    train_generator([together()], SMALL, sphere=True, seed=0).save(tmp_path)
    manifest = read_manifest(tmp_path / "generator.json")
    write_manifest(tmp_path / "generator.json", {**manifest, "dim": 5})
    with pytest.raises(UserError, match="does not hold a generator of this version"):
        Generator.load(tmp_path)


def test_a_batch_too_small_for_the_classes_is_refused() -> None:
    config = SMALL.model_copy(update={"batch_size": 3})
    with pytest.raises(UserError, match=r"generator\.batch_size must be at least 4, .* found 3"):
        train_generator(several(), config, sphere=True, seed=0)


def test_a_diverging_training_stops() -> None:
    config = SMALL.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(UserError, match=r"diverged .* lower generator\.learning_rate, found 1e\+30"):
        train_generator([together(sphere=False)], config, sphere=False, seed=0)


def test_pixels_train_in_the_ball() -> None:
    rng = np.random.default_rng(0)
    dim = 784
    mean = np.full(dim, 0.4 / np.sqrt(dim))  # images, scaled into the ball, lie to one side of its centre
    points = confine(mean + 0.3 * rng.standard_normal((300, 1)) * np.eye(1, dim), False)
    rounds = [targets(points, np.zeros(300, int), frames=1)]
    distances: list[float] = []
    config = GeneratorConfig(steps=25, batch_size=100, learning_rate=3e-3)
    drawn = train_generator(rounds, config, sphere=False, seed=0, on_step=distances.append).sample(300, 0)
    assert drawn.shape == (300, dim)
    assert np.mean(distances[-3:]) < 0.7 * distances[0]
    assert (np.linalg.norm(drawn, axis=1) < 1).all()


def test_a_generator_learns_on_cuda_what_it_learns_on_the_cpu(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    labels = np.arange(40) % 2
    expected = train_generator(several(), SMALL, sphere=True, seed=1).sample(40, 0, labels)
    request.getfixturevalue("fake_cuda")
    made, again = (
        train_generator(several(), SMALL, sphere=True, seed=1, device="cuda", checkpoint=tmp_path / "state")
        for _ in range(2)
    )
    drawn = made.sample(40, 0, labels)
    assert np.allclose(drawn, expected, atol=1e-5)
    assert np.array_equal(again.sample(40, 0, labels), drawn)
    made.save(tmp_path / "generator")
    for device in ("cuda", "cpu"):
        loaded = Generator.load(tmp_path / "generator", device)
        assert np.array_equal(loaded.sample(40, 0, labels), drawn)
