"""Every source on small files, whole and broken."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import DataConfig
from dpsw_ray.data import idx as idx_module
from dpsw_ray.data import import_dataset, open_dataset
from dpsw_ray.data.celeba import CelebaSource
from dpsw_ray.data.idx import FASHION_CLASSES, read_idx
from dpsw_ray.data.records import NULL
from dpsw_ray.data.table import TableSource
from dpsw_ray.encoders import IdentityEncoder
from dpsw_ray.private.latents import LatentStore
from dpsw_ray.private.records import open_private_records

# --- IDX


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, zipped: bool = False, train: int = 40, test: int = 10) -> np.ndarray:
    """Writes four small IDX files; the first training image is also the first test image."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28), np.uint8)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    images[train] = images[0]
    chosen = {"train": slice(0, train), "t10k": slice(train, None)}
    for name, rows in chosen.items():
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array[rows])
            path = folder / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return images


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_keeps_its_test_part_and_drops_its_duplicates(tmp_path: Path, zipped: bool) -> None:
    images = write_mnist(tmp_path / "m", zipped=zipped)
    cfg = DataConfig(source="mnist", path=tmp_path / "m")
    info = import_dataset(cfg, tmp_path, "replace_one")
    dataset = open_dataset(cfg, tmp_path, "replace_one")
    assert dataset is not None and info.class_names is None
    assert info.test_count == 10 and info.private_count is not None
    assert info.public_count + info.private_count == 39
    np.testing.assert_array_equal(dataset.test().values[..., 0], images[40:])
    private = open_private_records(dataset.private_dir)
    both = {row.tobytes() for part in (dataset.public(), private) for row in part.values}
    assert both == {image.tobytes() for image in images[1:40]}


def test_a_source_with_another_test_part_is_another_division(tmp_path: Path) -> None:
    """A test record is protected by nobody: one that was private before would be shown."""
    for folder, swapped in (("a", {}), ("b", {"train-": "t10k-", "t10k-": "train-"})):
        write_mnist(tmp_path / "m" / folder, train=40, test=40)
        for path in list((tmp_path / "m" / folder).iterdir()) if swapped else []:
            path.rename(path.with_name(f".{path.name}"))
        for before, after in swapped.items():
            for path in (tmp_path / "m" / folder).glob(f".{before}*"):
                path.rename(path.with_name(path.name[1:].replace(before, after)))
    first, second = (DataConfig(source="mnist", path=tmp_path / "m" / folder) for folder in "ab")
    info = import_dataset(first, tmp_path / "home", "replace_one")
    assert (
        import_dataset(first, tmp_path / "other", "replace_one", pinned=info.division).division
        == info.division
    )
    with pytest.raises(UserError, match="what the source's test part holds would divide it another way"):
        import_dataset(second, tmp_path / "home", "replace_one")
    with pytest.raises(
        UserError, match=r"the privacy ledger says, and what the source's test part holds \(there"
    ):
        import_dataset(second, tmp_path / "third", "replace_one", pinned=info.division)
    assert not list((tmp_path / "third").rglob("*.arrow"))


def test_fashion_mnist_has_class_names(tmp_path: Path) -> None:
    write_mnist(tmp_path / "m" / "FashionMNIST" / "raw")
    cfg = DataConfig(source="fashion_mnist", path=tmp_path / "m", classes=["1", "9"])
    info = import_dataset(cfg, tmp_path, "replace_one")
    assert info.class_names == ("Trouser", "Ankle boot")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "begins with nothing"),
        (b"<htm", "begins with 3c68746d, where 1-dimensional unsigned bytes begin with 00000801"),
        (idx_bytes(np.zeros((1, 1, 1), np.uint8)), "begins with 00000803"),
        (idx_bytes(np.zeros(9, np.uint8))[:6], "truncated: it ends inside its header"),
        (idx_bytes(np.zeros(9, np.uint8))[:-1], "truncated: it ends before the records its header announces"),
        (idx_bytes(np.zeros(9, np.uint8)) + b"x", "goes on after the records"),
        (
            gzip.compress(idx_bytes(np.zeros(9, np.uint8)), mtime=0)[:-9],
            "truncated: its gzip data end too early",
        ),
        (
            gzip.compress(b"\0\0\x08\x01", mtime=0)[:10] + b"\xff" * 30,
            "corrupt: its gzip data cannot be decompressed",
        ),
        (
            gzip.compress(idx_bytes(np.zeros(9, np.uint8)), mtime=0)[:-8] + b"\0" * 8,
            "corrupt: its gzip data cannot",
        ),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(read_idx(path, (), batch=4))
    assert sentence in str(caught.value) and str(caught.value).startswith(str(path))


