"""CelebA in torchvision's folder layout: aligned JPEGs, attributes, optionally the official partition.

Errors name the folder or list at fault as a whole, never a person's image or the number of them. An image that is
missing or cannot be decoded, and a line of a list that cannot be read, are null records: no error tells of one person.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpsw_ray.base.errors import UserError
from dpsw_ray.data.records import Batch, RecordSchema

__all__ = ["CelebaSource", "find_celeba_folder"]

_SIDE = 64
_BATCH = 1024  # 12 MB of pixels
_IMAGES, _ATTRIBUTES, _PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
# What a machine refuses, whatever an image holds.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE}


def find_celeba_folder(path: Path | None, home: Path) -> Path:
    """Finds the folder that holds `img_align_celeba/` and `list_attr_celeba.txt`.

    Raises:
        UserError: nothing there; says what is missing.
    """
    base = path if path is not None else home / "downloads" / "celeba"
    for folder in (base, base / "celeba"):
        if (folder / _IMAGES).is_dir() and (folder / _ATTRIBUTES).is_file():
            return folder
    missing = [
        name
        for name, there in (
            (f"{_IMAGES}/", (base / _IMAGES).is_dir()),
            (_ATTRIBUTES, (base / _ATTRIBUTES).is_file()),
        )
        if not there
    ]
    where = f"data.path {base}" if path is not None else f"The usual folder {base}"
    raise UserError(
        f"{where} lacks {' and '.join(missing)} of CelebA: unpack the archives of its authors there "
        "or set data.path to where they are."
    )


class CelebaSource:
    """CelebA, centre-cropped to a square and scaled to 64x64 RGB; the label is one attribute, `0` or `1`.

    The official test partition is the test part where `list_eval_partition.txt` is there; its validation
    partition counts as training records.
    """

    schema = RecordSchema("image", (_SIDE, _SIDE, 3), value_range=(0, 255))

    def __init__(self, folder: Path, label: str | None) -> None:
        self.folder = folder
        self.name = f"CelebA in {folder}"
        self.labelled = label is not None
        self.has_test = (folder / _PARTITION).is_file()
        lists = (_ATTRIBUTES, _PARTITION) if self.has_test else (_ATTRIBUTES,)
        # of the images their names alone: to read them all again would take as long as an import
        self.files = tuple(folder / name for name in (*lists, _IMAGES))
        self.class_names: Mapping[str, str] | None = None
        self._column: int | None = None
        if label is not None:
            with (folder / _ATTRIBUTES).open(encoding="utf-8", errors="replace") as file:
                names = [line.split() for line in islice(file, 2)][-1:]
            attributes = names[0] if names else []
            if label not in attributes:
                raise UserError(
                    f"data.label {label} is not an attribute in {folder / _ATTRIBUTES}; "
                    f"it has {', '.join(attributes)}."
                )
            self._column = attributes.index(label)
            self.class_names = {"0": f"not {label}", "1": label}
        self._test = self._test_names()
        self._check_attributes()

    def stretches(self, part: Literal["train", "test"]) -> int:
        """As many as there are batches; see `Source.stretches`."""
        return -(-sum(1 for _ in self._rows(part)) // _BATCH)

    def batches(self, part: Literal["train", "test"], stretches: range | None = None) -> Iterator[Batch]:
        """Yields uint8 [n, 64, 64, 3] and labels; see `Source.batches`."""
        rows = self._rows(part)
        if stretches is not None:
            rows = islice(rows, stretches.start * _BATCH, stretches.stop * _BATCH)
        while chosen := list(islice(rows, _BATCH)):
            images = [None if name is None else self._image(name) for name, _ in chosen]
            values = np.stack([np.zeros(self.schema.shape, np.uint8) if x is None else x for x in images])
            if null := [i for i, image in enumerate(images) if image is None]:
                values = np.ma.MaskedArray(values)
                values[null] = np.ma.masked
            yield values, [label for _, label in chosen] if self.labelled else None

    def _rows(self, part: str) -> Iterator[tuple[str | None, str | None]]:
        """Names and labels of a part's images; two times None for a line that cannot be read."""
        for name, label, whole in self._lines():
            if (name in self._test) == (part == "test"):
                yield (name, label) if whole else (None, None)

    def _lines(self) -> Iterator[tuple[str, str | None, bool]]:
        """Name, label and whether the line is one of an image and its attributes."""
        with (self.folder / _ATTRIBUTES).open(encoding="utf-8", errors="replace") as file:
            width = [len(line.split()) for line in islice(file, 2)][-1]
            for line in file:
                if not (fields := line.split()):
                    continue
                name, *flags = fields
                # only a plain file name: a path could lead out of the folder
                whole = len(flags) == width and Path(name).name == name and {*flags} <= {"1", "-1"}
                known = whole and self._column is not None
                yield name, {"1": "1", "-1": "0"}[flags[self._column or 0]] if known else None, whole

    def _check_attributes(self) -> None:
        """Refuses a list that is another file, or half of one; not for what one of its lines is."""
        path = self.folder / _ATTRIBUTES
        with path.open(encoding="utf-8", errors="replace") as file:
            first, attributes = file.readline().strip(), file.readline().split()
        announced = int(first) if first.isdecimal() and len(first) < 10 else None
        wholes = [whole for _, _, whole in self._lines()] if announced is not None and attributes else []
        if announced is None or not attributes or (wholes and not any(wholes)):
            raise UserError(
                f"{path} is damaged: its first line must hold the number of images, its second the attributes, "
                "every further line an image with 1 or -1 for each attribute; fetch it again."
            )
        if announced != len(wholes):
            raise UserError(f"{path} does not hold as many images as its first line says; fetch it again.")

    def _test_names(self) -> set[str]:
        if not self.has_test:
            return set()
        path = self.folder / _PARTITION
        with path.open(encoding="utf-8", errors="replace") as file:
            rows = [fields for line in file if (fields := line.split())]
        whole = [fields for fields in rows if len(fields) == 2 and fields[1] in ("0", "1", "2")]
        if rows and not whole:
            raise UserError(
                f"{path} is damaged: every line must hold an image and 0 (training), 1 (validation) or "
                "2 (test); fetch it again."
            )
        return {name for name, partition in whole if partition == "2"}

    def _image(self, name: str) -> npt.NDArray[np.uint8] | None:
        """The image [64, 64, 3]; None where there is none."""
        folder = self.folder / _IMAGES
        try:
            if not (folder / name).is_file():  # a pipe would be waited for
                return None
            with Image.open(folder / name) as image:
                width, height = image.size
                side = min(width, height)
                left, top = (width - side) // 2, (height - side) // 2
                square = image.convert("RGB").crop((left, top, left + side, top + side))
                return np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
        except Exception as error:  # a decoder raises anything
            if isinstance(error, OSError) and error.errno in _REFUSED:
                error.filename = str(folder)  # not the person's image
                raise
            return None
