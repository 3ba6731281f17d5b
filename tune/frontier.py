"""Quality against epsilon: a sweep for each epsilon, in folders of their own, and a page that compares their bests."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_manifest, write_bytes, write_json, write_text
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster.head_ledger import open_ledger
from dpsw_ray.experiment.measures import MEASURES
from dpsw_ray.experiment.page import render_page
from dpsw_ray.pipeline.destination import check_place
from dpsw_ray.pipeline.plan import ledger_account, planned
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.ledger import LedgerTotal
from dpsw_ray.tune.config import SweepConfig
from dpsw_ray.tune.pictures import frontier_figure
from dpsw_ray.tune.plan import SweepPlan, plan_sweep
from dpsw_ray.tune.policy import selection_event, selection_trial_mu
from dpsw_ray.tune.prepare import costs
from dpsw_ray.tune.results import Result, describe_point
from dpsw_ray.tune.sweep import check_begun, connected, make_best, run_sweep

__all__ = ["plan_frontier", "run_frontier"]

_SHOWN = ("sliced_w2_test", "fid", "intended", "logreg")


def plan_frontier(sweep: SweepConfig, where: str) -> dict[float, SweepPlan]:
    """Checks the sweep of every epsilon before the first begins.

    Raises:
        UserError: whatever is wrong with one of them.
    """
    assert sweep.epsilons is not None
    return {
        epsilon: plan_sweep(
            sweep.model_copy(update={"epsilons": None, "name": f"{sweep.name}-{_exact(epsilon)}"}),
            where,
            epsilon,
        )
        for epsilon in sweep.epsilons
    }


def run_frontier(
    plans: dict[float, SweepPlan], name: str, folder: Path, resume: bool, progress: Progress
) -> list[Result]:
    """Makes the sweeps one after the other; a sweep that has a best run already is looked up when resuming.

    Args:
        plans: by epsilon.
        name: of the frontier.
        folder: absolute; each epsilon gets a folder in it.
        resume: go on with what is there.
        progress: where to report.

    Raises:
        UserError: as `run_sweep`; nothing to resume; before the first charge, where the sweeps together would pass the
            data set's cap.
        Interrupted: by Ctrl-C; the page shows the sweeps that have ended.
    """
    results: list[Result] = []
    points: list[dict[str, Any]] = []
    check_place(folder)
    if resume:
        check_begun(folder, folder.glob("epsilon-*"))
    with ExitStack() as stack:
        stack.callback(
            connected(next(iter(plans.values())).base.config.cluster)
        )  # once for all, and for the page
        _check_cap(plans, folder)
        for epsilon, plan in plans.items():
            progress.say(f"epsilon {_exact(epsilon)}")
            place = _place(folder, epsilon)
            result = run_sweep(plan, place, resume and (place / "sweep.yaml").exists(), progress)
            results.append(result)
            if result.best is not None:
                _make_base(result, place, progress)
                points.append(_point(epsilon, result, place))
            _write(name, folder, results, points)
    return results


def _place(folder: Path, epsilon: float) -> Path:
    return folder / f"epsilon-{_exact(epsilon)}"


def _check_cap(plans: Mapping[float, SweepPlan], folder: Path) -> None:
    """Refuses all sweeps where the cap has room for some of them only, as far as public facts tell what they cost."""
    events: dict[str, list[Event]] = {}  # by account
    for epsilon, plan in plans.items():
        if not any((_place(folder, epsilon) / name).exists() for name in ("releases", "private.json")):
            try:
                events.setdefault(_account(plan), []).extend(_expected(plan))
            except UserError:  # of a table that is not divided yet
                return
    config = next(iter(plans.values())).base.config
    for name, expected in events.items():
        open_ledger(config.ledger_path).check(name, config.privacy.relation, expected)


def _account(plan: SweepPlan) -> str:
    """What a sweep is charged to."""
    return ledger_account(plan.config({}, plan.base.config.privacy.epsilon))


def _expected(plan: SweepPlan) -> Sequence[Event]:
    p = plan.base.config.privacy
    if plan.sweep.selection.policy == "private_selection":
        mu = selection_trial_mu(plan.sweep, p.relation, p.epsilon, p.delta)
        return (selection_event(plan.sweep, p.relation, mu),)
    return costs(plan, lambda config: planned(config)[0].event)[2]


def _exact(epsilon: float) -> str:
    """In full: no two epsilons go by the same name."""
    return repr(float(epsilon)).removesuffix(".0")


def _make_base(result: Result, place: Path, progress: Progress) -> None:
    """The base run with the release that it has in this sweep: what the best is compared with, at no cost."""
    base = result.base
    if base is None:
        return
    epsilon = read_manifest(place / "privacy.json")["epsilon of one release"]
    config = result.plan.config({}, float(epsilon)).model_copy(
        update={"name": f"{result.plan.sweep.name}-base"}
    )
    release = place / "releases" / f"{base.trial.group:05d}" / "release"
    make_best(config, place / "encoders" / "000", release, place / "base", progress)


def _point(epsilon: float, result: Result, place: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "epsilon": epsilon,
        "policy": result.privacy["policy"],
        "promised": result.privacy["epsilon"],
        "score": result.best and result.best.outcome.score,
        "changes": describe_point(result.best.trial.point) if result.best else "",
    }
    for which in ("best", "base"):
        path = place / which / "metrics.json"
        if path.exists():
            stored = read_manifest(path)["metrics"]
            found[which] = {
                name: stored[MEASURES[name].title]["value"]
                for name in _SHOWN
                if MEASURES[name].title in stored
            }
    return found


def _accounts(results: Sequence[Result]) -> list[LedgerTotal]:
    """Totals of the accounts that the sweeps were charged to."""
    ledger = open_ledger(results[0].plan.base.config.ledger_path)
    return [ledger.total(name) for name in dict.fromkeys(_account(result.plan) for result in results)]


def _write(name: str, folder: Path, results: Sequence[Result], points: Sequence[dict[str, Any]]) -> None:
    measured = [key for key in _SHOWN if any(key in point.get("best", {}) for point in points)]
    write_json(folder / "frontier.json", {"points": list(points)})
    picture = None
    if measured:
        picture = frontier_figure(
            points, {key: (MEASURES[key].title, MEASURES[key].better) for key in measured}
        )
        write_bytes(folder / "frontier.png", picture)
    page = render_page(
        "dpsw_ray.tune", "frontier.html.j2",
        name=name, points=points, measured=measured, measures=MEASURES, picture=picture,
        publishable=all(result.privacy["publishable"] for result in results),
        finite=not any(math.isinf(float(result.privacy["epsilon"])) for result in results), totals=_accounts(results),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    write_text(folder / "report.html", page)