def test_idx_comes_in_batches_and_checks_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(np.arange(20, dtype=np.uint8).reshape(5, 2, 2)))
    assert [len(batch) for batch in read_idx(path, (2, 2), batch=2)] == [2, 2, 1]
    with pytest.raises(UserError, match="holds records of 2x2, where 28x28 was expected"):
        next(read_idx(path, (28, 28)))


def test_idx_files_must_belong_together(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    cfg = DataConfig(source="mnist", path=tmp_path)
    labels.write_bytes(idx_bytes(np.zeros(39, np.uint8)))
    with pytest.raises(UserError, match="hold different numbers of records") as caught:
        import_dataset(cfg, tmp_path / "home", "add_remove")
    assert "39" not in str(caught.value).replace(str(tmp_path), "")


def test_a_label_outside_0_to_9_is_one_record_s_and_no_error(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    info = import_dataset(DataConfig(source="mnist", path=tmp_path), tmp_path / "home", "replace_one")
    private = open_private_records(info.folder / "private")
    labels = (np.arange(40) % 10).astype(np.uint8)
    images = [image for batch in read_idx(tmp_path / "train-images-idx3-ubyte", (28, 28)) for image in batch]
    at = next(i for i, image in enumerate(images) if image.tobytes() == private.values[0].tobytes())
    labels[at] = 11
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    other = import_dataset(DataConfig(source="mnist", path=tmp_path), tmp_path / "other", "replace_one")
    changed = open_private_records(other.folder / "private")
    np.testing.assert_array_equal(changed.values, private.values)
    assert changed.labels[0] == -1 and (changed.labels[1:] == private.labels[1:]).all()


def test_a_missing_idx_data_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx_module, "_SYSTEM", tmp_path / "system")
    with pytest.raises(UserError, match=r"MNIST is neither in .* allow data\.download or set data\.path"):
        import_dataset(DataConfig(source="mnist", download=False), tmp_path, "replace_one")
    with pytest.raises(UserError, match=r"data\.path .*nowhere is not a folder"):
        import_dataset(DataConfig(source="mnist", path=tmp_path / "nowhere"), tmp_path, "replace_one")
    write_mnist(tmp_path / "part")
    (tmp_path / "part" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"data\.path .* lacks t10k-labels-idx1-ubyte"):
        import_dataset(DataConfig(source="mnist", path=tmp_path / "part"), tmp_path, "replace_one")


def test_a_download_is_used_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    monkeypatch.setattr(idx_module, "_SYSTEM", tmp_path / "system")
    downloads = tmp_path / "downloads"

    def broken(root: str, download: bool) -> None:
        (Path(root) / "MNIST" / "raw").mkdir(parents=True)
        (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"half")
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets, "MNIST", broken)
    with pytest.raises(UserError, match=r"the download failed: set data\.path to a folder with its four IDX"):
        import_dataset(DataConfig(source="mnist"), tmp_path, "replace_one")
    assert list(downloads.iterdir()) == []

    monkeypatch.setattr(torchvision.datasets, "MNIST", _small_mnist)
    assert import_dataset(DataConfig(source="mnist"), tmp_path, "replace_one").test_count == 10
    assert [path.name for path in downloads.iterdir()] == ["mnist"]


def _small_mnist(root: str, download: bool) -> None:
    write_mnist(Path(root) / "MNIST" / "raw")


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(),
    reason="Debian's dataset-fashion-mnist is not installed in /usr/share/datasets/fashion-mnist",
)
def test_the_real_fashion_mnist(tmp_path: Path) -> None:
    cfg = DataConfig(source="fashion_mnist", download=False)
    info = import_dataset(cfg, tmp_path, "replace_one")
    assert info.class_names == FASHION_CLASSES and info.test_count == 10_000
    assert info.private_count is not None
    assert info.public_count + info.private_count == 60_000, "no training image is in the test part"
    assert abs(info.public_count - 30_000) < 1_000
    dataset = open_dataset(cfg, tmp_path, "replace_one")
    assert dataset is not None
    assert dataset.public().values.shape == (info.public_count, 28, 28, 1)
    counts = np.bincount(dataset.public().labels, minlength=10)
    assert counts.min() > 2_800 and counts.max() < 3_200


