"""The command line: `dpsw flow | generate | plan | ledger`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from decimal import ROUND_CEILING
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dpsw_ray.config import RunConfig, load_config
from dpsw_ray.errors import UserError, explain_os_error

__all__ = ["main"]

_INTERRUPTED = 130

app = typer.Typer(
    help="Synthetic data with a privacy guarantee that holds.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="a YAML file, or the name of a shipped one")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="override a key, such as privacy.epsilon=0.2")
]


@app.command()
def flow(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    output: Annotated[Path | None, typer.Option(help="the run's folder; default runs/<name>")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing but errors")] = False,
) -> None:
    """Make a run: private records in, a private release, particles, pictures, a report.

    The same command with the same config and folder goes on with a run that was interrupted; a release that is
    stored already is used again and costs nothing.
    """
    from dpsw_ray.evaluation.report import format_number
    from dpsw_ray.progress import Progress
    from dpsw_ray.run import run

    progress = Progress(quiet=quiet)
    result = run(load_config(config, set_), output, progress)
    epsilon = format_number(result.privacy["epsilon"]["upper"], 5, ROUND_CEILING)
    promise = f"epsilon {epsilon} at delta {result.privacy['delta']:g}, {result.privacy['relation']}"
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


@app.command()
def generate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    out: Annotated[Path, typer.Option(help="the Parquet file to write")],
    num: Annotated[int, typer.Option(min=1, help="number of samples")] = 10_000,
    seed: Annotated[int | None, typer.Option(min=0, help="public seed; default: the run's")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing but errors")] = False,
) -> None:
    """Draw more samples from a stored release: free, and without any private file."""
    from dpsw_ray.progress import Progress
    from dpsw_ray.run import generate as generate_samples

    if out.is_dir():
        raise UserError(f"--out {out} is a folder: give the Parquet file to write.")
    if blocking := next((place for place in out.absolute().parents if place.is_file()), None):
        raise UserError(f"--out {out} lies inside {blocking}, which is a file: give another path.")
    generate_samples(run_folder, out, num, seed, Progress(quiet=quiet))


@app.command()
def plan(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show what a run would release, at what noise, and what it costs; opens no private file."""
    from dpsw_ray.plan import describe_plan

    _show(describe_plan(load_config(config, set_)), as_json)


@app.command()
def ledger(
    config: Annotated[
        str, typer.Argument(metavar="[CONFIG]", help="whose ledger; default: this user's")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show what every registered data set has spent, and check the ledger's hash chain."""
    from dpsw_ray.privacy.ledger import Ledger

    book = Ledger((load_config(config) if config else RunConfig()).ledger_path)
    head = book.verify()
    totals = {entry.name: book.total(entry.name).to_dict() for entry in book.datasets()}
    _show({"ledger": str(book.path), "hash": head, "data sets": totals}, as_json)


def main() -> None:
    """Runs the command line; mistakes the user can mend end with one sentence and exit code 2."""
    _guarded(lambda: app(args=sys.argv[1:] or ["--help"], prog_name="dpsw", standalone_mode=False))


_UsageError: Any = typer.BadParameter.__mro__[1]
"""The class of everything wrong with options and arguments; newer versions of Typer bring their own Click."""


def _guarded(command: Callable[[], Any]) -> None:
    try:
        interrupted = command() == _INTERRUPTED
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(explain_os_error(error))
    except _UsageError as error:
        _fail(_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        interrupted = True
    if interrupted:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _usage(error: Any) -> str:
    message = " ".join(error.format_message().split()).rstrip(".").replace("Input should be", "must be")
    return f"{message}; see `{error.ctx.command_path} --help`." if error.ctx else f"{message}."


def _fail(sentence: str) -> NoReturn:
    print(f"Error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _show(values: dict[str, Any], as_json: bool) -> None:
    from dpsw_ray.files import to_json

    text = to_json(values)
    print(text if as_json else "\n".join(_lines(json.loads(text))))


def _lines(value: Any, indent: int = 0) -> list[str]:
    from dpsw_ray.evaluation.report import format_number

    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{'  ' * indent}{key}:", *_lines(item, indent + 1)]
        elif isinstance(item, list):
            lines += [
                f"{'  ' * indent}{key}:",
                *(f"{'  ' * (indent + 1)}- {_inline(entry)}" for entry in item),
            ]
        else:
            # An upper bound is never rounded down.
            bound = isinstance(item, float) and (key == "upper" or key.startswith("epsilon"))
            shown = format_number(item, 6, ROUND_CEILING) if bound else _inline(item)
            lines.append(f"{'  ' * indent}{key}: {shown}")
    return lines


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
