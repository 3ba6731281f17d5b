"""`dpsw ledger`: what it prints is what the ledger holds, and a mistake is one sentence that changes nothing."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import small

from dpsw_ray import cli
from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress
from dpsw_ray.pipeline.plan import describe_plan
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.events import DiscreteGaussianEvent, Event, GaussianEvent
from dpsw_ray.privacy.ledger import Ledger

Dpsw = Callable[..., tuple[int, str, str]]

FIXED = ("--relation", "replace_one", "--unit", "record", "--delta", "1e-5")


def gaussian(mu: float) -> list[Event]:
    return [GaussianEvent("tables", {"replace_one": mu}, 1.0)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs of this test would keep their ledger; nothing is there yet."""
    monkeypatch.setenv("DPSW_LEDGER", str(tmp_path / "book.sqlite"))
    return tmp_path / "book.sqlite"


@pytest.fixture
def dpsw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dpsw:
    def call(*args: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dpsw", "ledger", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def parsed(answer: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = answer
    assert code == 0, err
    values: dict[str, Any] = json.loads(out)
    return values


@pytest.fixture
def book(path: Path) -> Ledger:
    """Two data sets, one of them capped; charges of two mechanisms."""
    ledger = Ledger(path)
    ledger.register("digits", "replace_one", "record", 1e-5, cap=3.0)
    ledger.register("people", "replace_one", "record", 1e-6, publishable=False)
    ledger.charge("digits", gaussian(calibrate_gaussian_mu(1.23456789, 1e-5)), "run-a", "first")
    ledger.charge("people", [DiscreteGaussianEvent("counts", {"replace_one": 4}, 10.0)], "run-b")
    return ledger


@pytest.mark.parametrize("command", [(), ("show",)])
def test_show_is_a_table_of_all_data_sets_with_bounds_rounded_up(
    dpsw: Dpsw, book: Ledger, command: tuple[str, ...]
) -> None:
    code, out, _ = dpsw(*command)
    lines = out.splitlines()
    assert code == 0 and lines[0] == f"ledger: {book.path}"
    assert re.split(r"\s{2,}", lines[1])[4:] == ["charges", "epsilon so far", "cap", "left"]
    digits, people = (re.split(r"\s{2,}", line) for line in lines[2:])
    assert digits[:5] == ["digits", "replace_one", "record", "1e-05", "1"]
    shown, left = float(digits[5]), float(digits[7])
    total = book.total("digits")
    assert total.remaining is not None
    assert shown == 1.2346 and total.epsilon.upper <= shown and digits[6] == "3 (gaussian)"
    assert left <= total.remaining <= left + 1e-4
    assert people[6:] == ["none", "no limit"] and float(people[5]) >= book.total("people").epsilon.upper


@pytest.mark.parametrize("command", [("--json",), ("show", "--json")])
def test_show_json_holds_the_totals(dpsw: Dpsw, book: Ledger, command: tuple[str, ...]) -> None:
    values = parsed(dpsw(*command))
    assert values["ledger"] == str(book.path)
    for name, total in values["data sets"].items():
        assert total == json.loads(json.dumps(book.total(name).to_dict()))
    assert values["data sets"]["people"]["mu"] is None and values["data sets"]["people"]["accountant"]


def test_show_of_one_data_set_lists_its_entries_in_order(dpsw: Dpsw, book: Ledger) -> None:
    book.set_cap("digits", 2.0)
    book.charge("digits", gaussian(0.1), "run-c")
    code, out, _ = dpsw("show", "digits")
    assert code == 0 and "cap: epsilon 2 (filter gaussian)" in out and "accountant: " in out
    rows = out.splitlines()[-3:]
    assert ["tables" in row for row in rows] == [True, False, True]
    assert "run-a" in rows[0] and "first" in rows[0] and "cap epsilon 2" in rows[1] and "run-c" in rows[2]
    values = parsed(dpsw("show", "digits", "--json"))
    assert [(e["kind"], e["seq"]) for e in values["entries"]] == [("charge", 3), ("cap", 5), ("charge", 6)]
    assert values["entries"][0]["events"] == [event.to_dict() for event in book.entries("digits")[0].events]
    assert values["entries"][1]["cap"] == {"epsilon": 2.0, "filter": "gaussian", "order": None}


def test_register_makes_the_ledger_and_is_once_and_for_all(dpsw: Dpsw, path: Path) -> None:
    registered = parsed(dpsw("register", "digits", *FIXED, "--cap", "2", "--filter", "renyi", "--json"))
    entry = Ledger(path, create=False).datasets()[0]
    assert (entry.name, entry.delta, entry.publishable) == ("digits", 1e-5, True)
    assert entry.cap is not None and (entry.cap.epsilon, entry.cap.filter) == (2.0, "renyi")
    assert registered["registered"]["id"] == entry.id
    again = parsed(dpsw("register", "digits", *FIXED, "--json"))
    assert again["registered"]["id"] == entry.id
    code, _, err = dpsw("register", "digits", *FIXED[:-1], "1e-6")
    assert code == 2 and "delta 1e-05, found 1e-06" in err
    assert dpsw("register", "other", *FIXED, "--research")[0] == 0
    assert not Ledger(path).datasets()[1].publishable


def test_cap_lowers_and_raises_only_with_raise(dpsw: Dpsw, book: Ledger) -> None:
    assert parsed(dpsw("cap", "digits", "2", "--json"))["cap"] == "epsilon 2 (filter gaussian)"
    for epsilon in ("4", "none"):
        code, out, err = dpsw("cap", "digits", epsilon)
        assert code == 2 and out == "" and "--raise" in err
    code, out, _ = dpsw("cap", "digits", "4", "--raise")
    left = float(re.search(r"left: ([\d.]+)", out)[1])  # type: ignore[index]
    remaining = book.total("digits").remaining
    assert remaining is not None and code == 0 and left <= remaining
    assert "left: no limit" in dpsw("cap", "digits", "none", "--raise")[1]
    assert [entry.raised for entry in book.cap_changes("digits")] == [False, True, True]


def test_an_export_can_be_recomputed_by_anybody_and_verified_later(
    dpsw: Dpsw, book: Ledger, tmp_path: Path
) -> None:
    code, out, _ = dpsw("export", "--out", tmp_path / "export.json")
    assert code == 0 and "4 entries" in out
    export = json.loads((tmp_path / "export.json").read_text())
    assert json.loads(dpsw("export")[1]) == export
    head = "0" * 64
    for row in export["rows"]:  # the rule as the export states it, without any code of the package
        array = [row["seq"], row["kind"], row["body"], row["release_id"]]
        head = hashlib.sha256((head + json.dumps(array, separators=(",", ":"))).encode()).hexdigest()
        assert head == row["entry_hash"]
    assert head == export["head"]
    assert str(tmp_path) not in json.dumps(export)

    book.charge("digits", gaussian(0.1), "run-d")
    values = parsed(dpsw("verify", tmp_path / "export.json", "--json"))
    assert (values["entries"], values["hash"]) == (5, book.verify().hash)
    assert values["begins with"] == {
        "export": str(tmp_path / "export.json"),
        "entries": 4,
        "hash": export["head"],
    }
    assert f"hash: {book.verify().hash}" in dpsw("verify")[1]
    other = Ledger(tmp_path / "other.sqlite")
    code, out, err = dpsw("verify", tmp_path / "export.json", "--ledger", other.path)
    assert code == 2 and out == "" and "There is no privacy ledger" in err


@pytest.mark.parametrize(
    "command", [(), ("show",), ("show", "digits"), ("export",), ("verify",), ("cap", "digits", "2")]
)
@pytest.mark.parametrize("named", [False, True])
def test_a_missing_ledger_is_not_made(dpsw: Dpsw, path: Path, command: tuple[str, ...], named: bool) -> None:
    where = path.with_name("elsewhere.sqlite") if named else path
    code, out, err = dpsw(*command, *(("--ledger", where) if named else ()))
    assert code == 2 and out == "" and f"There is no privacy ledger at {where}" in err
    assert not where.exists() and not path.exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("show", "digist"), "(did you mean digits?); registered: digits, people."),
        (("cap", "poeple", "1"), "(did you mean people?)"),
        (("cap", "digits", "lots"), "EPS must be a positive number, or none to lift the cap, found 'lots'"),
        (("cap", "digits", "1e400"), "EPS must be a positive number, or none to lift the cap, found '1e400'"),
        (("cap", "digits", "017"), "EPS must be a positive number, or none to lift the cap, found '017'"),
        (
            ("register", "x", *FIXED, "--cap", "1_0"),
            "'--cap': must be a finite number, found '1_0'; write plain decimals",
        ),
        (("register", "x", *FIXED, "--cap", "inf"), "'--cap': must be a finite number, found 'inf'"),
        (("register", "x", *FIXED, "--delta", "nan"), "'--delta': must be a finite number, found 'nan'"),
        (("show", "--ledger", "~nosuchuser/x"), "'--ledger': must be a path, found ~nosuchuser/x"),
        (("cap", "digits", "0"), "EPS must be a positive number, or none to lift the cap, found '0'"),
        (("cap", "digits", "1", "--filter", "prv"), "filter must be one of gaussian, renyi, found 'prv'."),
        (("cap", "digits", "1", "--filter", "renyi"), "the filter gaussian and there are charges under it"),
        (("cap", "digits", "none", "--filter", "renyi"), "leave one of them out."),
        (("cap", "people", "9"), "charged for counts, which is no Gaussian mechanism"),
        (("register", "x", *FIXED, "--filter", "renyi"), "--filter renyi is of a cap: give --cap EPS too."),
        (("register", "x", "--relation", "swap", *FIXED[2:]), "relation must be one of"),
        (("register", "x", *FIXED[:-1], "2"), "delta must lie between 0 and 1"),
        (("register", "x"), "Missing option '--relation'"),
        (("export", "--out", "/"), "--out / is a folder"),
        (("verify", "nowhere.json"), "The export cannot be read."),
        (("verify", __file__), "is no export of a privacy ledger"),
        (("exprot",), "No such command 'exprot'"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    dpsw: Dpsw, book: Ledger, args: tuple[str, ...], part: str
) -> None:
    before = book.verify()
    code, out, err = dpsw(*args)
    assert code == 2 and out == "" and part in err
    assert err.startswith("Error: ") and err.endswith(".\n") and err.count("\n") == 1
    assert book.verify() == before


