"""What resets a budget: a ledger that was deleted, put back from a copy, replaced, or that swallows what is written."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federated_support
import pytest
import test_release
from ledger_support import tamper
from support import run_dpsw, small
from test_release import ledger, release, shards, store  # noqa: F401

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy.events import GaussianEvent
from dpsw_ray.privacy.ledger import Ledger, Receipt
from dpsw_ray.private.receipts import ReceiptStore
from dpsw_ray.release import exchange
from dpsw_ray.release.exchange import release_once

# ruff: noqa: F811 (the fixture)

QUIET = Progress(quiet=True)
EVENT = GaussianEvent("release", {"replace_one": 1.0}, 4.0)


def registered(path: Path) -> Ledger:
    book = Ledger(path)
    book.register("d", "replace_one", "record", 1e-5)
    return book


def deleted(path: Path, copy: Path) -> Ledger:
    path.unlink()
    return registered(path)


def rolled_back(path: Path, copy: Path) -> Ledger:
    shutil.copyfile(copy, path)
    return Ledger(path)


def emptied(path: Path, copy: Path) -> Ledger:
    path.write_bytes(b"")
    return registered(path)


def elsewhere(path: Path, copy: Path) -> Ledger:
    return registered(path.with_name("other.sqlite"))


def recharged(path: Path, copy: Path) -> Ledger:
    """As many entries as there were, of somebody who charged less."""
    path.unlink()
    book = registered(path)
    for number in range(2):
        book.charge("d", [EVENT], "t", release_id=str(number))
    return book


@pytest.mark.parametrize("reset", [deleted, rolled_back, emptied, elsewhere, recharged])
def test_a_ledger_that_lacks_a_charge_is_noticed_and_charges_nothing(
    reset: Callable[[Path, Path], Ledger], tmp_path: Path, ledger: Ledger
) -> None:
    group, copy = shards(store(tmp_path / "private")), tmp_path / "copy.sqlite"
    release(group, tmp_path / "a", ledger)
    shutil.copyfile(ledger.path, copy)
    release(group, tmp_path / "b", ledger)
    newest = ledger.path.read_bytes()
    book = reset(ledger.path, copy)
    before = len(book.rows())
    with pytest.raises(UserError, match=r"lacks a charge to d that was made .*restore the newest copy"):
        release(group, tmp_path / "c", book)
    assert len(book.rows()) == before and not list((tmp_path / "c").glob("*"))
    assert not list((tmp_path / "private" / "keys").iterdir())
    ledger.path.write_bytes(newest)  # what the sentence says to do
    release(group, tmp_path / "c", ledger)
    assert ledger.total("d").charges == 3


def test_receipts_do_not_pile_up_and_none_is_lost_among_many(tmp_path: Path, ledger: Ledger) -> None:
    receipts = ReceiptStore(tmp_path / "receipts")
    for name in ("a", "b", "c"):
        ledger.charge("d", [EVENT], "t", release_id=name)
    a, b, c = (Receipt.of(entry) for entry in ledger.entries("d"))
    receipts.keep(a)
    receipts.keep(c, [a])  # of somebody who charged while b had no receipt yet
    receipts.keep(b, [a])
    assert set(receipts.of("d")) == {b, c}
    ledger.check_receipts([b, c])
    receipts.keep(b, [c, a])  # an earlier charge stands for no later one
    assert set(receipts.of("d")) == {b, c}
    group = shards(store(tmp_path / "private"))
    for name in ("1", "2", "3"):
        release(group, tmp_path / name, ledger)
    (last,) = ReceiptStore(tmp_path / "private" / "receipts").of("d")
    assert last == Receipt.of(ledger.entries("d")[-1])
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "private" / "receipts").iterdir()} == {0o600}


def test_a_damaged_receipt_is_not_taken_for_none(tmp_path: Path, ledger: Ledger) -> None:
    ledger.charge("d", [EVENT], "t")
    receipts = ReceiptStore(tmp_path / "receipts")
    receipts.keep(Receipt.of(ledger.entries("d")[0]))
    (path,) = (tmp_path / "receipts").iterdir()
    whole = path.read_text()
    for content in ("", whole[:-5], "[]", "{}", whole.replace('"d"', "7"), whole.replace("2", "3")):
        path.write_text(content)
        with pytest.raises(UserError, match=r"a receipt of a charge .* is damaged: restore it"):
            receipts.of("d")


def test_research_may_be_charged_to_any_ledger(tmp_path: Path, ledger: Ledger) -> None:
    """It promises nothing, and says nothing of the account that does."""
    group, other = shards(store(tmp_path / "private")), Ledger(tmp_path / "research.sqlite")
    other.register("research", "replace_one", "record", 1e-5, publishable=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            test_release, "release_once", lambda *a, **k: release_once(*a, **{**k, "account": "research"})
        )
        release(group, tmp_path / "a", other)
        ledger.register("research", "replace_one", "record", 1e-5, publishable=False)
        release(group, tmp_path / "b", ledger)
    assert not ReceiptStore(tmp_path / "private" / "receipts").of("research")
    release(group, tmp_path / "c", ledger)
    assert ledger.total("d").charges == other.total("research").charges == 1


def test_who_died_between_charge_and_receipt_leaves_one_before_anything_noisy(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = store(tmp_path / "private")

    def die(self: Any, receipt: Receipt, instead: Any = ()) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReceiptStore, "keep", die)
        with pytest.raises(KeyboardInterrupt):
            release(shards(private), tmp_path / "a", ledger)
    assert ledger.total("d").charges == 1
    seen = []
    original = exchange.noisy_answer
    monkeypatch.setattr(
        exchange,
        "noisy_answer",
        lambda *a: (seen.append(ReceiptStore(private / "receipts").of("d")), original(*a))[1],
    )
    release(shards(private), tmp_path / "a", ledger)
    assert seen == [(Receipt.of(ledger.entries("d")[0]),)] and ledger.total("d").charges == 1


def test_a_private_side_without_receipts_is_charged_as_ever(tmp_path: Path, ledger: Ledger) -> None:
    """Of a home made before there were any, whose destroyed secrets left empty files."""
    private = store(tmp_path / "private")
    (private / "spent").mkdir()
    (private / "keys").mkdir()
    (private / "spent" / ("0" * 32)).touch()
    ledger.charge("d", [EVENT], "t", release_id="0" * 32)
    release(shards(private), tmp_path / "a", ledger)
    assert ledger.total("d").charges == 2


SWALLOWING = {
    "a trigger that ignores": [
        "CREATE TRIGGER eat BEFORE INSERT ON log BEGIN SELECT RAISE(IGNORE); END",
    ],
    "a trigger that deletes": [
        "DROP TRIGGER log_no_delete",
        "CREATE TRIGGER eat AFTER INSERT ON log BEGIN DELETE FROM log WHERE seq = new.seq; END",
    ],
    "a trigger that shrinks": [
        "DROP TRIGGER log_no_update",
        "CREATE TRIGGER eat AFTER INSERT ON log BEGIN UPDATE log SET body = '{}' WHERE seq = new.seq; END",
    ],
    "a view": [
        "ALTER TABLE log RENAME TO kept",
        "CREATE VIEW log AS SELECT * FROM kept",
        "CREATE TRIGGER eat INSTEAD OF INSERT ON log BEGIN SELECT 1; END",
    ],
    "without its triggers": ["DROP TRIGGER log_no_update"],
    "an index more": ["CREATE INDEX more ON log (kind)"],
}


@pytest.mark.parametrize("how", SWALLOWING)
def test_a_ledger_that_could_swallow_charges_is_refused(how: str, tmp_path: Path, ledger: Ledger) -> None:
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
        for statement in SWALLOWING[how]:
            connection.execute(statement)
    content = ledger.path.read_bytes()
    for call in (ledger.verify, lambda: ledger.charge("d", [EVENT], "t"), lambda: ledger.total("d")):
        with pytest.raises(UserError, match="was changed after the fact: its tables and triggers are not"):
            call()
    code, _, err = run_dpsw("ledger", "verify", "--ledger", ledger.path)
    assert code == 2 and "tables and triggers" in err
    assert ledger.path.read_bytes() == content


def test_what_does_not_stay_is_no_charge(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the look at the schema passed, what was written is read back."""
    from dpsw_ray.privacy import chain

    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
        connection.execute("CREATE TRIGGER eat BEFORE INSERT ON log BEGIN SELECT RAISE(IGNORE); END")
    monkeypatch.setattr(chain, "_made_schema", lambda: chain._schema(sqlite3.connect(ledger.path)))
    with pytest.raises(UserError, match="what was written to it did not stay"):
        ledger.charge("d", [EVENT], "t")


