"""A sweep from its config to its report: releases paid for, trials made, the best one made a run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DamagedFile, read_bytes, write_json, write_text
from dpsw_ray.base.progress import Progress
from dpsw_ray.base.rounding import format_number
from dpsw_ray.cluster import connect, open_cluster
from dpsw_ray.cluster.head_ledger import open_ledger
from dpsw_ray.config.loader import YamlMistake, read_yaml
from dpsw_ray.config.run import ClusterConfig, RunConfig, TrackingConfig
from dpsw_ray.experiment.folder import ExperimentFolder
from dpsw_ray.experiment.record import Recorder
from dpsw_ray.methods.registry import RUNS
from dpsw_ray.pipeline.destination import check_place
from dpsw_ray.pipeline.plan import ledger_account
from dpsw_ray.pipeline.run import run
from dpsw_ray.pipeline.tracking import check_tracking
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.tune.plan import SweepPlan, SweepTrial
from dpsw_ray.tune.prepare import Prepared, prepare
from dpsw_ray.tune.private_selection import select_privately
from dpsw_ray.tune.report import render_sweep
from dpsw_ray.tune.results import (
    Result,
    TrialResult,
    describe_point,
    sweep_privacy,
    write_best,
    write_privacy,
    write_trials,
)
from dpsw_ray.tune.scores import Score
from dpsw_ray.tune.tracking import record_result, record_trial
from dpsw_ray.tune.trial import Outcome, read_outcome

__all__ = ["Interrupted", "check_begun", "connected", "make_best", "run_sweep"]


_PAID = ("releases", "trials", "private.json")
"""What only a sweep has that began to pay."""


class Interrupted(KeyboardInterrupt):
    """The sweep was interrupted; its folder holds what has ended, and a report of it."""


def run_sweep(plan: SweepPlan, output: Path, resume: bool, progress: Progress) -> Result:
    """Makes a sweep, or goes on with it.

    Args:
        plan: the sweep, checked.
        output: absolute; its folder.
        resume: go on with what `output` holds.
        progress: where to report.

    Raises:
        UserError: the folder holds something else or nothing to resume, or anything the user can mend. A trial that
            fails is a line of the result.
        Interrupted: by Ctrl-C; the report is of what has ended.
    """
    config = plan.base.config
    check_place(output)
    if resume:
        check_begun(output, [output])
    # Not of the preparation, whose length could tell a protected number of records.
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(ExperimentFolder(output, "sweep"))
        _claim(plan, folder, resume)
        from dpsw_ray.tune.workers import check_room  # Tune takes a second

        private = plan.sweep.selection.policy == "private_selection"
        stack.callback(connected(config.cluster))  # tells on which machine the ledger is
        ledger = open_ledger(config.ledger_path)

        def open_recorder() -> Recorder:
            recorder = stack.enter_context(Recorder(config.tracking, folder, plan.sweep.name))
            recorder.begin({"policy": plan.sweep.selection.policy, "score": plan.score.name})
            return recorder

        if private:
            prepared, chosen = select_privately(plan, folder.path, ledger, progress)
            recorder = open_recorder()  # not before: it tells when it was opened
            result = Result(plan, [chosen], _privacy(plan, prepared, ledger))
            recorder.record("best", _writer(chosen, prepared.groups[0].config))
        else:
            check_room(plan.sweep.trials)
            check_tracking(config.tracking, folder.path.parent)
            with open_cluster(config.cluster) as cluster:
                prepared = prepare(plan, folder.path, cluster, ledger, progress)
            recorder = open_recorder()  # what is refused until here leaves no run in MLflow
            result = _search(plan, prepared, folder, ledger, recorder, progress, seconds)
        started = time.perf_counter()
        _finish(result, prepared, folder, progress)
        seconds["best run and report"] = round(time.perf_counter() - started, 3)
        write_json(folder / "timings.json", seconds)
        record_result(recorder, result, folder.path)
        if result.count("pending"):
            raise Interrupted
        return result


def check_begun(folder: Path, sweeps: Iterable[Path]) -> None:
    """Refuses to go on with what was never begun: a new sweep, and its charge, have to be asked for.

    Args:
        folder: that is said to hold it.
        sweeps: the folders of sweeps in it, or itself.

    Raises:
        UserError: there is no sweep in the folder, nor what one paid for.
    """
    if not any((place / name).exists() for place in sweeps for name in ("sweep.yaml", *_PAID)):
        raise UserError(
            f"There is nothing to resume in {folder}: leave --resume out to begin a sweep there, or give the --output "
            "of the one to go on with."
        )


def connected(cluster: ClusterConfig) -> Callable[[], None]:
    """Connects to the Ray that the trials run on, where that is not done yet; returns what undoes it."""
    return connect(cluster.model_copy(update={"executor": "ray"}))[1]


def _claim(plan: SweepPlan, folder: ExperimentFolder, resume: bool) -> None:
    """Makes the folder that of this sweep; another sweep, or this one without `--resume`, is refused."""
    mine = {
        "sweep.yaml": plan.sweep.model_dump(mode="json", exclude={"trials"}),
        "base.yaml": _told(plan.base.config),
    }
    begun = any((folder / name).exists() for name in _PAID)
    for name, values in mine.items():
        path = folder / name
        if begun:
            if not path.exists():  # what was paid for would be taken for what this config asks for
                raise UserError(
                    f"{folder.path} holds a sweep whose {name} is missing: restore it, or give another --output."
                )
            stored = _stored(path)
            if name == "base.yaml":
                stored = _base(stored)
            if stored != json.loads(json.dumps(values)):
                raise UserError(
                    f"{folder.path} holds another sweep ({name} differs): give another --output, or the same config to "
                    "go on with that one."
                )
            if not resume:
                raise UserError(
                    f"{folder.path} holds this sweep already: --resume goes on with it and charges nothing again; for "
                    "a new one give another --output."
                )
    if not begun and (folder / "encoders").exists():
        # Of an attempt that had paid for nothing, perhaps with another encoder.
        shutil.rmtree(folder / "encoders")
    for name, values in mine.items():
        write_text(folder / name, yaml.safe_dump(values, sort_keys=False))


def _told(base: RunConfig) -> dict[str, Any]:
    """What decides the outcome of a sweep's base."""
    return base.model_dump(mode="json", exclude={"cluster", "tracking"})