# --- CelebA


def write_celeba(folder: Path, n: int = 24, *, partition: bool = True) -> None:
    (folder / "img_align_celeba").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{i + 1:06d}.jpg" for i in range(n)]
    for name in names:
        pixels = rng.integers(0, 256, (218, 178, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    lines = [f"{name}  {1 if i % 2 else -1} -1" for i, name in enumerate(names)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(n), "Male Smiling", *lines]) + "\n")
    if partition:
        lines = [f"{name} {2 if i >= n - 6 else i % 2}" for i, name in enumerate(names)]
        (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def test_celeba_is_cropped_and_keeps_its_test_partition(tmp_path: Path) -> None:
    write_celeba(tmp_path / "celeba")
    cfg = DataConfig(source="celeba", path=tmp_path, label="Male")
    info = import_dataset(cfg, tmp_path / "home", "replace_one")
    assert info.schema.shape == (64, 64, 3) and info.test_count == 6 and info.private_count is not None
    assert info.public_count + info.private_count == 18
    assert info.classes == ("0", "1") and info.class_names == ("not Male", "Male")
    dataset = open_dataset(cfg, tmp_path / "home", "replace_one")
    assert dataset is not None and dataset.test().labels.tolist() == [0, 1] * 3


def test_celeba_takes_the_middle_square(tmp_path: Path) -> None:
    write_celeba(tmp_path, n=1, partition=False)
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[20:198] = 255
    Image.fromarray(pixels).save(tmp_path / "img_align_celeba" / "000001.jpg", quality=95)
    ((values, labels),) = CelebaSource(tmp_path, None).batches("train")
    assert values.shape == (1, 64, 64, 3) and values[:, 1:-1].min() > 240 and labels is None


def test_celeba_without_partition_and_label(tmp_path: Path) -> None:
    write_celeba(tmp_path / "downloads" / "celeba", partition=False)
    info = import_dataset(DataConfig(source="celeba", test_fraction=0.3), tmp_path, "replace_one")
    assert info.classes == () and info.private_count is not None
    assert info.public_count + info.test_count + info.private_count == 24


def test_celeba_names_no_persons_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_celeba(tmp_path, n=1, partition=False)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError) as caught:
        list(CelebaSource(tmp_path, None).batches("train"))
    assert caught.value.filename == str(tmp_path / "img_align_celeba")


def _undecodable(folder: Path) -> None:
    (folder / "img_align_celeba" / "000003.jpg").write_bytes(b"no image at all")


def _cut_image(folder: Path) -> None:
    path = folder / "img_align_celeba" / "000003.jpg"
    path.write_bytes(path.read_bytes()[:3000])