def test_a_changed_ledger_is_named_by_every_command(dpsw: Dpsw, book: Ledger) -> None:
    content = book.path.read_bytes()
    assert content.count(b"run-a") == 1
    book.path.write_bytes(content.replace(b"run-a", b"run-x"))
    for command in ((), ("show", "digits"), ("verify",), ("export",), ("cap", "digits", "1")):
        code, out, err = dpsw(*command)
        assert code == 2 and out == "" and "changed after the fact: entry 3" in err


def test_export_does_not_write_over_the_ledger(dpsw: Dpsw, book: Ledger) -> None:
    code, _, err = dpsw("export", "--out", book.path)
    assert code == 2 and "would write over the privacy ledger" in err
    assert book.verify().entries == 4


def test_a_run_past_its_cap_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    config = small("cluster.executor=local", f"paths.home={tmp_path / 'home'}", "privacy.epsilon=2")
    book = Ledger(config.ledger_path)
    book.register("digits", "replace_one", "record", config.privacy.delta, cap=1.5)
    with pytest.raises(
        UserError, match=r"The budget of data set digits is epsilon 1\.5 .* at most 1\.5 still fits"
    ):
        run(config, tmp_path / "run", Progress(quiet=True))
    assert not (tmp_path / "run").exists()
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == ["ledger.sqlite"], (
        "no data set was divided"
    )
    assert book.verify().entries == 1

    book.set_cap("digits", 2.0, raise_=True)
    run(config, tmp_path / "run", Progress(quiet=True))
    assert book.total("digits").charges == 1
    run(config, tmp_path / "run", Progress(quiet=True))  # spent, and the release is there already
    assert book.total("digits").charges == 1
    assert describe_plan(config)["ledger"]["epsilon with this run"] > 2.0
