"""The stored split: who sees what, what never moves, and what never leaves the private side."""

from __future__ import annotations

import json
import os
import pickle
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpsw_ray.base.errors import PrivateSideError, UserError
from dpsw_ray.config.run import DataConfig
from dpsw_ray.data import Dataset, DatasetInfo, RecordSchema, collect, import_dataset, open_dataset, split
from dpsw_ray.data.parts import write_part
from dpsw_ray.data.split import record_digests
from dpsw_ray.private.records import open_private_records


def table_config(path: Path, columns: dict[str, Any], **keys: Any) -> DataConfig:
    pq.write_table(pa.table(columns), path)
    parts = {"public_fraction": 0.5, "test_fraction": 0.2}
    return DataConfig(source="table", path=path, name="t", **(parts | keys))


def imported(cfg: DataConfig, home: Path, relation: str = "replace_one") -> Dataset:
    import_dataset(cfg, home, relation)
    dataset = open_dataset(cfg, home, relation)
    assert dataset is not None
    return dataset


def parts(dataset: Dataset) -> dict[str, np.ndarray]:
    private = open_private_records(dataset.private_dir)
    return {part.name: part.values for part in (dataset.public(), dataset.test(), private)}


def rows(values: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in values}


@pytest.fixture
def numbers() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(400, 3))


def as_columns(values: np.ndarray) -> dict[str, Any]:
    return {name: values[:, i] for i, name in enumerate("abc")}


def test_digits_are_split_once_into_three_disjoint_parts(tmp_path: Path) -> None:
    cfg = DataConfig(source="digits")
    assert open_dataset(cfg, tmp_path, "replace_one") is None
    dataset = imported(cfg, tmp_path)
    info = dataset.info
    assert info.schema == RecordSchema("image", (8, 8, 1), value_range=(0, 16))
    assert info.classes == tuple("0123456789") and info.class_names is None
    assert info.folder.parent == tmp_path / "datasets" / "digits"
    assert info.private_count is not None
    assert info.public_count + info.test_count + info.private_count == 1797
    assert 0.4 < info.public_count / 1797 < 0.6 and 0.15 < info.test_count / 1797 < 0.25
    public, private = dataset.public(), open_private_records(dataset.private_dir)
    assert public.values.shape == (info.public_count, 8, 8, 1) and public.values.dtype == np.uint8
    assert public.labels.dtype == np.int32 and set(public.labels) == set(range(10))
    assert len(private) == info.private_count and private.name == "private"
    assert not public.values.flags.writeable
    found = parts(dataset)
    for first, second in (("public", "test"), ("public", "private"), ("test", "private")):
        assert not rows(found[first]) & rows(found[second])
    assert [path.name for path in info.folder.parent.iterdir() if path.suffix == ".part"] == []


