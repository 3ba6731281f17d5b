"""The command line `dpsw-federated`, the same as `python -m federated`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpsw_ray.cli import guarded
from dpsw_ray.commands.options import ConfigArgument, QuietOption, SetOption
from dpsw_ray.commands.runs import report_result

__all__ = ["main"]

app = typer.Typer(
    help="User-level private synthetic data from a simulated population.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def federated(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    output: Annotated[Path | None, typer.Option(help="the run's folder; default runs/<name>")] = None,
    quiet: QuietOption = False,
) -> None:
    """Make a federated run: users' records in, a private release, particles, pictures, a report.

    The same command with the same config and folder goes on with a run that was interrupted: stored rounds are read
    back and cost nothing.
    """
    from dpsw_ray.progress import Progress
    from federated.config import load_federated
    from federated.run import run_federated

    progress = Progress(quiet=quiet)
    report_result(run_federated(load_federated(config, set_), output, progress), progress)


def main() -> None:
    """Runs the command line; mistakes the user can mend end with one sentence and exit code 2."""
    guarded(lambda: app(args=sys.argv[1:] or ["--help"], prog_name="dpsw-federated", standalone_mode=False))
