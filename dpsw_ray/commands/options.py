"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ConfigArgument",
    "DrawnSeedOption",
    "JsonOption",
    "NumOption",
    "OutOption",
    "QuietOption",
    "RunArgument",
    "SetOption",
]

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="a YAML file, or the name of a shipped one")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="override a key, such as privacy.epsilon=0.2")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="print nothing but errors")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")]
OutOption = Annotated[Path, typer.Option(help="the Parquet file to write")]
NumOption = Annotated[int, typer.Option(min=1, help="number of samples")]
DrawnSeedOption = Annotated[int | None, typer.Option(min=0, help="public seed; default: the run's")]
