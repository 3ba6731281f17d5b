"""The particle SDE: X <- X - h drift(X) + sqrt(2 lambda h) Z, projected to where the latents live."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.cluster.groups import Cluster
from dpsw_ray.config import FlowConfig
from dpsw_ray.errors import UserError
from dpsw_ray.files import atomic_path
from dpsw_ray.flow.particles import allocate, confine, initial
from dpsw_ray.flow.worker import DriftWorker
from dpsw_ray.release.quantiles import Targets
from dpsw_ray.slicing.drift import COST_UNIT, DRIFT_UNIT

__all__ = ["FlowResult", "Watch", "flow_steps", "solve"]

_STEPS = 300
_CHECKPOINT_EVERY = 25
_FULL_STEPS = 10  # of the inverse schedule: how long it takes the step size to halve

Watch = Callable[[int, NDArray[np.float64]], None]


@dataclass(frozen=True)
class FlowResult:
    """Where the particles ended.

    Attributes:
        particles: array of size [n, d], sorted by class.
        labels: array of size [n], int32: the class block of each particle.
        distances: sliced W2 distance to the release before each step.
        stopped: why the flow ended, in words.
    """

    particles: NDArray[np.float64]
    labels: NDArray[np.int32]
    distances: list[float]
    stopped: str


def flow_steps(config: FlowConfig, rounds: int) -> int:
    """How many steps a flow towards so many rounds takes at most."""
    return max(_STEPS, rounds) if config.steps is None else config.steps


def solve(
    rounds: Sequence[Targets],
    config: FlowConfig,
    *,
    sphere: bool,
    seed: int,
    cluster: Cluster,
    threads: int = 1,
    checkpoint: Path | None = None,
    on_step: Callable[[float], None] = lambda distance: None,
    watch: Watch | None = None,
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
        cluster: who computes; the result does not depend on its size.
        threads: threads per worker.
        checkpoint: a file to resume from and to save to.
        on_step: called with the sliced distance before each step.
        watch: called after each step with how many were taken and the particles, array of size [n, d].

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
    weights = np.mean([targets.weights for targets in rounds], axis=0)
    offsets = allocate(weights, config.particles, config.class_balance)
    sizes = np.diff(offsets)
    particles = initial(config.particles, dim, sphere, seed)
    distances: list[float] = []
    identity = _identity(rounds, config, sphere, seed)
    if checkpoint is not None and (found := _restore(checkpoint, identity)) is not None:
        particles, distances = found
        for distance in distances:
            on_step(distance)

    cuts = np.linspace(0, count, min(cluster.size, count) + 1).astype(int)
    blocks = [slice(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    workers = cluster.spawn(
        DriftWorker,
        [
            {
                "rounds": [targets.slices.select(block) for targets in rounds],
                "start": block.start,
                "kernel": config.kernel,
                "threads": threads,
            }
            for block in blocks
        ],
    )
    used = min(config.subset or count, count)
    # Distances to different slices do not compare: only the same ones at every step can stop falling.
    same = len(rounds) == 1 and used == count
    step_size = float(dim) if config.step_size == "auto" else float(config.step_size)
    steps = flow_steps(config, len(rounds))
    stopped = f"all {steps} steps taken"
    try:
        for step in range(len(distances), steps):
            if same and _stalled(distances, config):
                stopped = f"the sliced distance stopped falling after {step} steps"
                break
            chosen = None
            if used < count:
                chosen = np.sort(np.random.default_rng([seed, 0x5B5E, step]).permutation(count)[:used])
            parts = workers.call("drift", (particles, offsets, step % len(rounds), chosen), retry=True)
            total = sum(part for part, _ in parts)  # int64: the same bits in any order
            cost = sum(part for _, part in parts)
            squared = float(cost.astype(np.float64) @ sizes) * COST_UNIT
            distance = math.sqrt(squared / (used * config.particles))
            distances.append(distance)
            on_step(distance)
            h = step_size * _schedule(config, step, steps, len(rounds))
            moved = particles + (h * DRIFT_UNIT / used) * total
            if config.diffusion:
                wiener = np.random.default_rng([seed, 0x5DE, step]).standard_normal(moved.shape)
                moved += math.sqrt(2 * config.diffusion * h) * wiener
            particles = confine(moved, sphere)
            if watch is not None:
                watch(step + 1, particles)
            if checkpoint is not None and (step + 1) % _CHECKPOINT_EVERY == 0:
                _save(checkpoint, identity, particles, distances)
    finally:
        workers.close()
    if checkpoint is not None:
        _save(checkpoint, identity, particles, distances)
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return FlowResult(particles, labels, distances, stopped)


def _stalled(distances: list[float], config: FlowConfig) -> bool:
    """True when the last `patience` steps have not lowered the best distance by the tolerance."""
    if len(distances) <= config.patience:
        return False
    before = min(distances[: -config.patience])
    return min(distances[-config.patience :]) > before * (1.0 - config.tolerance)


def _schedule(config: FlowConfig, step: int, steps: int, rounds: int) -> float:
    """The step size at `step` as a share of the full one.

    Steps that fall like 1 / t end at the mean of what noisy rounds ask for (Robbins and Monro 1951).
    """
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * step / steps))
    if config.schedule == "inverse" or (config.schedule == "auto" and rounds > 1):
        return _FULL_STEPS / (_FULL_STEPS + step)
    return 1.0


def _identity(rounds: Sequence[Targets], config: FlowConfig, sphere: bool, seed: int) -> str:
    """Hash of everything that decides the particles' path."""
    h = hashlib.sha256(repr((config.model_dump(exclude={"kernel", "parallel"}), sphere, seed)).encode())
    for targets in rounds:
        slices = targets.slices
        for array in (slices.directions, slices.cdf, slices.kernel, targets.weights):
            h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


def _save(path: Path, identity: str, particles: NDArray[np.float64], distances: list[float]) -> None:
    with atomic_path(path) as aside, aside.open("wb") as stream:
        np.savez(stream, identity=np.array(identity), particles=particles, distances=np.array(distances))


def _restore(path: Path, identity: str) -> tuple[NDArray[np.float64], list[float]] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["identity"]) != identity:
                return None
            return stored["particles"], stored["distances"].tolist()
    except (OSError, ValueError, KeyError):
        return None  # a damaged checkpoint costs time, nothing else
