"""What the public part shows of a table's columns: which are constant, which hold whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.data.records import RecordSchema

__all__ = ["Column", "Columns"]

_LARGEST = 2.0**63  # whole numbers below are written as such


@dataclass(frozen=True)
class Column:
    """One column, as its public values are.

    Attributes:
        kind: `real`; `whole` numbers; `constant`.
        low: smallest value.
        high: largest value.
    """

    kind: Literal["real", "whole", "constant"]
    low: float
    high: float


@dataclass(frozen=True)
class Columns:
    """The columns of a table that samples are brought back to; none for images.

    Constants become constant again, whole numbers whole, within the public part's range: post-processing with public
    knowledge.
    """

    columns: tuple[Column, ...] = ()

    @classmethod
    def of(cls, schema: RecordSchema, public: NDArray[Any]) -> Columns:
        """Reads them off public records [n, *shape]; missing values (NaN) are looked past."""
        if schema.kind != "table":
            return cls()
        return cls(tuple(_column(values[np.isfinite(values)]) for values in np.asarray(public).T))

    @classmethod
    def from_list(cls, stored: Any) -> Columns:
        """The inverse of `to_list`; empty for what is none, such as of a release of an earlier version."""
        return cls(tuple(Column(**column) for column in stored or ()))

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [
            {"kind": column.kind, "low": column.low, "high": column.high}
            if column.kind != "real"
            else {"kind": "real", "low": 0.0, "high": 0.0}
            for column in self.columns
        ]

    @property
    def whole(self) -> tuple[bool, ...]:
        """Which columns hold whole numbers, by number."""
        return tuple(
            column.kind == "whole"
            or (column.kind == "constant" and column.low.is_integer() and abs(column.low) < _LARGEST)
            for column in self.columns
        )

    def restore(self, records: NDArray[Any]) -> NDArray[Any]:
        """Records [n, columns] with whole numbers where they belong; images as they are."""
        if not self.columns:
            return records
        restored = np.array(records)
        for values, column in zip(restored.T, self.columns, strict=True):  # rows of the transpose are views
            if column.kind == "constant":
                values[:] = column.low
            elif column.kind == "whole":
                np.clip(np.rint(values), column.low, column.high, out=values)
        return restored


def _column(values: NDArray[np.float64]) -> Column:
    if not len(values):
        return Column("real", 0.0, 0.0)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return Column("constant", low, high)
    whole = max(abs(low), abs(high)) < _LARGEST and np.array_equal(values, np.rint(values))
    return Column("whole" if whole else "real", low, high)
