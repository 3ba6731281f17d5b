"""MNIST and Fashion-MNIST: IDX files, plain or gzip-compressed, from a folder, the system or a download.

Errors name the file and its form, never how many records it holds: under `add_remove` that is private.
"""

from __future__ import annotations

import gzip
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from dpsw_ray.base.errors import UserError
from dpsw_ray.data.records import BATCH, Batch, RecordSchema

__all__ = ["FASHION_CLASSES", "IdxSource", "find_idx_folder", "read_idx"]

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_SYSTEM = Path("/usr/share/datasets")  # where Debian's dataset-fashion-mnist puts its files
_STEMS = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path, item_shape: tuple[int, ...], batch: int = BATCH) -> Iterator[npt.NDArray[np.uint8]]:
    """Reads an IDX file of unsigned bytes, plain or gzip-compressed, in bounded memory.

    Args:
        path: the file; compression is recognised by content, not by name.
        item_shape: the shape of one record, such as (28, 28), or () for labels.
        batch: most records per array.

    Yields:
        uint8 arrays [<= batch, *item_shape].

    Raises:
        UserError: not an IDX file, another shape, truncated, too long, or corrupt compression.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=file) if zipped else file)
        dims = 1 + len(item_shape)
        expected = bytes([0, 0, 8, dims])
        magic = _take(stream, 4, path)
        if magic != expected:
            raise UserError(
                f"{path} is not the IDX file expected: it begins with {magic.hex() or 'nothing'}, where "
                f"{dims}-dimensional unsigned bytes begin with {expected.hex()}."
            )
        header = _take(stream, 4 * dims, path)
        if len(header) < 4 * dims:
            raise UserError(f"{path} is truncated: it ends inside its header; fetch it again.")
        count, *shape = (int(n) for n in np.frombuffer(header, ">u4"))
        if tuple(shape) != item_shape:
            found, wanted = ("x".join(map(str, sides)) for sides in (shape, item_shape))
            raise UserError(f"{path} holds records of {found}, where {wanted} was expected.")
        size = math.prod(item_shape)
        while count > 0:
            n = min(batch, count)
            data = _take(stream, n * size, path)
            if len(data) < n * size:
                raise UserError(
                    f"{path} is truncated: it ends before the records its header announces; fetch it again."
                )
            yield np.frombuffer(data, np.uint8).reshape(n, *item_shape)
            count -= n
        if _take(stream, 1, path):  # for gzip this also makes the checksum of the last member be checked
            raise UserError(f"{path} goes on after the records its header announces; fetch it again.")


def _take(stream: IO[bytes], n: int, path: Path) -> bytes:
    try:
        return stream.read(n)
    except EOFError:
        raise UserError(f"{path} is truncated: its gzip data end too early; fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path} is corrupt: its gzip data cannot be decompressed; fetch it again.") from None


class IdxSource:
    """MNIST or Fashion-MNIST: 28x28 grey images, labels `0` to `9`, a test part of its own."""

    schema = RecordSchema("image", (28, 28, 1), value_range=(0, 255))
    labelled = True
    has_test = True

    def __init__(self, source: Literal["mnist", "fashion_mnist"], folder: Path) -> None:
        self.folder = folder
        self.name = f"{_TITLES[source]} in {folder}"
        self.files = tuple(path for stem in _STEMS.values() if (path := _find(folder, stem)) is not None)
        self.class_names: Mapping[str, str] | None = None
        if source == "fashion_mnist":
            self.class_names = {str(label): name for label, name in enumerate(FASHION_CLASSES)}

    def stretches(self, part: Literal["train", "test"]) -> int:
        """One: gzip has no middle to begin at; see `Source.stretches`."""
        return 1

    def batches(self, part: Literal["train", "test"], stretches: range | None = None) -> Iterator[Batch]:
        """Yields uint8 [n, 28, 28, 1] and labels; see `Source.batches`."""
        images_path = _find(self.folder, _STEMS[part, "images"])
        labels_path = _find(self.folder, _STEMS[part, "labels"])
        assert images_path is not None and labels_path is not None, "checked by find_idx_folder"
        for images, labels in zip_longest(read_idx(images_path, (28, 28)), read_idx(labels_path, ())):
            if images is None or labels is None or len(images) != len(labels):
                raise UserError(
                    f"{images_path} and {labels_path} hold different numbers of records; fetch them again."
                )
            # no error for a label that is none: it is one record's, which perhaps is private
            yield images[..., None], [str(label) if label <= 9 else None for label in labels.tolist()]


def find_idx_folder(
    source: Literal["mnist", "fashion_mnist"], path: Path | None, home: Path, *, download: bool
) -> Path:
    """Finds the folder with the four IDX files: `path`, else the system's, else a download under the home.

    Raises:
        UserError: not there and not to be had; says what is missing and how to get it.
    """
    title = _TITLES[source]
    if path is not None:
        for folder in (path, path / "raw", path / _TORCHVISION[source] / "raw"):
            if not _missing(folder):
                return folder
        if not path.is_dir():
            raise UserError(
                f"data.path {path} is not a folder, where one with the IDX files of {title} was expected."
            )
        raise UserError(f"data.path {path} lacks {', '.join(_missing(path))} (plain or .gz) of {title}.")
    system, fetched = _SYSTEM / source.replace("_", "-"), home / "downloads" / source
    for folder in (system, fetched):
        if not _missing(folder):
            return folder
    remedy = f"set data.path to a folder with its four IDX files ({', '.join(_STEMS.values())}, plain or .gz)"
    if not download:
        raise UserError(f"{title} is neither in {system} nor in {fetched}: allow data.download or {remedy}.")
    if not _download(source, fetched):
        raise UserError(
            f"{title} is neither in {system} nor in {fetched}, and the download failed: {remedy}."
        )
    return fetched


def _find(folder: Path, stem: str) -> Path | None:
    names = (stem, stem.replace("-idx", ".idx"))
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _missing(folder: Path) -> list[str]:
    return [stem for stem in _STEMS.values() if _find(folder, stem) is None]


def _download(source: str, target: Path) -> bool:
    import torchvision.datasets

    target.parent.mkdir(parents=True, exist_ok=True)
    # torchvision unpacks in place; aside and renamed, a broken download is never mistaken for the data set
    aside = Path(tempfile.mkdtemp(prefix=f".{source}.", suffix=".part", dir=target.parent))
    try:
        name = _TORCHVISION[source]
        dataset: Any = getattr(torchvision.datasets, name)
        try:
            dataset(str(aside), download=True)
        except (OSError, RuntimeError):
            return False
        if _missing(target):  # another process may have been faster
            shutil.rmtree(target, ignore_errors=True)
            (aside / name / "raw").rename(target)
        return not _missing(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
