"""Trials under Ray Tune: who gets to work when, who is stopped, and what becomes of those whose process died.

Every trial's outcome is in its own folder before Tune hears of it, so Tune's own state need not survive: whoever
goes on after a crash gives Tune the trials that have no outcome yet, or, where a scheduler compares trials with each
other, replays the stored curves of the others to it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.registry import method_of
from dpsw_ray.tune.config import TrialsConfig
from dpsw_ray.tune.plan import SweepPlan, SweepTrial
from dpsw_ray.tune.prepare import Group, Prepared
from dpsw_ray.tune.trial import Outcome, Task, failed_outcome, make_trial, read_outcome

__all__ = ["Job", "Suggest", "run_trials"]

_LOSS, _STEP = "loss", "step"
_MOST_DEATHS = 2
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own files and MLflow hold everything
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's state is not what a sweep goes on from
    "RAY_AIR_NEW_OUTPUT": "0",
}

Suggest = Callable[[], SweepTrial | None]
"""The next trial of a search that looks at scores; None when there are no more."""


@dataclass(frozen=True)
class Job:
    """What every worker needs to make any trial of a sweep.

    Attributes:
        plan: the sweep.
        prepared: its releases.
        folder: of the trials.
    """

    plan: SweepPlan
    prepared: Prepared
    folder: Path

    def config(self, trial: SweepTrial) -> RunConfig:
        """The run of a trial."""
        return self.plan.config(trial.point, self.prepared.groups[trial.group].config.privacy.epsilon)

    def place(self, trial: SweepTrial) -> Path:
        """The folder of a trial."""
        return self.folder / trial.name

    def task(self, trial: SweepTrial) -> Task:
        """A trial as what its worker does."""
        sweep = self.plan.sweep
        group = self.prepared.groups[trial.group]
        config = self.config(trial)
        # In the worker's own process: threads follow the CPUs of a trial.
        cluster = config.cluster.model_copy(update={"executor": "ray", "cpus_per_actor": sweep.trials.cpus})
        return Task(
            config.model_copy(update={"cluster": cluster}),
            group,
            self.place(trial),
            sweep.selection,
            sweep.trials,
            None if sweep.scheduler.kind == "fifo" else sweep.scheduler.every,
        )


def run_trials(
    job: Job,
    trials: Sequence[SweepTrial],
    ended: Callable[[SweepTrial, Outcome], None],
    suggest: Suggest | None = None,
) -> None:
    """Makes trials; returns when all have ended, or after an interrupt.

    Args:
        job: the sweep.
        trials: to be made; with `suggest` ignored.
        ended: called in this process for every trial that has ended, once its outcome is stored.
        suggest: asked for trials one by one.

    Raises:
        UserError: the cluster has no room for one trial (`check_room` says so before anything is charged).
    """
    sweep = job.plan.sweep
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    resources = check_room(sweep.trials)
    scratch = job.folder.parent / "tune"
    shutil.rmtree(scratch, ignore_errors=True)
    options: dict[str, Any] = {}
    if suggest is None:
        space: dict[str, Any] = {"trial": ray_tune.grid_search(list(trials))}
    else:
        space = {}
        options = {"search_alg": _searcher(suggest), "num_samples": -1}
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(ray_tune.with_parameters(_work, job=job), resources),
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            metric=_LOSS, mode="min", scheduler=_scheduler(job), reuse_actors=sweep.trials.actors == 1,
            max_concurrent_trials=sweep.trials.at_once or (_room(job) if suggest else None), **options,
        ),
        run_config=ray_tune.RunConfig(
            name="state", storage_path=str(scratch), verbose=0, callbacks=[_Watcher(job, ended)],
            failure_config=ray_tune.FailureConfig(max_failures=_MOST_DEATHS),
        ),
    )  # fmt: skip
    tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)


def _work(params: dict[str, Any], job: Job) -> None:
    """In a worker, which makes one trial after the other and keeps releases and encoders in memory."""
    if not ray.get_gpu_ids():  # it would otherwise see, and use, all of them
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    trial: SweepTrial = params["trial"]
    sign = job.plan.score.sign

    def report(step: int, score: float) -> None:
        ray_tune.report({_LOSS: sign * score, _STEP: step, "score": score})

    stored = read_outcome(job.place(trial))
    if stored.status in ("finished", "stopped"):
        for step, score in stored.curve:
            report(step, score)
        return
    try:
        task = job.task(trial)  # which may not fit this machine, though it fits the driver's
    except UserError as error:
        outcome = failed_outcome(error)
        outcome.write(job.place(trial))
    else:
        outcome = make_trial(task, report)
    if outcome.status == "failed":
        ray_tune.report({_LOSS: float("inf"), _STEP: 0, "score": None})


class _Watcher(ray_tune.Callback):  # type: ignore[misc]
    """Keeps what Tune alone knows: who was stopped, and who died."""

    def __init__(self, job: Job, ended: Callable[[SweepTrial, Outcome], None]) -> None:
        self._job, self._ended = job, ended
        self._curves: dict[int, list[tuple[int, float]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune stores its callbacks; this one lives and dies with its process."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        if result.get("score") is not None:
            curve = self._curves.setdefault(trial.config["trial"].number, [])
            curve.append((int(result[_STEP]), float(result["score"])))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        number = trial.config["trial"].number
        curve = self._curves.get(number, [])
        last = curve[-1] if curve else (0, None)
        self._end(trial, Outcome("stopped", last[1], last[0], curve))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._end(
            trial, Outcome("failed", error="Its worker died: killed, out of memory, or its machine left.")
        )

    def _end(self, tuned: Any, otherwise: Outcome) -> None:
        trial: SweepTrial = tuned.config["trial"]
        outcome = read_outcome(self._job.place(trial))
        if outcome.status == "pending":
            outcome = otherwise
            outcome.write(self._job.place(trial))
        self._ended(trial, outcome)


def _scheduler(job: Job) -> Any:
    from ray.tune import schedulers

    scheduler = job.plan.sweep.scheduler
    if scheduler.kind == "asha":
        swept = [int(v) for d in job.plan.space.distributions if d.key == "flow.steps" for v in d.values]
        longest = max([*(_steps(group) for group in job.prepared.groups), *swept])
        return schedulers.ASHAScheduler(
            time_attr=_STEP,
            max_t=longest + 1,
            grace_period=min(scheduler.grace, longest),
            reduction_factor=scheduler.reduction,
        )
    if scheduler.kind == "median":
        return schedulers.MedianStoppingRule(
            time_attr=_STEP, grace_period=scheduler.grace, min_samples_required=3
        )
    return schedulers.FIFOScheduler()


def _steps(group: Group) -> int:
    """How many steps a trial of the base run takes with a group's release."""
    method = method_of(group.config)
    return method.steps(group.config, method.released.load(group.folder / "release"))


