"""The command line `dpsw-federated`, the same as `python -m federated`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpsw_ray.cli import guarded
from dpsw_ray.commands.options import (
    ConfigArgument,
    DrawnSeedOption,
    NumOption,
    OutOption,
    QuietOption,
    RunArgument,
    SetOption,
)
from dpsw_ray.commands.runs import draw_samples, report_result

__all__ = ["main"]

app = typer.Typer(
    help="User-level private synthetic data from a simulated population.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

more = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def federated(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    output: Annotated[Path | None, typer.Option(help="the run's folder; default runs/<name>")] = None,
    quiet: QuietOption = False,
) -> None:
    """Make a federated run: users' records in, a private release, particles, pictures, a report.

    The same command with the same config and folder goes on with a run that was interrupted: stored rounds are read
    back and cost nothing. `generate RUN --out FILE` in place of a config draws more samples from a stored release.
    """
    from dpsw_ray.progress import Progress
    from federated.config import load_federated
    from federated.run import run_federated

    progress = Progress(quiet=quiet)
    report_result(run_federated(load_federated(config, set_), output, progress), progress)


@more.command()
def generate(
    run_folder: RunArgument,
    out: OutOption,
    num: NumOption = 10_000,
    seed: DrawnSeedOption = None,
    quiet: QuietOption = False,
) -> None:
    """Draw more samples from a stored release: free, and without any private file."""
    from federated.config import load_federated

    draw_samples(run_folder, out, num, seed, quiet, load_federated)


def main() -> None:
    """Runs the command line; mistakes the user can mend end with one sentence and exit code 2."""
    name, args = "dpsw-federated", sys.argv[1:] or ["--help"]
    if args[0] == "generate":
        guarded(lambda: more(args=args[1:], prog_name=f"{name} generate", standalone_mode=False))
    else:
        guarded(lambda: app(args=args, prog_name=name, standalone_mode=False))
