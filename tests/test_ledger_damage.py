"""Whatever is in the file instead of a ledger: one sentence, and the file stays as it was."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from ledger_support import tamper
from support import run_dpsw

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy import chain
from dpsw_ray.privacy.events import GaussianEvent
from dpsw_ray.privacy.ledger import Ledger

EVENT = GaussianEvent("release", {"replace_one": 1.0}, 4.0)
COMMANDS: tuple[tuple[str, ...], ...] = (("show",), ("show", "digits"), ("verify",), ("cap", "digits", "1"))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    book = Ledger(tmp_path / "ledger.sqlite")
    book.register("digits", "replace_one", "record", 1e-5, cap=3.0)
    book.divide("digits", {"public_fraction": 0.5})
    book.charge("digits", [EVENT], "run")
    book.set_cap("digits", 2.0)
    return book


def refused(path: Path) -> None:
    """Every command ends with one sentence, and none changes the file."""
    before = path.read_bytes() if path.is_file() else None
    for command in COMMANDS:
        code, out, err = run_dpsw("ledger", *command, "--ledger", path)
        assert code == 2 and out == "" and err.startswith("Error: ") and err.count("\n") == 1, (out, err)
        assert "Traceback" not in err
    if before is not None:
        assert path.read_bytes() == before


@pytest.mark.parametrize("column", ["kind", "body", "release_id", "prev_hash", "entry_hash"])
@pytest.mark.parametrize("value", ["7", "x'00ff'", "2.5", "x''", "CAST(x'ff' AS TEXT)"])
def test_a_cell_of_another_type_is_a_sentence(column: str, value: str, ledger: Ledger) -> None:
    tamper(ledger.path, f"UPDATE log SET {column} = {value} WHERE seq = 3")
    refused(ledger.path)


def rewritten(ledger: Ledger, seq: int, body: str, release_id: str | None) -> None:
    """As somebody who knows the rule of the hashes would."""
    rows, statements = ledger.rows(), []
    head = rows[seq - 2].entry_hash if seq > 1 else chain._GENESIS
    for row in rows[seq - 1 :]:
        text, name = (body, release_id) if row.seq == seq else (row.body, row.release_id)
        entry = chain._hash(row.seq, row.kind, text, name, head)
        named = "NULL" if name is None else f"'{name}'"
        quoted = text.replace("'", "''")
        statements.append(
            f"UPDATE log SET body = '{quoted}', release_id = {named}, prev_hash = '{head}', entry_hash = '{entry}' "
            f"WHERE seq = {row.seq}"
        )
        head = entry
    tamper(ledger.path, *statements)


WRONG: dict[str, Any] = {
    "null": None, "true": True, "number": 7, "text": "x", "list": [], "section": {}, "huge": 10**400, "negative": -1,
    "nested": [[{"a": []}]],
}  # fmt: skip


POSSIBLE = {
    *(("register", key, "text") for key in ("id", "time")), ("register", "publishable", "true"),
    *(("register", "cap", how) for how in ("null", "number")),
    *(("divide", key, "text") for key in ("data", "time")), ("divide", "division", "section"),
    *(("charge", key, "text") for key in ("charge_id", "run_id", "note", "time")), ("charge", "publishable", "true"),
    *(("cap", key, how) for key, how in (("time", "text"), ("raised", "true"), ("cap", "number"))),
}  # fmt: skip
"""What this program could have written there."""


@pytest.mark.parametrize("how", [*WRONG, "missing", "more"])
@pytest.mark.parametrize("seq", [1, 2, 3, 4])
def test_right_hashes_and_wrong_content_are_a_sentence(
    seq: int, how: str, ledger: Ledger, tmp_path: Path
) -> None:
    """Every value of every kind of entry; what can stand there is looked at, not believed."""
    row = ledger.rows()[seq - 1]
    values = json.loads(row.body)
    for key in values:
        changed = dict(values)
        if how == "missing":
            del changed[key]
        elif how == "more":
            changed["more"] = 1
        else:
            changed[key] = WRONG[how]
        copy = Ledger(tmp_path / f"{key}.sqlite")
        shutil.copyfile(ledger.path, copy.path)
        rewritten(copy, seq, json.dumps(changed, sort_keys=True, separators=(",", ":")), row.release_id)
        code, _, err = run_dpsw("ledger", "show", "digits", "--ledger", copy.path)
        if code == 0:
            assert (row.kind, key, how) in POSSIBLE or (how == "more" and row.kind == "divide"), (
                row.kind,
                key,
                how,
            )
        else:
            assert code == 2 and err.count("\n") == 1 and ("damaged" in err or "not registered" in err), err


@pytest.mark.parametrize(
    "event",
    [
        {}, {"kind": "gaussian"}, {"kind": "nothing"}, {"kind": 7}, {"kind": "gaussian", "noise_std": "x"},
        {"kind": "gaussian", "label": "g", "sensitivity": {"replace_one": 1.0}, "noise_std": 10**400},
        {"kind": "sequential", "parts": []}, {"kind": "sequential", "parts": [{"kind": "sequential", "parts": 3}]},
    ],
)  # fmt: skip
def test_a_charge_of_nothing_that_can_be_charged_is_a_sentence(event: dict[str, Any], ledger: Ledger) -> None:
    row = ledger.rows()[2]
    body = json.loads(row.body) | {"events": [event]}
    rewritten(ledger, 3, json.dumps(body, sort_keys=True, separators=(",", ":")), row.release_id)
    refused(ledger.path)
    with pytest.raises(UserError, match=r"damaged: entry 3"):
        ledger.charge("digits", [EVENT], "run")


def test_flipped_bytes_are_noticed_or_mean_nothing(ledger: Ledger, tmp_path: Path) -> None:
    """Anywhere in the file: the same answer as before, or one sentence."""
    content, random_, noticed = ledger.path.read_bytes(), random.Random(0), 0
    answer, rows = run_dpsw("ledger", "show", "digits", "--ledger", ledger.path)[1], ledger.rows()
    used = [place for place, byte in enumerate(content) if byte]
    for _ in range(150):
        changed = bytearray(content)
        changed[random_.choice(used)] ^= 1 << random_.randrange(8)
        ledger.path.write_bytes(changed)
        code, out, err = run_dpsw("ledger", "show", "digits", "--ledger", ledger.path)
        if code:
            assert (code, out) == (2, "") and err.count("\n") == 1 and "Traceback" not in err
            noticed += 1
        else:
            assert out == answer and Ledger(ledger.path).rows() == rows
    assert noticed > 100


def test_what_is_no_file_is_a_sentence_and_nobody_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").touch()
    places = [tmp_path / name for name in ("fifo", "folder", "loop", "empty", "missing")]
    places += [
        Path("/dev/zero"),
        Path("/dev/full"),
        Path("~nosuchuser/ledger"),
        tmp_path / os.fsdecode(b"\xff"),
    ]

    def all_refused() -> None:
        for place in places:
            refused(place)
            if place.name not in ("empty", "missing"):
                with pytest.raises(UserError, match=r"cannot be opened|UTF-8"):
                    Ledger(place)
        with pytest.raises(UserError, match="NUL"):
            Ledger("a\0b")

    thread = threading.Thread(target=all_refused, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    all_refused()


def test_an_account_that_was_never_charged_is_removed_and_stays_in_the_log(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    book.register("digits", "replace_one", "record", 1e-5, cap=3.0)
    book.divide("digits", {"public_fraction": 0.5})
    book.register("digits users", "zero_out", "user", 1e-5)
    code, out, err = run_dpsw("ledger", "remove", "digits", "--ledger", book.path)
    assert (code, err) == (0, "") and "removed:" in out
    assert [entry.name for entry in book.datasets()] == ["digits users"]
    assert book.division("digits") is not None, "its users' account is of the same records"
    book.remove("digits users")
    assert book.datasets() == () and book.division("digits") is None
    assert [row.kind for row in book.rows()] == ["register", "divide", "register", "remove", "remove"]
    assert book.register("digits", "add_remove", "record", 1e-6).cap is None
    book.divide("digits", {"public_fraction": 0.0})
    assert book.division("digits") == {"public_fraction": 0.0}
    assert book.verify().entries == 7


def test_an_account_with_charges_is_not_removed(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()
    code, _, err = run_dpsw("ledger", "remove", "digits", "--ledger", ledger.path)
    assert code == 2 and "digits has 1 charge in" in err and "cannot be removed" in err
    code, _, err = run_dpsw("ledger", "remove", "digit", "--ledger", ledger.path)
    assert code == 2 and "did you mean digits?" in err
    assert ledger.path.read_bytes() == before


def test_no_log_removes_what_was_charged(ledger: Ledger) -> None:
    """Nor registers twice: whoever writes such entries with right hashes has damaged the ledger."""
    rows = ledger.rows()
    for kind, body in (
        ("remove", {"dataset": "digits", "division": None, "time": "t"}),
        ("register", json.loads(rows[0].body)),
    ):
        with ledger._chain.transaction(write=True) as connection:
            ledger._chain.append(connection, rows, kind, body)
        with pytest.raises(UserError, match=f"damaged: entry 5 is no {kind}"):
            ledger.total("digits")
        tamper(ledger.path, "DELETE FROM log WHERE seq = 5", "UPDATE sqlite_sequence SET seq = 4")


@pytest.mark.parametrize("number", ["-1", "-0.5", "-1e3", "0", "nan", "inf", "x"])
def test_a_cap_that_is_no_positive_number_is_answered_as_one(number: str, ledger: Ledger) -> None:
    for words in (("digits", number), ("digits", number, "--raise"), ("--filter", "renyi", "digits", number)):
        code, _, err = run_dpsw("ledger", "cap", *words, "--ledger", ledger.path)
        assert code == 2 and err.startswith(
            "Error: EPS must be a positive number, or none to lift the cap, found"
        )
    cap = ledger.total("digits").dataset.cap
    assert cap is not None and cap.epsilon == 2.0
