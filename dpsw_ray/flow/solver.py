"""The particle SDE: X <- X - h drift(X) + sqrt(2 lambda h) Z, projected to where the latents live."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DamagedFile, check_replaceable, read_arrays, write_arrays
from dpsw_ray.cluster.groups import Cluster
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.division import divide
from dpsw_ray.flow.film import Choice, Recording, next_frame
from dpsw_ray.flow.movers import open_mover
from dpsw_ray.flow.particles import allocate, initial
from dpsw_ray.flow.points import Points
from dpsw_ray.flow.step import Course, flow_steps
from dpsw_ray.slicing.drift import COST_UNIT
from dpsw_ray.tables.quantiles import Targets

__all__ = ["Watch", "flow_steps", "solve"]

_LOGGER = logging.getLogger(__name__)
_CHECKPOINT_EVERY = 25
_WIENER = "by particle"  # how the noise is drawn: a checkpoint of another way is of another flow

Watch = Callable[[int, NDArray[np.float64]], None]


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
) -> Points:
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
        UserError: the noise is so large that the sums of the drift cannot hold it, the release has something in it that
            is no number, or the steps are so large that particles cannot be held.
    """
    if not all(targets.slices.fits() for targets in rounds):
        raise UserError(
            f"The release's noise spreads its {len(rounds[0].slices.directions)} directions over "
            f"{rounds[0].slices.grid.width * rounds[0].slices.grid.bins:.3g} times the latents' radius, more than the "
            "drift can add up: choose a larger privacy.epsilon or fewer directions."
        )
    if not all(np.isfinite(targets.slices.cdf).all() for targets in rounds):
        raise UserError("The release holds something that is no number: its files are damaged.")
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
    return Points(particles, labels, distances, stopped, recording.film() if recording else None)


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
    write_arrays(path, state)


def _restore(
    path: Path, identity: str, recording: Recording | None
) -> tuple[NDArray[np.float64], list[float]] | None:
    if not os.path.lexists(path):
        return None
    check_replaceable(path)
    try:
        stored = read_arrays(path)
        if str(stored["identity"]) != identity:
            return None
        particles, distances = stored["particles"], stored["distances"]
        if not (np.isfinite(particles).all() and np.isfinite(distances).all()):
            raise DamagedFile.of(path, "holds numbers that are not finite")
    except (DamagedFile, OSError, KeyError, TypeError):
        _LOGGER.warning("%s is damaged or cannot be read: the flow starts anew, which charges nothing.", path)
        return None
    if recording is not None:
        recording.restore(stored)
    return particles, distances.tolist()
