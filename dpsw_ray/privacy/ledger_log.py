"""What the ledger's log says: its rows, read into registrations, removals, divisions, charges and changes of caps.

Whoever recomputes the hashes can write anything, so every value is looked at before anything is worked out from it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.privacy.chain import Row
from dpsw_ray.privacy.events import Event, common_unit, event_from_dict
from dpsw_ray.privacy.filters import Cap, check_cap
from dpsw_ray.privacy.gaussian import check_delta
from dpsw_ray.privacy.relations import Relation, Unit, check_relation, check_unit

__all__ = ["CapEntry", "Charge", "DatasetEntry", "LedgerEntry", "Log", "Receipt", "read_log"]

_CHARGE = {"charge_id", "dataset", "publishable", "events", "run_id", "note", "time"}


@dataclass(frozen=True)
class DatasetEntry:
    """A registered data set.

    Args:
        name: what charges go by.
        id: random; says nothing about the records.
        relation: events are evaluated under it.
        unit: all charges must protect it.
        delta: at which totals and the cap are given.
        publishable: False for research accounts, whose releases must not be published.
        cap: what all charges together may reach now, None for no limit.
        time: of registration, UTC, ISO 8601.
    """

    name: str
    id: str
    relation: Relation
    unit: Unit
    delta: float
    publishable: bool
    cap: Cap | None
    time: str


@dataclass(frozen=True)
class LedgerEntry:
    """One charge; `entry_hash` pins it and everything before it."""

    seq: int
    charge_id: str
    release_id: str
    dataset: str
    publishable: bool
    events: tuple[Event, ...]
    run_id: str
    note: str
    time: str
    entry_hash: str


@dataclass(frozen=True)
class Receipt:
    """What the private side keeps of a charge: where it stands in the ledger, and the hash that pins all up to it."""

    account: str
    seq: int
    entry_hash: str

    @classmethod
    def of(cls, entry: LedgerEntry) -> Receipt:
        """Of a charge."""
        return cls(entry.dataset, entry.seq, entry.entry_hash)


@dataclass(frozen=True)
class CapEntry:
    """One change of a cap after the registration; `raised` where it gave up what had been promised."""

    seq: int
    dataset: str
    cap: Cap | None
    raised: bool
    time: str
    entry_hash: str


@dataclass(frozen=True)
class Charge:
    """A charge whose events are not parsed yet: most calls need few of them."""

    row: Row
    values: Mapping[str, Any]
    unit: Unit
    path: Path

    @property
    def dataset(self) -> str:
        """Which data set is charged."""
        return str(self.values["dataset"])

    def events(self) -> tuple[Event, ...]:
        """What is charged.

        Raises:
            UserError: this is nothing that could have been charged.
        """
        try:
            events = tuple(event_from_dict(event) for event in self.values["events"])
            if common_unit(events) != self.unit:
                raise ValueError
        except (UserError, ValueError, RecursionError):
            raise UserError(
                f"The privacy ledger {self.path} is damaged: entry {self.row.seq} charges nothing that this program "
                "could have charged; restore a copy."
            ) from None
        return events

    def entry(self) -> LedgerEntry:
        """All of it."""
        assert self.row.release_id is not None
        values = {**self.values, "events": self.events()}
        return LedgerEntry(
            seq=self.row.seq, release_id=self.row.release_id, entry_hash=self.row.entry_hash, **values
        )


@dataclass(frozen=True)
class Log:
    """The log, read; `divisions` by the name of the records."""

    rows: tuple[Row, ...]
    datasets: dict[str, DatasetEntry]
    divisions: dict[str, Mapping[str, Any]]
    charges: tuple[Charge, ...]
    caps: tuple[CapEntry, ...]

    def spent(self, name: str) -> list[Event]:
        """All events charged to a data set, oldest first."""
        return [event for charge in self.charges if charge.dataset == name for event in charge.events()]

    def holds(self, receipt: Receipt) -> bool:
        """Whether a charge that the private side remembers is in it."""
        rows = self.rows[receipt.seq - 1 : receipt.seq]
        return bool(rows) and rows[0].entry_hash == receipt.entry_hash


def read_log(rows: Iterable[Row], path: Path) -> Log:
    """Parses rows, of the ledger at `path`.

    Raises:
        UserError: an entry is not one that this program wrote, or is of a newer version.
    """
    reader = _Reader(path)
    kept = tuple(rows)
    for row in kept:
        read = _KINDS.get(row.kind)
        if read is None:
            raise UserError(f"The privacy ledger {path} has entries {shown(row.kind)} of a newer version.")
        try:
            values = json.loads(row.body)
            if not isinstance(values, dict) or (row.release_id is None) == (row.kind == "charge"):
                raise ValueError
            read(reader, row, values)
        except (UserError, KeyError, TypeError, ValueError, RecursionError, OverflowError):
            raise UserError(
                f"The privacy ledger {path} is damaged: entry {row.seq} is no {row.kind} that this program wrote; "
                "restore a copy."
            ) from None
    return Log(kept, reader.datasets, reader.divisions, tuple(reader.charges), tuple(reader.caps))


class _Reader:
    """What the rows so far say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.datasets: dict[str, DatasetEntry] = {}
        self.divisions: dict[str, Mapping[str, Any]] = {}
        self.charges: list[Charge] = []
        self.caps: list[CapEntry] = []
        self._charged: set[str] = set()

    def register(self, row: Row, values: dict[str, Any]) -> None:
        values["cap"] = _read_cap(values["cap"])
        entry = DatasetEntry(**values)
        check_relation(entry.relation)
        check_unit(entry.unit)
        check_delta(_number(entry.delta))
        _check_texts(entry.name, entry.id, entry.time)
        _check_bool(entry.publishable)
        if entry.name in self.datasets:
            raise ValueError
        self.datasets[entry.name] = entry

    def remove(self, row: Row, values: dict[str, Any]) -> None:
        name, data = values["dataset"], values["division"]
        _check_texts(values["time"])
        if name in self._charged:
            raise ValueError
        del self.datasets[name]
        if data is not None:
            del self.divisions[data]

    def divide(self, row: Row, values: dict[str, Any]) -> None:
        _check_texts(values["data"], values["time"])
        if values["data"] in self.divisions or not isinstance(values["division"], dict):
            raise ValueError
        self.divisions[values["data"]] = values["division"]

    def charge(self, row: Row, values: dict[str, Any]) -> None:
        if values.keys() != _CHARGE or not isinstance(values["events"], list) or not values["events"]:
            raise ValueError
        if not all(isinstance(event, dict) for event in values["events"]):
            raise ValueError
        _check_texts(*(values[key] for key in ("charge_id", "dataset", "run_id", "note", "time")))
        _check_bool(values["publishable"])
        self.charges.append(Charge(row, values, self.datasets[values["dataset"]].unit, self.path))
        self._charged.add(values["dataset"])

    def cap(self, row: Row, values: dict[str, Any]) -> None:
        cap = _read_cap(values.pop("cap"))
        change = CapEntry(seq=row.seq, cap=cap, entry_hash=row.entry_hash, **values)
        _check_texts(change.dataset, change.time)
        _check_bool(change.raised)
        _check_raised(change, self.datasets[change.dataset].cap)
        self.caps.append(change)
        self.datasets[change.dataset] = dataclasses.replace(self.datasets[change.dataset], cap=cap)


_KINDS: dict[str, Callable[[_Reader, Row, dict[str, Any]], None]] = {
    "register": _Reader.register,
    "remove": _Reader.remove,
    "divide": _Reader.divide,
    "charge": _Reader.charge,
    "cap": _Reader.cap,
}


def _check_texts(*values: Any) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError


def _check_bool(value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return float(value)


def _check_raised(change: CapEntry, before: Cap | None) -> None:
    """A cap that rose without saying so was not written by this program."""
    rose = before is not None and (change.cap is None or change.cap.epsilon > before.epsilon)
    if rose and not change.raised:
        raise ValueError


def _read_cap(value: Any) -> Cap | None:
    if value is None:
        return None
    return check_cap(
        Cap(**value) if isinstance(value, dict) else Cap(value)
    )  # a number: before there were filters
