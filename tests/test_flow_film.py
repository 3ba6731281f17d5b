"""The particles' path: the bits of the flow stay what they are, and an interruption loses no frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_flow import DIM, blobs, targets
from test_flow_division import ForgetfulCluster

from dpsw_ray.cluster import LocalCluster
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.film import Choice, Film, evenly, first_of_each, next_frame
from dpsw_ray.flow.points import Points
from dpsw_ray.flow.solver import solve

FOLLOW = first_of_each(2, 8)


def run(
    config: FlowConfig, size: int = 1, checkpoint: Path | None = None, follow: Choice | None = FOLLOW
) -> Points:
    return solve(
        [targets(*blobs())], config, sphere=True, seed=3, cluster=LocalCluster(size), checkpoint=checkpoint,
        follow=follow,
    )  # fmt: skip


def followed(config: FlowConfig, rows: np.ndarray) -> dict[int, np.ndarray]:
    """The same path by looking at all particles after every step."""
    seen: dict[int, np.ndarray] = {}
    solve(
        [targets(*blobs())], config, sphere=True, seed=3, cluster=LocalCluster(1),
        watch=lambda step, particles: seen.update({step: particles[rows]}),
    )  # fmt: skip
    return seen


@pytest.mark.parametrize("parallel", ["directions", "particles", "classes"])
@pytest.mark.parametrize("size", [1, 3])
def test_frames_are_what_a_watcher_sees_and_no_bit_changes(parallel: str, size: int) -> None:
    config = FlowConfig.model_validate(
        {"particles": 90, "steps": 37, "patience": 37, "diffusion": 1e-4, "parallel": parallel}
    )
    plain, result = run(config, size, follow=None), run(config, size)
    assert plain.film is None and result.film is not None
    assert result.particles.tobytes() == plain.particles.tobytes() and result.distances == plain.distances
    film, seen = result.film, followed(config, result.film.rows)
    assert film.steps.tolist() == [0, 1, 2, 4, 8, 16, 32, 37]
    assert np.bincount(result.labels[film.rows]).tolist() == [4, 4]
    for step, frame in zip(film.steps[1:], film.frames[1:], strict=True):
        np.testing.assert_array_equal(frame, seen[int(step)])
    assert film.frames.shape == (8, 8, DIM) and not np.array_equal(film.frames[0], film.frames[1])


def test_an_interruption_loses_no_frame(tmp_path: Path) -> None:
    config = FlowConfig(particles=60, steps=40, patience=40, diffusion=1e-4)
    whole = run(config).film

    class Killed(Exception):
        pass

    def die(distance: float, count: list[int] = []) -> None:  # noqa: B006
        count.append(1)
        if len(count) == 30:
            raise Killed

    path = tmp_path / "flow.npz"
    common = {"sphere": True, "seed": 3, "cluster": LocalCluster(1), "checkpoint": path, "follow": FOLLOW}
    with pytest.raises(Killed):
        solve([targets(*blobs())], config, on_step=die, **common)  # type: ignore[arg-type]
    resumed = run(config, checkpoint=path).film
    again = run(config, checkpoint=path).film  # the finished flow's checkpoint has them all
    for film in (resumed, again):
        assert film is not None and whole is not None
        assert film.steps.tolist() == whole.steps.tolist()
        np.testing.assert_array_equal(film.frames, whole.frames)


@pytest.mark.parametrize("parallel", ["particles", "classes"])
def test_workers_that_lose_their_particles_show_the_same_film(parallel: str) -> None:
    values = {"particles": 60, "steps": 40, "patience": 40, "parallel": parallel}
    config = FlowConfig.model_validate(values)
    whole, rng = run(config).film, np.random.default_rng(1)
    cluster = ForgetfulCluster(3, lambda call: rng.random() < 0.05)
    film = solve([targets(*blobs())], config, sphere=True, seed=3, cluster=cluster, follow=FOLLOW).film
    assert cluster.groups[0].lost >= 1 and film is not None and whole is not None
    np.testing.assert_array_equal(film.frames, whole.frames)


def test_a_checkpoint_without_frames_gives_the_start_and_the_end(tmp_path: Path) -> None:
    config = FlowConfig(particles=60, steps=30, patience=30)
    path = tmp_path / "flow.npz"
    run(config, checkpoint=path, follow=None)
    film: Film | None = run(config, checkpoint=path).film
    assert film is not None and film.steps.tolist() == [0, 30]
    other = run(config, checkpoint=path, follow=evenly(5)).film
    assert other is not None and other.rows.tolist() == [0, 14, 29, 44, 59]


def test_who_is_followed() -> None:
    assert first_of_each(3, 6)(np.array([0, 10, 11, 11, 40])).tolist() == [0, 1, 10]
    assert first_of_each(12, 6)(np.array([0, 50])).tolist() == list(range(6))
    assert evenly(10)(np.array([0, 3])).tolist() == [0, 1, 2]
    assert [next_frame(step) for step in (0, 1, 2, 3, 4, 7, 8)] == [1, 2, 4, 4, 8, 8, 16]