def test_a_charge_that_is_undone_behind_the_commit_is_no_charge(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ledger.path.read_bytes()
    original = ledger._chain.transaction

    @contextlib.contextmanager
    def undone(*, write: bool) -> Any:
        with original(write=write) as connection:
            yield connection
        if write:
            ledger.path.write_bytes(content)

    monkeypatch.setattr(ledger._chain, "transaction", undone)
    with pytest.raises(UserError, match="does not hold the charge that was just written"):
        ledger.charge("d", [EVENT], "t")


def test_hashes_that_are_recomputed_do_not_bring_budget_back(tmp_path: Path, ledger: Ledger) -> None:
    """Whoever rewrites the whole chain has a whole chain, of other hashes than the receipts'."""
    from dpsw_ray.privacy import chain

    group = shards(store(tmp_path / "private"))
    release(group, tmp_path / "a", ledger)
    first, charge = ledger.rows()
    body = charge.body.replace('"note":""', '"note":"less"')
    forged = chain._hash(2, "charge", body, charge.release_id, first.entry_hash)
    tamper(ledger.path, f"UPDATE log SET body = '{body}', entry_hash = '{forged}' WHERE seq = 2")
    assert ledger.verify().hash == forged
    with pytest.raises(UserError, match="lacks a charge to d"):
        release(group, tmp_path / "b", ledger)


def test_a_run_notices_whatever_key_it_is_given_under_and_leaves_nothing(tmp_path: Path) -> None:
    """Another class list or relation has another folder, and the same records."""
    home = tmp_path / "home"
    config = small("cluster.executor=local", f"paths.home={home}")
    book = Ledger(config.ledger_path)
    book.register("digits", "replace_one", "record", 1e-4, cap=12.0)
    run(config, tmp_path / "a", QUIET)
    config.ledger_path.unlink()
    divided = sorted((home / "datasets" / "digits").iterdir())
    classes = "data.classes=['0','1','2','3','4','5','6','7','8','9']"
    for overrides in ((), (classes,), ("privacy.relation=zero_out",)):
        again = small("cluster.executor=local", f"paths.home={home}", *overrides)
        with pytest.raises(UserError, match="lacks a charge to digits"):
            run(again, tmp_path / "b", QUIET)
        assert not (tmp_path / "b").exists(), "nothing was computed"
        keys = ("paths.home", "paths.ledger", "privacy.relation", "privacy.delta")
        values = (home, again.ledger_path, again.privacy.relation, again.privacy.delta)
        sets = [part for key, value in zip(keys, values, strict=True) for part in ("--set", f"{key}={value}")]
        code, out, err = run_dpsw("data", "import", "digits", *sets)
        assert (code, out) == (2, "") and "lacks a charge to digits" in err
    known = [path for path in sorted((home / "datasets" / "digits").iterdir()) if path.is_dir()]
    assert known == [path for path in divided if path.is_dir()], "no division told how many records there are"
    assert all(
        not Ledger(config.ledger_path).entries(entry.name) for entry in Ledger(config.ledger_path).datasets()
    )
    research = small("cluster.executor=local", f"paths.home={home}", "privacy.research=true")
    run(research, tmp_path / "c", QUIET)


def test_users_are_counted_likewise(tmp_path: Path) -> None:
    config = federated_support.small(tmp_path / "home")
    federated_support.run_federated(config, tmp_path / "a", QUIET)
    config.ledger_path.unlink()
    with pytest.raises(UserError, match="lacks a charge to digits users"):
        federated_support.run_federated(config, tmp_path / "b", QUIET)
    assert not (tmp_path / "b").exists()
