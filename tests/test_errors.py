from __future__ import annotations

import errno
import gzip
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpsw_ray import cli
from dpsw_ray.base.errors import explain_os_error
from dpsw_ray.methods.registry import load_config
from dpsw_ray.privacy.ledger import Ledger

SMALL = (
    *("--set", "encoder.epochs=2", "--set", "flow.steps=3", "--set", "flow.particles=50"),
    *("--set", "evaluation.enabled=false", "--set", "tracking.enabled=false"),
    *("--set", "cluster.executor=local"),
)


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What a refused command says: one line, and nothing else on standard error."""
        assert self.code == 2, self
        assert self.err.startswith("Error: ") and self.err.endswith(".\n") and self.err.count("\n") == 1, self
        assert "Traceback" not in self.err + self.out
        return self.err.removeprefix("Error: ").strip()


Dpsw = Callable[..., Outcome]


@pytest.fixture
def dpsw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dpsw:
    def call(*args: str | Path) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dpsw", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


def in_process_of_its_own(*args: str | Path, limit: int | None = None) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "dpsw_ray", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def charges() -> dict[str, int]:
    ledger = Ledger(load_config("digits").ledger_path)
    return {entry.name: ledger.total(entry.name).charges for entry in ledger.datasets()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """A finished run; its data set and encoder are in the home from now on."""
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.pipeline.run import run

    folder = tmp_path_factory.mktemp("finished") / "run"
    run(load_config("digits", SMALL[1::2]), folder, Progress(quiet=True))
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    n = 300
    good = {"a": rng.normal(size=n), "b": rng.normal(size=n), "y": rng.integers(0, 2, n)}
    pq.write_table(pa.table(good), folder / "good.parquet")
    pq.write_table(pa.table(good).slice(0, 0), folder / "empty.parquet")
    pq.write_table(pa.table({**good, "a": ["many"] * n}), folder / "text.parquet")
    (folder / "corrupt.parquet").write_bytes((folder / "good.parquet").read_bytes()[:900])
    (folder / "table.csv").write_text("a,b,y\n1,2,0\n")
    return folder


@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        ("none.parquet", (), ("none.parquet does not exist", ".parquet, .arrow or .feather")),
        (".", (), ("is a folder, where a .parquet",)),
        ("table.csv", (), ("ends in '.csv'", "must be a .parquet, .arrow or .feather")),
        ("corrupt.parquet", (), ("corrupt.parquet cannot be read as Parquet",)),
        ("empty.parquet", (), ("empty.parquet gives no public record: it is empty",)),
        ("text.parquet", (), ("column a has the Arrow type string", "numeric")),
        ("good.parquet", ("data.label=Y",), ("no column Y for data.label; it has a, b, y",)),
        ("good.parquet", ("data.columns=[a, c]",), ("no column c, which data.columns names",)),
    ],
)
def test_a_table_that_cannot_be_used(
    dpsw: Dpsw, tables: Path, tmp_path: Path, name: str, overrides: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    before, spent = content(tables), charges()
    table = ("data.source=table", "encoder.kind=mlp", "data.label=y", f"data.path={tables / name}")
    outcome = dpsw("flow", "digits", *SMALL, *sets(*table, *overrides), "--output", tmp_path / "run")
    assert all(part in outcome.sentence for part in parts), outcome.sentence
    assert not list(tmp_path.iterdir())
    assert content(tables) == before and charges() == spent


def test_corrupt_idx_files(dpsw: Dpsw, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for part in ("train", "t10k"):
        images = bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(784)
        (source / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (source / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9))
    before = content(source)
    args = ("flow", "fashion_mnist", *SMALL, "--output", tmp_path / "run")
    outcome = dpsw(*args, *sets(f"data.path={source}", "data.name=broken"))
    assert "images-idx3-ubyte.gz is truncated" in outcome.sentence
    assert content(source) == before and not (tmp_path / "run").exists()
    outcome = dpsw(*args, *sets(f"data.path={tmp_path / 'nowhere'}"))
    assert "nowhere is not a folder, where one with the IDX files of Fashion-MNIST" in outcome.sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("epsilon", ["0", "-1", "abc", ".nan"])
def test_an_epsilon_that_is_no_promise(dpsw: Dpsw, tmp_path: Path, epsilon: str) -> None:
    args = ("flow", "digits", *SMALL, "--output", tmp_path / "run")
    sentence = dpsw(*args, *sets(f"privacy.epsilon={epsilon}")).sentence
    assert sentence.startswith("--set privacy.epsilon must be ") or "privacy.epsilon must be" in sentence
    assert not list(tmp_path.iterdir())


def test_a_delta_of_one_in_n_is_refused_and_the_corrected_command_runs(
    dpsw: Dpsw, finished: Path, tmp_path: Path
) -> None:
    spent, run = charges(), tmp_path / "run"
    args = ("flow", "digits", *SMALL, "--output", run)
    other = ("privacy.delta=0.01", "data.name=forced", f"paths.home={tmp_path / 'home'}")
    sentence = dpsw(*args, *sets(*other)).sentence
    assert sentence.startswith("privacy.delta 0.01 is not below 1/N = ") and "privacy.force_delta" in sentence
    assert charges() == spent and not run.exists()
    assert dpsw(*args).code == 0
    assert charges() == {**spent, "digits": spent["digits"] + 1}
    forced = sets(*other, "privacy.force_delta=true")
    outcome = dpsw("flow", "digits", *SMALL, *forced, "--output", tmp_path / "forced")
    assert outcome.code == 0, outcome.err


def test_under_add_remove_nothing_is_said_about_delta_and_n(dpsw: Dpsw, tmp_path: Path) -> None:
    hidden = (
        "privacy.delta=0.01",
        "privacy.relation=add_remove",
        "data.name=hidden",
        f"paths.home={tmp_path / 'home'}",
    )
    assert dpsw("flow", "digits", *SMALL, *sets(*hidden), "--output", tmp_path / "run").code == 0


def test_a_spent_budget_is_refused_and_a_smaller_epsilon_fits_into_the_same_folder(
    dpsw: Dpsw, finished: Path, tmp_path: Path
) -> None:
    ledger = Ledger(load_config("digits").ledger_path)
    ledger.register("capped", "replace_one", "record", 1e-4, cap=2.0)
    args = (
        "flow",
        "digits",
        *SMALL,
        *sets("data.name=capped", f"paths.home={tmp_path / 'home'}"),
        "--output",
        tmp_path / "run",
    )
    sentence = dpsw(*args).sentence
    assert "The budget of data set capped is epsilon 2" in sentence and "Nothing was charged" in sentence
    assert ledger.total("capped").charges == 0
    assert dpsw(*args, *sets("privacy.epsilon=1.5")).code == 0
    assert ledger.total("capped").charges == 1


def test_a_resource_the_cluster_has_not(finished: Path, tmp_path: Path) -> None:
    spent = charges()
    more = sets("cluster.executor=ray", "cluster.gpus_per_actor=64", "cluster.timeout_s=20")
    outcome = in_process_of_its_own("flow", "digits", *SMALL, *more, "--output", tmp_path / "run")
    assert outcome.sentence.startswith("cluster.gpus_per_actor: 2 actors with 64 each ask for 128 GPUs, but ")
    assert charges() == spent and not list(tmp_path.iterdir())


def test_a_folder_that_holds_another_run(finished: Path) -> None:
    before, spent = content(finished), charges()
    outcome = in_process_of_its_own("flow", "digits", *SMALL, *sets("seed=5"), "--output", finished)
    assert f"{finished} holds another run (seed is 0 there and 5 here)" in outcome.sentence
    assert outcome.out == ""
    assert content(finished) == before and charges() == spent


def test_a_folder_of_other_things_or_a_file(dpsw: Dpsw, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    args = ("flow", "digits", *SMALL, "--output")
    assert "holds files that are not a run" in dpsw(*args, tmp_path).sentence
    assert "is a file" in dpsw(*args, tmp_path / "diary.txt").sentence
    assert "lies inside" in dpsw(*args, tmp_path / "diary.txt" / "run").sentence
    assert content(tmp_path).keys() == {"diary.txt"} and (tmp_path / "diary.txt").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(dpsw: Dpsw, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    sentence = dpsw("flow", "digits", *SMALL, "--output", tmp_path / "run").sentence
    assert str(tmp_path) in sentence and "Permission denied" in sentence


def test_a_tracking_server_that_does_not_answer(dpsw: Dpsw, finished: Path, tmp_path: Path) -> None:
    spent = charges()
    tracked = sets("tracking.enabled=true", "tracking.uri=http://127.0.0.1:9")
    sentence = dpsw("flow", "digits", *SMALL, *tracked, "--output", tmp_path / "run").sentence
    assert sentence.startswith("tracking.uri: MLflow cannot use http://127.0.0.1:9 (")
    assert charges() == spent and not list(tmp_path.iterdir())


def test_a_locked_ledger(dpsw: Dpsw, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    path = load_config("digits").ledger_path
    monkeypatch.setattr(Ledger.__init__, "__kwdefaults__", {"timeout_s": 0.1})
    holder = sqlite3.connect(path, isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        sentence = dpsw("flow", "digits", *SMALL, "--output", tmp_path / "run").sentence
    finally:
        holder.close()
    assert "stayed locked by another process" in sentence and "nothing was charged" in sentence
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts file systems of a given size; the last one goes with the test."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a file system of its own")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def test_a_full_disk_before_anything_is_paid(
    dpsw: Dpsw, finished: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("64k")
    (disk / "mine.txt").write_text("mine")
    before, spent = content(disk), charges()
    sentence = dpsw("flow", "digits", *SMALL, "--output", disk / "run").sentence
    assert sentence.startswith(f"The disk is full or over quota at {disk}") and "No space left" in sentence
    assert content(disk) == before and not (disk / "run").exists() and charges() == spent


def test_a_disk_that_fills_up_after_the_charge_costs_nothing_more(
    dpsw: Dpsw, finished: Path, small_disk: Callable[[str], Path]
) -> None:
    disk, spent = small_disk("4m"), charges()
    used = sum(path.stat().st_size for path in (finished / "encoder").iterdir())
    (disk / "mine.bin").write_bytes(bytes((4 << 20) - used - (76 << 10)))
    args = ("flow", "digits", *SMALL, "--output", disk / "run")
    assert "The disk is full or over quota at " in dpsw(*args).sentence
    assert charges()["digits"] == spent["digits"] + 1
    assert not list(disk.rglob("*.part")) and (disk / "mine.bin").stat().st_size > 0
    (disk / "mine.bin").unlink()
    assert dpsw(*args).code == 0
    assert charges()["digits"] == spent["digits"] + 1


def test_a_full_disk_of_the_ledger(dpsw: Dpsw, small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    disk = small_disk("8k")
    ledger = sets(f"paths.ledger={disk / 'ledger.sqlite'}", f"paths.home={tmp_path / 'home'}")
    sentence = dpsw("flow", "digits", *SMALL, *ledger, "--output", tmp_path / "run").sentence
    assert sentence == (
        f"The disk of the privacy ledger {disk / 'ledger.sqlite'} is full: nothing was charged; "
        "free some space."
    )
    assert not (tmp_path / "run").exists()


def test_a_full_disk_of_the_tracking_store_leaves_no_half_data_base(
    dpsw: Dpsw, finished: Path, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk, spent = small_disk("300k"), charges()
    store = sets("tracking.enabled=true", f"tracking.uri=sqlite:///{disk / 'mlflow.db'}")
    sentence = dpsw("flow", "digits", *SMALL, *store, "--output", tmp_path / "run").sentence
    assert sentence.startswith("tracking.uri: MLflow cannot use sqlite:///") and "full" in sentence
    assert charges() == spent and not (tmp_path / "run").exists()
    assert not (disk / "mlflow.db").exists(), "half a data base would be refused from then on"


def test_a_file_size_limit_is_a_full_disk_too(finished: Path, tmp_path: Path) -> None:
    """The same without the right to mount: the encoder is beyond the limit, the ledger is not."""
    (tmp_path / "mine.txt").write_text("mine")
    before, spent = content(tmp_path), charges()
    outcome = in_process_of_its_own("flow", "digits", *SMALL, "--output", tmp_path / "run", limit=600_000)
    assert outcome.sentence.startswith(f"The disk is full or over quota at {tmp_path}"), outcome
    assert "(File too large)" in outcome.sentence
    assert content(tmp_path) == before and charges() == spent


def test_system_errors_name_the_file_and_quote_nothing_else() -> None:
    denied = explain_os_error(PermissionError(errno.EACCES, "Permission denied", "/x"))
    assert denied.startswith("The operating system refused access at /x (Permission denied): ")
    assert explain_os_error(OSError("secret 42")) == "The operating system refused: OSError."
    assert "secret" not in explain_os_error(OSError(errno.ENOSPC, "secret 42"))


def test_conditions_inside_the_private_records_pass_in_silence(tmp_path: Path) -> None:
    """Rows with NaN and infinities, labels outside the class list, and a class without any record."""
    rng = np.random.default_rng(1)
    n = 600
    a = rng.normal(size=n)
    a[::5], a[1::50], a[2::50] = np.nan, np.inf, -1e300
    labels = [None if i % 97 == 0 else str(i % 4) for i in range(n)]
    columns = {"a": a, "b": rng.normal(size=n), "y": pa.array(labels, pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "people.parquet")
    keys = (
        *("data.source=table", f"data.path={tmp_path / 'people.parquet'}", "data.label=y"),
        *("data.classes=['0', '1', '2', nobody]", "encoder.kind=mlp", "privacy.delta=1e-4"),
        *("privacy.epsilon=1", "data.bounds={a: [-5, 5], b: [-5, 5]}"),
    )
    outcome = in_process_of_its_own("flow", "digits", *SMALL, *sets(*keys), "--output", tmp_path / "run")
    assert outcome.code == 0 and outcome.err == "", outcome
    # of the class list, public labels and the released table may speak
    public = ("Released classes: ", "WARNING: no public record has a label of data.classes called nobody")
    said = "\n".join(line for line in outcome.out.splitlines() if not line.startswith(public))
    assert not any(word in said.lower() for word in ("nan", "nobody", "warn", "missing"))
    assert (tmp_path / "run" / "report.html").exists()
