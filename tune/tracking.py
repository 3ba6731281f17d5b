"""A sweep in MLflow: the parent run says what the whole cost, each trial is a nested run, written in few batches."""

from __future__ import annotations

from pathlib import Path

from dpsw_ray.config.run import RunConfig
from dpsw_ray.experiment.record import Recorder
from dpsw_ray.pipeline.tracking import Tracker
from dpsw_ray.tune.results import Result, TrialResult

__all__ = ["record_result", "record_trial"]


def record_trial(run: Tracker, result: TrialResult, config: RunConfig) -> None:
    """What a trial changed and what it gave."""
    outcome = result.outcome
    run.params({"trial": result.trial.number, "release": result.trial.group, **result.trial.point})
    run.tags({"status": outcome.status, "error": outcome.error, "method": config.method})
    if outcome.score is not None:
        run.metrics({"score": outcome.score, "steps": float(outcome.steps)})
    curves = {"score by step": outcome.curve} if len(outcome.curve) > 1 else {}
    distances = list(enumerate(outcome.distances))
    run.step_metrics({**curves, "sliced W2 to the release": distances})
    run.metrics({f"seconds/{phase}": seconds for phase, seconds in outcome.seconds.items()})


def record_result(recorder: Recorder, result: Result, folder: Path) -> None:
    """The whole sweep on the parent run."""
    parent, privacy = recorder.parent, result.privacy
    parent.tags(
        {
            "policy": privacy["policy"],
            "epsilon": privacy["epsilon"],
            "relation": privacy["relation"],
            "publishable": privacy["publishable"],
        }
    )
    parent.metrics({"epsilon": float(privacy["epsilon"]), "delta": float(privacy["delta"])})
    parent.metrics(
        {f"trials/{s}": float(result.count(s)) for s in ("finished", "stopped", "failed", "pending")}
    )
    if result.best is not None and result.best.outcome.score is not None:
        parent.metrics({"best score": result.best.outcome.score})
    for name in ("report.html", "best.yaml", "privacy.json", "trials.parquet"):
        if (folder / name).exists():
            parent.artifact(folder / name)
