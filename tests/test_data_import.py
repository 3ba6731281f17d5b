"""Importing in several processes, and the command line of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from test_data_sources import write_celeba

from dpsw_ray.config import DataConfig
from dpsw_ray.data import import_dataset
from dpsw_ray.data.table import TableSource
from dpsw_ray.errors import UserError
from dpsw_ray.private.ingest import ingest

Dpsw = Callable[..., tuple[int, str, str]]


def table(path: Path, rows: int = 3_000, stretch: int = 170) -> Path:
    """Numbers with gaps and repetitions, labels that first appear late, in many row groups or record batches."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(rows, 3))
    numbers[rng.integers(0, rows, 50), rng.integers(0, 3, 50)] = np.nan
    numbers[rows // 2 :][:100] = numbers[:100]
    labels = [f"c{i}" if rng.random() < 0.9 else None for i in rng.integers(0, 1 + np.arange(rows) // 700)]
    made = pa.table({name: numbers[:, i] for i, name in enumerate("abc")} | {"y": labels})
    if path.suffix == ".parquet":
        pq.write_table(made, path, row_group_size=stretch)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(made, str(path), chunksize=stretch)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made, max_chunksize=stretch)
    return path


def stored(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_the_division_of_a_table_does_not_depend_on_the_processes(suffix: str, tmp_path: Path) -> None:
    path = table(tmp_path / f"t.{suffix}")
    assert TableSource(path, "y", None).stretches("train") == (1 if suffix == "arrow" else 18)
    cfg = DataConfig(source="table", path=path, label="y", name="t")
    one, several = (
        stored(import_dataset(cfg, tmp_path / f"{processes}", "replace_one", processes).folder)
        for processes in (1, 2)
    )
    assert one == several
    assert {"dataset.json", "public/records.arrow", "private/records.arrow", "test/digests.npy"} < set(one)


def test_nor_does_that_of_images(tmp_path: Path) -> None:
    from dpsw_ray.data.celeba import _BATCH, CelebaSource

    count = 2 * _BATCH + 7
    write_celeba(tmp_path / "celeba", n=count, partition=False)
    source = CelebaSource(tmp_path / "celeba", None)
    assert source.stretches("train") == 3
    last = [values for values, _ in source.batches("train", range(2, 3))]
    assert [len(values) for values in last] == [7]
    cfg = DataConfig(source="celeba", path=tmp_path / "celeba", label="Male", name="faces")
    one, several = (
        stored(import_dataset(cfg, tmp_path / f"{processes}", "replace_one", processes).folder)
        for processes in (1, 2)
    )
    assert one == several


def test_a_mistake_in_another_process_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4_000] = bytes(4_000)
    path.write_bytes(data)
    cfg = DataConfig(source="table", path=path, label="y", name="t")
    with pytest.raises(UserError, match="cannot be read as Parquet") as caught:
        ingest(cfg, tmp_path / "home", "replace_one", 2)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    left = [path for path in (tmp_path / "home").rglob("*") if path.suffix != ".lock" and path.is_file()]
    assert left == []


def test_import_and_show(tmp_path: Path, dpsw: Dpsw, capfd: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "t.parquet")
    config = tmp_path / "t.yaml"
    config.write_text(
        f"data: {{source: table, path: {path}, label: y}}\nencoder: {{kind: identity}}\n"
        f"paths: {{home: {tmp_path / 'home'}, ledger: {tmp_path / 'ledger.sqlite'}}}\n"
    )
    code, _, error = dpsw("data", "show", config)
    assert code == 2 and "Data set t is not divided yet" in error and "dpsw data import" in error
    code, shown, error = dpsw("data", "import", config, "--processes", 2, "--json")
    assert (code, error) == (0, "")
    info = json.loads(shown)
    assert info["classes"] == ["c0", "c1", "c2", "c3", "c4"]
    assert info["public_count"] + info["test_count"] + info["private_count"] <= 3_000
    assert dpsw("data", "show", config, "--json") == (0, shown, "")
    assert dpsw("data", "import", config, "--json") == (0, shown, ""), "done once"
    hidden = ("--set", "privacy.relation=add_remove", "--json")
    code, _, error = dpsw("data", "import", config, *hidden)
    assert code == 2 and "relation" in error, "registered with the first import"
    elsewhere = (
        "--set",
        f"paths.home={tmp_path / 'other'}",
        "--set",
        f"paths.ledger={tmp_path / 'other.sqlite'}",
    )
    code, shown, _ = dpsw("data", "import", config, *hidden, *elsewhere)
    assert code == 0 and "private_count" not in shown


def test_one_ledger_knows_one_division_of_a_data_set(tmp_path: Path, dpsw: Dpsw) -> None:
    """What one home protects, another home's division would publish as public, and no charge would tell."""
    path, config = table(tmp_path / "t.parquet"), tmp_path / "t.yaml"
    config.write_text(
        f"data: {{source: table, path: {path}, label: y}}\nencoder: {{kind: identity}}\n"
        f"cluster: {{executor: local}}\npaths: {{home: {tmp_path / 'home'}, ledger: {tmp_path / 'ledger.sqlite'}}}\n"
    )
    assert dpsw("data", "import", config)[0] == 0
    other = ("--set", f"paths.home={tmp_path / 'other'}")
    assert dpsw("data", "import", config, *other)[0] == 0, "the same division, on another disk"
    _, shown, _ = dpsw("ledger", "show", "t", "--ledger", tmp_path / "ledger.sqlite")
    assert "divided: public_fraction 0.5, test u < 0.2, split_seed 0" in shown
    divided = ("--set", f"paths.home={tmp_path / 'third'}", "--set", "data.public_fraction=0.25")
    run = ("flow", config, *divided, "--output", tmp_path / "run")
    for command in (("data", "import", config, *divided), run):
        code, _, error = dpsw(*command)
        assert (
            code == 2 and "data.public_fraction (there 0.5, here 0.25) would divide it another way" in error
        )
        assert error.count("\n") == 1
        assert not list((tmp_path / "third").rglob("dataset.json"))
    assert not (tmp_path / "run" / "encoder").exists()
    code, _, error = dpsw("data", "import", config, *divided, "--set", "privacy.research=true")
    assert code == 0, error


def test_generated_users_are_in_nobody_s_way(tmp_path: Path) -> None:
    """They lie in the home under the name `generated`, divided by no rule."""
    made = tmp_path / "home" / "datasets" / "generated" / "population"
    made.mkdir(parents=True)
    (made / "dataset.json").write_text('{"format": 1, "source": "generated", "schema": {}}')
    cfg = DataConfig(source="table", path=table(tmp_path / "generated.parquet"), label="y")
    assert import_dataset(cfg, tmp_path / "home", "replace_one").public_count


def test_a_protected_number_of_records_stays_so(tmp_path: Path, dpsw: Dpsw) -> None:
    config, book = tmp_path / "t.yaml", tmp_path / "ledger.sqlite"
    config.write_text(
        f"data: {{source: table, path: {table(tmp_path / 't.parquet')}, label: y}}\n"
        f"encoder: {{kind: identity}}\npaths: {{home: {tmp_path / 'home'}, ledger: {book}}}\n"
    )
    fixed = ("--relation", "add_remove", "--unit", "record", "--delta", "1e-5", "--ledger", book)
    assert dpsw("ledger", "register", "t", *fixed)[0] == 0
    for command in ("import", "show"):
        code, _, error = dpsw("data", command, config)
        assert code == 2 and "add_remove" in error
    assert not (tmp_path / "home").exists()


def test_a_number_that_was_told_is_not_promised_to_be_hidden(tmp_path: Path, dpsw: Dpsw) -> None:
    """A run that was killed between dividing and registering, or an import with another ledger."""
    path = table(tmp_path / "t.parquet")
    import_dataset(
        DataConfig(source="table", path=path, label="y", name="t"), tmp_path / "home", "replace_one"
    )
    for command in (("data", "import"), ("flow",)):
        code, _, error = dpsw(
            *command, "table", "--set", f"data.path={path}", "--set", "data.label=y", "--set", "data.name=t",
            "--set", f"paths.home={tmp_path / 'home'}", "--set", f"paths.ledger={tmp_path / 'ledger.sqlite'}",
            "--set", "privacy.relation=add_remove", "--set", "cluster.executor=local",
        )  # fmt: skip
        assert code == 2 and "tells how many private records there are" in error and error.count("\n") == 1


def test_readers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = (
        "import os, sys, time, multiprocessing\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from dpsw_ray.data.collect import _end_with\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    pool = ProcessPoolExecutor(1, context, _end_with, (os.getpid(),))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "reader.py").write_text(script)
    process = subprocess.Popen([sys.executable, tmp_path / "reader.py"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    reader = Path("/proc") / process.stdout.readline().strip()
    assert (reader / "stat").exists()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while (reader / "stat").exists() and "Z" not in (reader / "stat").read_text().rpartition(")")[2].split()[
        0
    ]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_arrow_file_without_batches_is_a_sentence_for_any_number_of_processes(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.float64())])
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema):
        pass
    cfg = DataConfig(source="table", path=tmp_path / "t.arrow", name="t")
    for processes in (1, 2):
        with pytest.raises(UserError, match="gives no public record"):
            ingest(cfg, tmp_path / "home", "replace_one", processes)
