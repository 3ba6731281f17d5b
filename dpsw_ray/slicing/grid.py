"""The public grid of bins, and the integer table of what one record adds to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

__all__ = ["PHASES", "SCALE", "BinGrid"]

PHASES = 64
"""Positions inside one bin that the table tells apart."""

SCALE = 1 << 16
"""What one record adds in all to each direction: every row of the table sums to this integer."""


@dataclass(frozen=True)
class BinGrid:
    """Bins over [-1, 1] with room on both sides for the tails of the smoothing Gaussian.

    The smoothing kernel is cut off `margin = ceil(4 sigma / width)` bins from its centre and renormalised. The
    grid reaches that far beyond the ball, so no record's mass is clamped into an edge bin: a clamped tail
    would raise the norm of edge records far above the interior's.

    Attributes:
        bins: cells per direction, margins included.
        smoothing: sigma of the Gaussian in bin widths; 0 gives one-hot rows.
    """

    bins: int
    smoothing: float

    @property
    def margin(self) -> int:
        """Bins on each side that only tails can reach."""
        return math.ceil(4 * self.smoothing)

    @property
    def width(self) -> float:
        """Width of one bin, latents living in the unit ball."""
        return 2.0 / (self.bins - 2 * self.margin)

    @property
    def sigma(self) -> float:
        """The smoothing Gaussian's standard deviation, in the units of the latents."""
        return self.smoothing * self.width

    @property
    def low(self) -> float:
        """Left end of the grid; the right end is its negative."""
        return -1.0 - self.margin * self.width

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Array of size [bins + 1]: the ends of the bins."""
        return self.low + self.width * np.arange(self.bins + 1, dtype=np.float64)

    @cached_property
    def table(self) -> NDArray[np.int64]:
        """Array of size [PHASES, 2 * margin + 1]: the integer mass of one record.

        Row p holds what a record in phase p of bin b adds to bins b - margin .. b + margin. Rows come from the
        Gaussian's masses by the largest-remainder method: non-negative, each summing to SCALE exactly.
        """
        if self.smoothing == 0:
            return np.full((PHASES, 1), SCALE, dtype=np.int64)
        position = (np.arange(PHASES)[:, None] + 0.5) / PHASES
        ends = np.arange(-self.margin, self.margin + 2)[None, :]
        mass = np.diff(ndtr((ends - position) / self.smoothing), axis=1)
        exact = mass / mass.sum(axis=1, keepdims=True) * SCALE
        rows: NDArray[np.int64] = np.floor(exact).astype(np.int64)
        for row, remainder in zip(rows, exact - rows, strict=True):
            row[np.argsort(-remainder, kind="stable")[: SCALE - int(row.sum())]] += 1
        return rows

    @property
    def row_norm_sq(self) -> int:
        """The largest squared L2 norm of a row of `table`: exact integer arithmetic on the table in use."""
        return int((self.table**2).sum(axis=1).max())

    @property
    def beta(self) -> float:
        """L2 norm of one record's bin vector per unit of mass, at worst (1 without smoothing)."""
        return math.sqrt(self.row_norm_sq) / SCALE
