"""The particle SDE: X <- X - h drift(X) + sqrt(2 lambda h) Z, projected to where the latents live."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.cluster.groups import Cluster
from dpsw_ray.config import FlowConfig
from dpsw_ray.errors import UserError
from dpsw_ray.files import atomic_path
from dpsw_ray.flow.division import divide
from dpsw_ray.flow.film import Choice, Film, Recording, next_frame
from dpsw_ray.flow.movers import open_mover
from dpsw_ray.flow.particles import allocate, initial
from dpsw_ray.flow.step import Course, flow_steps
from dpsw_ray.release.quantiles import Targets
from dpsw_ray.slicing.drift import COST_UNIT

__all__ = ["FlowResult", "Watch", "flow_steps", "solve"]

_CHECKPOINT_EVERY = 25
_WIENER = "by particle"  # how the noise is drawn: a checkpoint of another way is of another flow

Watch = Callable[[int, NDArray[np.float64]], None]


@dataclass(frozen=True)
class FlowResult:
    """Where the particles ended.

    Attributes:
        particles: array of size [n, d], sorted by class.
        labels: array of size [n], int32: the class block of each particle.
        distances: sliced W2 distance to the release before each step.
        stopped: why the flow ended, in words.
        film: the path of the particles that were followed, None where none were.
    """

    particles: NDArray[np.float64]
    labels: NDArray[np.int32]
    distances: list[float]
    stopped: str
    film: Film | None = None


def solve(
    rounds: Sequence[Targets],
    config: FlowConfig,
    *,
    sphere: bool,
    seed: int,
    cluster: Cluster,
    threads: int = 1,
    gpu: bool = False,
    checkpoint: Path | None = None,
    on_step: Callable[[float], None] = lambda distance: None,
    watch: Watch | None = None,
    follow: Choice | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> FlowResult:
    """Moves particles until the sliced distance to the release stops falling.

    Every step is a pure function of (particles, targets, step number, seed): a worker that died is rebuilt and
    its part repeated, and a checkpoint continues with the bits an uninterrupted run would have had.

    Args:
        rounds: CDFs and class shares from `release.quantiles.denoise`; step t moves towards round t, starting over
            when all were used.
        config: steps, step size, schedule, diffusion, stopping rule.
        sphere: whether the latents live on the unit sphere (else in the ball).
        seed: public seed of the initial particles and the Wiener noise.
        cluster: who computes; the result does not depend on its size, nor on how `config.parallel` divides the work.
        threads: threads per worker.
        gpu: whether each worker has a GPU.
        checkpoint: a file to resume from and to save to.
        on_step: called with the sliced distance before each step, for small steps a few steps at a time.
        watch: called after each step with how many were taken and the particles, array of size [n, d].
        follow: chooses the particles whose path is kept.
        say: told why workers are left without work, where they are.

    Raises:
        UserError: the noise is so large that the sums of the drift cannot hold it.
    """
    if not all(targets.slices.fits() for targets in rounds):
        raise UserError(
            f"The release's noise spreads its {len(rounds[0].slices.directions)} directions over "
            f"{rounds[0].slices.grid.width * rounds[0].slices.grid.bins:.3g} times the latents' radius, more than the "
            "drift can add up: choose a larger privacy.epsilon or fewer directions."
        )
    count, dim = rounds[0].slices.directions.shape
    course = Course(config, count, dim, len(rounds), sphere, seed)
    weights = np.mean([targets.weights for targets in rounds], axis=0)
    offsets = allocate(weights, config.particles, config.class_balance)
    sizes = np.diff(offsets)
    particles = initial(config.particles, dim, sphere, seed)
    recording = Recording(follow(offsets), particles) if follow is not None else None
    distances: list[float] = []
    identity = _identity(rounds, config, sphere, seed)
    if checkpoint is not None and (found := _restore(checkpoint, identity, recording)) is not None:
        particles, distances = found
        for distance in distances:
            on_step(distance)
    division = divide(
        config,
        offsets,
        directions=course.used,
        dim=dim,
        bins=rounds[0].slices.grid.bins,
        workers=cluster.size,
        threads=threads,
        gpu=gpu,
    )
    if division.why:
        say(division.why)
    stopped = f"all {course.steps} steps taken"
    saved = len(distances)
    mover = open_mover(division, cluster, rounds, course, offsets, particles, len(distances), threads=threads)
    try:
        while (step := len(distances)) < course.steps:
            if course.comparable and _stalled(distances, config):
                stopped = f"the sliced distance stopped falling after {step} steps"
                break
            most = min(_CHECKPOINT_EVERY - step % _CHECKPOINT_EVERY, course.steps - step)
            if course.comparable:
                most = min(most, _certain(distances, config))
            if recording is not None:
                most = min(most, next_frame(step) - step)
            for cost in mover.advance(1 if watch is not None else most):
                squared = float(cost.astype(np.float64) @ sizes) * COST_UNIT
                distances.append(math.sqrt(squared / (course.used * config.particles)))
                on_step(distances[-1])
            if watch is not None:
                watch(len(distances), mover.particles())
            if recording is not None and len(distances) == next_frame(len(distances) - 1):
                recording.add(len(distances), mover.some(recording.rows))
            if len(distances) % _CHECKPOINT_EVERY == 0:
                particles = mover.particles()  # also what a worker that dies is brought back from
                if checkpoint is not None:
                    _save(checkpoint, identity, particles, distances, recording)
                    saved = len(distances)
        particles = mover.particles()
    finally:
        mover.close()
    if recording is not None:
        recording.add(len(distances), particles[recording.rows])
    if checkpoint is not None and saved != len(distances):
        _save(checkpoint, identity, particles, distances, recording)
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return FlowResult(particles, labels, distances, stopped, recording.film() if recording else None)


def _stalled(distances: list[float], config: FlowConfig) -> bool:
    """True when the last `patience` steps have not lowered the best distance by the tolerance."""
    if len(distances) <= config.patience:
        return False
    before = min(distances[: -config.patience])
    return min(distances[-config.patience :]) > before * (1.0 - config.tolerance)


def _certain(distances: list[float], config: FlowConfig) -> int:
    """How many steps are taken whatever their distances are: what came before keeps `_stalled` from stopping them."""
    patience, taken = config.patience, len(distances)
    count = 1
    while count <= patience:
        known = (
            taken + count - patience
        )  # distances before those that must have fallen, when `count` are taken
        if known > 0:
            recent = distances[known:]
            if not recent or min(recent) > min(distances[:known]) * (1.0 - config.tolerance):
                break
        count += 1
    return count


def _identity(rounds: Sequence[Targets], config: FlowConfig, sphere: bool, seed: int) -> str:
    """Hash of everything that decides the particles' path."""
    h = hashlib.sha256(
        repr((config.model_dump(exclude={"kernel", "parallel"}), sphere, seed, _WIENER)).encode()
    )
    for targets in rounds:
        slices = targets.slices
        for array in (slices.directions, slices.cdf, slices.kernel, targets.weights):
            h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


def _save(
    path: Path,
    identity: str,
    particles: NDArray[np.float64],
    distances: list[float],
    recording: Recording | None,
) -> None:
    state: dict[str, NDArray[Any]] = recording.stored() if recording is not None else {}
    state |= {"identity": np.array(identity), "particles": particles, "distances": np.array(distances)}
    with atomic_path(path) as aside, aside.open("wb") as stream:
        np.savez(stream, **state)  # type: ignore[arg-type]


def _restore(
    path: Path, identity: str, recording: Recording | None
) -> tuple[NDArray[np.float64], list[float]] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["identity"]) != identity:
                return None
            particles, distances = stored["particles"], stored["distances"].tolist()
            if recording is not None:
                recording.restore(stored)
            return particles, distances
    except (OSError, ValueError, KeyError):
        return None  # a damaged checkpoint costs time, nothing else