def _lost(folder: Path) -> None:
    (folder / "img_align_celeba" / "000003.jpg").unlink()


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text().replace(old, new, 1))

    return edit


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            _edit("list_attr_celeba.txt", "24\n", "25\n"),
            "does not hold as many images as its first line says",
        ),
        (_edit("list_attr_celeba.txt", "24\n", "many\n"), "list_attr_celeba.txt is damaged"),
        (_edit("list_attr_celeba.txt", " Smiling", " Smiling Bald"), "list_attr_celeba.txt is damaged"),
        (
            lambda folder: (folder / "list_eval_partition.txt").write_text("a,0\nb,2\n"),
            "list_eval_partition.txt is damaged",
        ),
        (_edit("list_attr_celeba.txt", "Male", "Female"), "is not an attribute in"),
        (
            lambda folder: [path.write_bytes(b"") for path in (folder / "img_align_celeba").iterdir()],
            "holds no image that can be decoded",
        ),
    ],
)
def test_a_broken_celeba_is_named_without_a_person(
    tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    write_celeba(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        import_dataset(
            DataConfig(source="celeba", path=tmp_path, label="Male"), tmp_path / "home", "add_remove"
        )
    text = str(caught.value)
    assert sentence in text and "000003" not in text and "24" not in text.replace(str(tmp_path), "")


def _pipe(folder: Path) -> None:
    _lost(folder)
    os.mkfifo(folder / "img_align_celeba" / "000003.jpg")


def _enormous(folder: Path) -> None:
    header = bytearray((folder / "img_align_celeba" / "000003.jpg").read_bytes())
    at = header.index(b"\xff\xc0")
    header[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    (folder / "img_align_celeba" / "000003.jpg").write_bytes(header)


@pytest.mark.parametrize(
    "damage",
    [
        _undecodable,
        _cut_image,
        _lost,
        _pipe,
        _enormous,
        _edit("list_attr_celeba.txt", "000003.jpg  -1", "000003.jpg  7"),
        _edit("list_attr_celeba.txt", "000003.jpg", "../000003.jpg"),
    ],
)
@pytest.mark.parametrize("relation", ["replace_one", "add_remove"])
def test_a_person_s_image_that_cannot_be_read_is_a_null_record(
    tmp_path: Path, damage: Callable[[Path], None], relation: str
) -> None:
    """An error would tell of one private record, and so would one record less."""
    write_celeba(tmp_path)
    # nothing is public: the third image is private
    cfg = DataConfig(source="celeba", path=tmp_path, label="Male", public_fraction=0, classes=["0", "1"])
    before = import_dataset(cfg, tmp_path / "home", relation)
    damage(tmp_path)
    after = import_dataset(cfg, tmp_path / "other", relation)
    assert after.to_dict() == before.to_dict() | {"folder": str(after.folder)}
    whole, part = (open_private_records(info.folder / "private") for info in (before, after))
    null = part.labels == NULL
    assert len(part) == len(whole) and null.sum() == 1 and not part.values[null].any()
    np.testing.assert_array_equal(part.values[~null], whole.values[~null])
    np.testing.assert_array_equal(part.labels[~null], whole.labels[~null])

    # and adds nothing: it is to every release what a row with a NaN is
    store, encoder = (
        LatentStore(after.folder / "private", "e"),
        IdentityEncoder.fit(after.schema, part.values),
    )
    store.encode(encoder, 0, 1)
    ((latents, labels),) = store.batches(0, len(part))
    np.testing.assert_array_equal(labels == NULL, null)
    assert not latents[null].any()


def test_unreadable_images_of_the_test_part_are_left_out(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba" / "000024.jpg").write_bytes(b"none")
    info = import_dataset(DataConfig(source="celeba", path=tmp_path), tmp_path / "home", "replace_one")
    assert info.test_count == 5 and info.private_count is not None
    assert info.public_count + info.private_count == 18


def test_a_missing_celeba_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks img_align_celeba/ and list_attr_celeba\.txt of CelebA"):
        import_dataset(DataConfig(source="celeba"), tmp_path, "replace_one")
    (tmp_path / "img_align_celeba").mkdir()
    with pytest.raises(UserError, match=r"data\.path .* lacks list_attr_celeba\.txt of CelebA"):
        import_dataset(DataConfig(source="celeba", path=tmp_path), tmp_path, "replace_one")


# --- tables


def _parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def _feather(path: Path, table: pa.Table) -> None:
    feather.write_feather(table, path, compression="lz4")


def _ipc(opener: Any) -> Callable[[Path, pa.Table], None]:
    def write(path: Path, table: pa.Table) -> None:
        with opener(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)

    return write


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.parquet", _parquet),
        ("t.feather", _feather),
        ("t.arrow", _ipc(pa.ipc.new_file)),
        ("t.arrow", _ipc(pa.ipc.new_stream)),
    ],
)
def test_a_table_is_read_from_every_format(
    tmp_path: Path, name: str, write: Callable[[Path, pa.Table], None]
) -> None:
    table = pa.table(
        {
            "i": pa.array([*range(19), None], pa.int16()),
            "y": pa.array(["u", None] * 10).dictionary_encode(),
            "f": pa.array(np.linspace(0, 1, 20), pa.float32()),
            "b": [True, False] * 10,
            "d": pa.array([Decimal("1.5")] * 20, pa.decimal128(5, 2)),
            "h": pa.array(np.arange(20), pa.float16()),
        }
    )
    write(tmp_path / name, table)
    source = TableSource(tmp_path / name, "y", None)
    assert source.schema.columns == ("i", "f", "b", "d", "h") and source.schema.shape == (5,)
    batches = list(source.batches("train"))
    values = np.concatenate([values for values, _ in batches])
    labels = [label for _, batch in batches for label in batch or ()]
    assert values.dtype == np.float64 and values.shape == (20, 5) and labels == ["u", None] * 10
    assert np.isnan(values[19, 0]) and np.isfinite(values[:19]).all()
    np.testing.assert_allclose(
        values[:3], [[0, 0, 1, 1.5, 0], [1, 1 / 19, 0, 1.5, 1], [2, 2 / 19, 1, 1.5, 2]]
    )


def test_columns_are_taken_in_the_order_asked_for(tmp_path: Path) -> None:
    _parquet(tmp_path / "t.parquet", pa.table({"a": [1.0], "a.b": [2.0], "text": ["x"], "c": [3]}))
    source = TableSource(tmp_path / "t.parquet", None, ["c", "a"])
    ((values, labels),) = source.batches("train")
    assert values.tolist() == [[3.0, 1.0]] and labels is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([True, False], ("false", "true")),
        ([10, 9], ("9", "10")),
        (["x", "10"], ("10", "x")),
    ],
)
def test_labels_become_text(tmp_path: Path, labels: list[Any], classes: tuple[str, ...]) -> None:
    values = np.random.default_rng(0).normal(size=100)
    _parquet(tmp_path / "t.parquet", pa.table({"a": values, "y": labels * 50}))
    cfg = DataConfig(source="table", path=tmp_path / "t.parquet", label="y", public_fraction=0.5)
    assert import_dataset(cfg, tmp_path, "replace_one").classes == classes


