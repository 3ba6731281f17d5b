"""The ledger never forgets, never shows a changed total, and never lets a cap be passed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_support import charge_many, tamper

from dpsw_ray.base.errors import UserError
from dpsw_ray.cluster.head_ledger import HeadLedger, open_ledger
from dpsw_ray.privacy.accountants import bound, rdp_budget, rdp_curve
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu, calibrate_histogram_noise
from dpsw_ray.privacy.chain import first_break, rows_from_export, rows_to_export
from dpsw_ray.privacy.events import DiscreteGaussianEvent, Event, GaussianEvent, SlicedHistogramEvent
from dpsw_ray.privacy.filters import Cap, Filter, make_cap
from dpsw_ray.privacy.gaussian import gaussian_epsilon
from dpsw_ray.privacy.ledger import Ledger, LedgerHead

ORDERS = np.array([1.5, 2.0, 8.0, 64.0])


def _release(mu: float = 0.1) -> list[Event]:
    return [GaussianEvent("release", {"replace_one": mu, "zero_out": mu / 2}, 1.0)]


def _discrete(scale: float = 1.0) -> DiscreteGaussianEvent:
    return DiscreteGaussianEvent("discrete tables", {"replace_one": 100}, 40.0 / scale)


def _kinds() -> list[list[Event]]:
    """Charges of several mechanisms, a composed one among them."""
    return [
        _release(0.05),
        [SlicedHistogramEvent(8, 100, 1000.0)],
        [_discrete()],
        [*_release(0.02), _discrete(0.5)],
    ]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "deep" / "folder" / "ledger.sqlite")
    ledger.register("digits", "replace_one", "record", 1e-5)
    return ledger


def _python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_charges_add_up_as_gaussian_mus(ledger: Ledger) -> None:
    assert ledger.total("digits").epsilon.upper == 0.0
    ledger.charge("digits", _release(0.3), "run-1")
    ledger.charge("digits", _release(0.4), "run-2", "second look")
    total = ledger.total("digits")
    assert total.mu == pytest.approx(0.5) and total.charges == 2
    assert total.epsilon == gaussian_epsilon(total.mu, 1e-5)
    assert [(e.run_id, e.note) for e in ledger.entries("digits")] == [("run-1", ""), ("run-2", "second look")]
    assert ledger.entries("digits")[0].events == tuple(_release(0.3))
    json.dumps(total.to_dict(), allow_nan=False)


def test_a_release_without_noise_makes_the_total_infinite(ledger: Ledger) -> None:
    ledger.charge("digits", _release(), "run-1")
    ledger.charge("digits", [SlicedHistogramEvent(8, 100, 0.0)], "run-2")
    assert ledger.total("digits").epsilon.upper == math.inf


def test_events_are_evaluated_under_the_registered_relation(ledger: Ledger) -> None:
    ledger.register("zeroed", "zero_out", "record", 1e-5)
    ledger.register("added", "add_remove", "record", 1e-5)
    ledger.charge("zeroed", _release(0.3), "run-1")
    assert ledger.total("zeroed").mu == 0.15
    with pytest.raises(UserError, match="no bounded sensitivity under relation add_remove"):
        ledger.charge("added", _release(), "run-2")
    assert ledger.entries("added") == ()


def test_registering_again_is_idempotent(ledger: Ledger) -> None:
    first = ledger.register("digits", "replace_one", "record", 1e-5)
    assert ledger.register("digits", "replace_one", "record", 1e-5) == first
    assert first.id != ledger.register("other", "replace_one", "record", 1e-5).id
    assert [d.name for d in ledger.datasets()] == ["digits", "other"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"relation": "zero_out"}, "relation replace_one, found zero_out.*use relation replace_one"),
        ({"unit": "user"}, "unit record, found user"),
        ({"delta": 1e-6}, "delta 1e-05, found 1e-06"),
        ({"publishable": False}, "publishable True, found False.*name of its own for research"),
        ({"cap": 3.0}, "cap none, found epsilon 3 .*dpsw ledger cap"),
    ],
)
def test_a_registration_cannot_change(ledger: Ledger, change: dict[str, object], sentence: str) -> None:
    asked = {"relation": "replace_one", "unit": "record", "delta": 1e-5} | change
    with pytest.raises(UserError, match=sentence):
        ledger.register("digits", **asked)  # type: ignore[arg-type]


def test_the_first_division_of_records_is_the_one_that_is_kept(ledger: Ledger) -> None:
    half = {"source": "digits", "public_fraction": 0.5, "test_fraction": None, "columns": ("a",)}
    assert ledger.division("digits") is None
    pinned = ledger.divide("digits", half)
    assert pinned == {**half, "columns": ["a"]} == ledger.division("digits")
    rows = len(ledger.rows())
    assert ledger.divide("digits", {**half, "public_fraction": 0.0}) == pinned
    assert len(Ledger(ledger.path).rows()) == rows
    assert ledger.division("mnist") is None
    ledger.verify()


def test_a_second_division_in_the_log_is_damage(ledger: Ledger) -> None:
    ledger.divide("digits", {"public_fraction": 0.5})
    body = {"data": "digits", "division": {"public_fraction": 0.0}, "time": "2026-01-01"}
    with ledger._chain.transaction(write=True) as connection:
        ledger._chain.append(connection, ledger._chain.rows(connection), "divide", body)
    with pytest.raises(UserError, match="damaged: entry 3 is no divide"):
        Ledger(ledger.path)


def test_unknown_names_units_and_values_are_refused(ledger: Ledger) -> None:
    for call in (ledger.total, ledger.entries, lambda name: ledger.charge(name, _release(), "run")):
        with pytest.raises(UserError, match=r"Data set mnist is not registered in .*; registered: digits"):
            call("mnist")
    with pytest.raises(UserError, match=r"unit record; sliced histograms protects unit user"):
        ledger.charge("digits", [SlicedHistogramEvent(1, 1, 1.0, unit="user")], "run")
    with pytest.raises(UserError, match="found: none"):
        ledger.charge("digits", [], "run")
    for bad in ({"delta": 0.0}, {"cap": math.inf}, {"relation": "swap"}, {"name": ""}):
        with pytest.raises(UserError):
            ledger.register(**({"name": "x", "relation": "zero_out", "unit": "user", "delta": 1e-5} | bad))


def test_research_accounts_are_marked_everywhere(ledger: Ledger) -> None:
    ledger.register("digits.research", "replace_one", "record", 1e-5, publishable=False)
    ledger.charge("digits.research", _release(), "run-1")
    assert not ledger.entries("digits.research")[0].publishable
    assert not ledger.total("digits.research").dataset.publishable
    assert ledger.total("digits").charges == 0 and ledger.total("digits").dataset.publishable


def test_a_charge_past_the_cap_is_refused_unwritten_with_what_is_left(ledger: Ledger) -> None:
    ledger.register("capped", "replace_one", "record", 1e-5, cap=1.0)
    assert ledger.register("capped", "replace_one", "record", 1e-5).cap == Cap(1.0, "gaussian", None)
    half = calibrate_gaussian_mu(1.0, 1e-5) / 2
    ledger.charge("capped", _release(half), "run-1")
    with pytest.raises(UserError, match=r"is epsilon 1 at delta 1e-05.*is spent.*at most 0\.\d+ still fits"):
        ledger.charge("capped", _release(2 * half), "run-2")
    assert ledger.total("capped").charges == 1
    remaining = ledger.total("capped").remaining
    assert remaining is not None
    ledger.charge("capped", _release(calibrate_gaussian_mu(remaining, 1e-5)), "run-3")
    assert 0.999 < ledger.total("capped").epsilon.upper <= 1.0
    for mu in (0.05, math.inf):
        with pytest.raises(UserError, match="Nothing was charged"):
            ledger.charge(
                "capped", [GaussianEvent("g", {"replace_one": 1.0}, 0.0 if mu == math.inf else 1 / mu)], "r"
            )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.7, 10.0])
def test_one_release_calibrated_to_the_cap_fits(ledger: Ledger, epsilon: float) -> None:
    ledger.register("exact", "replace_one", "record", 1e-5, cap=epsilon)
    std = calibrate_histogram_noise(72, 12_345, "replace_one", epsilon, 1e-5)
    ledger.charge("exact", [SlicedHistogramEvent(72, 12_345, std)], "run")


def test_a_release_is_charged_once_and_can_be_found(ledger: Ledger) -> None:
    assert ledger.find_charge("release-1") is None
    charge_id = ledger.charge("digits", _release(), "run-1", release_id="release-1")
    found = ledger.find_charge("release-1")
    assert found is not None and (found.charge_id, found.dataset, found.run_id) == (
        charge_id,
        "digits",
        "run-1",
    )
    with pytest.raises(UserError, match="release-1 is already charged"):
        ledger.charge("digits", _release(), "run-2", release_id="release-1")


def test_a_kill_between_charge_and_release_leaves_the_charge(ledger: Ledger) -> None:
    child = _python(
        """
        import os, signal, sys
        from dpsw_ray.privacy.events import GaussianEvent
        from dpsw_ray.privacy.ledger import Ledger
        event = GaussianEvent("release", {"replace_one": 1.0}, 4.0)
        Ledger(sys.argv[1]).charge("digits", [event], "run-1", release_id="release-1")
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        ledger.path,
    )
    assert child.wait(60) == -signal.SIGKILL
    assert ledger.find_charge("release-1") is not None
    assert ledger.total("digits").mu == 0.25


