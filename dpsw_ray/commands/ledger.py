"""`dpsw ledger show | register | remove | cap | export | verify`: what every data set has spent, and its limits."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dpsw_ray.base.errors import UserError, named, shown
from dpsw_ray.base.numerals import EXAMPLES, plain_number
from dpsw_ray.commands.options import JsonOption, file_place, place, real
from dpsw_ray.commands.show import show

if TYPE_CHECKING:
    from dpsw_ray.privacy.ledger import CapEntry, Ledger, LedgerEntry, LedgerTotal

__all__ = ["ledger"]

LedgerOption = Annotated[
    Path | None,
    typer.Option(
        "--ledger", metavar="FILE", parser=file_place, help="the ledger; default: the one that runs use"
    ),
]
FilterOption = Annotated[
    str | None, typer.Option("--filter", metavar="gaussian|renyi", help="the cap's filter")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="a registered data set")]


class _ShowByDefault(TyperGroup):
    """`dpsw ledger`, with or without options, is `dpsw ledger show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


class _NegativeNumbers(TyperCommand):
    """A negative number is an argument, to be refused as what it is, not an option that nobody has."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        numbers = [word for word in args if re.match(r"-[.\d]", word)]
        if numbers and "--" not in args:
            args = [*(word for word in args if word not in numbers), "--", *numbers]
        return super().parse_args(ctx, args)


ledger = typer.Typer(
    cls=_ShowByDefault,
    help="What every data set has spent, and what it may spend (alone: show).",
    add_completion=False,
)


@ledger.command(name="show")
def show_(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="one data set, with its entries")] = "",
    file: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what every data set has spent; with NAME, every entry of it."""
    book = _existing(file)
    if name:
        _show_one(book, name, as_json)
        return
    totals = [book.total(entry.name) for entry in book.datasets()]
    if as_json:
        show({"ledger": str(book.path), "data sets": {t.dataset.name: t.to_dict() for t in totals}}, True)
        return
    print(f"ledger: {book.path}")
    columns = ("data set", "relation", "unit", "delta", "charges", "epsilon so far", "cap", "left")
    print("\n".join(_table([columns, *map(_summary, totals)])) if totals else "no data set is registered")


@ledger.command()
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="data.name of the runs that will charge it")],
    relation: Annotated[str, typer.Option(metavar="replace_one|zero_out|add_remove")],
    unit: Annotated[str, typer.Option(metavar="record|user")],
    delta: Annotated[float, typer.Option(parser=real, help="at which epsilon is totalled")],
    cap: Annotated[
        float | None,
        typer.Option(metavar="EPS", parser=real, help="no charge may bring the total above it"),
    ] = None,
    filter: FilterOption = None,
    research: Annotated[bool, typer.Option("--research", help="releases must not be published")] = False,
    file: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a data set, once and for all, before its first run; makes the ledger where there is none."""
    from dpsw_ray.privacy.filters import check_filter
    from dpsw_ray.privacy.ledger import Ledger
    from dpsw_ray.privacy.relations import check_relation, check_unit

    if filter is not None and cap is None:
        raise UserError(f"--filter {named(str(filter))} is of a cap: give --cap EPS too.")
    fixed = (check_relation(relation), check_unit(unit), delta)
    chosen = check_filter(filter or "gaussian")
    book = Ledger(_path(file))
    entry = book.register(name, *fixed, publishable=not research, cap=cap, filter=chosen)
    show({"ledger": str(book.path), "registered": dataclasses.asdict(entry)}, as_json)


@ledger.command()
def remove(name: NameArgument, file: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Remove a data set that was never charged, and with it what it promised; that it was there stays in the log."""
    book = _existing(file)
    entry = book.remove(name)
    show({"ledger": str(book.path), "removed": dataclasses.asdict(entry)}, as_json)


@ledger.command(cls=_NegativeNumbers)
def cap(
    name: NameArgument,
    epsilon: Annotated[str, typer.Argument(metavar="EPS|none", help="the largest total, or no limit")],
    filter: FilterOption = None,
    raise_: Annotated[
        bool, typer.Option("--raise", help="give up what the present cap promises; stays in the log")
    ] = False,
    file: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set or lower the cap of a data set; raise or lift it with --raise."""
    from dpsw_ray.privacy.filters import check_filter

    chosen = None if filter is None else check_filter(filter)
    limit = _epsilon(epsilon)
    if limit is None and chosen is not None:
        raise UserError(
            f"--filter {named(str(filter))} is of a cap, and EPS none lifts it: leave one of them out."
        )
    book = _existing(file)
    book.set_cap(name, limit, filter=chosen, raise_=raise_)
    total = book.total(name)
    left = total.remaining if as_json else _left(total)
    spent = total.epsilon.upper
    show({"data set": name, "cap": _limit(total), "epsilon so far": spent, "left": left}, as_json)


@ledger.command()
def export(
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=place, help="the JSON file to write; default: print it"),
    ] = None,
    file: LedgerOption = None,
) -> None:
    """Write every entry with its hashes as JSON, so that anybody can recompute the chain."""
    from dpsw_ray.base.files import to_json, write_json
    from dpsw_ray.pipeline.destination import out_file
    from dpsw_ray.privacy.chain import rows_to_export

    book = _existing(file)
    if out is not None:
        out = out_file("--out", out, (".json",))
    rows = book.rows()
    if out is None:
        print(to_json(rows_to_export(rows)))
        return
    write_json(out, rows_to_export(rows))
    print(f"{len(rows)} entries in {out}")


@ledger.command()
def verify(
    exported: Annotated[
        Path | None,
        typer.Argument(
            metavar="[EXPORT]", parser=file_place, help="an earlier export the ledger must begin with"
        ),
    ] = None,
    file: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute the hash chain; with EXPORT, check that nothing in it was changed or cut since."""
    from dpsw_ray.privacy.chain import head_of, rows_from_export

    book = _existing(file)
    rows = () if exported is None else rows_from_export(exported)
    head = book.verify(rows)
    values: dict[str, Any] = {"ledger": str(book.path), "entries": head.entries, "hash": head.hash}
    if exported is not None:
        values["begins with"] = {"export": str(exported), "entries": len(rows), "hash": head_of(rows)}
    show(values, as_json)


def _path(file: Path | None) -> Path:
    from dpsw_ray.config.run import RunConfig

    return RunConfig().ledger_path if file is None else file


def _existing(file: Path | None) -> Ledger:
    from dpsw_ray.privacy.ledger import Ledger

    return Ledger(_path(file), create=False)


def _epsilon(text: str) -> float | None:
    if text == "none":
        return None
    value = plain_number(text)
    if value is None or not 0 < value < math.inf:
        raise UserError(
            f"EPS must be a positive number, or none to lift the cap, found {shown(text)}; {EXAMPLES}."
        )
    return float(value)


def _show_one(book: Ledger, name: str, as_json: bool) -> None:
    total = book.total(name)
    changes: list[LedgerEntry | CapEntry] = [*book.entries(name), *book.cap_changes(name)]
    changes.sort(key=lambda change: change.seq)
    # The users' account is another one than the records', the division is that of the records.
    division = book.division(name) or book.division(name.rpartition(" users")[0])
    if as_json:
        entries = [_entry(change) for change in changes]
        show({**total.to_dict(), "division": division, "entries": entries}, True)
        return
    dataset = total.dataset
    show(
        {
            "data set": f"{name} (id {dataset.id}, registered {dataset.time})",
            "protects": f"one {dataset.unit}, {dataset.relation}, delta {dataset.delta:g}",
            "publishable": dataset.publishable,
            "divided": None if division is None else _divided(division),
            "charges": total.charges,
            "epsilon so far": total.epsilon.upper,
            "accountant": total.accountant,
            "cap": _limit(total),
            "left": _left(total),
        },
        False,
    )
    columns = ("entry", "time", "what", "mu", "run", "note")
    lines = [_line(change, total) for change in changes]
    print("\n".join(_table([columns, *lines])) if lines else "no entries")


def _divided(division: Mapping[str, Any]) -> str:
    keys = ("public_fraction", "test", "split_seed", "user")
    return ", ".join(f"{key} {division[key]}" for key in keys if division.get(key) is not None)


def _entry(change: LedgerEntry | CapEntry) -> dict[str, Any]:
    from dpsw_ray.privacy.ledger import LedgerEntry

    values = {item.name: getattr(change, item.name) for item in dataclasses.fields(change)}
    if isinstance(change, LedgerEntry):
        return {"kind": "charge", **values, "events": [event.to_dict() for event in change.events]}
    return {"kind": "cap", **values, "cap": None if change.cap is None else dataclasses.asdict(change.cap)}


def _line(change: LedgerEntry | CapEntry, total: LedgerTotal) -> tuple[str, ...]:
    from dpsw_ray.privacy.accountants import compose_mu
    from dpsw_ray.privacy.ledger import LedgerEntry

    if isinstance(change, LedgerEntry):
        mu = compose_mu(change.events, total.dataset.relation)
        what = ", ".join(event.label for event in change.events)
        shown = "-" if mu is None else f"{mu:.5g}"
        return str(change.seq), change.time, what, shown, change.run_id, change.note
    what = f"cap {change.cap or 'none'}{' (raised)' if change.raised else ''}"
    return str(change.seq), change.time, what, "-", "", ""


def _summary(total: LedgerTotal) -> tuple[str, ...]:
    from dpsw_ray.base.rounding import format_number

    dataset = total.dataset
    spent = format_number(total.epsilon.upper, 5, ROUND_CEILING)
    cap = "none" if dataset.cap is None else f"{dataset.cap.epsilon:g} ({dataset.cap.filter})"
    fixed = (dataset.name, dataset.relation, dataset.unit, f"{dataset.delta:g}")
    return (*fixed, str(total.charges), spent, cap, _left(total))


def _limit(total: LedgerTotal) -> str:
    return str(total.dataset.cap or "none")


def _left(total: LedgerTotal) -> str:
    from dpsw_ray.base.rounding import format_number

    return "no limit" if total.remaining is None else format_number(total.remaining, 5, ROUND_FLOOR)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