NINE = [float(i) for i in range(9)]


@pytest.mark.parametrize(
    ("columns", "keys", "sentence"),
    [
        (
            {"a": NINE, "s": ["secret"] * 9},
            {},
            "column s has the Arrow type string; data.columns must list numeric",
        ),
        ({"a": NINE, "t": pa.array([0] * 9, pa.date32())}, {}, "column t has the Arrow type date32[day]"),
        ({"a": NINE, "l": [[1.0]] * 9}, {}, "column l has the Arrow type list<"),
        ({"a": NINE}, {"label": "y"}, "has no column y for data.label; it has a."),
        (
            {"a": NINE, "y": NINE},
            {"label": "y"},
            "the label column y has the Arrow type double; labels must be",
        ),
        ({"a": NINE}, {"columns": ["b"]}, "has no column b, which data.columns names; it has a."),
        ({"a": NINE}, {"columns": ["a", "a"]}, "data.columns names a column twice"),
        ({"a": NINE, "y": [1] * 9}, {"label": "y", "columns": ["y"]}, "data.columns must not name y"),
        ({"y": [1] * 9}, {"label": "y"}, "leaves no numeric column to learn from; it has y."),
        ({"a": pa.array([], pa.float64())}, {}, "gives no public record: it is empty"),
        (
            {"a": [float("nan")] * 9},
            {},
            "gives no public record: it is empty, its records have missing values",
        ),
        ({"a": NINE, "y": [None] * 9}, {"label": "y"}, "the label column y has the Arrow type null"),
        ({"a": NINE, "y": pa.array([None] * 9, pa.int8())}, {"label": "y"}, "The public part of"),
        ({"a": NINE}, {"classes": ["1"]}, "data.classes needs labels: set data.label too."),
    ],
)
def test_a_table_that_does_not_fit(
    tmp_path: Path, columns: dict[str, Any], keys: dict[str, Any], sentence: str
) -> None:
    _parquet(tmp_path / "t.parquet", pa.table(columns))
    with pytest.raises(UserError) as caught:
        import_dataset(
            DataConfig(source="table", path=tmp_path / "t.parquet", public_fraction=0.5, **keys),
            tmp_path,
            "add_remove",
        )
    assert sentence in str(caught.value) and "secret" not in str(caught.value)


def test_too_many_labels_are_no_classes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=3000)
    _parquet(tmp_path / "t.parquet", pa.table({"a": values, "y": range(3000)}))
    with pytest.raises(
        UserError, match=r"different labels, more than 1000: set data\.label to a column with classes"
    ):
        import_dataset(
            DataConfig(source="table", path=tmp_path / "t.parquet", label="y", public_fraction=0.5),
            tmp_path,
            "replace_one",
        )


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather"])
@pytest.mark.parametrize("data", [b"", b"a,b\n1,secret\n", b"ARROW1\0\0secret", b"PAR1secretPAR1", b"FEA1"])
def test_a_file_of_another_format_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read as (Parquet|Arrow IPC|Feather)") as caught:
        TableSource(tmp_path / name, None, None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.parquet", "t.feather"])
def test_a_table_damaged_in_the_middle_is_named(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).normal(size=2000)
    table = pa.table({"a": np.round(values), "y": ["secret"] * 2000})
    _parquet(tmp_path / name, table) if name == "t.parquet" else _feather(tmp_path / name, table)
    data = bytearray((tmp_path / name).read_bytes())
    half = len(data) // 2
    for i in range(8 if name == "t.parquet" else half - 40, half):
        data[i] ^= 0x5A
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as") as caught:
        list(TableSource(tmp_path / name, "y", None).batches("train"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), "dictionary"])