def test_a_kill_inside_the_transaction_leaves_a_whole_ledger(ledger: Ledger) -> None:
    ledger.charge("digits", _release(), "run-1")
    child = _python(
        """
        import os, signal, sys
        from dpsw_ray.privacy.events import GaussianEvent
        from dpsw_ray.privacy.ledger import Ledger
        from dpsw_ray.privacy.chain import Chain
        append = Chain.append
        def killed(*arguments):
            append(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        Chain.append = staticmethod(killed)
        Ledger(sys.argv[1]).charge("digits", [GaussianEvent("release", {"replace_one": 1.0}, 4.0)], "run-2")
        """,
        ledger.path,
    )
    assert child.wait(60) == -signal.SIGKILL
    assert ledger.total("digits").charges == 1
    ledger.charge("digits", _release(), "run-3")
    ledger.verify()


@pytest.mark.parametrize("capped", [False, True])
def test_sixteen_processes_lose_no_charge_and_pass_no_cap(tmp_path: Path, capped: bool) -> None:
    path = tmp_path / "new" / "ledger.sqlite"
    # Not forked from here: this process has threads, and a lock that one of them holds would stay held.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Ledger.__module__])
    kinds, cap = (_release(0.05),) if capped else _kinds(), 1.0 if capped else None
    turns = [[kinds[(worker + turn) % len(kinds)] for turn in range(3)] for worker in range(16)]
    with context.Pool(16) as pool:
        told = pool.starmap(charge_many, [(path, worker, turns[worker], cap) for worker in range(16)])
    done = [charge_id for of_one in told for charge_id in of_one]
    ledger = Ledger(path)
    total = ledger.total("shared")
    entries = ledger.entries("shared")
    assert sorted(entry.charge_id for entry in entries) == sorted(done) and len(ledger.datasets()) == 1
    assert ledger.verify() == LedgerHead(entries[-1].entry_hash, 1 + len(done))
    if capped:
        most = math.floor((calibrate_gaussian_mu(1.0, 1e-5) / 0.05) ** 2)
        assert total.charges == len(done) == most < 48
        assert total.mu == pytest.approx(0.05 * math.sqrt(most)) and total.epsilon.upper <= 1.0
    else:
        assert total.charges == len(done) == 48
        expected = [event for entry in entries for event in entry.events]
        alone = [event for events in _kinds() for event in events] * (48 // len(_kinds()))
        assert sorted(map(repr, expected)) == sorted(map(repr, alone))
        np.testing.assert_allclose(
            rdp_curve(expected, "replace_one", ORDERS), rdp_curve(alone, "replace_one", ORDERS), rtol=1e-9
        )


def test_the_file_is_its_owner_s_only(ledger: Ledger) -> None:
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_a_ledger_may_be_pickled(ledger: Ledger) -> None:
    assert pickle.loads(pickle.dumps(ledger)).total("digits").charges == 0


@pytest.mark.parametrize("statement", ["UPDATE log SET body = '{}'", "DELETE FROM log"])
def test_entries_cannot_be_updated_or_deleted(ledger: Ledger, statement: str) -> None:
    connection = sqlite3.connect(ledger.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE log SET body = replace(body, '0.2', '0.1') WHERE seq = 3", "entry 3"),
        ("UPDATE log SET release_id = 'other' WHERE seq = 2", "entry 2"),
        ("UPDATE log SET body = replace(body, '1e-05', '1e-03') WHERE seq = 1", "entry 1"),
        ("DELETE FROM log WHERE seq = 2", "entry 2"),
        ("DELETE FROM log WHERE seq = 4", "entry 4 of 4 is missing"),
    ],
)
def test_a_changed_entry_is_named_and_stops_everything(ledger: Ledger, statement: str, named: str) -> None:
    for mu in (0.1, 0.2, 0.3):
        ledger.charge("digits", _release(mu), "run")
    head = ledger.verify()
    assert head == LedgerHead(ledger.entries("digits")[-1].entry_hash, 4)
    tamper(ledger.path, statement)
    for call in (
        ledger.verify,
        lambda: ledger.total("digits"),
        lambda: ledger.charge("digits", _release(), "run"),
    ):
        with pytest.raises(UserError, match=f"changed after the fact: {named}"):
            call()