def _base(stored: Any) -> Any:
    """A stored base as this version would store it; as it is where it is no config."""
    try:
        return json.loads(json.dumps(_told(RUNS.make(dict(stored), "base.yaml"))))
    except (UserError, TypeError, ValueError):
        return stored


def _search(
    plan: SweepPlan,
    prepared: Prepared,
    folder: ExperimentFolder,
    ledger: Ledger,
    recorder: Recorder,
    progress: Progress,
    seconds: dict[str, float],
) -> Result:
    from dpsw_ray.tune.workers import Job, run_trials

    job = Job(plan, prepared, folder / "trials")
    results = {trial.number: TrialResult(trial, _known(job.place(trial))) for trial in plan.trials}
    privacy = _privacy(plan, prepared, ledger)

    def result() -> Result:
        return Result(plan, [results[number] for number in sorted(results)], privacy)

    def replayed(trial: SweepTrial) -> bool:
        return results[trial.number].outcome.status == "pending" or plan.sweep.scheduler.kind != "fifo"

    todo = [trial for trial in plan.trials if replayed(trial)]
    open_ = sum(r.outcome.status == "pending" for r in results.values())
    started, recorded = time.perf_counter(), [0.0]

    def record(trial: TrialResult) -> None:
        begun = time.perf_counter()
        recorder.record(
            trial.trial.name, _writer(trial, job.config(trial.trial)), failed=bool(trial.outcome.error)
        )
        recorded[0] += time.perf_counter() - begun

    # In a thread of its own: while MLflow writes, Tune hands out the next trial.
    with ThreadPoolExecutor(1) as scribe:
        for known in results.values():
            if known.outcome.status != "pending":
                scribe.submit(record, known)  # the one before a crash may have had no time for it
        if open_ or plan.sweep.search.kind == "optuna":
            with progress.task("Trials", plan.count) as task:
                task.advance(len(results) - open_)
                progress.say(_header(plan.score))

                def ended(trial: SweepTrial, outcome: Outcome) -> None:
                    before = results.get(trial.number)
                    results[trial.number] = TrialResult(trial, outcome)
                    if before is None or before.outcome.status == "pending":
                        scribe.submit(record, results[trial.number])
                        task.advance(1, _note(result()))
                        progress.say(_row(results[trial.number], result().best))

                suggest = None
                if plan.sweep.search.kind == "optuna":
                    from dpsw_ray.tune.search import Study

                    study = Study(plan, folder / "search", folder / "trials")
                    suggest = study.next
                    for trial in study.known():
                        results[trial.number] = TrialResult(trial, _known(job.place(trial)))
                run_trials(job, todo, ended, suggest)
            seconds["trials"] = round(time.perf_counter() - started, 3)
    seconds["MLflow, beside the trials"] = round(recorded[0], 3)
    seconds["MLflow, after them"] = round(time.perf_counter() - started - seconds.get("trials", 0.0), 3)
    return result()


