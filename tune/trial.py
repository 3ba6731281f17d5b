"""One trial, in a process that makes many: from a stored release to a score. No record is read."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DAMAGE, DamagedFile, read_arrays, read_manifest, write_arrays, write_manifest
from dpsw_ray.cluster import Cluster, LocalCluster, open_cluster
from dpsw_ray.config.run import ClusterConfig, RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder, load_encoder
from dpsw_ray.flow.points import Points
from dpsw_ray.methods.method import Tools
from dpsw_ray.methods.registry import RUNS, method_named, method_of
from dpsw_ray.pipeline.steps import threads_per_actor
from dpsw_ray.tables.release import Release
from dpsw_ray.tune.config import SelectionConfig, TrialsConfig
from dpsw_ray.tune.prepare import Group
from dpsw_ray.tune.scores import HeldOut, PublicScore, withhold

__all__ = ["MISTAKES", "Outcome", "Task", "failed_outcome", "make_trial", "read_outcome"]

_SHOWN = 256
"""Particles of a trial that are kept for its pictures, the first of a public shuffle."""

MISTAKES = (UserError, ArithmeticError, ValueError, RuntimeError, MemoryError, OSError)
"""What a configuration that cannot be made ends with."""

Status = Literal["pending", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a trial stands.

    Attributes:
        status: `stopped` by the scheduler before its flow had ended, `pending` where it has not ended.
        score: the last one, None where there is none.
        steps: flow steps taken.
        curve: (flow step, score) where it was looked at.
        distances: sliced W2 distance to the slices of the flow before each step.
        seconds: by phase.
        error: of a failed one, a sentence.
    """

    status: Status = "pending"
    score: float | None = None
    steps: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def write(self, folder: Path) -> None:
        """Stores it."""
        write_manifest(folder / "trial.json", asdict(self))


def read_outcome(folder: Path) -> Outcome:
    """What is stored of a trial; pending where nothing is, or nothing that can be read."""
    try:
        stored = read_manifest(folder / "trial.json")
        stored["curve"] = [(int(step), float(score)) for step, score in stored["curve"]]
        return Outcome(**stored)
    except (DamagedFile, OSError, *DAMAGE):
        return Outcome()


@dataclass(frozen=True)
class Task:
    """A trial for a worker.

    Attributes:
        config: of its run.
        group: whose release it starts from.
        folder: its own.
        selection: what to compute.
        workers: what it gets to work with.
        every: flow steps between two looks at the score, None for one at the end.
    """

    config: RunConfig
    group: Group
    folder: Path
    selection: SelectionConfig
    workers: TrialsConfig
    every: int | None = None


def make_trial(task: Task, report: Callable[[int, float], None]) -> Outcome:
    """Makes a trial and stores how it ended; a mistake of its configuration is an outcome too.

    Args:
        task: the trial.
        report: called with (flow step, score) at every look, and once the outcome is stored.
    """
    try:
        outcome = _made(task, report)
    except MISTAKES as error:
        outcome = failed_outcome(error)
    outcome.write(task.folder)
    if outcome.score is not None:
        report(outcome.steps, outcome.score)
    return outcome


def failed_outcome(error: BaseException) -> Outcome:
    """Of a trial that ended with one of `MISTAKES`."""
    sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Outcome("failed", error=" ".join(sentence.split()))


