"""What the ledger's log says: its rows, read into registrations, divisions, charges and changes of caps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.chain import Row
from dpsw_ray.privacy.events import Event, event_from_dict
from dpsw_ray.privacy.filters import Cap
from dpsw_ray.privacy.relations import Relation, Unit

__all__ = ["CapEntry", "Charge", "DatasetEntry", "LedgerEntry", "Log", "read_log"]


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

    @property
    def dataset(self) -> str:
        """Which data set is charged."""
        return str(self.values["dataset"])

    def events(self) -> tuple[Event, ...]:
        """What is charged."""
        return tuple(event_from_dict(event) for event in self.values["events"])

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


def read_log(rows: Iterable[Row], path: Path) -> Log:
    """Parses rows, of the ledger at `path`.

    Raises:
        UserError: an entry is not one that this program wrote, or is of a newer version.
    """
    datasets: dict[str, DatasetEntry] = {}
    divisions: dict[str, Mapping[str, Any]] = {}
    charges: list[Charge] = []
    caps: list[CapEntry] = []
    kept = tuple(rows)
    for row in kept:
        try:
            values = json.loads(row.body)
            if row.kind == "register":
                entry = DatasetEntry(**{**values, "cap": _read_cap(values["cap"])})
                datasets[entry.name] = entry
            elif row.kind == "divide":
                if values["data"] in divisions:
                    raise ValueError
                divisions[values["data"]] = dict(values["division"])
            elif row.kind == "charge":
                if not isinstance(values["events"], list) or values["dataset"] not in datasets:
                    raise ValueError
                charges.append(Charge(row, values))
            elif row.kind == "cap":
                cap = _read_cap(values.pop("cap"))
                change = CapEntry(seq=row.seq, cap=cap, entry_hash=row.entry_hash, **values)
                _check_raised(change, datasets[change.dataset].cap)
                caps.append(change)
                datasets[change.dataset] = dataclasses.replace(datasets[change.dataset], cap=cap)
            else:
                raise UserError(f"The privacy ledger {path} has entries {row.kind!r} of a newer version.")
        except (KeyError, TypeError, ValueError, RecursionError):
            raise UserError(
                f"The privacy ledger {path} is damaged: entry {row.seq} is no {row.kind} that this program wrote; "
                "restore a copy."
            ) from None
    return Log(kept, datasets, divisions, tuple(charges), tuple(caps))


def _check_raised(change: CapEntry, before: Cap | None) -> None:
    """A cap that rose without saying so was not written by this program."""
    rose = before is not None and (change.cap is None or change.cap.epsilon > before.epsilon)
    if rose and not change.raised:
        raise ValueError


def _read_cap(value: Any) -> Cap | None:
    if value is None:
        return None
    return Cap(**value) if isinstance(value, dict) else Cap(value)  # a number: before there were filters