def test_bytes_changed_in_the_file_are_noticed(ledger: Ledger) -> None:
    ledger.charge("digits", _release(), "run-original")
    content = ledger.path.read_bytes()
    assert content.count(b"run-original") == 1
    ledger.path.write_bytes(content.replace(b"run-original", b"run-modified"))
    with pytest.raises(UserError, match="entry 2 does not follow"):
        ledger.verify()


def test_files_that_are_no_ledger_are_refused_untouched(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("these are notes, not a ledger\n" * 100)
    with pytest.raises(UserError, match="not a privacy ledger"):
        Ledger(text)
    assert text.read_text().startswith("these are notes")
    other = tmp_path / "mlflow.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE runs (id INTEGER)")
    connection.close()
    with pytest.raises(UserError, match="SQLite file of another program"):
        Ledger(other)
    with pytest.raises(UserError, match="cannot be opened"):
        Ledger(tmp_path)
    with pytest.raises(UserError, match="cannot be opened"):
        Ledger(text / "ledger.sqlite")


def test_a_damaged_file_is_refused(ledger: Ledger) -> None:
    for _ in range(20):
        ledger.charge("digits", _release(), "run")
    content = bytearray(ledger.path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    ledger.path.write_bytes(content)
    for call in (ledger.verify, lambda: ledger.total("digits")):
        with pytest.raises(UserError, match="damaged"):
            call()


def test_a_locked_file_is_a_sentence(ledger: Ledger) -> None:
    holder = sqlite3.connect(ledger.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"stayed locked by another process for 0\.1 s: nothing was charged"):
        Ledger(ledger.path, timeout_s=0.1).charge("digits", _release(), "run")
    holder.close()
    assert ledger.total("digits").charges == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_sentence(ledger: Ledger) -> None:
    folder = ledger.path.parent
    folder.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"read-only|must exist and be writable"):
            ledger.charge("digits", _release(), "run")
        with pytest.raises(UserError, match="cannot be opened"):
            Ledger(folder / "other.sqlite")
    finally:
        folder.chmod(0o700)


