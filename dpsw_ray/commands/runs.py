"""`dpsw run | generate | evaluate | plan`: runs, more samples, new figures, and what a run would release."""

from __future__ import annotations

from decimal import ROUND_CEILING
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpsw_ray.commands.options import (
    ConfigArgument,
    DrawnSeedOption,
    JsonOption,
    NumOption,
    OutOption,
    OutputOption,
    QuietOption,
    RunArgument,
    SetOption,
)
from dpsw_ray.commands.show import show
from dpsw_ray.config.file import read_values
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.registry import load_config

if TYPE_CHECKING:
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.pipeline.run import RunResult

__all__ = ["evaluate", "generate", "plan", "report_result", "run"]


def run(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make a run: private records in, a private release, particles, pictures, a report.

    The same command with the same config and folder goes on with a run that was interrupted; a release that is
    stored already is used again and costs nothing. `dpsw run` is another name of this command.
    """
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.pipeline.run import run as make_run

    progress = Progress(quiet=quiet)
    report_result(make_run(load_config(config, set_), output, progress), progress)


def report_result(result: RunResult, progress: Progress) -> None:
    """Prints figures, promise and places of a finished run."""
    from dpsw_ray.base.rounding import format_number

    epsilon = format_number(result.privacy["epsilon"]["upper"], 5, ROUND_CEILING)
    unit = "" if result.privacy["unit"] == "record" else f" of one {result.privacy['unit']}"
    promise = f"epsilon {epsilon} at delta {result.privacy['delta']:g}, {result.privacy['relation']}{unit}"
    progress.say("")
    for metric in result.metrics:
        beside = "".join(f", {name} {value:.4g}" for name, value in metric.baselines.items())
        progress.say(f"{metric.name}: {metric.value:.4g}{beside}")
    progress.say(
        f"Privacy: {promise}" + ("" if result.privacy["publishable"] else "  DO NOT PUBLISH (see the report)")
    )
    for name in ("samples.png", "report.html"):
        if (result.folder / name).exists():
            progress.say(f"{'Picture' if name == 'samples.png' else 'Report'}: {result.folder / name}")
    if result.mlflow_command:
        progress.say(f"Tracking: {result.mlflow_command}")


def generate(
    run_folder: RunArgument,
    out: OutOption,
    num: NumOption = 10_000,
    seed: DrawnSeedOption = None,
    quiet: QuietOption = False,
) -> None:
    """Draw more samples from a stored release: free, and without any private file."""
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.pipeline.destination import out_file
    from dpsw_ray.pipeline.folder import lasting
    from dpsw_ray.pipeline.generate import generate as generate_samples
    from dpsw_ray.pipeline.samples import SUFFIXES

    out = out_file("--out", lasting(out), SUFFIXES)
    generate_samples(run_folder, out, num, seed, Progress(quiet=quiet), _load)


def _load(path: Path) -> RunConfig:
    """The config of a run of records or of users."""
    if "population" not in read_values(path)[0]:
        return load_config(path)
    from dpsw_ray.federated.config import load_federated

    return load_federated(path)


def evaluate(
    run_folder: RunArgument,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="the published protocol: all models, 50 epochs, trained on all samples of the run"
        ),
    ] = False,
    set_: SetOption = [],  # noqa: B006
    quiet: QuietOption = False,
) -> None:
    """Measure a finished run's samples anew: figures, pictures and report; reads no private record, charges nothing."""
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.pipeline.reevaluate import evaluate_again

    progress = Progress(quiet=quiet)
    report_result(evaluate_again(run_folder, set_, full, progress), progress)


def plan(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Show what a run would release, at what noise, and what it costs; opens no private file."""
    from dpsw_ray.pipeline.plan import describe_plan

    show(describe_plan(load_config(config, set_)), as_json)