def check_room(trials: TrialsConfig) -> Any:
    """What Tune is asked to give to one trial, which the connected cluster has.

    Raises:
        UserError: it has less.
    """
    bundle = {"CPU": trials.cpus, "GPU": trials.gpus}
    bundle = {name: amount for name, amount in bundle.items() if amount}
    total = ray.cluster_resources()
    for name, amount in bundle.items():
        if total.get(name, 0.0) < amount * trials.actors:
            raise UserError(
                f"trials: one trial asks for {amount * trials.actors:g} {name}s ({trials.actors} workers), but the Ray "
                f"cluster has {total.get(name, 0.0):g}; choose fewer trials.actors, trials.cpus or trials.gpus."
            )
    if trials.actors == 1:
        return bundle
    # The trial itself only steps and adds up; its actors need room in the same placement group, or they wait for ever.
    return ray_tune.PlacementGroupFactory([{"CPU": 0.01}, *([bundle] * trials.actors)])


def _room(job: Job) -> int:
    trials, total = job.plan.sweep.trials, ray.cluster_resources()
    room = total.get("CPU", 1.0) / (trials.cpus * trials.actors)
    if trials.gpus:
        room = min(room, total.get("GPU", 0.0) / (trials.gpus * trials.actors))
    return max(1, int(room))


def _searcher(suggest: Suggest) -> Any:
    from ray.tune.search import Searcher

    class _Asking(Searcher):  # type: ignore[misc]
        """Hands over the trials that `suggest` gives; scores reach it through the trials' outcomes."""

        def __init__(self) -> None:
            super().__init__(metric=_LOSS, mode="min")

        def suggest(self, trial_id: str) -> Any:
            trial = suggest()
            return Searcher.FINISHED if trial is None else {"trial": trial}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("")

        def restore(self, checkpoint_path: str) -> None:
            pass

    return _Asking()
