"""Arguments and options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.base.numerals import EXAMPLES, plain_number
from dpsw_ray.base.paths import path_mistake
from dpsw_ray.config.fields import MOST_SEED

__all__ = [
    "ConfigArgument",
    "DrawnSeedOption",
    "JsonOption",
    "NumOption",
    "OutOption",
    "OutputOption",
    "QuietOption",
    "RunArgument",
    "SetOption",
    "file_place",
    "place",
    "real",
    "reals",
    "whole",
]

_MOST_NUMBERS = 1000
_INFINITE = ("inf", ".inf")
"""As Python and as YAML write it."""


def place(text: str | Path) -> Path:
    """Reads a path of the command line, `~` written out.

    Raises:
        typer.BadParameter: it is none.
    """
    return _place(text, "any")


def file_place(text: str | Path) -> Path:
    """Reads the path of a file to read or to make, `~` written out.

    Raises:
        typer.BadParameter: it is none, or something else is there.
    """
    return _place(text, "file")


def _place(text: str | Path, kind: Literal["file", "any"]) -> Path:
    if mistake := path_mistake(str(text), kind):
        raise typer.BadParameter(mistake)
    return Path(text).expanduser()


def whole(least: int, most: int) -> Callable[[Any], int]:
    """Reads a whole number of the command line within bounds."""

    def read(value: Any) -> int:
        found = plain_number(str(value))
        if found is None or not math.isfinite(found) or found != int(found):
            raise typer.BadParameter(f"must be a whole number, found {shown(value)}; {EXAMPLES}")
        if not least <= found <= most:
            raise typer.BadParameter(f"must be from {least:,} to {most:,}, found {shown(value)}")
        return int(found)

    read.__name__ = "whole number"
    return read


def real(text: Any) -> float:
    """Reads a finite number of the command line.

    Raises:
        typer.BadParameter: it is none.
    """
    found = plain_number(str(text))
    if found is None or not math.isfinite(found):
        raise typer.BadParameter(f"must be a finite number, found {shown(text)}; {EXAMPLES}")
    return float(found)


real.__name__ = "number"


def reals(option: str, text: str, infinite: bool = False) -> list[float]:
    """Reads numbers with commas between them.

    Args:
        option: that they are the value of.
        text: the numbers.
        infinite: whether `inf` is one of them.

    Raises:
        UserError: some part is none, or there are too many: for each of them something is worked out.
    """
    found: list[float] = []
    if (count := text.count(",") + 1) > _MOST_NUMBERS:
        raise UserError(f"{option} takes at most {_MOST_NUMBERS} numbers, found {count:,}.")
    for part in (part.strip() for part in text.split(",")):
        value = math.inf if infinite and part in _INFINITE else plain_number(part)
        if value is None or (math.isinf(value) and not (infinite and part in _INFINITE)):
            wanted = f"numbers{' or inf' if infinite else ''} with commas between them"
            raise UserError(f"{option} takes {wanted}, found {shown(part)}; {EXAMPLES}.")
        found.append(float(value))
    return found


ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", parser=place, help="a YAML file, or the name of a shipped one")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="override a key, such as privacy.epsilon=0.2")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="print nothing but errors")]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", parser=place, help="the folder of a finished run")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", parser=place, help="the run's folder; default runs/<name>"),
]
OutOption = Annotated[
    Path,
    typer.Option(
        metavar="FILE", parser=place, help="the file to write: .parquet, .pq, .arrow, .feather or .csv"
    ),
]
NumOption = Annotated[int, typer.Option(parser=whole(1, 10**10), help="number of samples")]
DrawnSeedOption = Annotated[
    int | None, typer.Option(parser=whole(0, MOST_SEED), help="public seed; default: the run's")
]
