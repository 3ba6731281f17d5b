"""What a sweep leaves behind as files: the trials' table, the best run's config, the privacy of the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpsw_ray.base.files import atomic_path, write_manifest, write_text
from dpsw_ray.base.rounding import format_number
from dpsw_ray.config.run import RunConfig
from dpsw_ray.tune.plan import SweepPlan, SweepTrial
from dpsw_ray.tune.trial import Outcome

__all__ = ["Result", "TrialResult", "describe_point", "sweep_privacy", "write_best", "write_trials"]


@dataclass(frozen=True)
class TrialResult:
    """A trial and how it stands."""

    trial: SweepTrial
    outcome: Outcome


@dataclass(frozen=True)
class Result:
    """A sweep, as far as it got.

    Attributes:
        plan: what was to be done.
        trials: in their order.
        privacy: of the whole, as in `privacy.json`.
    """

    plan: SweepPlan
    trials: Sequence[TrialResult]
    privacy: Mapping[str, Any]

    @property
    def best(self) -> TrialResult | None:
        """The finished trial with the best score, of equal ones the first."""
        return next(iter(self.ranked), None)

    @property
    def ranked(self) -> list[TrialResult]:
        """The finished trials, best first."""
        sign = self.plan.score.sign
        done = [result for result in self.trials if result.outcome.status == "finished"]
        return sorted(done, key=lambda r: (sign * float(r.outcome.score or 0.0), r.trial.number))

    @property
    def base(self) -> TrialResult | None:
        """The trial that is the base run, where it is one of them and has finished."""
        return next((r for r in self.trials if not r.trial.point and r.outcome.status == "finished"), None)

    def count(self, status: str) -> int:
        """Trials with this status."""
        return sum(result.outcome.status == status for result in self.trials)


def describe_point(point: Mapping[str, Any]) -> str:
    """A point in one line."""
    return ", ".join(f"{key} {format_number(value)}" for key, value in point.items()) or "the base run"


def sweep_privacy(
    plan: SweepPlan, account: Mapping[str, Any], each: float, ledger: Mapping[str, Any]
) -> dict[str, Any]:
    """What `privacy.json` holds.

    Args:
        plan: the sweep.
        account: `Account.to_dict()` of everything released.
        each: epsilon that one release was calibrated to.
        ledger: account and its total.
    """
    policy = plan.sweep.selection.policy
    private = policy != "nonprivate"
    epsilon = account["epsilon"]["upper"] if private else math.inf
    config = plan.base.config
    return {
        "policy": policy,
        "epsilon": epsilon,
        "delta": account["delta"],
        "relation": account["relation"],
        "unit": account["unit"],
        "score": {"name": plan.score.name, "kind": plan.score.kind, "explanation": plan.score.explanation},
        "publishable": private and config.privacy.publishable,
        "releases": len(plan.mechanisms),
        "queries": int(plan.score.kind == "charged"),
        "epsilon of one release": each,
        "statement": _statement(plan, account, each),
        "ledger": dict(ledger),
        "account": dict(account),
    }


def _statement(plan: SweepPlan, account: Mapping[str, Any], each: float) -> list[str]:
    policy, releases = plan.sweep.selection.policy, len(plan.mechanisms)
    config = plan.base.config
    upper = format_number(account["epsilon"]["upper"], 5, ROUND_CEILING)
    promise = f"epsilon at most {upper} at delta {account['delta']:g}, {account['relation']}"
    said = {
        "reuse": [
            f"One release was made and paid for: {promise}. All trials, their scores and the choice among them are "
            "computed from what was paid for and from public records, so that they cost nothing more."
        ],
        "split": [
            f"{releases} releases were made, planned and charged together before the first was drawn. All of them, "
            f"whichever is shown, cost {promise}.",
            f"Each by itself would cost epsilon {format_number(each, 5, ROUND_CEILING)}: that figure holds for nobody "
            "who knows which trial was chosen.",
        ],
        "private_selection": [
            f"A secret number of trials was made, each with a release of its own; the best alone is shown. That costs "
            f"{promise} (Papernot and Steinke 2022, Theorem 2).",
            "How many trials there were, what the others gave and how long they took is part of the secret.",
            "All of it happened in one process, on the machine that the sweep was started on, which reads the private "
            "records itself: until the best was known, that process and its owner were trusted.",
        ],
        "nonprivate": [
            "Epsilon is infinite: the best of several releases was chosen by looking at all of them, which was "
            f"not counted. Each release by itself costs epsilon {format_number(each, 5, ROUND_CEILING)}, charged to a "
            "research account. Nothing here may be published.",
        ],
    }[policy]
    if math.isinf(config.privacy.epsilon):
        said = ["Epsilon is infinite: no noise was added. Nothing here may be published.", *said]
    if config.privacy.noise_seed is not None:
        said = ["Nothing is promised: privacy.noise_seed lets whoever knows it take the noise away.", *said]
    if config.privacy.research and policy != "nonprivate":
        said = [*said, "Charged to a research account: not publishable, whatever the figure."]
    if plan.score.kind == "charged":
        share = f"{plan.sweep.selection.query_share:.0%} of the budget"
        said = [
            *said,
            f"The query that trials are judged by is one release more, for {share}: it was charged with the others, "
            "and the figure covers it.",
        ]
    return [
        *said,
        "The score of the best trial is the best of many and flatters it: what a run is worth, its own report says.",
    ]


def write_trials(path: Path, result: Result) -> None:
    """Writes `trials.parquet`: a row per trial; values of different kinds under one key become text."""
    keys = result.plan.space.keys
    columns: dict[str, Any] = {
        "trial": [r.trial.number for r in result.trials],
        "status": [r.outcome.status for r in result.trials],
        "score": pa.array([r.outcome.score for r in result.trials], pa.float64()),
        "steps": [r.outcome.steps for r in result.trials],
        "release": [r.trial.group for r in result.trials],
        "error": [r.outcome.error for r in result.trials],
    }
    for key in keys:
        values = [r.trial.point.get(key) for r in result.trials]
        try:
            columns[key] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[key] = pa.array([None if value is None else str(value) for value in values])
    for phase in ("inputs", "flow", "score", "points"):
        columns[f"seconds.{phase}"] = pa.array(
            [r.outcome.seconds.get(phase) for r in result.trials], pa.float64()
        )
    with atomic_path(path) as aside:
        pq.write_table(pa.table(columns), aside)


def write_best(path: Path, config: RunConfig, result: Result, best: TrialResult) -> None:
    """Writes the best run's config, with what has to be known about it in front."""
    score = result.plan.score
    lines = [
        f"# The best of a sweep: trial {best.trial.number}, {describe_point(best.trial.point)}.",
        f"# {score.name} {format_number(best.outcome.score)} ({score.better} is better); what it cost: privacy.json.",
        f"# Its run is in {path.parent / 'best'}: `dpsw run {path} --output {path.parent / 'best'}` goes on with it",
        "# for free. In another folder it is a new release, which is charged again.",
    ]
    write_text(path, "\n".join(lines) + "\n" + config.to_yaml())


def write_privacy(path: Path, result: Result) -> None:
    """Writes `privacy.json`."""
    write_manifest(path, dict(result.privacy))
