"""Columns in units of their own deviation, whatever their size: no square overflows, no small deviation is lost.

Values are first divided by a power of two near the largest of a column, which rounds nothing, and the column's
location is taken away before anything is squared: numbers of thirteen digits that differ in their last one have a
deviation as any others have. A column is constant if all its values are equal, and by no threshold.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FAR", "column_statistics", "power_of_two", "restored", "standardised"]

FAR = 2.0**40
"""Deviations from the mean at which a value is as far away as can be told: its square fits single precision."""

Array = TypeVar("Array", NDArray[np.float64], Tensor)

_LEAST = np.finfo(np.float64).smallest_subnormal
_NORMAL = float(np.finfo(np.float64).tiny)
_LARGEST = float(np.finfo(np.float64).max)


def column_statistics(values: NDArray[Any], ddof: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and standard deviations of columns.

    Args:
        values: array of size [n, c], n > 0, finite.
        ddof: subtracted from n where the squares are averaged.

    Returns:
        Two arrays of size [c], in the columns' units; the deviation is 0 where all values are equal, and nowhere else.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    unit = power_of_two(np.maximum(np.abs(low), np.abs(high)))
    middle = (low / unit + high / unit) / 2
    rest = values / unit - middle  # rounds nothing where values are near one another
    spread = power_of_two(np.abs(rest).max(axis=0))
    rest /= spread
    mean = (middle + spread * rest.mean(axis=0)) * unit
    deviation = spread * rest.std(axis=0, ddof=min(ddof, len(values) - 1)) * unit
    constant = low == high
    return np.where(constant, low, mean), np.where(constant, 0.0, np.maximum(deviation, _LEAST))


def standardised(values: Array, shift: Array, scale: Array) -> Array:
    """(values - shift) / scale, at most `FAR` away from 0; 0 where the scale is 0, NaN where a value is not finite.

    Args:
        values: array of size [n, c], float64.
        shift: array of size [c].
        scale: array of size [c], not negative.
    """
    maths: Any = torch if isinstance(values, Tensor) else np
    unit = power_of_two(maths.maximum(abs(shift), scale))
    divisor = maths.where(scale > 0, scale / unit, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = maths.clip((values / unit - shift / unit) / divisor, -FAR, FAR)
    out: Array = maths.where(maths.isfinite(values), scaled, np.nan)
    return out


def restored(points: Array, shift: Array, scale: Array) -> Array:
    """The inverse of `standardised`: points * scale + shift, as far as finite numbers reach."""
    maths: Any = torch if isinstance(points, Tensor) else np
    unit = power_of_two(maths.maximum(abs(shift), scale))
    with np.errstate(over="ignore"):
        out: Array = maths.clip((points * (scale / unit) + shift / unit) * unit, -_LARGEST, _LARGEST)
    return out


def power_of_two(size: Array) -> Array:
    """The power of two at or below each size, a normal number; 1 for 0."""
    maths: Any = torch if isinstance(size, Tensor) else np
    mantissa = maths.where(size > 0, maths.frexp(size)[0], 0.5)
    out: Array = maths.where(size > 0, maths.clip(size / (2 * mantissa), _NORMAL, _LARGEST), 1.0)
    return out
