from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpsw_ray.privacy.ledger import Ledger

SMALL = (
    *("--set", "encoder.epochs=2", "--set", "flow.steps=3", "--set", "flow.particles=50"),
    *("--set", "evaluation.enabled=false", "--set", "tracking.enabled=false"),
    *("--set", "cluster.executor=local"),
)
COMMANDS = ("flow", "generate", "plan", "account", "audit", "ledger")
Dpsw = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Path]:
    """A home of this module's own: tests here delete from it."""
    folder = tmp_path_factory.mktemp("cli_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPSW_HOME", str(folder))
        yield folder


def charges(name: str) -> int:
    book = Ledger(Path(os.environ["DPSW_HOME"]) / "ledger.sqlite")
    return next((book.total(name).charges for entry in book.datasets() if entry.name == name), 0)


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_help_lists_the_commands(dpsw: Dpsw, args: tuple[str, ...]) -> None:
    code, out, err = dpsw(*args)
    assert code == 0 and err == ""
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(dpsw: Dpsw, command: str) -> None:
    code, out, _ = dpsw(command, "--help")
    assert code == 0 and f"dpsw {command}" in out


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("flow",), "Missing argument 'CONFIG'; see `dpsw flow --help`."),
        (("flow", "digits", "more"), "unexpected extra argument"),
        (("flow", "digits", "--sett", "a=1"), "No such option: --sett"),
        (("bogus",), "No such command 'bogus'"),
        (("generate", "run"), "Missing option '--out'"),
        (("generate", "run", "--out", "x", "--num", "many"), "Invalid value for '--num'"),
        (("generate", "run", "--out", "x", "--num", "0"), "Invalid value for '--num'"),
        (("generate", "nowhere", "--out", "x"), "nowhere is not the folder of a run"),
        (("generate", "run", "--out", "/"), "--out / is a folder: give the Parquet file to write."),
        (("generate", "run", "--out", f"{__file__}/x"), "which is a file: give another path."),
        (("plan", "nowhere.yaml"), "Config file nowhere.yaml does not exist"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(dpsw: Dpsw, args: tuple[str, ...], part: str) -> None:
    code, out, err = dpsw(*args)
    assert code == 2 and out == ""
    assert err.startswith("Error: ") and part in err and err.endswith(".\n") and err.count("\n") == 1


def test_plan_prints_text_and_json(dpsw: Dpsw) -> None:
    code, out, _ = dpsw("plan", "digits")
    assert code == 0 and "epsilon with this run" in out and "standard deviation per cell" in out
    code, out, _ = dpsw("plan", "digits", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["ledger"]["charges"] == 0
    assert plan["privacy"]["epsilon"]["upper"] == pytest.approx(10.0, rel=1e-3)


_WATCHED = """
import json, sys
opened = []
def watch(event, args):
    if event in ("open", "sqlite3.connect", "os.listdir", "os.scandir") and args:
        opened.append(str(args[0]))
sys.addaudithook(watch)
from dpsw_ray.cli import main
try:
    main()
finally:
    print(json.dumps(opened), file=sys.stderr)
"""


def watched_plan(config: Path) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, "plan", str(config)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout, json.loads(done.stderr)


def test_plan_opens_no_private_file_and_no_raw_source(dpsw: Dpsw, own_home: Path, tmp_path: Path) -> None:
    raw = tmp_path / "people.parquet"
    pq.write_table(
        pa.table({"a": [i / 7 for i in range(200)], "b": [i % 11 for i in range(200)], "y": [0, 1] * 100}),
        raw,
    )
    config = tmp_path / "people.yaml"
    config.write_text(
        f"data: {{source: table, path: {raw}, label: y, bounds: {{a: [0, 30], b: [0, 10]}}}}\n"
        "encoder: {kind: mlp}\nprivacy: {delta: 1e-4}\n"
    )

    def check(opened: list[str]) -> None:
        assert any("ledger.sqlite" in name for name in opened), "the watch does not work"
        assert str(raw) not in opened
        assert not [name for name in opened if name.startswith(str(own_home)) and "private" in name]

    out, opened = watched_plan(config)
    assert "not known before the data set is divided" in out
    check(opened)

    code, _, err = dpsw("flow", config, *SMALL, "--output", tmp_path / "run")
    assert code == 0, err
    stored = next((own_home / "datasets" / "people").glob("*/private"))
    known, opened = watched_plan(config)
    assert "private records: " in known and "not known" not in known
    assert "charges: 1" in known
    check(opened)

    shutil.rmtree(stored)
    raw.unlink()
    out, opened = watched_plan(config)
    assert out == known
    check(opened)


def test_generate_needs_nothing_but_the_run(dpsw: Dpsw, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = (
        "flow",
        "digits",
        *SMALL,
        "--set",
        "data.name=gone",
        "--set",
        f"paths.home={tmp_path / 'home'}",
        "--output",
        run,
    )
    assert dpsw(*args)[0] == 0
    samples = pq.read_table(run / "samples.parquet")
    private = next((tmp_path / "home" / "datasets" / "gone").glob("*/private"))

    shutil.rmtree(private)
    assert dpsw("generate", run, "--out", tmp_path / "a.parquet", "--num", 50)[0] == 0
    shutil.rmtree(tmp_path / "home" / "datasets" / "gone")
    code, out, _ = dpsw("generate", run, "--out", tmp_path / "b.parquet", "--num", 50, "--seed", 0)
    assert code == 0 and "nothing was charged" in out
    for name in ("a.parquet", "b.parquet"):
        again = pq.read_table(tmp_path / name)
        assert again.equals(samples) and again.schema.metadata == samples.schema.metadata

    assert dpsw("generate", run, "--out", tmp_path / "c.parquet", "--num", 70, "--seed", 1)[0] == 0
    more = pq.read_table(tmp_path / "c.parquet")
    assert len(more) == 70 and more.schema.equals(samples.schema) and not more.slice(0, 50).equals(samples)
    assert charges("gone") == 1


def test_the_same_command_twice_charges_once(dpsw: Dpsw, tmp_path: Path) -> None:
    args = (
        "flow",
        "digits",
        *SMALL,
        "--set",
        "data.name=twice",
        "--set",
        f"paths.home={tmp_path / 'home'}",
        "--output",
        tmp_path / "run",
    )
    assert dpsw(*args)[0] == 0
    names = ("samples.parquet", "particles.arrow", "release/manifest.json", "release/table.arrow")
    before = [(tmp_path / "run" / name).read_bytes() for name in names]
    code, out, _ = dpsw(*args)
    assert code == 0 and "nothing is charged" in out
    assert charges("twice") == 1
    assert [(tmp_path / "run" / name).read_bytes() for name in names] == before


def test_a_resumed_run_keeps_the_encoder_its_release_was_made_with(dpsw: Dpsw, tmp_path: Path) -> None:
    home = tmp_path / "home"
    args = ("flow", "digits", *SMALL, "--set", f"paths.home={home}", "--output", tmp_path / "run")
    assert dpsw(*args)[0] == 0
    before = (tmp_path / "run" / "samples.parquet").read_bytes()
    for cached in (home / "encoders").iterdir():
        shutil.rmtree(cached)
    assert dpsw(*args)[0] == 0
    assert not list((home / "encoders").iterdir()), "the run's own encoder was there"
    assert (tmp_path / "run" / "samples.parquet").read_bytes() == before


def test_ledger_shows_totals_and_checks_its_chain(dpsw: Dpsw, own_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.sqlite"
    name = (
        "--set",
        "data.name=counted",
        "--set",
        f"paths.ledger={path}",
        "--set",
        f"paths.home={tmp_path / 'home'}",
    )
    assert dpsw("flow", "digits", *SMALL, *name, "--output", tmp_path / "run")[0] == 0

    code, out, _ = dpsw("ledger", "--ledger", path)
    assert code == 0 and re.search(r"^counted .* 1 .* none +no limit$", out, re.MULTILINE)
    book = json.loads(dpsw("ledger", "--ledger", path, "--json")[1])
    assert book["data sets"]["counted"]["epsilon"]["upper"] == pytest.approx(10.0, rel=1e-3)
    code, out, _ = dpsw("ledger", "verify", "--ledger", path)
    assert code == 0 and f"hash: {Ledger(path).verify().hash}" in out

    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER log_no_update")
        connection.execute("UPDATE log SET body = replace(body, 'counted', 'discounted')")
    connection.close()
    code, out, err = dpsw("ledger", "--ledger", path)
    assert code == 2 and out == "" and "was changed after the fact" in err


def test_quiet_prints_nothing(dpsw: Dpsw, tmp_path: Path) -> None:
    run = tmp_path / "run"
    name = ("--set", "data.name=quiet", "--set", f"paths.home={tmp_path / 'home'}")
    assert dpsw("flow", "digits", *SMALL, *name, "--output", run, "--quiet") == (0, "", "")
    assert dpsw("generate", run, "--out", tmp_path / "x.parquet", "--num", 5, "--quiet") == (0, "", "")


def test_an_interrupted_run_goes_on_with_the_same_command(dpsw: Dpsw, tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = (
        "data.name=interrupted",
        f"paths.home={tmp_path / 'home'}",
        "flow.particles=3000",
        "flow.steps=300",
        "flow.patience=1000",
    )
    args = ["flow", "digits", *SMALL, *(part for key in slow for part in ("--set", key))]
    process = subprocess.Popen(
        [sys.executable, "-m", "dpsw_ray", *args, "--output", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    seen: list[str] = []
    try:
        for line in process.stdout:
            seen.append(line)
            if line.startswith("Moving particles"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, (seen, out, err)
    assert err == "Interrupted: the same command goes on from here.\n"
    assert charges("interrupted") == 1 and not (run / "report.html").exists()
    # Not a terminal: whole lines, nothing that moves a cursor.
    assert not re.search(r"[\x1b\r\x08]", "".join(seen) + out)
    assert "Releasing: charge, sum, noise\n" in seen

    code, out, err = dpsw(*args, "--output", run)
    assert code == 0 and err == "" and "nothing is charged" in out
    assert charges("interrupted") == 1 and (run / "report.html").exists()
