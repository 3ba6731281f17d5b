"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ConfigArgument", "JsonOption", "QuietOption", "SetOption"]

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="a YAML file, or the name of a shipped one")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="override a key, such as privacy.epsilon=0.2")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="print nothing but errors")]