def test_a_full_disk_is_a_sentence_and_charges_nothing(ledger: Ledger) -> None:
    size = ledger.path.stat().st_size
    child = _python(
        """
        import resource, sys
        from dpsw_ray.base.errors import UserError
        from dpsw_ray.privacy.events import GaussianEvent
        from dpsw_ray.privacy.ledger import Ledger
        ledger = Ledger(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        try:
            ledger.charge("digits", [GaussianEvent("release", {"replace_one": 1.0}, 4.0)], "x" * 100_000)
        except UserError as error:
            print(error)
        """,
        ledger.path,
        size,
    )
    out, err = child.communicate(timeout=60)
    assert "full" in out, err
    assert "Traceback" not in err
    assert ledger.total("digits").charges == 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != size
    ledger.charge("digits", _release(), "run")


def test_a_read_only_database_file_is_a_sentence(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def read_only(address: str, **kwargs: object) -> sqlite3.Connection:
        return connect(address.replace("mode=rw", "mode=ro"), **kwargs)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(UserError, match="is read-only: nothing was charged"):
        ledger.charge("digits", _release(), "run")


def test_without_a_cap_every_mechanism_is_charged_and_the_accountant_named(ledger: Ledger) -> None:
    assert ledger.total("digits").accountant is None
    ledger.charge("digits", _release(0.3), "run-1")
    assert ledger.total("digits").accountant == bound(_release(0.3), "replace_one", 1e-5).accountant
    ledger.charge("digits", [_discrete()], "run-2")
    total, both = ledger.total("digits"), bound([*_release(0.3), _discrete()], "replace_one", 1e-5)
    assert (total.mu, total.epsilon, total.accountant) == (None, both.epsilon, both.accountant)
    assert total.epsilon.upper > gaussian_epsilon(0.3, 1e-5).upper
    json.dumps(total.to_dict(), allow_nan=False)


def test_a_gaussian_cap_admits_gaussian_mechanisms_only_and_says_what_to_do(ledger: Ledger) -> None:
    ledger.set_cap("digits", 2.0)
    refusal = (
        r"discrete tables is no Gaussian .*`dpsw ledger cap 'digits' 2 --filter renyi`.*Nothing was charged"
    )
    with pytest.raises(UserError, match=refusal):
        ledger.charge("digits", [_discrete()], "run")
    ledger.charge("digits", _release(), "run")
    with pytest.raises(
        UserError, match=r"cannot change after charges; `dpsw ledger cap 'digits' none --raise`"
    ):
        ledger.charge("digits", [*_release(), _discrete()], "run")
    assert ledger.total("digits").charges == 1


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 3.0, 20.0])
def test_a_renyi_cap_admits_all_mechanisms_and_is_never_passed(ledger: Ledger, epsilon: float) -> None:
    cap = ledger.register("mixed", "replace_one", "record", 1e-5, cap=epsilon, filter="renyi").cap
    assert cap is not None and cap.order is not None
    budget, spent = rdp_budget(epsilon, 1e-5, cap.order), []
    share = math.sqrt(2 * budget / cap.order / 10)  # mu of a tenth of the budget
    charges = [
        [GaussianEvent("g", {"replace_one": share}, 1.0)],
        [DiscreteGaussianEvent("d", {"replace_one": 10**6}, 1000.0 / share)],
    ]
    for turn in range(14):
        try:
            ledger.charge("mixed", charges[turn % 2], "run")
            spent += charges[turn % 2]
        except UserError as error:
            assert f"renyi filter (order {cap.order:g})" in str(error) and "Nothing was charged" in str(error)
    assert 9 <= len(spent) <= 10
    assert rdp_curve(spent, "replace_one", np.array([cap.order]))[0] <= budget
    assert ledger.total("mixed").epsilon.upper <= epsilon


