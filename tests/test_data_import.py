"""Importing in several processes, and the command line of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from support import done, kept
from test_data_sources import write_celeba

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import DataConfig
from dpsw_ray.data import import_dataset
from dpsw_ray.data.split import DatasetInfo
from dpsw_ray.data.table import TableSource
from dpsw_ray.private.ingest import ingest

Dpsw = Callable[..., tuple[int, str, str]]

PARTS: dict[str, Any] = {"public_fraction": 0.5, "test_fraction": 0.2}


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
    cfg = DataConfig(source="table", path=path, label="y", name="t", **PARTS)
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
    cfg = DataConfig(source="table", path=path, label="y", name="t", **PARTS)
    with pytest.raises(UserError, match="cannot be read as Parquet") as caught:
        ingest(cfg, tmp_path / "home", "replace_one", 2)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    left = [path for path in (tmp_path / "home").rglob("*") if path.suffix != ".lock" and path.is_file()]
    assert left == []


def test_import_and_show(tmp_path: Path, dpsw: Dpsw, capfd: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "t.parquet")
    config = tmp_path / "t.yaml"
    config.write_text(
        f"data: {{source: table, path: {path}, label: y, public_fraction: 0.5, test_fraction: 0.2}}\n"
        "encoder: {kind: identity}\n"
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
    assert dpsw("data", "import", config, "--json", terminal=True) == (0, shown, ""), "done once"
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
        f"data: {{source: table, path: {path}, label: y, public_fraction: 0.5, test_fraction: 0.2}}\n"
        "encoder: {kind: identity}\n"
        f"cluster: {{executor: local}}\npaths: {{home: {tmp_path / 'home'}, ledger: {tmp_path / 'ledger.sqlite'}}}\n"
    )
    done("data", "import", config)
    other = ("--set", f"paths.home={tmp_path / 'other'}")
    done("data", "import", config, *other)  # the same division, on another disk
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
    cfg = DataConfig(source="table", path=table(tmp_path / "generated.parquet"), label="y", **PARTS)
    assert import_dataset(cfg, tmp_path / "home", "replace_one").public_count


def test_a_protected_number_of_records_stays_so(tmp_path: Path, dpsw: Dpsw) -> None:
    config, book = tmp_path / "t.yaml", tmp_path / "ledger.sqlite"
    config.write_text(
        f"data: {{source: table, path: {table(tmp_path / 't.parquet')}, label: y, public_fraction: 0.5}}\n"
        f"encoder: {{kind: identity}}\npaths: {{home: {tmp_path / 'home'}, ledger: {book}}}\n"
    )
    fixed = ("--relation", "add_remove", "--unit", "record", "--delta", "1e-5", "--ledger", book)
    done("ledger", "register", "t", *fixed)
    for command in ("import", "show"):
        code, _, error = dpsw("data", command, config)
        assert code == 2 and "add_remove" in error
    assert not (tmp_path / "home").exists()


def test_a_number_that_was_told_is_not_promised_to_be_hidden(tmp_path: Path, dpsw: Dpsw) -> None:
    """A run that was killed between dividing and registering, or an import with another ledger."""
    path = table(tmp_path / "t.parquet")
    import_dataset(
        DataConfig(source="table", path=path, label="y", name="t", **PARTS), tmp_path / "home", "replace_one"
    )
    for command in (("data", "import"), ("flow",)):
        code, _, error = dpsw(
            *command, "table", "--set", f"data.path={path}", "--set", "data.label=y", "--set", "data.name=t",
            "--set", f"paths.home={tmp_path / 'home'}", "--set", f"paths.ledger={tmp_path / 'ledger.sqlite'}",
            "--set", "privacy.relation=add_remove", "--set", "cluster.executor=local",
            "--set", "data.public_fraction=0.5", "--set", "data.test_fraction=0.2",
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
    cfg = DataConfig(source="table", path=tmp_path / "t.arrow", name="t", **PARTS)
    for processes in (1, 2):
        with pytest.raises(UserError, match="gives no public record"):
            ingest(cfg, tmp_path / "home", "replace_one", processes)


BOUNDS = "data.bounds={a: [-5, 5], b: [-5, 5], c: [-5, 5]}"


def sets(folder: Path, *keys: str) -> list[str]:
    own = (
        "data.label=y",
        f"paths.home={folder / 'home'}",
        f"paths.ledger={folder / 'ledger.sqlite'}",
        "cluster.executor=local",
        "tracking.enabled=false",
        "flow.particles=200",
        "flow.steps=5",
    )
    return [word for key in (f"data.path={folder / 't.parquet'}", *own, *keys) for word in ("--set", key)]


def test_the_shipped_config_protects_a_whole_table(tmp_path: Path, dpsw: Dpsw) -> None:
    count = pq.read_metadata(table(tmp_path / "t.parquet")).num_rows
    classes = "data.classes=[c0, c1, c2, c3, c4]"
    run = ("flow", "table", "--output", tmp_path / "run")
    code, out, error = dpsw(*run, *sets(tmp_path))
    assert code == 2 and "data.classes is missing" in error
    for command in (("data", "import", "table"), run):
        code, out, error = dpsw(*command, *sets(tmp_path, classes, "data.bounds={b: [-5, 5]}"))
        assert code == 2 and error.count("\n") == 1, "before a record is read"
        assert "data.bounds lacks a, c:" in error and "{a: [LOW, HIGH], c: [LOW, HIGH]}" in error
        assert "Dividing" not in error and "encoder" not in out and not list(tmp_path.rglob("*.arrow"))
    code, _, error = dpsw("data", "import", "table", *sets(tmp_path, classes, "data.bounds={x: [0, 1]}"))
    assert code == 2 and "data.bounds.x is no column; the columns are a, b, c." in error

    code, out, error = dpsw(*run, *sets(tmp_path, classes, BOUNDS))
    assert code == 0, error
    said = f"Protected: {count:,} records. Not protected: none."
    assert said in out and out.index(said) < out.index("Releasing")
    assert "public part" not in out.partition("Releasing")[0].replace("public, private and test parts", "")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not protected<b>no record</b>" in page
    code, out, _ = dpsw("plan", "table", *sets(tmp_path, classes, BOUNDS))
    assert code == 0 and said in out


def test_every_run_says_what_it_does_not_protect(tmp_path: Path, dpsw: Dpsw) -> None:
    table(tmp_path / "t.parquet")
    parts = ("data.public_fraction=0.5", "data.test_fraction=0.2")
    code, out, error = dpsw("flow", "table", "--output", tmp_path / "run", *sets(tmp_path, *parts))
    assert code == 0, error
    info = json.loads(next((tmp_path / "home").rglob("dataset.json")).read_text())["counts"]
    rest = f"Not protected: {info['public']:,} public records and {info['test']:,} test records."
    said = f"Protected: {info['private']:,} records. {rest}"
    assert said in out and out.index(said) < out.index("Releasing")
    both = info["public"] + info["test"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"not protected<b>{both:,} records</b><small>{info['public']:,} public, {info['test']:,}" in page
    hidden = sets(tmp_path / "hidden", *parts, "privacy.relation=add_remove")
    (tmp_path / "hidden").mkdir()
    table(tmp_path / "hidden" / "t.parquet")
    code, out, error = dpsw("flow", "table", "--output", tmp_path / "secret", *hidden)
    assert code == 0, error
    assert f"Protected: the private records, and how many there are. {rest}" in out


def test_what_was_private_may_become_part_of_a_whole_private_table(tmp_path: Path, dpsw: Dpsw) -> None:
    """What was public has trained encoders: it stays public, and the run says so."""
    from dpsw_ray.private.records import open_private_records

    table(tmp_path / "t.parquet")
    assert (
        dpsw("data", "import", "table", *sets(tmp_path, *(f"data.{k}={v}" for k, v in PARTS.items())))[0] == 0
    )
    (first,) = (tmp_path / "home").rglob("dataset.json")
    counts = json.loads(first.read_text())["counts"]
    whole = sets(tmp_path, "data.classes=[c0, c1, c2, c3, c4]", BOUNDS)
    code, out, error = dpsw("flow", "table", "--output", tmp_path / "run", *whole)
    assert code == 0, error
    assert (
        f"Protected: {counts['private']:,} records. Not protected: {counts['public']:,} public records and "
        f"{counts['test']:,} test records. These records were public before, and stay so." in out
    )
    (second,) = {*(tmp_path / "home").rglob("dataset.json")} - {first}
    one, two = (open_private_records(path.parent / "private") for path in (first, second))
    np.testing.assert_array_equal(one.values, two.values)
    # another home, where the ledger alone knows, cannot tell which records they were
    code, _, error = dpsw("data", "import", "table", *whole, "--set", f"paths.home={tmp_path / 'other'}")
    assert code == 2 and "this home does not hold that division" in error
    code, _, error = dpsw("data", "import", "table", *whole, "--set", "data.test_fraction=0.1")
    assert code == 2 and "would divide it another way" in error


def copy_of(path: Path, target: Path, rows: slice = slice(None)) -> Path:
    """The same records in another file."""
    pq.write_table(pq.read_table(path).take(list(range(pq.read_metadata(path).num_rows))[rows]), target)
    return target


@pytest.mark.parametrize("relation", ["replace_one", "add_remove"])
@pytest.mark.parametrize("kind", ["bytes", "format", "order", "most", "columns"])
def test_records_under_another_path_and_name_are_no_second_budget(
    kind: str, relation: str, tmp_path: Path, dpsw: Dpsw, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = table(tmp_path / "t.parquet"), tmp_path / "again.parquet"
    whole = (BOUNDS, "data.classes=[c0, c1]", f"privacy.relation={relation}")
    done("data", "import", "table", *sets(tmp_path, *whole))
    keys = [*whole, f"data.path={other}"]
    if kind in ("bytes", "columns"):  # as it stands, or read another way
        shutil.copy(path, other)
        keys += ["data.columns=[b, a]", "data.bounds={a: [-5, 5], b: [-5, 5]}"] if kind == "columns" else []
    elif kind == "format":
        other = other.with_suffix(".feather")
        pyarrow.feather.write_feather(pq.read_table(path), str(other))
        keys[-1] = f"data.path={other}"
    else:
        copy_of(path, other, slice(None, None, -1) if kind == "order" else slice(2_800))
    # a job's output ends in a log, and so may a run's
    imported = ("data", "import", "table", *sets(tmp_path, *keys))
    job = tmp_path / "runtime_resources" / "copy"
    job.mkdir(parents=True)
    for log in ("file", "job"):
        with monkeypatch.context() as patch:
            if log == "job":
                patch.chdir(job)
            code, out, error = dpsw(*imported, terminal=log == "job")
        assert code == 2 and out == "" and error.count("\n") == 1
        assert (
            "Data set again is not divided, and why is told at a terminal only: run `dpsw data import`"
            in error
        )
        assert "data set t" not in error and "nearly" not in error
    code, out, error = dpsw(*imported, terminal=True)
    assert code == 2 and out == "" and error.count("\n") == 1
    assert "records of data set again, or nearly all of them, are those of the data set t, in " in error
    assert "give data.name: t, not again" in error
    code, out, error = dpsw("flow", "table", "--output", tmp_path / "run", *sets(tmp_path, *keys))
    assert code == 2 and "Data set again is not divided, and why is told at a terminal only" in error
    assert "data set t" not in out + error and "nearly" not in out + error
    left = [path for path in (tmp_path / "home" / "datasets" / "again").rglob("*") if path.suffix != ".lock"]
    assert left == []
    # under the other's name there is one budget
    keys.append("data.name=t")
    assert kind == "columns" or dpsw("data", "import", "table", *sets(tmp_path, *keys))[0] == 0


def test_no_smaller_overlap_is_told(tmp_path: Path, dpsw: Dpsw) -> None:
    path = table(tmp_path / "t.parquet")
    whole = (BOUNDS, "data.classes=[c0, c1]")
    done("data", "import", "table", *sets(tmp_path, *whole))
    rng = np.random.default_rng(1)
    half = pq.read_table(path).slice(0, 1_500)
    new = pa.table({name: rng.normal(size=1_500) for name in "abc"} | {"y": ["c1"] * 1_500})
    pq.write_table(pa.concat_tables([half, new.cast(half.schema)]), tmp_path / "half.parquet")
    keys = (*whole, f"data.path={tmp_path / 'half.parquet'}")
    code, out, error = dpsw("data", "import", "table", *sets(tmp_path, *keys))
    assert (code, error) == (0, "") and "t.parquet" not in out


def test_tables_of_few_values_are_not_the_same_by_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bounds = {"sex": (0.0, 1.0), "age": (0.0, 99.0)}
    for name in ("mine", "theirs"):
        columns = {"sex": rng.integers(0, 2, 5_000), "age": rng.integers(20, 60, 5_000)}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        cfg = DataConfig(source="table", path=tmp_path / f"{name}.parquet", bounds=bounds)
        import_dataset(cfg, tmp_path / "home", "replace_one")
    copy_of(tmp_path / "mine.parquet", tmp_path / "copy.parquet", slice(None, None, -1))
    cfg = DataConfig(source="table", path=tmp_path / "copy.parquet", bounds=bounds)
    with pytest.raises(UserError, match="those of the data set mine"):
        import_dataset(cfg, tmp_path / "home", "replace_one", told=True)


def test_a_million_records_are_compared_in_seconds(tmp_path: Path) -> None:
    from dpsw_ray.data.origin import check_records_are_new
    from dpsw_ray.data.parts import DIGEST

    rng = np.random.default_rng(0)
    for number in range(3):
        folder = tmp_path / f"d{number}" / "key"
        for part in ("public", "test", "private"):
            (folder / part).mkdir(parents=True)
            count = 1_000_000 if part == "private" else 0
            np.save(folder / part / "digests.npy", np.sort(np.frombuffer(rng.bytes(16 * count), DIGEST)))
        (folder / "dataset.json").write_text('{"source": "table"}')
    own = np.load(tmp_path / "d1" / "key" / "private" / "digests.npy")
    start = time.monotonic()
    check_records_are_new("new", np.frombuffer(rng.bytes(16_000_000), DIGEST), tmp_path, True)
    with pytest.raises(UserError, match="data set d1"):
        check_records_are_new("new", rng.permutation(own)[50_000:], tmp_path, True)
    assert time.monotonic() - start < 60


def test_a_source_that_changed_is_said_and_divided_again_on_demand(tmp_path: Path, dpsw: Dpsw) -> None:
    from dpsw_ray.data.parts import read_digests
    from dpsw_ray.private.records import open_private_records

    path, parts = table(tmp_path / "t.parquet"), [f"data.{key}={value}" for key, value in PARTS.items()]
    said = "The source of t has changed since it was divided: the stored division is used"
    imported = ("data", "import", "table", *sets(tmp_path, *parts))
    run = ("flow", "table", *sets(tmp_path, *parts), "--output")
    code, _, error = dpsw(*imported, "--again")
    assert code == 2 and "there is nothing to divide again" in error
    done(*imported)
    code, out, error = dpsw(*run, tmp_path / "one")
    assert code == 0, error
    assert said not in out
    (folder,) = (manifest.parent for manifest in (tmp_path / "home").rglob("dataset.json"))
    old = {part: read_digests(folder / part) for part in ("public", "test", "private")}
    spent = {path.name for path in (folder / "private" / "spent").iterdir()}
    assert spent and (folder / "private" / "latents").exists()
    os.utime(path)
    assert dpsw(*imported, terminal=True)[2] == "", "touched, and the same"
    _, _, unread = dpsw(*imported)
    assert "Whether its source has changed since is told at a terminal only" in unread

    # every value of column a is mended in one half of the records, and a hundred people came
    made = pq.read_table(path).to_pydict()
    made["a"] = [a if i % 2 or a is None else a + 0.5 for i, a in enumerate(made["a"])]
    rng = np.random.default_rng(2)
    for name in "abc":
        made[name] += rng.normal(size=100).tolist()
    made["y"] += ["c1"] * 100
    pq.write_table(pa.table(made), path)
    code, _, error = dpsw(*imported, "--json", terminal=True)
    assert code == 0 and error.startswith(said) and "--again" in error and error.count("\n") == 1
    assert dpsw(*imported)[2] == unread, "no log tells it"
    code, out, error = dpsw(*run, tmp_path / "two", terminal=True)
    assert code == 0 and said not in out and error.count(said) == 1
    code, out, error = dpsw(*run, tmp_path / "logged")
    assert code == 0 and "has changed" not in out + error

    code, again, error = dpsw(*imported, "--again", "--json", terminal=True)
    assert (code, error) == (0, "") and json.loads(again)["folder"] == str(folder)
    new = {part: read_digests(folder / part) for part in ("public", "test", "private")}
    for part in ("public", "test"):
        assert 0 < len(new[part]) < len(old[part]) and np.isin(new[part], old[part]).all()
        assert not np.isin(new[part], old["private"]).any()
    assert len(open_private_records(folder / "private")) == len(new["private"]) > len(old["private"])
    assert {path.name for path in (folder / "private" / "spent").iterdir()} >= spent
    assert not (folder / "private" / "latents").exists()
    left = {path.name for path in folder.parent.iterdir() if path.suffix != ".lock"}
    assert left == {folder.name, ".receipts"}

    # the same account: what was charged before stays charged; and another label divides as this one does
    done(*run, tmp_path / "three")
    _, shown, _ = dpsw("ledger", "show", "t", "--ledger", tmp_path / "ledger.sqlite", "--json")
    assert json.loads(shown)["charges"] == 4
    code, _, error = dpsw(*imported, "--set", "data.label=null", "--set", "data.columns=[a, b, c]")
    assert code == 0, error
    (other,) = {manifest.parent for manifest in (tmp_path / "home").rglob("dataset.json")} - {folder}
    assert not np.isin(read_digests(other / "public"), new["private"]).any()


def test_an_import_again_that_was_killed_leaves_the_old_division(tmp_path: Path, dpsw: Dpsw) -> None:
    table(tmp_path / "t.parquet")
    imported = ("data", "import", "table", *sets(tmp_path, BOUNDS, "data.classes=[c0]"), "--json")
    _, stored, _ = dpsw(*imported)
    folder = Path(json.loads(stored)["folder"])
    folder.rename(folder.with_name(f".{folder.name}.former"))  # between the two renames
    assert dpsw(*imported) == (0, stored, "") and folder.exists()


@pytest.mark.parametrize("method", ["dpswflow-h", "dpswflow-r"])
@pytest.mark.parametrize("relation", ["zero_out", "add_remove"])
def test_a_class_list_that_fits_no_label_shows_in_the_release(
    method: str, relation: str, tmp_path: Path, dpsw: Dpsw
) -> None:
    """It cannot be held against private labels, but the released table is public and lacks its mass."""
    count = pq.read_metadata(table(tmp_path / "t.parquet")).num_rows
    keys = [
        BOUNDS, "encoder.kind=identity", f"privacy.relation={relation}", f"method={method}", "privacy.epsilon=4",
        "release.frames=8", "release.bins=16", "release.smoothing=1", "release.sampling=poisson",
        "release.rate=0.5", "release.rounds=3",
    ]  # fmt: skip
    keys = kept(keys, keys)
    for name, classes in (("right", "[c0, c1, c2, c3, c4]"), ("wrong", "[high, low]")):
        run = ("flow", "table", "--output", tmp_path / name)
        code, out, error = dpsw(*run, *sets(tmp_path, *keys, f"data.classes={classes}"))
        assert code == 0, error
        page = (tmp_path / name / "report.html").read_text()
        assert "<h2>Classes</h2>" in page and "Released classes: " in out
        warned = "See whether data.classes holds the labels as they are written in the data"
        assert (f"WARNING: {'Hardly' if relation == 'add_remove' else 'About '}" in out) == (name == "wrong")
        assert (warned in page) == (warned in out) == (name == "wrong")
        if name == "right":
            labels = pq.read_table(tmp_path / "t.parquet").column("y").to_pylist()
            named = sum(label is not None for label in labels)
            share = labels.count("c0") / (count if relation == "zero_out" else named)
            shown = float(out.partition("Released classes: ")[2].partition("c0 ")[2].partition("%")[0])
            assert shown == pytest.approx(100 * share, abs=4)


def test_a_class_list_is_held_against_public_labels_before_the_charge(tmp_path: Path, dpsw: Dpsw) -> None:
    table(tmp_path / "t.parquet")
    parts = ("data.public_fraction=0.5", "data.classes=[c3, c4, never]")
    code, out, error = dpsw("flow", "table", "--output", tmp_path / "run", *sets(tmp_path, *parts))
    assert code == 0, error
    for said in ("of the public records have a label of data.classes", "data.classes called never\n"):
        assert 0 < out.index(said) < out.index("Releasing")


def test_no_key_of_an_account_makes_a_record_public_that_was_not(tmp_path: Path) -> None:
    """Private values mended, rows appended: whatever is asked for next, only what was public as it is stays so."""
    from dpsw_ray.data.parts import read_digests
    from dpsw_ray.private.records import open_private_records

    path, home = tmp_path / "t.parquet", tmp_path / "home"
    rng = np.random.default_rng(0)
    first = rng.normal(size=(400, 2))

    def data(**keys: Any) -> DataConfig:
        fixed: dict[str, Any] = {
            "source": "table",
            "path": path,
            "name": "t",
            "columns": ["a", "b"],
            "bounds": {"a": (-9, 9), "b": (-9, 9)},
        }
        return DataConfig(**fixed, **keys)

    def wrote(rows: np.ndarray) -> None:
        pq.write_table(pa.table({"a": rows[:, 0], "b": rows[:, 1], "y": ["u", "v"] * (len(rows) // 2)}), path)

    def unprotected(info: DatasetInfo) -> set[bytes]:
        return {bytes(d) for part in ("public", "test") for d in read_digests(info.folder / part).tolist()}

    half = {"public_fraction": 0.5, "test_fraction": 0.1}
    wrote(first)
    stored = import_dataset(data(**half), home, "replace_one")
    known = unprotected(stored)
    private = {row.tobytes() for row in open_private_records(stored.folder / "private").values}
    mended = np.array([row + (1e-6 if row.tobytes() in private else 0.0) for row in first])
    grown = np.concatenate([mended, rng.normal(size=(200, 2))])
    wrote(grown)
    for relation, keys in (("replace_one", {"public_fraction": 0.0}), ("add_remove", half)):
        info = import_dataset(data(**keys), home, relation)
        assert unprotected(info) == known, (relation, keys)
    import_dataset(data(**half), home, "replace_one", again=True)
    wrote(first[:50])
    import_dataset(data(**half), home, "replace_one", again=True)
    wrote(grown)
    info = import_dataset(data(**half, label="y", classes=["u", "v"]), home, "replace_one")
    assert info.folder != stored.folder, "made now, from what the source holds again"
    assert set() < unprotected(info) <= known, "what a division held in between as private stays so"


def test_a_home_that_lacks_the_pinned_division_tells_no_public_records(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet")
    parts = {"public_fraction": 0.5, "test_fraction": 0.2}
    fixed: dict[str, Any] = {"source": "table", "path": path, "label": "y", "name": "t"}
    first = import_dataset(DataConfig(**fixed, **parts), tmp_path / "one", "zero_out")
    private = DataConfig(
        **fixed, classes=["c0", "c1"], bounds=dict.fromkeys(first.schema.columns, (-9.0, 9.0))
    )
    with pytest.raises(UserError, match="this home does not hold that division"):
        import_dataset(private, tmp_path / "two", "zero_out", pinned=first.division)
