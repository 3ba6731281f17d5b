"""`dpsw tune`: sweeps under a fixed epsilon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpsw_ray.base.interrupts import exit_code
from dpsw_ray.commands.options import QuietOption, place

__all__ = ["tune"]


def tune(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", parser=place, help="a sweep's YAML file")],
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="override a key, such as search.trials=20 or set.privacy.epsilon=1",
        ),
    ] = [],  # noqa: B006 (typer reads it)
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", parser=place, help="the sweep's folder; default runs/<name>"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted sweep")] = False,
    quiet: QuietOption = False,
) -> None:
    """Sweep a run's parameters under a fixed epsilon; leaves the best run, its config, a table and a report."""
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.base.rounding import format_number
    from dpsw_ray.pipeline.folder import resolve_output
    from dpsw_ray.tune.config import load_sweep
    from dpsw_ray.tune.frontier import plan_frontier, run_frontier
    from dpsw_ray.tune.plan import plan_sweep
    from dpsw_ray.tune.results import describe_point
    from dpsw_ray.tune.sweep import run_sweep

    sweep, where = load_sweep(config, set_)
    plans = plan_frontier(sweep, where) if sweep.epsilons else None
    plan = next(iter(plans.values())) if plans else plan_sweep(sweep, where)
    folder = resolve_output(plan.base.config.model_copy(update={"name": sweep.name}), output)
    progress = Progress(quiet=quiet)
    try:
        if plans:
            results = run_frontier(plans, sweep.name, folder, resume, progress)
        else:
            results = [run_sweep(plan, folder, resume, progress)]
    except KeyboardInterrupt:  # our own word for it included
        report = folder / "report.html"
        ended = f"; what has ended is in {report}" if report.exists() else ""
        print(f"Interrupted: --resume goes on from here{ended}", file=sys.stderr)
        sys.exit(exit_code())
    for result in results:
        if (best := result.best) is not None:
            at = f"epsilon {result.plan.base.config.privacy.epsilon:g}: " if plans else ""
            score = f"{plan.score.name} {format_number(best.outcome.score)}"
            progress.say(
                f"{at}best is trial {best.trial.number}, {score}: {describe_point(best.trial.point)}"
            )
    progress.say(f"Report: {folder / 'report.html'}")
    if any(result.best is None or result.count("failed") for result in results):
        sys.exit(1)
