"""The privacy ledger: what has been spent on each data set, in one append-only SQLite file.

* Charge before release: `Ledger.charge` returns once the entry is on disk, and nothing noisy may leave a
  mechanism before it has. A crash then wastes budget but never hides any. The caller makes the release id
  first, so that after a crash `Ledger.find_charge` tells whether it had been charged.
* Registrations and charges are one log. Each row's hash covers the row and the hash before it; every call
  reads the log through that chain, so a total is never worked out from rows that somebody changed.
* A cap is a filter: charges chosen after seeing earlier releases still compose as mu^2 = sum of mu_i^2 when
  all are Gaussian (Smith and Thakurta 2022), so a charge is allowed while the total stays under the cap.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import hashlib
import json
import math
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpsw_ray.errors import UserError, explain_os_error
from dpsw_ray.privacy.accountants import common_unit, compose_mu
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.events import Event, event_from_dict
from dpsw_ray.privacy.gaussian import EpsilonBounds, check_delta, gaussian_epsilon
from dpsw_ray.privacy.relations import Relation, Unit, check_relation, check_unit

__all__ = ["DatasetEntry", "Ledger", "LedgerEntry", "LedgerTotal"]

_APPLICATION_ID = 0x64707377  # "dpsw": tells a ledger from any other SQLite file
_GENESIS = "0" * 64
_SCHEMA = f"""
CREATE TABLE log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    release_id TEXT UNIQUE,
    prev_hash TEXT NOT NULL UNIQUE,
    entry_hash TEXT NOT NULL UNIQUE
);
CREATE TRIGGER log_no_update BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER log_no_delete BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
PRAGMA application_id = {_APPLICATION_ID};
"""


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
        cap: largest epsilon all charges together may reach, None for no limit.
        time: of registration, UTC, ISO 8601.
    """

    name: str
    id: str
    relation: Relation
    unit: Unit
    delta: float
    publishable: bool
    cap: float | None
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
class LedgerTotal:
    """All charges to a data set together.

    Args:
        dataset: the registration.
        charges: how many there are.
        mu: of all events composed.
        epsilon: at the registered delta; `epsilon.upper` is the claim.
        remaining: largest epsilon of one further release that fits under the cap, None without a cap.
    """

    dataset: DatasetEntry
    charges: int
    mu: float
    epsilon: EpsilonBounds
    remaining: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            **vars(self.dataset),
            "charges": self.charges,
            "mu": self.mu,
            "epsilon": self.epsilon.to_dict(),
            "remaining": self.remaining,
        }


@dataclass(frozen=True)
class _Log:
    """The log as read through its hash chain."""

    datasets: dict[str, DatasetEntry]
    charges: tuple[LedgerEntry, ...]
    head: str
    length: int