@pytest.mark.parametrize("filter", ["gaussian", "renyi"])
def test_what_is_said_to_be_left_fits_and_no_more(ledger: Ledger, filter: Filter) -> None:
    ledger.set_cap("digits", 2.0, filter=filter)
    ledger.charge("digits", _release(0.2), "run-1")
    remaining = ledger.total("digits").remaining
    assert remaining is not None and 0 < remaining < 2
    mu = calibrate_gaussian_mu(remaining, 1e-5)
    with pytest.raises(
        UserError, match=r"One Gaussian release of epsilon at most [\d.]+ still fits"
    ) as refused:
        ledger.charge("digits", _release(mu * 1.001), "run-2")
    offered = float(str(refused.value).split("at most ")[1].split(" ")[0])
    assert remaining * (1 - 1e-5) <= offered <= remaining
    ledger.charge("digits", _release(mu), "run-2")
    assert ledger.total("digits").remaining == pytest.approx(0, abs=0.01)
    with pytest.raises(UserError, match=r"still fits|Nothing more fits"):
        ledger.charge("digits", _release(0.1), "run-3")


def test_the_renyi_order_is_the_best_for_one_gaussian() -> None:
    for epsilon in (0.01, 1.0, 10.0):
        cap = make_cap(epsilon, 1e-5, "renyi")
        assert cap.order is not None
        chosen = rdp_budget(epsilon, 1e-5, cap.order) / cap.order
        others = [rdp_budget(epsilon, 1e-5, 1 + x) / (1 + x) for x in np.geomspace(0.01, 1e6, 2000)]
        assert max(others) * 0.97 <= chosen <= max(others) * (1 + 1e-3)
    with pytest.raises(UserError, match="No RDP of any order certifies"):
        make_cap(1e-9, 1e-12, "renyi")