def test_labels_stay_with_their_records(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    truth = {i.astype(np.uint8).tobytes(): t for i, t in zip(digits.images, digits.target, strict=True)}
    dataset = imported(DataConfig(source="digits"), tmp_path)
    for part in (dataset.public(), dataset.test(), open_private_records(dataset.private_dir)):
        assert [truth[row.tobytes()] for row in part.values] == part.labels.tolist()


def test_the_split_is_the_same_on_every_machine() -> None:
    schema = RecordSchema("table", (2,), columns=("a", "b"))
    digests = record_digests(np.array([[1.0, 2.0], [3.0, 4.0]]), schema)
    assert digests[0].hex() == "b3a3a5c70035515eba3262d0c8238cb0"
    assert collect._uniform(digests, 7).tolist() == [0.2475612491631256, 0.04862516548689577]


def test_adding_or_removing_a_record_moves_no_other(tmp_path: Path, numbers: np.ndarray) -> None:
    whole = parts(imported(table_config(tmp_path / "w.parquet", as_columns(numbers)), tmp_path))
    missing = next(i for i, row in enumerate(numbers) if row.tobytes() in rows(whole["private"]))
    less = np.delete(numbers, missing, axis=0)
    rest = parts(imported(table_config(tmp_path / "l.parquet", as_columns(less)), tmp_path))
    np.testing.assert_array_equal(rest["public"], whole["public"])
    np.testing.assert_array_equal(rest["test"], whole["test"])
    assert rows(whole["private"]) - rows(rest["private"]) == {numbers[missing].tobytes()}


def test_the_split_seed_changes_the_split(tmp_path: Path, numbers: np.ndarray) -> None:
    cfg = table_config(tmp_path / "w.parquet", as_columns(numbers))
    first = parts(imported(cfg, tmp_path))
    second = parts(imported(cfg.model_copy(update={"split_seed": 1}), tmp_path / "elsewhere"))
    assert rows(first["public"]) != rows(second["public"])


@pytest.mark.parametrize("change", [{"split_seed": 1}, {"public_fraction": 0.4}, {"columns": ["a"]}])
def test_a_data_set_is_divided_once(tmp_path: Path, numbers: np.ndarray, change: dict[str, Any]) -> None:
    """Otherwise the encoder of one run would be trained on records that another run protects."""
    columns = as_columns(numbers) | {"y": ["u", "v"] * (len(numbers) // 2)}
    cfg = table_config(tmp_path / "t.parquet", columns).model_copy(update={"columns": ["a", "b"]})
    imported(cfg, tmp_path)
    with pytest.raises(UserError, match=f"data.{next(iter(change))}.* would divide it another way"):
        imported(cfg.model_copy(update=change), tmp_path)
    assert imported(cfg.model_copy(update={"label": "y"}), tmp_path).info.classes == ("u", "v")


def test_the_same_records_get_no_second_name_and_so_no_second_budget(
    tmp_path: Path, numbers: np.ndarray
) -> None:
    cfg = table_config(tmp_path / "t.parquet", as_columns(numbers))
    imported(cfg, tmp_path)
    with pytest.raises(UserError, match=r"are the data set t already.*give data.name: t, not again"):
        imported(cfg.model_copy(update={"name": "again"}), tmp_path)


def test_duplicates_share_a_part_whatever_their_label(tmp_path: Path, numbers: np.ndarray) -> None:
    columns = as_columns(np.repeat(numbers[:60], 3, axis=0))
    columns["y"] = ["u", "v", None] * 60
    dataset = imported(table_config(tmp_path / "d.parquet", columns, label="y"), tmp_path)
    found = parts(dataset)
    assert sum(len(values) for values in found.values()) == 180
    assert all(len(rows(values)) * 3 == len(values) for values in found.values())
    assert dataset.info.classes == ("u", "v")
    assert dataset.public().labels.tolist() == [0, 1, -1] * (dataset.info.public_count // 3)


def test_missing_values_drop_a_row_in_public_and_stay_in_private(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(300, 2))
    a: list[float | None] = values[:, 0].tolist()
    a[::3] = [None if i % 2 else float("inf") for i in range(100)]
    dataset = imported(table_config(tmp_path / "n.parquet", {"a": a, "b": values[:, 1]}), tmp_path)
    found = parts(dataset)
    assert np.isfinite(found["public"]).all() and np.isfinite(found["test"]).all()
    assert np.isnan(found["private"]).any() and not np.isinf(found["private"]).any()
    assert dataset.info.private_count == len(found["private"])


def test_negative_zero_is_zero(tmp_path: Path, numbers: np.ndarray) -> None:
    values = np.vstack([numbers, [[0.0, 1.0, 2.0], [-0.0, 1.0, 2.0]]])
    found = parts(imported(table_config(tmp_path / "z.parquet", as_columns(values)), tmp_path))
    zeros = [name for name, part in found.items() for row in part if row[0] == 0.0]
    assert len(zeros) == 2 and len(set(zeros)) == 1


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_the_private_part_is_readable_by_its_owner_only(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        dataset = imported(DataConfig(source="digits"), tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(dataset.private_dir.stat().st_mode) == 0o700
    files = sorted(dataset.private_dir.iterdir())
    assert [path.name for path in files] == ["digests.npy", "origin.json", "part.json", "records.arrow"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_private_bytes_are_never_readable_while_the_import_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: set[tuple[int, int]] = set()

    def spy(folder: Path, *args: Any, **keys: Any) -> None:
        for path in folder.parent.rglob("*"):
            if path.is_file() and path.parent.name == "private":
                modes.add((stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)))
            elif path.is_file():
                assert path.parent.name in ("public", "test") and path.suffix in (".arrow", ".npy", ".json")
        write_part(folder, *args, **keys)

    monkeypatch.setattr(collect, "write_part", spy)
    imported(DataConfig(source="digits"), tmp_path)
    assert modes == {(0o700, 0o600)}


def test_add_remove_hides_the_number_of_private_records(tmp_path: Path) -> None:
    cfg = DataConfig(source="digits")
    told = import_dataset(cfg, tmp_path, "replace_one")
    hidden = import_dataset(cfg, tmp_path, "add_remove")
    assert hidden.folder != told.folder and hidden.private_count is None
    assert hidden.public_count == told.public_count
    assert "private_count" not in hidden.to_dict()
    manifest = json.loads((hidden.folder / "dataset.json").read_text())
    assert set(manifest["counts"]) == {"public", "test"} and manifest["relation"] == "add_remove"
    for secret in (told.private_count, 1797, told.private_count + told.public_count):
        assert str(secret) not in (hidden.folder / "dataset.json").read_text()
    assert len(open_private_records(hidden.folder / "private")) == told.private_count
    assert import_dataset(cfg, tmp_path, "zero_out") == told


def test_info_survives_json_and_pickle(tmp_path: Path) -> None:
    for relation in ("replace_one", "add_remove"):
        info = import_dataset(DataConfig(source="digits"), tmp_path, relation)
        assert DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
        assert pickle.loads(pickle.dumps(info)) == info


def test_the_class_list_comes_from_the_public_part_only(tmp_path: Path, numbers: np.ndarray) -> None:
    cfg = table_config(tmp_path / "c.parquet", as_columns(numbers))
    public = rows(parts(imported(cfg, tmp_path))["public"])
    secret = [2 if row.tobytes() in public else 777 for row in numbers]
    secret[next(i for i, label in enumerate(secret) if label == 2)] = 10
    labelled = table_config(tmp_path / "y.parquet", {**as_columns(numbers), "y": secret}, label="y")
    dataset = imported(labelled, tmp_path)
    assert dataset.info.classes == ("2", "10"), "by number, not by text"
    assert set(open_private_records(dataset.private_dir).labels) == {-1}
    assert "777" not in (dataset.info.folder / "dataset.json").read_text()


def test_a_given_class_list_is_kept_in_its_order(tmp_path: Path) -> None:
    dataset = imported(DataConfig(source="digits", classes=["9", "0", "never"]), tmp_path)
    assert dataset.info.classes == ("9", "0", "never")
    assert set(dataset.public().labels) == {0, 1, -1}


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["x", "y"], "data.classes has none of the labels in the public part of digits; those are 0, 1, 2"),
        (["1", "1"], "data.classes must list different labels, found 1, 1."),
        ([], "data.classes must list different labels, found none."),
    ],
)
def test_class_lists_that_cannot_be_meant(tmp_path: Path, classes: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        import_dataset(DataConfig(source="digits", classes=classes), tmp_path, "replace_one")
    assert sentence in str(caught.value)


def test_an_import_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **keys: Any) -> None:
        raise OSError(28, "No space left on device")

    cfg = DataConfig(source="digits")
    with monkeypatch.context() as patch:
        patch.setattr(collect, "write_part", fail)
        with pytest.raises(OSError, match="No space"):
            import_dataset(cfg, tmp_path, "replace_one")
    left = [path for path in (tmp_path / "datasets" / "digits").iterdir() if path.suffix != ".lock"]
    assert left == [] and open_dataset(cfg, tmp_path, "replace_one") is None
    stale = split.dataset_folder(cfg, tmp_path, "replace_one")
    (stale.with_name(f".{stale.name}.part") / "private").mkdir(parents=True)  # of a process that was killed
    assert import_dataset(cfg, tmp_path, "replace_one").public_count > 0


def test_an_import_is_done_once_even_by_several_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    build = split._build

    def counted(*args: Any) -> None:
        built.append(args[3])
        build(*args)

    monkeypatch.setattr(split, "_build", counted)
    found: list[DatasetInfo] = []
    cfg = DataConfig(source="digits")
    threads = [
        threading.Thread(target=lambda: found.append(import_dataset(cfg, tmp_path, "replace_one")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and len(found) == 4 and all(info == found[0] for info in found)


def test_a_stored_data_set_needs_its_source_no_more(tmp_path: Path, numbers: np.ndarray) -> None:
    cfg = table_config(tmp_path / "w.parquet", as_columns(numbers))
    info = import_dataset(cfg, tmp_path, "replace_one")
    (tmp_path / "w.parquet").unlink()
    assert import_dataset(cfg, tmp_path, "replace_one") == info


def _overlap(folder: Path, part: str) -> None:
    (folder / part / "part.json").unlink()  # as of a version that took no digests
    digests = np.load(folder / part / "digests.npy")
    digests[0] = np.load(folder / "public" / "digests.npy")[0]
    np.save(folder / part / "digests.npy", digests)


def _truncate(folder: Path, part: str) -> None:
    path = folder / part / "records.arrow"
    path.write_bytes(path.read_bytes()[:-500])


def _shorten(folder: Path, part: str) -> None:
    (folder / part / "part.json").unlink()
    np.save(folder / part / "digests.npy", np.load(folder / part / "digests.npy")[1:])


def _change(folder: Path, part: str) -> None:
    path = folder / part / "records.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # a value, not the layout
    path.write_bytes(content)


def _exchange(folder: Path, part: str) -> None:
    np.save(folder / part / "digests.npy", np.load(folder / part / "digests.npy")[::-1])


def _lose(folder: Path, part: str) -> None:
    (folder / part / "digests.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_overlap, "records in common"),
        (_truncate, "missing or damaged"),
        (_change, "missing or damaged"),
        (_exchange, "missing or damaged"),
        (_shorten, "number of records"),
        (_lose, "missing or damaged"),
    ],
)
@pytest.mark.parametrize("part", ["test", "private"])
def test_a_damaged_or_overlapping_part_is_refused(
    tmp_path: Path, damage: Callable[[Path, str], None], sentence: str, part: str
) -> None:
    dataset = imported(DataConfig(source="digits"), tmp_path)
    damage(dataset.info.folder, part)
    with pytest.raises(UserError, match=sentence) as caught:
        dataset.test() if part == "test" else open_private_records(dataset.private_dir)
    assert isinstance(caught.value, PrivateSideError) == (part == "private")
    assert not any(word.isdigit() for word in str(caught.value).split())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
@pytest.mark.parametrize("name", ["digests.npy", "records.arrow"])
def test_a_file_that_may_not_be_read_is_no_damage(name: str) -> None:
    """What is whole must not be called damaged: somebody would mend it, or throw it away."""
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to others
        Path(made).chmod(0o755)
        store = imported(DataConfig(source="digits"), Path(made)).private_dir
        store.chmod(0o755)
        for path in store.iterdir():
            path.chmod(0o600 if path.name == name else 0o644)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as caught:
                open_private_records(store)
        finally:
            os.seteuid(0)
        assert str(store) in str(caught.value.filename)


def test_no_sentence_advises_to_delete_what_cannot_be_made_again(tmp_path: Path) -> None:
    store = imported(DataConfig(source="digits"), tmp_path).private_dir
    (store / "digests.npy").unlink()
    with pytest.raises(PrivateSideError, match="restore it from a copy") as caught:
        open_private_records(store)
    assert "remove" not in str(caught.value)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    cfg = DataConfig(source="digits")
    manifest = import_dataset(cfg, tmp_path, "replace_one").folder / "dataset.json"
    manifest.write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"dataset\.json is missing or damaged"):
        open_dataset(cfg, tmp_path, "replace_one")
    manifest.unlink()
    with pytest.raises(UserError, match=r"dataset\.json is missing"):
        import_dataset(cfg, tmp_path, "replace_one")


def test_parts_too_small_are_named_without_a_count(tmp_path: Path) -> None:
    one = {"a": [1.0], "b": [2.0]}
    u = collect._uniform(record_digests(np.array([[1.0, 2.0]]), RecordSchema("table", (2,))), 0)[0]
    high = table_config(tmp_path / "p.parquet", one, test_fraction=0.0, public_fraction=max(u / 2, 1e-6))
    with pytest.raises(UserError, match="gives no public record: it is empty"):
        import_dataset(high, tmp_path, "add_remove")
    low = table_config(tmp_path / "p.parquet", one, test_fraction=0.0, public_fraction=(1 + u) / 2)
    with pytest.raises(UserError, match="leaves no private record"):
        import_dataset(low, tmp_path, "replace_one")
    info = import_dataset(low, tmp_path, "add_remove")  # an error would tell that N is 0
    assert len(open_private_records(info.folder / "private")) == 0
    dataset = open_dataset(low, tmp_path, "add_remove")
    assert dataset is not None and dataset.test().values.shape == (0, 2)


@pytest.mark.parametrize(
    ("keys", "relation", "sentence"),
    [
        (
            {"source": "digits"},
            "swap",
            "privacy.relation must be one of replace_one, zero_out, add_remove, found swap",
        ),
        ({"source": "digits", "path": "x"}, "zero_out", "data.path does not apply to the source digits"),
        ({"source": "digits", "label": "x"}, "zero_out", "data.label is for the sources table and celeba"),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, keys: dict[str, Any], relation: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        import_dataset(DataConfig(**keys), tmp_path, relation)
    assert sentence in str(caught.value)