def _made(task: Task, report: Callable[[int, float], None]) -> Outcome:
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    config, selection = task.config, task.selection
    withheld = selection.withheld if selection.score == "validation_slices" else None
    method = method_of(config)
    targets = _targets(task.group.folder, withheld, config.method, method.reading(config))
    longest = method.steps(config, _parts(task.group.folder, withheld, config.method)[0])
    encoder = _encoder(task.group.encoder)
    judge = _judge(task.group, selection)
    seconds["inputs"] = time.perf_counter() - start
    curve: list[tuple[int, float]] = []
    scoring = 0.0

    def look(step: int, particles: NDArray[np.float64], labels: NDArray[np.int32]) -> None:
        nonlocal scoring
        begun = time.perf_counter()
        score = judge(particles, labels)
        scoring += time.perf_counter() - begun
        if not np.isfinite(score):
            raise UserError(
                f"The score after {step} flow steps is {score}, not a number: the flow left its bounds."
            )
        curve.append((step, score))

    def watch(step: int, particles: NDArray[np.float64], labels: NDArray[np.int32]) -> None:
        if task.every is not None and step % task.every == 0 and step < longest:
            look(step, particles, labels)
            report(*curve[-1])

    begun = time.perf_counter()
    with _cluster(task) as cluster:
        tools = Tools(encoder, cluster, threads_per_actor(config), watch=watch)
        result = method.learn(config, targets, tools).sample(config.count, config.seed)
    looked = scoring
    seconds["flow"] = time.perf_counter() - begun - looked
    steps = len(result.distances)
    look(steps, result.particles, result.labels)
    seconds["score"] = scoring
    begun = time.perf_counter()
    _keep(task.folder / "points.npz", result, config.seed)
    seconds["points"] = time.perf_counter() - begun
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    return Outcome("finished", curve[-1][1], steps, curve, [float(d) for d in result.distances], rounded)


def _cluster(task: Task) -> Cluster:
    workers = task.workers
    if workers.actors == 1:
        return LocalCluster(1)
    return open_cluster(
        ClusterConfig(actors=workers.actors, cpus_per_actor=workers.cpus, gpus_per_actor=workers.gpus)
    )


def _keep(path: Path, result: Points, seed: int) -> None:
    order = np.random.default_rng([seed, 0x5AFE]).permutation(len(result.labels))[:_SHOWN]
    write_arrays(path, {"particles": result.particles[order], "labels": result.labels[order]})


@functools.lru_cache(maxsize=8)
def _parts(folder: Path, withheld: float | None, method: str) -> tuple[Any, Any | None]:
    release: Any = method_named(method).released.load(folder / "release")
    return (release, None) if withheld is None else withhold(release, withheld)


@functools.lru_cache(maxsize=8)
def _targets(folder: Path, withheld: float | None, method: str, reading: Hashable) -> Sequence[Any]:
    return method_named(method).read(_parts(folder, withheld, method)[0], reading)


@functools.lru_cache(maxsize=8)
def _encoder(folder: Path) -> Encoder:
    return load_encoder(folder)


def _judge(
    group: Group, selection: SelectionConfig
) -> Callable[[NDArray[np.float64], NDArray[np.int32]], float]:
    if group.query is not None:
        return _queried(group.query).score
    if selection.score == "validation_slices":
        return _held_out(group.folder, selection.withheld, group.config.method).score
    return _public(json.dumps(group.config.model_dump(mode="json")), group.encoder, selection.measure).score


@functools.lru_cache(maxsize=8)
def _held_out(folder: Path, withheld: float, method: str) -> HeldOut:
    fitted, held = _parts(folder, withheld, method)
    assert held is not None
    return HeldOut(fitted, held, *_reference(folder))


@functools.lru_cache(maxsize=2)
def _queried(folder: Path) -> HeldOut:
    query = Release.load(folder / "release")
    return HeldOut(query, query, *_reference(folder))


def _reference(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    stored = read_arrays(folder / "reference.npz")
    return stored["particles"], stored["labels"]


@functools.lru_cache(maxsize=4)
def _public(config: str, encoder: Path, measure: str) -> PublicScore:
    run = _run(config)
    return PublicScore(measure, run, _data(config), _encoder(encoder))


def _run(config: str) -> RunConfig:
    return RUNS.make(json.loads(config), "the run")


def _data(config: str) -> Dataset:
    from dpsw_ray.data import open_dataset

    run = _run(config)
    data = open_dataset(run.data, run.home, run.privacy.relation)
    if data is None:
        raise UserError(
            f"The divided data set is not under {run.home} here: put paths.home on a disk that all nodes share."
        )
    return data
