"""What a record is: schemas, parts, and the interface every source of records implements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["BATCH", "NULL", "Batch", "Part", "RecordSchema", "Source"]

BATCH = 4096
"""Records per batch while importing: what bounds the memory of an import."""

NULL = -2
"""Label of a null record, which adds nothing; -1 is a record without a (known) class."""

Batch = tuple[npt.NDArray[Any], Sequence[str | None] | None]
"""Values [n, *shape] (uint8 or float64), and one label per record (None: unknown) or None for no labels.

A record that cannot be read is still there, as the null record: an error would tell of it, and so would its absence.
A table's has a NaN, an image's is masked (the values are then a `numpy.ma.MaskedArray`).
"""


@dataclass(frozen=True)
class RecordSchema:
    """The public form of a record.

    Attributes:
        kind: `image` (uint8 values) or `table` (float64 values).
        shape: (height, width, channels) of an image at its native size, or (columns,) of a table.
        columns: the column names of a table, empty for images.
        value_range: smallest and largest pixel value an image can hold, None for tables.
    """

    kind: Literal["image", "table"]
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    value_range: tuple[int, int] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type of one value, little-endian on every machine."""
        return np.dtype("u1") if self.kind == "image" else np.dtype("<f8")

    @property
    def size(self) -> int:
        """Values per record."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The schema as JSON values."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "columns": list(self.columns),
            "value_range": list(self.value_range) if self.value_range is not None else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecordSchema:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError where `values` is something else."""
        if values["kind"] not in ("image", "table"):
            raise ValueError("kind")
        bounds = values["value_range"]
        return cls(
            kind=values["kind"],
            shape=tuple(int(n) for n in values["shape"]),
            columns=tuple(str(name) for name in values["columns"]),
            value_range=(int(bounds[0]), int(bounds[1])) if bounds is not None else None,
        )


@dataclass(frozen=True)
class Part:
    """The records of one part, read-only and memory-mapped.

    Attributes:
        values: [n, *shape], uint8 for images and float64 for tables.
        labels: int32 [n], an index into the public class list, -1 for none or unknown, NULL for a null image.
        name: `public`, `test` or `private`.
    """

    values: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    name: str

    def __len__(self) -> int:
        return len(self.values)


class Source(Protocol):
    """Where records come from.

    Attributes:
        schema: the form of every record.
        class_names: nice names by label, such as `{"0": "T-shirt/top"}`, where the data set has them.
        labelled: whether batches carry labels.
        has_test: whether the source has a test part of its own.
        name: what error sentences call it: a file, a folder or a data set.
        files: what it is read from, in a fixed order; none where it comes with a library.
    """

    @property
    def schema(self) -> RecordSchema: ...  # noqa: D102

    @property
    def class_names(self) -> Mapping[str, str] | None: ...  # noqa: D102

    @property
    def labelled(self) -> bool: ...  # noqa: D102

    @property
    def has_test(self) -> bool: ...  # noqa: D102

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def files(self) -> tuple[Path, ...]: ...  # noqa: D102

    def stretches(self, part: Literal["train", "test"]) -> int:
        """In how many stretches, one after the other, the part can be read independently; 1: only as a whole."""
        ...

    def batches(self, part: Literal["train", "test"], stretches: range | None = None) -> Iterator[Batch]:
        """Yields batches of at most `BATCH` records in a fixed order; `test` only where `has_test`.

        Args:
            part: which.
            stretches: consecutive ones of `stretches(part)`; default: all.

        Raises:
            UserError: the source as a whole is damaged, whatever its records are; the sentence quotes no record and
                no number of records.
        """
        ...
