"""Trials on a cluster: those that have ended are not repeated, those that fail stop no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dpsw_ray.cluster import Cluster
from dpsw_ray.cluster.tasks import map_tasks
from dpsw_ray.experiment.folder import ExperimentFolder
from dpsw_ray.experiment.trial import Trial, TrialResult, finished, read_result, run_trial

__all__ = ["execute", "look_up"]


def look_up(trials: Sequence[Trial], folder: ExperimentFolder) -> dict[str, TrialResult]:
    """How the trials stand before anything is done, by name.

    Raises:
        UserError: a trial's folder holds the results of another config.
    """
    return {
        trial.name: read_result(trial, folder.trial(trial.name))
        if finished(trial, folder.trial(trial.name))
        else TrialResult(trial)
        for trial in trials
    }


def execute(
    known: Sequence[TrialResult], folder: ExperimentFolder, cluster: Cluster
) -> Iterator[TrialResult]:
    """Makes the pending trials, one in each worker at a time, and yields their results as they end.

    Of trials that share data and encoder one goes first, unless one has ended before: the others then find
    everything divided, trained and encoded, and do not do it at the same time.
    """
    ready = {result.trial.shares for result in known if result.status == "finished"}
    first: dict[str, Trial] = {}
    rest: list[Trial] = []
    for trial in (result.trial for result in known if result.status == "pending"):
        if trial.shares in ready or trial.shares in first:
            rest.append(trial)
        else:
            first[trial.shares] = trial
    for stage in (list(first.values()), rest):
        tasks = [(trial.config, folder.trial(trial.name), folder.log(trial.name)) for trial in stage]
        for number, (succeeded, error) in map_tasks(cluster, run_trial, tasks):
            yield _result(stage[number], folder, "" if succeeded else str(error))


def _result(trial: Trial, folder: ExperimentFolder, error: str) -> TrialResult:
    if error:
        return TrialResult(trial, "failed", error)
    if not finished(trial, folder.trial(trial.name)):
        return TrialResult(
            trial,
            "failed",
            f"Its results are not in {folder.path}: put --output on a disk that all nodes share.",
        )
    return read_result(trial, folder.trial(trial.name))