def test_a_label_that_is_no_text_is_no_label(tmp_path: Path, name: str, kind: Any) -> None:
    labels = pa.array([b"u", b"\xff secret", None] * 3)
    if kind == "dictionary":
        coded = labels.dictionary_encode()
        text = pa.DictionaryArray.from_arrays(coded.indices, coded.dictionary.view(pa.string()))
    elif kind == pa.string_view():
        text = labels.cast(pa.binary_view()).view(kind)
    else:
        text = (labels.cast(pa.large_binary()) if kind == pa.large_string() else labels).view(kind)
    write = {"t.parquet": _parquet, "t.arrow": _ipc(pa.ipc.new_file), "t.feather": _feather}[name]
    try:
        write(tmp_path / name, pa.table({"a": NINE, "y": text}))
    except pa.ArrowException:
        pytest.skip(f"this pyarrow writes no {kind} into {name}")
    found = list(TableSource(tmp_path / name, "y", None).batches("train"))
    assert [x for _, batch in found for x in batch or ()] == ["u", None, None] * 3
    assert np.concatenate([values for values, _ in found])[:, 0].tolist() == NINE


@pytest.mark.parametrize("name", ["t.arrow", "t.parquet"])
@pytest.mark.parametrize(
    "kind", [pa.decimal32(4, 2), pa.decimal64(6, 2), pa.decimal128(6, 2), pa.decimal256(6, 2)]
)
def test_a_decimal_of_more_digits_than_its_column_has_is_missing(
    name: str, kind: Any, tmp_path: Path
) -> None:
    raw = b"".join(n.to_bytes(kind.byte_width, "little", signed=True) for n in (150, 10**kind.precision, -25))
    wide = pa.Array.from_buffers(kind, 3, [None, pa.py_buffer(raw)])
    write = _parquet if name == "t.parquet" else _ipc(pa.ipc.new_file)
    try:
        write(tmp_path / name, pa.table({"a": wide, "b": [1.0, 2.0, 3.0]}))
    except pa.ArrowException:
        pytest.skip(f"this pyarrow writes no such value of {kind} into {name}")
    ((values, _),) = TableSource(tmp_path / name, None, None).batches("train")
    np.testing.assert_array_equal(values, [[1.5, 1], [np.nan, 2], [-0.25, 3]])


