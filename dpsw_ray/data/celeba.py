"""CelebA in torchvision's folder layout: aligned JPEGs, attributes, optionally the official partition.

Errors name the folder or list at fault, never a person's image or the number of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpsw_ray.data.records import Batch, RecordSchema
from dpsw_ray.errors import UserError

__all__ = ["CelebaSource", "find_celeba_folder"]

_SIDE = 64
_BATCH = 1024  # 12 MB of pixels
_IMAGES, _ATTRIBUTES, _PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"


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

    def stretches(self, part: Literal["train", "test"]) -> int:
        """As many as there are batches; see `Source.stretches`."""
        return -(-sum(1 for _ in self._rows(part)) // _BATCH)

    def batches(self, part: Literal["train", "test"], stretches: range | None = None) -> Iterator[Batch]:
        """Yields uint8 [n, 64, 64, 3] and labels; see `Source.batches`."""
        rows = self._rows(part)
        if stretches is not None:
            rows = islice(rows, stretches.start * _BATCH, stretches.stop * _BATCH)
        while chosen := list(islice(rows, _BATCH)):
            values = np.stack([self._image(name) for name, _ in chosen])
            yield values, [label for _, label in chosen] if self.labelled else None

    def _rows(self, part: str) -> Iterator[tuple[str, str | None]]:
        test = self._test_names()
        path = self.folder / _ATTRIBUTES
        bad = UserError(
            f"{path} is damaged: its first line must hold the number of images, its second the attributes, "
            "every further line an image with 1 or -1 for each attribute; fetch it again."
        )
        with path.open(encoding="utf-8", errors="replace") as file:
            first, attributes = file.readline().strip(), file.readline().split()
            if not first.isdecimal() or not attributes:
                raise bad
            announced = int(first)
            for line in file:
                if not (fields := line.split()):
                    continue
                name, *flags = fields
                # only a plain file name: a path could lead out of the folder
                if len(flags) != len(attributes) or Path(name).name != name or not {*flags} <= {"1", "-1"}:
                    raise bad
                announced -= 1
                if (name in test) == (part == "test"):
                    yield name, None if self._column is None else ("1" if flags[self._column] == "1" else "0")
            if announced != 0:
                raise UserError(
                    f"{path} does not hold as many images as its first line says; fetch it again."
                )

    def _test_names(self) -> set[str]:
        if not self.has_test:
            return set()
        path = self.folder / _PARTITION
        with path.open(encoding="utf-8", errors="replace") as file:
            rows = [fields for line in file if (fields := line.split())]
        if any(len(fields) != 2 or fields[1] not in ("0", "1", "2") for fields in rows):
            raise UserError(
                f"{path} is damaged: every line must hold an image and 0 (training), 1 (validation) or "
                "2 (test); fetch it again."
            )
        return {name for name, partition in rows if partition == "2"}

    def _image(self, name: str) -> npt.NDArray[np.uint8]:
        folder = self.folder / _IMAGES
        try:
            with Image.open(folder / name) as image:
                width, height = image.size
                side = min(width, height)
                left, top = (width - side) // 2, (height - side) // 2
                square = image.convert("RGB").crop((left, top, left + side, top + side))
                return np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
        except FileNotFoundError:
            raise UserError(
                f"{folder} lacks images that {_ATTRIBUTES} lists; unpack the archive again."
            ) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = str(folder)  # not the person's image
                raise
            raise UserError(
                f"{folder} holds an image that cannot be decoded; unpack the archive again."
            ) from None