def _privacy(plan: SweepPlan, prepared: Prepared, ledger: Ledger) -> dict[str, Any]:
    total = ledger.total(ledger_account(prepared.groups[0].config))
    charged = {"account": total.dataset.name, "charges": total.charges, "total epsilon": total.epsilon.upper}
    return sweep_privacy(plan, prepared.privacy, prepared.epsilon, charged)


def _known(place: Path) -> Outcome:
    """What is stored of a trial; one that failed is made again."""
    outcome = read_outcome(place)
    return Outcome() if outcome.status == "failed" else outcome


def _writer(result: TrialResult, config: RunConfig) -> Callable[[Any], None]:
    return lambda run: record_trial(run, result, config)


def _note(result: Result) -> str:
    best = result.best
    return f"best {format_number(best.outcome.score)} (trial {best.trial.number})" if best else ""


def _header(score: Score) -> str:
    return f"{'trial':>6}  {score.name:>18}   {'steps':>5}  {'seconds':>7}  what it changes (*: best so far)"


def _row(this: TrialResult, best: TrialResult | None) -> str:
    """A trial that has ended, as a line of the live table."""
    outcome, number, point = this.outcome, this.trial.number, describe_point(this.trial.point)
    if outcome.error:
        return f"{number:>6}  FAILED: {outcome.error} ({point})"
    mark = "*" if best is this else " "
    return (
        f"{number:>6}  {format_number(outcome.score):>18} {mark} {outcome.steps:>5}  "
        f"{sum(outcome.seconds.values()):>7.1f}  {point}"
    )


def _finish(result: Result, prepared: Prepared, folder: ExperimentFolder, progress: Progress) -> None:
    """Files and report; where all trials have ended, the best one as a run of its own."""
    write_privacy(folder / "privacy.json", result)
    write_trials(folder / "trials.parquet", result)
    best = result.best
    if best is not None:
        group = prepared.groups[best.trial.group]
        config = result.plan.config(best.trial.point, group.config.privacy.epsilon)
        write_best(folder / "best.yaml", config, result, best)
        if not result.count("pending"):
            progress.say(f"The best trial as a run: {folder / 'best'}")
            make_best(config, group.encoder, group.folder / "release", folder / "best", progress)
    write_text(folder / "report.html", render_sweep(result, prepared.groups, folder.path))


def _stored(path: Path) -> Any:
    """What a sweep wrote as YAML.

    Raises:
        DamagedFile: it is something else by now.
    """
    try:
        return read_yaml(read_bytes(path).decode())
    except (YamlMistake, UnicodeDecodeError):
        raise DamagedFile.of(path, "is damaged (it cannot be read as YAML)") from None


def make_best(config: RunConfig, encoder: Path, release: Path, folder: Path, progress: Progress) -> None:
    """Makes the run of a config from a release and an encoder that are there: nothing is charged."""
    stored = folder / "config.yaml"
    if stored.exists() and _stored(stored) != yaml.safe_load(config.to_yaml()):
        shutil.rmtree(folder)  # of an earlier look at fewer trials
    quiet = config.model_copy(
        update={
            "cluster": ClusterConfig(executor="local", actors=1),
            "tracking": TrackingConfig(enabled=False),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", config.to_yaml())
    for source, name in ((encoder, "encoder"), (release, "release")):
        if not (folder / name).exists():
            aside = folder / f".{name}.part"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(source, aside)
            aside.rename(folder / name)
    run(quiet, folder, progress)
