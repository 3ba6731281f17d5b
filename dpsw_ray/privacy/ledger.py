"""The privacy ledger: what has been spent on each data set, in one append-only SQLite file.

* Charge before release: `Ledger.charge` returns once the entry is on disk, and nothing noisy may leave a
  mechanism before it has. A crash then wastes budget but never hides any. The caller makes the release id
  first, so that after a crash `Ledger.find_charge` tells whether it had been charged.
* The private side keeps receipts of charges (`dpsw_ray.private.receipts`): a ledger that lacks one of them was deleted,
  cut, rolled back, or is another one, and charges nothing.
* Registrations, removals, divisions, charges and changes of a cap are one log (`dpsw_ray.privacy.chain`): every call
  reads it through its hash chain.
* A data set is divided into public, private and test parts in one way: what one division protects, another would
  publish as public, and no charge would tell.
* A cap is a filter (`dpsw_ray.privacy.filters`): its theorem holds for charges chosen after seeing earlier
  releases, as long as cap and filter were not. A cap may therefore be lowered at any time; raising or lifting one
  gives up what was promised, has to be asked for by name, and stays in the log. For the same reason a filter
  does not change under charges, and a renyi cap keeps its order.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpsw_ray.base.errors import UserError, named, shown
from dpsw_ray.privacy.accountants import bound, compose_mu
from dpsw_ray.privacy.chain import Chain, Row, head_of
from dpsw_ray.privacy.events import Event, common_unit
from dpsw_ray.privacy.filters import Cap, Filter, Spending, check_countable, check_filter, make_cap
from dpsw_ray.privacy.gaussian import EpsilonBounds, check_delta
from dpsw_ray.privacy.ledger_log import CapEntry, DatasetEntry, LedgerEntry, Log, Receipt, read_log
from dpsw_ray.privacy.relations import Relation, Unit, check_relation, check_unit

__all__ = ["CapEntry", "DatasetEntry", "Ledger", "LedgerEntry", "LedgerHead", "LedgerTotal", "Receipt"]


@dataclass(frozen=True)
class LedgerTotal:
    """All charges to a data set together.

    Args:
        dataset: the registration.
        charges: how many there are.
        mu: of all events composed, None where some event is no Gaussian mechanism.
        epsilon: at the registered delta; `epsilon.upper` is the claim.
        accountant: which one gave `epsilon`, None before the first charge.
        remaining: largest epsilon of one further Gaussian release that fits under the cap, None without a cap.
    """

    dataset: DatasetEntry
    charges: int
    mu: float | None
    epsilon: EpsilonBounds
    accountant: str | None
    remaining: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            **dataclasses.asdict(self.dataset),
            "charges": self.charges,
            "mu": self.mu,
            "epsilon": self.epsilon.to_dict(),
            "accountant": self.accountant,
            "remaining": self.remaining,
        }


@dataclass(frozen=True)
class LedgerHead:
    """The last hash, which pins the whole log, and how many entries there are."""

    hash: str
    entries: int


class Ledger:
    """An append-only ledger at `path`, created with its folders where missing, readable by its owner only.

    Instances hold no connection: they may be pickled, shared by threads and used across forks. One writer
    at a time; others wait. The file must be on a disk of this machine: the locks of network file systems
    are not to be trusted (`dpsw_ray.cluster.head_ledger` is for clusters).

    Args:
        path: the SQLite file.
        create: False refuses a file that is missing.
        timeout_s: longest wait for other writers.

    Raises:
        UserError: the file cannot be created, is missing, or is no ledger.
    """

    def __init__(self, path: str | Path, create: bool = True, *, timeout_s: float = 60.0) -> None:
        self.path = _absolute(path)
        self._chain = Chain(self.path, create, timeout_s)
        self._log()

    def register(
        self,
        name: str,
        relation: Relation,
        unit: Unit,
        delta: float,
        publishable: bool = True,
        cap: float | None = None,
        filter: Filter = "gaussian",
    ) -> DatasetEntry:
        """Registers a data set, once and for all; the same registration again returns the first.

        Args:
            name: of the data set, the same for every encoder, subset and split of the same raw records.
            relation: between neighbouring data sets.
            unit: in which they differ.
            delta: at which epsilon is totalled, in (0, 1).
            publishable: False for research accounts.
            cap: epsilon that all charges together may not pass. None leaves an existing cap as it is.
            filter: of the cap.

        Raises:
            UserError: a parameter out of range, or different from what is registered under `name`.
        """
        _check_name(name)
        wanted: dict[str, Any] = {
            "relation": check_relation(relation),
            "unit": check_unit(unit),
            "delta": check_delta(float(delta)),
            "publishable": bool(publishable),
        }
        limit = None if cap is None else make_cap(cap, wanted["delta"], filter)
        known = self._log().datasets.get(name)
        if known is None:
            with self._chain.transaction(write=True) as connection:
                log = read_log(self._chain.rows(connection), self.path)
                known = log.datasets.get(name)  # another process may have been first
                if known is None:
                    entry = DatasetEntry(name=name, id=uuid.uuid4().hex, **wanted, cap=limit, time=_now())
                    self._chain.append(connection, log.rows, "register", dataclasses.asdict(entry))
                    return entry
        self._compare(known, wanted)
        if limit is not None and (
            known.cap is None or (limit.epsilon, limit.filter) != (known.cap.epsilon, known.cap.filter)
        ):
            raise UserError(
                f"Data set {name} is registered in {self.path} with cap {_show(known.cap)}, found {_show(limit)}: "
                "`dpsw ledger cap` changes it."
            )
        return known

    def divide(self, data: str, division: Mapping[str, Any]) -> Mapping[str, Any]:
        """Pins how records are divided, once and for all; returns what is pinned, which the first call decides.

        Args:
            data: name of the records, whatever accounts are charged for them.
            division: what decides which part a record goes to, as JSON values.
        """
        wanted: dict[str, Any] = json.loads(json.dumps(dict(division)))
        pinned = self.division(data)
        if pinned is None:
            with self._chain.transaction(write=True) as connection:
                log = read_log(self._chain.rows(connection), self.path)
                pinned = log.divisions.get(data)  # another process may have been first
                if pinned is None:
                    body = {"data": data, "division": wanted, "time": _now()}
                    self._chain.append(connection, log.rows, "divide", body)
                    return wanted
        return pinned

    def division(self, data: str) -> Mapping[str, Any] | None:
        """How records are divided, None where no division of them is pinned."""
        return self._log().divisions.get(data)

    def remove(self, name: str) -> DatasetEntry:
        """Removes a data set that was never charged; that it was there stays in the log.

        The division of its records goes with it where no other account is of these records: nothing was released that
        another division could betray.

        Raises:
            UserError: it is not registered, or was charged.
        """
        with self._chain.transaction(write=True) as connection:
            log = read_log(self._chain.rows(connection), self.path)
            known = self._dataset(log, name)
            charges = sum(charge.dataset == name for charge in log.charges)
            if charges:
                raise UserError(
                    f"Data set {name} has {charges:,} charge{'s' * (charges > 1)} in {self.path}: what was released "
                    "stays released, so its account cannot be removed."
                )
            data = name.removesuffix(" users")
            others = {other for other in (data, f"{data} users") if other in log.datasets} - {name}
            lifted = data if data in log.divisions and known.publishable and not others else None
            body = {"dataset": name, "division": lifted, "time": _now()}
            self._chain.append(connection, log.rows, "remove", body)
        return known

    def set_cap(
        self, name: str, epsilon: float | None, *, filter: Filter | None = None, raise_: bool = False
    ) -> DatasetEntry:
        """Sets, lowers, raises or lifts the cap of a data set; the same cap again writes nothing.

        What was charged before counts in full. A cap set for the first time on a data set with charges promises
        nothing to somebody who chose it by what those releases showed.

        Args:
            name: a registered data set.
            epsilon: that all charges together may not pass; None lifts the cap.
            filter: of the cap; None keeps the present one, gaussian where there is none.
            raise_: needed to raise or lift a cap.

        Raises:
            UserError: unknown data set, a raise without `raise_`, another filter under charges, a filter that
                cannot count what was charged.
        """
        with self._chain.transaction(write=True) as connection:
            log = read_log(self._chain.rows(connection), self.path)
            known = self._dataset(log, name)
            spent = log.spent(name)
            cap = _next_cap(known, spent, epsilon, filter)
            if cap == known.cap:
                return known
            if cap is not None:
                Spending(name, cap, known.relation, known.delta, spent).check_admitted()
            raised = known.cap is not None and (cap is None or cap.epsilon > known.cap.epsilon)
            if raised and not raise_:
                raise UserError(
                    f"The cap of data set {name} is {_show(known.cap)}, found {_show(cap)}: to raise or lift a cap "
                    "gives up what was promised, and has to be asked for with --raise."
                )
            body = {
                "dataset": name,
                "cap": None if cap is None else dataclasses.asdict(cap),
                "raised": raised,
                "time": _now(),
            }
            self._chain.append(connection, log.rows, "cap", body)
        return dataclasses.replace(known, cap=cap)

    def check(
        self,
        name: str,
        relation: Relation,
        events: Sequence[Event] = (),
        *,
        unit: Unit | None = None,
        delta: float | None = None,
        publishable: bool | None = None,
    ) -> None:
        """Compares like `register`, the cap like `charge`; writes nothing: before a record is read.

        Args:
            name: of a data set; an unknown one passes.
            relation: between neighbouring data sets.
            events: what is going to be charged.
            unit: in which they differ; None is not compared.
            delta: at which epsilon is totalled; None is not compared.
            publishable: False for research accounts; None is not compared.

        Raises:
            UserError: no name for a data set, `name` is registered with other promises, or the charge would be refused.
        """
        _check_name(name)
        log = self._log()
        known = log.datasets.get(name)
        if known is None:
            return
        promised = {
            "relation": check_relation(relation),
            "unit": unit,
            "delta": delta,
            "publishable": publishable,
        }
        self._compare(known, {key: value for key, value in promised.items() if value is not None})
        if events:
            _check_charge(known, log, events)

    def charge(
        self,
        name: str,
        events: Sequence[Event],
        run_id: str,
        note: str = "",
        *,
        release_id: str | None = None,
        receipts: Sequence[Receipt] = (),
    ) -> str:
        """Charges `events` to a data set; the entry is on disk, and was read back, when this returns.

        Args:
            name: a registered data set.
            events: everything the release does, at least one.
            run_id: whose charge it is.
            note: for the reader.
            release_id: made by the caller beforehand for `find_charge`; one release is charged once.
            receipts: of charges that the private side remembers; the ledger must have them all.

        Returns:
            The charge id.

        Raises:
            UserError: unknown data set, a unit or relation the events do not fit, a release that is already
                charged, an event the cap's filter does not admit, a total above the cap, a charge missing that there
                is a receipt of (nothing is written), a file that cannot be written.
        """
        release_id = uuid.uuid4().hex if release_id is None else release_id
        with self._chain.transaction(write=True) as connection:
            log = read_log(self._chain.rows(connection), self.path)
            self._check_receipts(log, receipts)
            dataset = self._dataset(log, name)
            for charge in log.charges:
                if charge.row.release_id == release_id:
                    raise UserError(
                        f"Release {release_id} is already charged (charge {charge.values['charge_id']}, run "
                        f"{charge.values['run_id']}): noise drawn anew needs a release id of its own."
                    )
            _check_charge(dataset, log, events)
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
            self._chain.append(connection, log.rows, "charge", body, release_id)
        if self.find_charge(release_id) is None:
            raise UserError(
                f"The privacy ledger {self.path} does not hold the charge that was just written to it: nothing may be "
                "released on it; look for what else writes to that file or its disk."
            )
        return charge_id

    def check_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Refuses to be taken for a ledger that holds charges which this one lacks.

        Raises:
            UserError: one of the charges that the private side remembers is missing.
        """
        self._check_receipts(self._log(), receipts)

    def find_charge(self, release_id: str) -> LedgerEntry | None:
        """The charge of a release, or None where it was never charged."""
        return next((c.entry() for c in self._log().charges if c.row.release_id == release_id), None)

    def entries(self, name: str) -> tuple[LedgerEntry, ...]:
        """All charges to a data set, oldest first.

        Raises:
            UserError: it is not registered.
        """
        log = self._log()
        self._dataset(log, name)
        return tuple(charge.entry() for charge in log.charges if charge.dataset == name)

    def cap_changes(self, name: str) -> tuple[CapEntry, ...]:
        """All changes of a data set's cap after its registration, oldest first.

        Raises:
            UserError: it is not registered.
        """
        log = self._log()
        self._dataset(log, name)
        return tuple(entry for entry in log.caps if entry.dataset == name)

    def datasets(self) -> tuple[DatasetEntry, ...]:
        """All registered data sets, oldest first."""
        return tuple(self._log().datasets.values())

    def total(self, name: str) -> LedgerTotal:
        """What all charges to a data set cost together, at its delta.

        Of Gaussian mechanisms this holds however they were chosen. Where others are among them the figure is
        for charges that did not depend on earlier releases; a cap with the renyi filter holds without that.

        Raises:
            UserError: it is not registered.
        """
        log = self._log()
        dataset = self._dataset(log, name)
        spent = log.spent(name)
        found = bound(spent, dataset.relation, dataset.delta) if spent else None
        return LedgerTotal(
            dataset=dataset,
            charges=sum(charge.dataset == name for charge in log.charges),
            mu=compose_mu(spent, dataset.relation) if spent else 0.0,
            epsilon=EpsilonBounds(0.0, 0.0, 0.0) if found is None else found.epsilon,
            accountant=None if found is None else found.accountant,
            remaining=None if dataset.cap is None else _spending(dataset, spent).remaining(),
        )

    def rows(self) -> tuple[Row, ...]:
        """The log as it is stored, oldest first, for an export."""
        return self._log().rows

    def verify(self, export: Sequence[Row] = ()) -> LedgerHead:
        """Recomputes the whole chain.

        Args:
            export: earlier rows of this ledger, which it must still begin with.

        Raises:
            UserError: naming the first entry that was changed or cut.
        """
        with self._chain.transaction(write=False) as connection:
            self._chain.check_file(connection)
            rows = self._chain.rows(connection)
        for charge in read_log(rows, self.path).charges:
            charge.entry()
        for place, row in enumerate(export, 1):
            if place > len(rows):
                raise UserError(
                    f"The privacy ledger {self.path} was cut: it has {len(rows)} entries, the export {len(export)}."
                )
            if rows[place - 1] != row:
                raise UserError(
                    f"The privacy ledger {self.path} is not what was exported: entry {place} is another one."
                )
        return LedgerHead(head_of(rows), len(rows))

    def _log(self) -> Log:
        with self._chain.transaction(write=False) as connection:
            rows = self._chain.rows(connection)
        return read_log(rows, self.path)

    def _check_receipts(self, log: Log, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if not log.holds(receipt):
                raise UserError(
                    f"The privacy ledger {self.path} lacks a charge to {receipt.account} that was made (entry "
                    f"{receipt.seq}, hash {receipt.entry_hash[:12]}): it was deleted, cut or put back from an older "
                    "copy, or the charge is in another ledger. Nothing is charged: name the ledger that has it under "
                    "paths.ledger, or restore the newest copy of the file."
                )

    def _dataset(self, log: Log, name: str) -> DatasetEntry:
        if name not in log.datasets:
            known = ", ".join(log.datasets) or "none"
            close = difflib.get_close_matches(name, log.datasets, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(
                f"Data set {named(name)} is not registered in {self.path}{hint}; registered: {known}."
            )
        return log.datasets[name]

    def _compare(self, known: DatasetEntry, wanted: Mapping[str, Any]) -> None:
        for key, value in wanted.items():
            registered = getattr(known, key)
            if value != registered:
                raise UserError(
                    f"Data set {known.name} is registered in {self.path} with {key} {_show(registered)}, found "
                    f"{_show(value)}: what is promised about a data set cannot change afterwards; use "
                    f"{key} {_show(registered)}"
                    + (", or a name of its own for research." if key == "publishable" else ".")
                )


def _absolute(path: str | Path) -> Path:
    try:
        place = Path(path).expanduser().absolute()
        os.fspath(place).encode()
    except RuntimeError:  # no such user
        raise UserError(
            f"The privacy ledger cannot be opened: nobody is called {Path(path).parts[0]}."
        ) from None
    except UnicodeEncodeError:
        raise UserError(f"The path of the privacy ledger must be UTF-8, found {str(path)!a}.") from None
    if "\0" in os.fspath(place):
        raise UserError(
            f"The path of the privacy ledger must not contain a NUL character, found {str(path)!a}."
        )
    return place


def _check_name(name: str) -> None:
    if not name or name != name.strip() or not name.isprintable():
        raise UserError(
            f"A data set in the privacy ledger needs a name of printable characters, without blanks around it, "
            f"found {shown(name)}."
        )


def _next_cap(
    known: DatasetEntry, spent: Sequence[Event], epsilon: float | None, filter: Filter | None
) -> Cap | None:
    if epsilon is None:
        return None
    before = known.cap
    chosen = check_filter(filter) if filter else before.filter if before else "gaussian"
    if before is None or not spent:
        return make_cap(epsilon, known.delta, chosen)
    if chosen != before.filter:
        raise UserError(
            f"The cap of data set {known.name} has the filter {before.filter} and there are charges under it: either "
            f"filter's promise needs the filter fixed before the releases; lift the cap first (none --raise), which "
            "gives that promise up."
        )
    return make_cap(epsilon, known.delta, chosen, before.order)


def _check_charge(dataset: DatasetEntry, log: Log, events: Sequence[Event]) -> None:
    """Everything that can be wrong with a charge, before anything is written."""
    if common_unit(events) != dataset.unit:
        raise UserError(
            f"Data set {dataset.name} is registered with unit {dataset.unit}; {events[0].label} protects "
            f"unit {events[0].unit} and cannot be charged to it."
        )
    spent = log.spent(dataset.name)
    check_countable([*spent, *events], dataset.relation)
    if dataset.cap is not None:
        _spending(dataset, spent).check(events)


def _spending(dataset: DatasetEntry, spent: Sequence[Event]) -> Spending:
    assert dataset.cap is not None
    return Spending(dataset.name, dataset.cap, dataset.relation, dataset.delta, spent)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
