"""`dpsw ledger`: what has been spent on every data set."""

from __future__ import annotations

from typing import Annotated

import typer

from dpsw_ray.commands.options import JsonOption
from dpsw_ray.commands.show import show
from dpsw_ray.config import RunConfig, load_config

__all__ = ["ledger"]


def ledger(
    config: Annotated[
        str, typer.Argument(metavar="[CONFIG]", help="whose ledger; default: this user's")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what every registered data set has spent, and check the ledger's hash chain."""
    from dpsw_ray.privacy.ledger import Ledger

    book = Ledger((load_config(config) if config else RunConfig()).ledger_path)
    head = book.verify()
    totals = {entry.name: book.total(entry.name).to_dict() for entry in book.datasets()}
    show({"ledger": str(book.path), "hash": head, "data sets": totals}, as_json)
