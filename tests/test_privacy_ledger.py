"""The ledger never forgets, never shows a changed total, and never lets a cap be passed."""

from __future__ import annotations

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
from pathlib import Path

import pytest

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu, calibrate_histogram_noise
from dpsw_ray.privacy.events import Event, GaussianEvent, SlicedHistogramEvent
from dpsw_ray.privacy.gaussian import gaussian_epsilon
from dpsw_ray.privacy.ledger import Ledger


def _release(mu: float = 0.1) -> list[Event]:
    return [GaussianEvent("release", {"replace_one": mu, "zero_out": mu / 2}, 1.0)]


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
        ({"cap": 3.0}, "cap none, found 3.0"),
    ],
)
def test_a_registration_cannot_change(ledger: Ledger, change: dict[str, object], sentence: str) -> None:
    asked = {"relation": "replace_one", "unit": "record", "delta": 1e-5} | change
    with pytest.raises(UserError, match=sentence):
        ledger.register("digits", **asked)  # type: ignore[arg-type]


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
    assert ledger.register("capped", "replace_one", "record", 1e-5).cap == 1.0
    half = calibrate_gaussian_mu(1.0, 1e-5) / 2
    ledger.charge("capped", _release(half), "run-1")
    with pytest.raises(UserError, match=r"is epsilon 1 at delta 1e-05.*at most 0\.\d+ still fits"):
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
        append = Ledger._append
        def killed(*arguments):
            append(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        Ledger._append = staticmethod(killed)
        Ledger(sys.argv[1]).charge("digits", [GaussianEvent("release", {"replace_one": 1.0}, 4.0)], "run-2")
        """,
        ledger.path,
    )
    assert child.wait(60) == -signal.SIGKILL
    assert ledger.total("digits").charges == 1
    ledger.charge("digits", _release(), "run-3")
    ledger.verify()


def _charge_many(path: Path, worker: int, cap: bool) -> int:
    done = 0
    ledger = Ledger(path)
    ledger.register("shared", "replace_one", "record", 1e-5, cap=1.0 if cap else None)
    for turn in range(5):
        try:
            ledger.charge("shared", _release(0.05), f"worker-{worker}", str(turn))
            done += 1
        except UserError as error:
            assert "Nothing was charged" in str(error)
    return done


@pytest.mark.parametrize("cap", [False, True])
def test_eight_processes_lose_no_charge_and_pass_no_cap(tmp_path: Path, cap: bool) -> None:
    path = tmp_path / "new" / "ledger.sqlite"
    with multiprocessing.get_context("fork").Pool(8) as pool:
        done = sum(pool.starmap(_charge_many, [(path, worker, cap) for worker in range(8)]))
    ledger = Ledger(path)
    total = ledger.total("shared")
    most = math.floor((calibrate_gaussian_mu(1.0, 1e-5) / 0.05) ** 2) if cap else 40
    assert total.charges == done == min(most, 40)
    assert total.mu == pytest.approx(0.05 * math.sqrt(done))
    assert len(ledger.datasets()) == 1
    ledger.verify()


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
    assert head == ledger.entries("digits")[-1].entry_hash
    connection = sqlite3.connect(ledger.path)
    connection.executescript(f"DROP TRIGGER log_no_update; DROP TRIGGER log_no_delete; {statement};")
    connection.close()
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
        from dpsw_ray.errors import UserError
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