class Ledger:
    """An append-only ledger at `path`, created with its folders where missing, readable by its owner only.

    Instances hold no connection: they may be pickled, shared by threads and used across forks. One writer
    at a time; others wait.

    Args:
        path: the SQLite file.
        timeout_s: longest wait for other writers.

    Raises:
        UserError: the file cannot be created or is no ledger.
    """

    def __init__(self, path: str | Path, *, timeout_s: float = 60.0) -> None:
        self.path = Path(path).expanduser().absolute()
        self.timeout_s = timeout_s
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise UserError(f"The privacy ledger cannot be opened. {explain_os_error(error)}") from None
        with self._transaction(write=False) as connection:
            new = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if new:
            with self._transaction(write=True) as connection:
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                    for statement in _statements(_SCHEMA):
                        connection.execute(statement)
        with self._transaction(write=False) as connection:
            self._read(connection)

    def register(
        self,
        name: str,
        relation: Relation,
        unit: Unit,
        delta: float,
        publishable: bool = True,
        cap: float | None = None,
    ) -> DatasetEntry:
        """Registers a data set, once and for all; the same registration again returns the first.

        Args:
            name: of the data set, the same for every encoder, subset and split of the same raw records.
            relation: between neighbouring data sets.
            unit: in which they differ.
            delta: at which epsilon is totalled, in (0, 1).
            publishable: False for research accounts.
            cap: epsilon that all charges together may not pass. None leaves an existing cap as it is.

        Raises:
            UserError: a parameter out of range, or different from what is registered under `name`.
        """
        if not name:
            raise UserError("A data set in the privacy ledger needs a name.")
        if cap is not None and not 0 < cap < math.inf:
            raise UserError(f"The cap of {name} must be a positive finite epsilon, found {cap!r}.")
        wanted: dict[str, Any] = {
            "relation": check_relation(relation),
            "unit": check_unit(unit),
            "delta": check_delta(float(delta)),
            "publishable": bool(publishable),
            "cap": None if cap is None else float(cap),
        }
        known = self._log().datasets.get(name)
        if known is None:
            with self._transaction(write=True) as connection:
                log = self._read(connection)
                known = log.datasets.get(name)  # another process may have been first
                if known is None:
                    body = {"name": name, "id": uuid.uuid4().hex, **wanted, "time": _now()}
                    self._append(connection, log, "register", body, None)
                    return DatasetEntry(**body)
        self._compare(known, wanted)
        return known

    def check(self, name: str, relation: Relation) -> None:
        """Compares like `register`, but only the relation, and writes nothing: before a record is read.

        Raises:
            UserError: `name` is registered under another relation.
        """
        known = self._log().datasets.get(name)
        if known is not None:
            self._compare(known, {"relation": check_relation(relation)})

    def _compare(self, known: DatasetEntry, wanted: Mapping[str, Any]) -> None:
        for key, value in wanted.items():
            registered = getattr(known, key)
            if value != registered and not (key == "cap" and value is None):
                raise UserError(
                    f"Data set {known.name} is registered in {self.path} with {key} {_show(registered)}, found "
                    f"{_show(value)}: what is promised about a data set cannot change afterwards; use "
                    f"{key} {_show(registered)}"
                    + (", or a name of its own for research." if key == "publishable" else ".")
                )

    def charge(
        self,
        name: str,
        events: Sequence[Event],
        run_id: str,
        note: str = "",
        *,
        release_id: str | None = None,
    ) -> str:
        """Charges `events` to a data set; the entry is on disk when this returns.

        Args:
            name: a registered data set.
            events: everything the release does, at least one, all Gaussian mechanisms.
            run_id: whose charge it is.
            note: for the reader.
            release_id: made by the caller beforehand for `find_charge`; one release is charged once.

        Returns:
            The charge id.

        Raises:
            UserError: unknown data set, a unit or relation the events do not fit, a release that is already
                charged, a total above the cap (nothing is written), a file that cannot be written.
        """
        release_id = uuid.uuid4().hex if release_id is None else release_id
        with self._transaction(write=True) as connection:
            log = self._read(connection)
            dataset = self._dataset(log, name)
            if common_unit(events) != dataset.unit:
                raise UserError(
                    f"Data set {name} is registered with unit {dataset.unit}; {events[0].label} protects "
                    f"unit {events[0].unit} and cannot be charged to it."
                )
            for entry in log.charges:
                if entry.release_id == release_id:
                    raise UserError(
                        f"Release {release_id} is already charged (charge {entry.charge_id}, run "
                        f"{entry.run_id}): noise drawn anew needs a release id of its own."
                    )
            spent = [event for entry in log.charges if entry.dataset == name for event in entry.events]
            _check_cap(dataset, spent, events)
            charge_id = uuid.uuid4().hex
            body = {
                "charge_id": charge_id,
                "dataset": name,
                "publishable": dataset.publishable,
                "events": [event.to_dict() for event in events],
                "run_id": run_id,
                "note": note,
                "time": _now(),
            }
            self._append(connection, log, "charge", body, release_id)
        return charge_id

    def find_charge(self, release_id: str) -> LedgerEntry | None:
        """The charge of a release, or None where it was never charged."""
        return next((entry for entry in self._log().charges if entry.release_id == release_id), None)

    def entries(self, name: str) -> tuple[LedgerEntry, ...]:
        """All charges to a data set, oldest first.

        Raises:
            UserError: it is not registered.
        """
        log = self._log()
        self._dataset(log, name)
        return tuple(entry for entry in log.charges if entry.dataset == name)

    def datasets(self) -> tuple[DatasetEntry, ...]:
        """All registered data sets, oldest first."""
        return tuple(self._log().datasets.values())

    def total(self, name: str) -> LedgerTotal:
        """What all charges to a data set cost together, at its delta.

        Raises:
            UserError: it is not registered.
        """
        log = self._log()
        dataset = self._dataset(log, name)
        charges = [entry for entry in log.charges if entry.dataset == name]
        spent = [event for entry in charges for event in entry.events]
        mu = compose_mu(spent, dataset.relation) if spent else 0.0
        return LedgerTotal(
            dataset=dataset,
            charges=len(charges),
            mu=mu,
            epsilon=gaussian_epsilon(mu, dataset.delta),
            remaining=None if dataset.cap is None else _remaining(dataset, spent),
        )

    def verify(self) -> str:
        """Recomputes the whole chain.

        Returns:
            The hash of the last entry; kept elsewhere, it also pins the ledger's length.

        Raises:
            UserError: naming the first entry that was changed.
        """
        with self._transaction(write=False) as connection:
            problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if problem != "ok":
                raise UserError(f"The privacy ledger {self.path} is damaged: {problem}.")
            return self._read(connection).head

    def _log(self) -> _Log:
        with self._transaction(write=False) as connection:
            return self._read(connection)

    def _dataset(self, log: _Log, name: str) -> DatasetEntry:
        if name not in log.datasets:
            known = ", ".join(log.datasets) or "none"
            raise UserError(f"Data set {name} is not registered in {self.path}; registered: {known}.")
        return log.datasets[name]

    @contextlib.contextmanager
    def _transaction(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own; commits where the body ends without an error."""
        try:
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=rw", uri=True, timeout=self.timeout_s, isolation_level=None
            )
            try:
                # EXTRA is FULL plus an fsync of the folder after the rollback journal is removed: without it
                # a power cut just after the commit could bring the journal back and undo the charge.
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    if self._foreign(connection):
                        raise UserError(
                            f"{self.path} is a SQLite file of another program, not a privacy ledger."
                        )
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise UserError(self._explain(error)) from None

    @staticmethod
    def _foreign(connection: sqlite3.Connection) -> bool:
        if connection.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID:
            return False
        return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])

    def _explain(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorname", "")
        for prefix, sentence in _PROBLEMS.items():
            if code.startswith(prefix):
                return sentence.format(path=self.path, folder=self.path.parent, timeout=self.timeout_s)
        return f"The privacy ledger {self.path} cannot be used: {error}."

    def _read(self, connection: sqlite3.Connection) -> _Log:
        datasets: dict[str, DatasetEntry] = {}
        charges: list[LedgerEntry] = []
        head, length = _GENESIS, 0
        rows = connection.execute(
            "SELECT seq, kind, body, release_id, prev_hash, entry_hash FROM log ORDER BY seq"
        ).fetchall()
        for seq, kind, body, release_id, prev_hash, entry_hash in rows:
            length += 1
            if seq != length or prev_hash != head or entry_hash != _hash(head, seq, kind, body, release_id):
                raise self._tampered(f"entry {length} does not follow from the one before it")
            head = entry_hash
            values = json.loads(body)
            if kind == "register":
                datasets[values["name"]] = DatasetEntry(**values)
            elif kind == "charge":
                events = tuple(event_from_dict(event) for event in values.pop("events"))
                charges.append(
                    LedgerEntry(
                        seq=seq, release_id=release_id, events=events, entry_hash=entry_hash, **values
                    )
                )
            else:
                raise UserError(f"The privacy ledger {self.path} has entries {kind!r} of a newer version.")
        written = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'log'").fetchone()
        if written is not None and written[0] != length:
            raise self._tampered(f"entry {length + 1} of {written[0]} is missing")
        return _Log(datasets, tuple(charges), head, length)

    def _tampered(self, what: str) -> UserError:
        return UserError(
            f"The privacy ledger {self.path} was changed after the fact: {what}. Nothing is charged to it or "
            "read from it; restore a copy."
        )

    @staticmethod
    def _append(
        connection: sqlite3.Connection, log: _Log, kind: str, values: dict[str, Any], release_id: str | None
    ) -> None:
        seq, body = log.length + 1, _canonical(values)
        connection.execute(
            "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)",
            (seq, kind, body, release_id, log.head, _hash(log.head, seq, kind, body, release_id)),
        )


_PROBLEMS = {
    "SQLITE_BUSY": "The privacy ledger {path} stayed locked by another process for {timeout:g} s: nothing "
    "was charged; wait for that process or end it.",
    "SQLITE_LOCKED": "The privacy ledger {path} is locked by another process: nothing was charged.",
    "SQLITE_READONLY": "The privacy ledger {path} or its folder {folder} is read-only: nothing was charged; "
    "make both writable or name another file under paths.ledger.",
    "SQLITE_CANTOPEN": "The privacy ledger {path} cannot be opened: its folder {folder} must exist and "
    "be writable.",
    "SQLITE_FULL": "The disk of the privacy ledger {path} is full: nothing was charged; free some space.",
    "SQLITE_IOERR": "The privacy ledger {path} could not be read or written (full or failing disk): the last "
    "charge may not be in it, so nothing may be released on it.",
    "SQLITE_NOTADB": "{path} is not a privacy ledger (not a SQLite file): name another file under "
    "paths.ledger.",
    "SQLITE_CORRUPT": "The privacy ledger {path} is damaged: restore a copy; its totals cannot be trusted.",
}


def _check_cap(dataset: DatasetEntry, spent: Sequence[Event], events: Sequence[Event]) -> None:
    mu = compose_mu([*spent, *events], dataset.relation)  # refuses what cannot be counted, cap or not
    if dataset.cap is None:
        return
    total = gaussian_epsilon(mu, dataset.delta).upper
    if not total <= dataset.cap:
        asked = gaussian_epsilon(compose_mu(events, dataset.relation), dataset.delta).upper
        raise UserError(
            f"The budget of data set {dataset.name} is epsilon {dataset.cap:g} at delta {dataset.delta:g}; "
            f"this charge of epsilon {asked:.6g} would bring it to {total:.6g}. One release of epsilon at "
            f"most {_floor(_remaining(dataset, spent))} still fits. Nothing was charged."
        )


def _remaining(dataset: DatasetEntry, spent: Sequence[Event]) -> float:
    """Epsilon of one Gaussian release that still fits: mu^2 = mu(cap)^2 - mu(spent)^2, a hair less."""
    assert dataset.cap is not None
    budget = calibrate_gaussian_mu(dataset.cap, dataset.delta)
    used = compose_mu(spent, dataset.relation) if spent else 0.0
    if used == 0:
        return dataset.cap
    if used >= budget:
        return 0.0
    left = math.sqrt((budget - used) * (budget + used))
    return gaussian_epsilon(left * (1 - 1e-9), dataset.delta).lower


def _floor(value: float) -> str:
    """`value` to six digits, rounded down: what is offered must fit."""
    return f"{decimal.Context(prec=6, rounding=decimal.ROUND_FLOOR).create_decimal_from_float(value):f}"


def _canonical(values: Any) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(previous: str, seq: int, kind: str, body: str, release_id: str | None) -> str:
    return hashlib.sha256((previous + _canonical([seq, kind, body, release_id])).encode()).hexdigest()


def _statements(script: str) -> Iterator[str]:
    """The statements of `script` one by one: `executescript` would commit the transaction around them."""
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