def test_a_cap_is_lowered_freely_and_raised_or_lifted_by_name_only(ledger: Ledger) -> None:
    assert ledger.set_cap("digits", 3.0).cap == Cap(3.0)
    assert ledger.set_cap("digits", 2.0).cap == Cap(2.0)
    for epsilon in (2.5, None):
        with pytest.raises(UserError, match=r"digits is epsilon 2 .*asked for with --raise"):
            ledger.set_cap("digits", epsilon)
    assert ledger.set_cap("digits", 2.0).cap == Cap(2.0)
    ledger.set_cap("digits", 2.5, raise_=True)
    ledger.set_cap("digits", None, raise_=True)
    assert ledger.datasets()[0].cap is None and ledger.total("digits").remaining is None
    changes = [(entry.cap, entry.raised) for entry in ledger.cap_changes("digits")]
    assert changes == [(Cap(3.0), False), (Cap(2.0), False), (Cap(2.5), True), (None, True)]
    assert ledger.verify().entries == 5
    assert ledger.register("digits", "replace_one", "record", 1e-5).cap is None


def test_a_cap_below_what_is_spent_refuses_everything(ledger: Ledger) -> None:
    ledger.charge("digits", _release(0.5), "run")
    for filter in ("gaussian", "renyi"):
        ledger.set_cap("digits", None, raise_=True)
        ledger.set_cap("digits", 0.1, filter=filter)
        assert ledger.total("digits").remaining == 0.0
        with pytest.raises(UserError, match="Nothing more fits"):
            ledger.charge("digits", _release(1e-4), "run")


def test_a_filter_and_a_renyi_order_do_not_change_under_charges(ledger: Ledger) -> None:
    ledger.set_cap("digits", 8.0)
    order = ledger.set_cap("digits", 8.0, filter="renyi").cap
    assert order is not None and ledger.set_cap("digits", 4.0).cap == make_cap(4.0, 1e-5, "renyi")
    kept = make_cap(4.0, 1e-5, "renyi").order
    ledger.charge("digits", _release(), "run")
    assert ledger.set_cap("digits", 1.0).cap == Cap(1.0, "renyi", kept)
    assert make_cap(1.0, 1e-5, "renyi").order != kept
    with pytest.raises(UserError, match=r"filter renyi and there are charges.*none --raise"):
        ledger.set_cap("digits", 1.0, filter="gaussian", raise_=True)
    ledger.set_cap("digits", None, raise_=True)
    assert ledger.set_cap("digits", 1.0, filter="gaussian").cap == Cap(1.0)


def test_a_gaussian_cap_is_refused_where_it_cannot_count_what_was_charged(ledger: Ledger) -> None:
    ledger.charge("digits", [_discrete()], "run")
    with pytest.raises(UserError, match=r"charged for discrete tables.*use --filter renyi"):
        ledger.set_cap("digits", 3.0)
    ledger.set_cap("digits", 3.0, filter="renyi")
    assert [entry.cap is not None for entry in ledger.cap_changes("digits")] == [True]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_a_cap_that_is_no_epsilon_is_refused(ledger: Ledger, epsilon: float) -> None:
    with pytest.raises(UserError, match="positive finite epsilon"):
        ledger.set_cap("digits", epsilon)
    assert ledger.verify().entries == 1


def test_checking_a_charge_writes_nothing(ledger: Ledger) -> None:
    ledger.set_cap("digits", 1.0)
    ledger.check("digits", "replace_one", _release(0.1))
    ledger.check("unknown", "replace_one", _release(9.0))
    with pytest.raises(UserError, match="The budget of data set digits"):
        ledger.check("digits", "replace_one", _release(9.0))
    with pytest.raises(UserError, match="relation replace_one, found zero_out"):
        ledger.check("digits", "zero_out")
    assert ledger.verify().entries == 2


