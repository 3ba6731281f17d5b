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

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from support import done

from dpsw_ray.privacy.ledger import Ledger

SMALL = (
    *("--set", "encoder.epochs=2", "--set", "flow.steps=3", "--set", "flow.particles=50"),
    *("--set", "evaluation.enabled=false", "--set", "tracking.enabled=false"),
    *("--set", "cluster.executor=local"),
)
ROOT = Path(__file__).parents[1]
COMMANDS = ("run", "generate", "plan", "tune", "federated", "account", "audit", "ledger")
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


def test_help_loads_nothing_heavy() -> None:
    script = "import sys, dpsw_ray.cli; print({'numpy', 'torch', 'ray', 'mlflow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


@pytest.mark.parametrize(
    ("module", "command"), [("dpsw_ray", ""), ("tune", "tune"), ("federated", "federated")]
)
def test_a_module_is_the_same_as_its_command(module: str, command: str) -> None:
    """Without an argument: its help. In a folder's own process, as the checkout is on the path there alone."""
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, cwd=ROOT)
    words = [command, "--help"] if command else ["--help"]
    shown = subprocess.run(
        [sys.executable, "-m", "dpsw_ray", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and f"Usage: dpsw {command}".rstrip() in done.stdout
    assert done.stdout == shown.stdout


@pytest.mark.parametrize("command", (*COMMANDS, "flow"))
def test_every_command_has_help(dpsw: Dpsw, command: str) -> None:
    code, out, _ = dpsw(command, "--help")
    assert code == 0 and f"dpsw {command}" in out


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("run",), "Missing argument 'CONFIG'; see `dpsw run --help`."),
        (("flow",), "Missing argument 'CONFIG'; see `dpsw flow --help`."),
        (("tune",), "Missing argument 'CONFIG'; see `dpsw tune --help`."),
        (("federated", "digits", "more"), "unexpected extra argument"),
        (("flow", "digits", "more"), "unexpected extra argument"),
        (("flow", "digits", "--sett", "a=1"), "No such option: --sett"),
        (("bogus",), "No such command 'bogus'"),
        (("generate", "run"), "Missing option '--out'"),
        (("generate", "run", "--out", "x", "--num", "many"), "Invalid value for '--num'"),
        (("generate", "run", "--out", "x", "--num", "0"), "Invalid value for '--num': must be from 1 to"),
        (
            ("generate", "run", "--out", "x", "--num", "1e12"),
            "must be from 1 to 10,000,000,000, found '1e12'",
        ),
        (
            ("generate", "run", "--out", "x", "--num", "1_000"),
            "'--num': must be a whole number, found '1_000'; write",
        ),
        (("generate", "run", "--out", "x", "--num", "1.5"), "'--num': must be a whole number, found '1.5'"),
        (
            ("generate", "run", "--out", "x", "--seed", "4294967296"),
            "'--seed': must be from 0 to 4,294,967,295",
        ),
        (
            ("generate", "run", "--out", "~nosuchuser/x"),
            "'--out': must be a path, found ~nosuchuser/x: ~nosuchuser is",
        ),
        (
            ("generate", "run", "--out", f"{'x' * 300}"),
            "'--out': must be a path of at most 4096 bytes, 255 for a name",
        ),
        (("generate", "~nosuchuser", "--out", "x"), "'RUN': must be a path, found ~nosuchuser"),
        (("flow", "digits", "--output", "~nosuchuser/x"), "'--output': must be a path, found ~nosuchuser/x"),
        (
            ("flow", "di\udcffgits"),
            "An argument is no text in UTF-8 without control characters, found 'di\\udcffgits'.",
        ),
        (
            ("flow", "digits", "--set", "name=\x1b[31m"),
            "An argument is no text in UTF-8 without control characters",
        ),
        (
            ("flow", "digits", "--set", "k" * 5000),
            "--set takes key=value, such as privacy.epsilon=1, found 'kkk",
        ),
        (
            ("ledger", "verify", "/dev/zero"),
            "'[EXPORT]': must be a file, found /dev/zero, which is something else",
        ),
        (("ledger", "show", "--ledger", "/dev/zero"), "'--ledger': must be a file, found /dev/zero"),
        (
            ("plan", "digits", "--set", "paths.ledger=/dev/zero"),
            "--set paths.ledger must be a file, found /dev/zero",
        ),
        (
            ("plan", "digits", "--set", "paths.home=/dev/zero"),
            "--set paths.home must be a folder, found /dev/zero",
        ),
        (("audit", "x" * 300), "is neither a mechanism nor a config"),
        (
            ("flow", "digits", "--set", f"cluster.address={'x' * 300}:80", "--set", "data.name=far"),
            "No Ray cluster answers at cluster.address xxx",
        ),
        (("audit", "all", "--runs", "1e10"), "'--runs': must be from 20 to 100,000,000, found '1e10'"),
        (
            ("audit", "all", "--epsilon", "1e400"),
            "'--epsilon': must be a finite number, found '1e400'; write plain",
        ),
        (("audit", "all", "--delta", "017"), "'--delta': must be a finite number, found '017'"),
        (
            ("plan", "digits", "--set", "privacy.epsilon=1e400"),
            "--set privacy.epsilon must be a number, found '1e400'",
        ),
        (("generate", "nowhere", "--out", "x.csv"), "nowhere is not the folder of a run"),
        (("generate", "run", "--out", "/"), "--out / is a folder: give a file to write."),
        (
            ("generate", "run", "--out", "x.xlsx"),
            "--out takes a name that ends in .parquet, .pq, .arrow, .feather or .csv",
        ),
        (("generate", "run", "--out", "/dev/full"), "--out /dev/full is a device: give a file to write."),
        (("generate", "run", "--out", f"{__file__}/x"), "which is a file: give another path."),
        (("plan", "nowhere.yaml"), "Config file nowhere.yaml does not exist"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(dpsw: Dpsw, args: tuple[str, ...], part: str) -> None:
    code, out, err = dpsw(*args)
    assert code == 2 and out == ""
    assert err.startswith("Error: ") and part in err and err.endswith(".\n") and err.count("\n") == 1
    assert err[:-1].isprintable() and len(err) < 1000


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("NUMBA_NUM_THREADS", "0", "NUMBA_NUM_THREADS must be a whole number from 1 to 4096, found '0'"),
        ("OMP_NUM_THREADS", "abc", "OMP_NUM_THREADS must be a whole number from 1 to 4096, found 'abc'"),
        ("OMP_NUM_THREADS", "2,0", "found '2,0'"),
        ("MKL_NUM_THREADS", "1_0", "found '1_0'"),
        ("TMPDIR", "/nowhere", "TMPDIR must be a folder that exists, found '/nowhere'"),
        (
            "TMPDIR",
            "/proc",
            "TMPDIR must be a folder for temporary files, found '/proc', where none can be written",
        ),
        ("DPSW_HOME", "/dev/null", "DPSW_HOME must be a folder, found /dev/null, which is something else"),
        ("DPSW_LEDGER", "/dev/null", "DPSW_LEDGER must be a file, found /dev/null, which is something else"),
        ("DPSW_HOME", "~nosuchuser/x", "DPSW_HOME must be a path, found ~nosuchuser/x"),
    ],
)
def test_an_environment_that_nothing_can_work_in_is_one_sentence(
    dpsw: Dpsw, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, part: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, out, err = dpsw("plan", "digits")
    assert code == 2 and out == ""
    assert (
        err.startswith(f"Error: The environment's {variable} must") and part in err and err.count("\n") == 1
    )


def test_a_terminal_of_ascii_gets_escapes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dpsw_ray", "plan", "digits", "--set", "name=é"],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 2 and b"found '\\xe9'" in done.stderr and b"Traceback" not in done.stderr


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


def test_what_is_only_asked_or_refused_leaves_no_trace(dpsw: Dpsw, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    places = ("--set", f"paths.home={tmp_path}/home", "--set", f"paths.ledger={tmp_path}/home/ledger.sqlite")
    done("plan", "digits", *places)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    missing = ("--set", "data.source=table", "--set", f"data.path={tmp_path}/nowhere.parquet")
    code, _, err = dpsw("flow", "digits", *places, *missing, "--output", tmp_path / "runs" / "x", "--quiet")
    assert code == 2 and "nowhere.parquet" in err, err
    assert not (tmp_path / "runs").exists()  # nor a run in MLflow, nor a data base of it


def test_plan_opens_no_private_file_and_no_raw_source(dpsw: Dpsw, own_home: Path, tmp_path: Path) -> None:
    Ledger(own_home / "ledger.sqlite").register("other", "replace_one", "record", 1e-5)
    raw = tmp_path / "people.parquet"
    pq.write_table(
        pa.table({"a": [i / 7 for i in range(200)], "b": [i % 11 for i in range(200)], "y": [0, 1] * 100}),
        raw,
    )
    config = tmp_path / "people.yaml"
    config.write_text(
        f"data: {{source: table, path: {raw}, label: y, bounds: {{a: [0, 30], b: [0, 10]}}, public_fraction: 0.5}}\n"
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
    done(*args)
    samples = pq.read_table(run / "samples.parquet")
    private = next((tmp_path / "home" / "datasets" / "gone").glob("*/private"))

    shutil.rmtree(private)
    done("generate", run, "--out", tmp_path / "a.parquet", "--num", 50)
    shutil.rmtree(tmp_path / "home" / "datasets" / "gone")
    code, out, _ = dpsw("generate", run, "--out", tmp_path / "b.parquet", "--num", 50, "--seed", 0)
    assert code == 0 and "nothing was charged" in out
    for name in ("a.parquet", "b.parquet"):
        again = pq.read_table(tmp_path / name)
        assert again.equals(samples) and again.schema.metadata == samples.schema.metadata

    done("generate", run, "--out", tmp_path / "c.parquet", "--num", 70, "--seed", 1)
    more = pq.read_table(tmp_path / "c.parquet")
    assert len(more) == 70 and more.schema.equals(samples.schema) and not more.slice(0, 50).equals(samples)
    assert charges("gone") == 1

    done("generate", run, "--out", tmp_path / "d.csv", "--num", 50)
    text = pa.csv.read_csv(tmp_path / "d.csv")
    assert text.column_names == [*(f"pixel{i}" for i in range(64)), "label"]
    pixels = np.array(samples.column("pixels").to_pylist())
    assert np.array_equal(np.stack([text.column(i).to_numpy() for i in range(64)], 1), pixels)

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in (run / "release" / "table.arrow", run / "more.csv", Path("/dev/full"), tmp_path / "e.txt"):
        code, _, err = dpsw("generate", run, "--out", out, "--num", 50)
        assert code == 2 and err.startswith("Error: --out ") and err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


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
    done(*args)
    names = ("samples.parquet", "particles.arrow", "release/manifest.json", "release/table.arrow")
    before = [(tmp_path / "run" / name).read_bytes() for name in names]
    code, out, _ = dpsw(*args)
    assert code == 0 and "nothing is charged" in out
    assert charges("twice") == 1
    assert [(tmp_path / "run" / name).read_bytes() for name in names] == before


def test_a_resumed_run_keeps_the_encoder_its_release_was_made_with(dpsw: Dpsw, tmp_path: Path) -> None:
    home = tmp_path / "home"
    args = ("flow", "digits", *SMALL, "--set", f"paths.home={home}", "--output", tmp_path / "run")
    done(*args)
    before = (tmp_path / "run" / "samples.parquet").read_bytes()
    for cached in (home / "encoders").iterdir():
        shutil.rmtree(cached)
    done(*args)
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
    done("flow", "digits", *SMALL, *name, "--output", tmp_path / "run")

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
