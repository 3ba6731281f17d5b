"""The page of a sweep: a single HTML file that needs nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from dpsw_ray.base.rounding import format_number
from dpsw_ray.experiment.page import render_page
from dpsw_ray.tune.pictures import curves_figure, parallel_figure, scatter_figure, top_strip
from dpsw_ray.tune.prepare import Group
from dpsw_ray.tune.results import Result, TrialResult, describe_point

__all__ = ["render_sweep"]

_TOP = 5
_LISTED = 100


def render_sweep(result: Result, groups: Sequence[Group], folder: Path) -> str:
    """Returns the page: inline style, embedded pictures, no script, no address it would load from.

    Args:
        result: the sweep, as far as it got.
        groups: its releases.
        folder: its folder.
    """
    scored = [r for r in result.trials if r.outcome.score is not None]
    curves = [r for r in scored if r.outcome.distances or len(r.outcome.curve) > 1]
    best, base = result.best, result.base
    return render_page(
        "dpsw_ray.tune",
        "sweep.html.j2",
        result=result,
        plan=result.plan,
        config=result.plan.base.config,
        privacy=result.privacy,
        best=best,
        base=base,
        best_score=format_number(best.outcome.score) if best else "–",
        base_score=format_number(base.outcome.score) if base else "–",
        best_point=describe_point(best.trial.point) if best else "",
        scatter=scatter_figure(result) if scored else None,
        parallel=parallel_figure(result) if len(scored) > 1 else None,
        curves=curves_figure(result) if curves else None,
        strip=top_strip(result.ranked[:_TOP], groups, folder / "trials"),
        rows=[_row(r) for r in _listed(result)],
        hidden=max(0, len(result.trials) - _LISTED),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _listed(result: Result) -> list[TrialResult]:
    """Best first, then those without an end."""
    ranked = result.ranked
    rest = [r for r in result.trials if r.outcome.status != "finished"]
    return [*ranked, *rest][:_LISTED]


def _row(result: TrialResult) -> dict[str, str]:
    outcome = result.outcome
    return {
        "trial": str(result.trial.number),
        "status": outcome.status,
        "score": format_number(outcome.score) if outcome.score is not None else "–",
        "steps": str(outcome.steps),
        "seconds": f"{sum(outcome.seconds.values()):.2f}" if outcome.seconds else "–",
        "point": describe_point(result.trial.point),
        "error": outcome.error,
    }