def test_a_ledger_written_before_there_were_filters_is_read(ledger: Ledger) -> None:
    body = json.dumps(
        {
            "cap": 2.0, "delta": 1e-05, "id": "0" * 32, "name": "old", "publishable": True,
            "relation": "replace_one", "time": "2026-01-01T00:00:00.000+00:00", "unit": "record",
        },
        sort_keys=True, separators=(",", ":"),
    )  # fmt: skip
    head = ledger.verify().hash
    digest = hashlib.sha256((head + json.dumps([2, "register", body, None], separators=(",", ":"))).encode())
    with contextlib.closing(sqlite3.connect(ledger.path)) as connection, connection:
        row = (2, "register", body, None, head, digest.hexdigest())
        connection.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", row)
    assert ledger.total("old").dataset.cap == Cap(2.0, "gaussian", None)
    ledger.charge("old", _release(), "run")
    with pytest.raises(UserError, match="The budget of data set old is epsilon 2"):
        ledger.charge("old", _release(5.0), "run")


def test_an_export_pins_everything_before_it(ledger: Ledger, tmp_path: Path) -> None:
    ledger.charge("digits", _release(), "run ä", "note")
    path = tmp_path / "export.json"
    path.write_text(json.dumps(rows_to_export(ledger.rows())))
    rows = rows_from_export(path)
    assert first_break(rows) is None
    ledger.charge("digits", _release(), "run")
    assert ledger.verify(rows) == LedgerHead(ledger.rows()[-1].entry_hash, 3)

    other = Ledger(tmp_path / "other.sqlite")
    other.register("digits", "replace_one", "record", 1e-5)
    for count in (0, 2):
        for _ in range(count):
            other.charge("digits", _release(), "run ä", "note")
        with pytest.raises(UserError, match="is not what was exported: entry 1"):
            other.verify(rows)
    tamper(ledger.path, "DELETE FROM log WHERE seq > 1", "UPDATE sqlite_sequence SET seq = 1")  # a clean cut
    ledger.verify()
    with pytest.raises(UserError, match="was cut: it has 1 entries, the export 2"):
        ledger.verify(rows)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda e: e["rows"][1].update(release_id="x"), "entry 2 does not follow"),
        (lambda e: e["rows"].pop(), "other entries than it has"),
        (lambda e: e.update(format="csv"), "is no export"),
        (lambda e: e["rows"][0].update(extra=1), "is no export"),
    ],
)
def test_a_changed_export_is_refused(
    ledger: Ledger, tmp_path: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    ledger.charge("digits", _release(), "run")
    export = rows_to_export(ledger.rows())
    change(export)
    path = tmp_path / "export.json"
    path.write_text(json.dumps(export))
    with pytest.raises(UserError, match=sentence):
        rows_from_export(path)


def test_a_missing_ledger_is_not_made_by_who_only_reads(tmp_path: Path) -> None:
    path = tmp_path / "none" / "ledger.sqlite"
    with pytest.raises(UserError, match="There is no privacy ledger at"):
        Ledger(path, create=False)
    assert not path.parent.exists()
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    with pytest.raises(UserError, match="is an empty file"):
        Ledger(empty, create=False)
    assert empty.stat().st_size == 0


def test_a_name_with_a_slip_is_answered_with_the_right_one(ledger: Ledger) -> None:
    with pytest.raises(UserError, match=r"did you mean digits\?\); registered: digits\."):
        ledger.total("digist")


def _public(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


def test_every_method_of_a_ledger_is_asked_of_the_head() -> None:
    assert _public(HeadLedger) == _public(Ledger) and len(_public(Ledger)) > 8


def test_a_ledger_on_the_head_answers_like_one_here(ray_session: None, tmp_path: Path) -> None:
    import ray

    path = tmp_path / "ledger.sqlite"
    assert type(open_ledger(path)) is Ledger, "this process is on the head node"
    there, here = HeadLedger(path, ray.get_runtime_context().get_node_id()), Ledger(path)
    there.register("digits", "replace_one", "record", 1e-5, cap=2.0)
    there.charge("digits", _release(0.3), "run", release_id="r")
    there.set_cap("digits", 1.9)
    assert there.total("digits") == here.total("digits") and here.total("digits").charges == 1
    assert there.find_charge("r") == here.find_charge("r") != None  # noqa: E711
    assert there.entries("digits") == here.entries("digits")
    assert there.cap_changes("digits") == here.cap_changes("digits")
    assert (there.rows(), there.datasets(), there.verify()) == (here.rows(), here.datasets(), here.verify())
    assert there.path == path
    with pytest.raises(UserError, match=r"The budget of data set digits is epsilon 1\.9"):
        there.charge("digits", _release(5.0), "run")
    with pytest.raises(UserError, match="relation replace_one, found zero_out"):
        there.check("digits", "zero_out")

    ray.kill(there._keeper)  # takes effect some time later
    deadline = time.monotonic() + 60
    with pytest.raises(UserError, match="was lost during total"):
        while time.monotonic() < deadline:
            there.total("digits")
            time.sleep(0.05)
    with pytest.raises(UserError, match=r"was lost during charge .* nothing may be released on it"):
        there.charge("digits", _release(), "run")
    assert here.total("digits").charges == 1


def test_a_ledger_that_the_head_cannot_open_is_a_sentence(ray_session: None, tmp_path: Path) -> None:
    import ray

    (tmp_path / "notes.txt").write_text("these are notes, not a ledger\n" * 100)
    node = ray.get_runtime_context().get_node_id()
    with pytest.raises(UserError, match="is not a privacy ledger"):
        HeadLedger(tmp_path / "notes.txt", node)
    with pytest.raises(UserError, match="cannot be opened on the head node"):
        HeadLedger(tmp_path / "ledger.sqlite", "0" * len(node))


def test_on_another_node_than_the_head_the_head_opens_the_file(tmp_path: Path) -> None:
    child = _python(
        """
        import sys
        from pathlib import Path
        import ray
        from ray.cluster_utils import Cluster
        from dpsw_ray.cluster.head_ledger import HeadLedger, open_ledger
        from dpsw_ray.privacy.events import GaussianEvent
        from dpsw_ray.privacy.ledger import Ledger

        def node():
            return ray.get_runtime_context().get_node_id()

        def run(path):
            ledger = open_ledger(path)
            ledger.register("d", "replace_one", "record", 1e-5)
            ledger.charge("d", [GaussianEvent("release", {"replace_one": 1.0}, 4.0)], "run")
            where = ray.get(ledger._keeper.__ray_call__.remote(lambda self: node()))
            return type(ledger).__name__, where, node()

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1, resources={"elsewhere": 1})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        head, path = node(), Path(sys.argv[1])
        kind, keeper, worker = ray.get(ray.remote(run).options(resources={"elsewhere": 1}).remote(path))
        assert (kind, keeper) == ("HeadLedger", head) and worker != head, (kind, keeper, worker, head)
        ledger = open_ledger(path)
        assert type(ledger) is Ledger and ledger.total("d").mu == 0.25
        ray.shutdown()
        cluster.shutdown()
        """,
        tmp_path / "ledger.sqlite",
    )
    _, err = child.communicate(timeout=120)
    assert child.returncode == 0, err


@pytest.mark.parametrize("epsilon", [1e300, 1e-300])
def test_a_cap_that_nothing_can_be_worked_out_with_is_refused_unwritten(
    ledger: Ledger, epsilon: float
) -> None:
    with pytest.raises(UserError, match="A cap must lie between"):
        ledger.set_cap("digits", epsilon, raise_=True)
    assert ledger.datasets()[0].cap is None


@pytest.mark.parametrize("name", ["a ", "a\nb", "\x1b[31mred", ""])
def test_names_that_look_like_another_are_refused(ledger: Ledger, name: str) -> None:
    with pytest.raises(UserError, match="name of printable characters"):
        ledger.register(name, "replace_one", "record", 1e-5)


def _forge(ledger: Ledger, kind: str, body: dict[str, object]) -> None:
    """An entry with right hashes, as somebody who knows the format could append."""
    with ledger._chain.transaction(write=True) as connection:
        ledger._chain.append(connection, ledger._chain.rows(connection), kind, body)


def test_a_charge_without_events_is_damage_and_not_a_traceback(ledger: Ledger) -> None:
    _forge(ledger, "charge", {"dataset": "digits"})
    for call in (ledger.verify, ledger.datasets, lambda: ledger.total("digits")):
        with pytest.raises(UserError, match="entry 2 is no charge that this program wrote"):
            call()


def test_a_cap_that_rose_in_silence_is_damage(ledger: Ledger) -> None:
    ledger.set_cap("digits", 1.0)
    cap = {"epsilon": 1e6, "filter": "gaussian", "order": None}
    _forge(ledger, "cap", {"dataset": "digits", "cap": cap, "raised": False, "time": "now"})
    with pytest.raises(UserError, match="entry 3 is no cap that this program wrote"):
        ledger.datasets()
