"""`dpsw flow | generate | evaluate | plan`: runs, more samples, new figures, and what a run would release."""

from __future__ import annotations

from collections.abc import Callable
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
    QuietOption,
    RunArgument,
    SetOption,
)
from dpsw_ray.commands.show import show
from dpsw_ray.config import RunConfig, load_config
from dpsw_ray.config_file import read_values
from dpsw_ray.errors import UserError

if TYPE_CHECKING:
    from dpsw_ray.progress import Progress
    from dpsw_ray.run import RunResult

__all__ = ["draw_samples", "evaluate", "flow", "generate", "plan", "report_result"]


def flow(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    output: Annotated[Path | None, typer.Option(help="the run's folder; default runs/<name>")] = None,
    quiet: QuietOption = False,
) -> None:
    """Make a run: private records in, a private release, particles, pictures, a report.

    The same command with the same config and folder goes on with a run that was interrupted; a release that is
    stored already is used again and costs nothing.
    """
    from dpsw_ray.progress import Progress
    from dpsw_ray.run import run

    progress = Progress(quiet=quiet)
    report_result(run(load_config(config, set_), output, progress), progress)


def report_result(result: RunResult, progress: Progress) -> None:
    """Prints figures, promise and places of a finished run."""
    from dpsw_ray.rounding import format_number

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
    draw_samples(run_folder, out, num, seed, quiet, _load_plain)


def _load_plain(path: Path) -> RunConfig:
    if "population" in read_values(path)[0]:
        raise UserError(
            f"{path.parent} holds a federated run: draw from it with `python -m federated generate`."
        )
    return load_config(path)


def draw_samples(
    run_folder: Path, out: Path, num: int, seed: int | None, quiet: bool, load: Callable[[Path], RunConfig]
) -> None:
    """Writes more samples of a run whose config `load` reads."""
    from dpsw_ray.output import lasting
    from dpsw_ray.progress import Progress
    from dpsw_ray.run import generate as generate_samples

    out = lasting(out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: give the Parquet file to write.")
    if blocking := next((place for place in out.absolute().parents if place.is_file()), None):
        raise UserError(f"--out {out} lies inside {blocking}, which is a file: give another path.")
    generate_samples(run_folder, out, num, seed, Progress(quiet=quiet), load)


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
    from dpsw_ray.progress import Progress
    from dpsw_ray.reevaluate import evaluate_again

    progress = Progress(quiet=quiet)
    report_result(evaluate_again(run_folder, set_, full, progress), progress)


def plan(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Show what a run would release, at what noise, and what it costs; opens no private file."""
    from dpsw_ray.plan import describe_plan

    show(describe_plan(load_config(config, set_)), as_json)