def test_decimals_of_any_length_are_refused_by_their_schema(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    lengths = pa.table({"a": ["\x01", "\x02" * 20, "\x03"]})
    pq.write_table(lengths, path, store_schema=False, write_statistics=False, use_dictionary=False)
    data = path.read_bytes()
    text, decimal = (
        b"\x25\x00\x4c\x1c\x00\x00",
        b"\x25\x0a\x15\x04\x15\x14",
    )  # of ten digits, two of them decimals
    assert data.count(text) == 1
    path.write_bytes(data.replace(text, decimal))
    assert pq.read_schema(path).field("a").type == pa.decimal128(10, 2)
    with pytest.raises(UserError, match="column a is stored as decimal numbers of any length"):
        TableSource(path, None, None)


def labels_of(path: Path) -> list[str | None]:
    return [label for _, labels in TableSource(path, "y", None).batches("train") for label in labels or ()]


@pytest.mark.parametrize("code", [7, -1, 100])
def test_a_label_of_no_entry_in_its_dictionary_is_no_label(code: int, tmp_path: Path) -> None:
    codes = pa.array([0, code, 1, None] * 3, pa.int8())
    for words in (["u", "v"], [1, 2]):
        labels = pa.DictionaryArray.from_arrays(codes, pa.array(words), safe=False)
        _ipc(pa.ipc.new_file)(tmp_path / "t.arrow", pa.table({"a": [0.5] * 12, "y": labels}))
        found = labels_of(tmp_path / "t.arrow")
        assert found == [str(words[0]), None, str(words[1]), None] * 3


def test_a_label_that_leads_nowhere_is_no_label(tmp_path: Path) -> None:
    views = pa.array(["short", "a label of more than twelve letters", "v"] * 3, pa.string_view())
    raw = bytearray(views.buffers()[1])
    raw[16 + 8] = 9  # the buffer that the second one is in
    raw[32 + 9] = 1  # behind the third one, where nothing should be
    broken = pa.Array.from_buffers(views.type, 9, [None, pa.py_buffer(bytes(raw)), *views.buffers()[2:]])
    table = pa.table({"a": NINE, "y": broken})
    _ipc(pa.ipc.new_file)(tmp_path / "t.arrow", table)
    found = labels_of(tmp_path / "t.arrow")
    assert found == ["short", None, None, *views.to_pylist()[3:]]


def test_offsets_out_of_their_buffer_are_damage(tmp_path: Path) -> None:
    texts = pa.array(["u", "v", "secret"] * 3)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[:10].copy()
    offsets[4] = 2**20
    broken = pa.Array.from_buffers(texts.type, 9, [None, pa.py_buffer(offsets.tobytes()), texts.buffers()[2]])
    _ipc(pa.ipc.new_file)(tmp_path / "t.arrow", pa.table({"a": NINE, "y": broken}))
    with pytest.raises(UserError, match="cannot be read as Arrow IPC"):
        list(TableSource(tmp_path / "t.arrow", "y", None).batches("train"))


def test_a_table_path_that_is_no_table(tmp_path: Path) -> None:
    for path, sentence in (
        (tmp_path / "none.parquet", "does not exist, where a .parquet"),
        (tmp_path, "is a folder, where a .parquet"),
    ):
        with pytest.raises(UserError, match=sentence):
            TableSource(path, None, None)
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"ends in '\.csv'; a table must be"):
        TableSource(tmp_path / "t.csv", None, None)


@pytest.mark.parametrize(
    ("name", "write"), [("T.PARQUET", _parquet), ("t.pq", _parquet), ("T.Arrow", _ipc(pa.ipc.new_file))]
)
def test_suffixes_are_what_people_write(
    tmp_path: Path, name: str, write: Callable[[Path, pa.Table], None]
) -> None:
    write(tmp_path / name, pa.table({"a": NINE}))
    found = list(TableSource(tmp_path / name, None, None).batches("train"))
    assert np.concatenate([values for values, _ in found])[:, 0].tolist() == NINE


def test_the_index_that_pandas_stores_is_no_data(tmp_path: Path) -> None:
    named = json.dumps({"index_columns": ["id", {"kind": "range", "name": None, "start": 0}]}).encode()
    table = pa.table({"id": NINE, "a": NINE, "__index_level_0__": NINE, "__index_level_": NINE})
    for metadata, kept in (
        (None, ("id", "a")),
        ({b"pandas": named}, ("a",)),
        ({b"pandas": b"{"}, ("id", "a")),
    ):
        path = tmp_path / f"{len(kept)}.parquet"
        _parquet(path, table.replace_schema_metadata(metadata))
        assert TableSource(path, None, None).schema.columns == (*kept, "__index_level_")
        assert TableSource(path, None, ["__index_level_0__", "id"]).schema.size == 2, "asked for by name"


def test_a_table_path_that_leads_nowhere(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "null.parquet").symlink_to("/dev/zero")
    (tmp_path / "loop.parquet").symlink_to(tmp_path / "loop.parquet")
    for path, sentence in (
        (tmp_path / "pipe.parquet", "is no regular file, where a .parquet"),
        (tmp_path / "null.parquet", "data.path /dev/zero is no regular file"),
        (tmp_path / "none.parquet" / "t.parquet", "does not exist"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            import_dataset(DataConfig(source="table", path=path, name="t"), tmp_path / "home", "zero_out")
        assert str(caught.value).isprintable()
    nowhere = ("~nosuchuser/t.parquet", "a\0b.parquet", "x" * 300 + ".parquet")
    for name in (*nowhere, str(tmp_path / "loop.parquet")):
        with pytest.raises(ValidationError, match="must be a path"):
            DataConfig(source="table", path=name, name="t")  # type: ignore[arg-type]
    assert not (tmp_path / "home").exists()


def test_a_column_name_twice_is_refused(tmp_path: Path) -> None:
    _feather(tmp_path / "x.feather", pa.table({"a": [1.0]}))
    table = pa.table([[1.0], [2.0]], names=["a", "a"])
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match="more than one column called a"):
        TableSource(tmp_path / "t.arrow", None, None)
