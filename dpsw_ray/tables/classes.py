"""How many records a release shows in each class: public like the rest of it, and free.

A class list that does not fit the private labels cannot be refused, as saying so would tell of them. But their records
are in no class then, and the released table, whose noise is known, shows that most of its mass is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.grid import SCALE
from dpsw_ray.tables.release import Release

__all__ = ["ReleasedClasses"]

_SHOWN = 12  # classes in one sentence
_SURE = 3.0  # standard deviations of the noise


@dataclass(frozen=True)
class ReleasedClasses:
    """Estimates from the noisy table.

    Attributes:
        names: of the classes.
        records: array of size [C], about how many records are in each; noise may make some negative.
        noise: standard deviation of each of them.
        expected: records in all, where that is public.
    """

    names: tuple[str, ...]
    records: NDArray[np.float64]
    noise: float
    expected: float | None

    @classmethod
    def of(cls, release: Release, rate: float = 1.0) -> Self | None:
        """Reads them off a release; None for one that tells no classes.

        Args:
            release: any.
            rate: the share of the records that a round is of.
        """
        names = tuple(release.manifest["class_names"])
        if len(names) != release.blocks:
            return None
        rounds, _, count, bins = release.counts.shape
        records = release.counts.sum(axis=3).mean(axis=(0, 2)) / SCALE / rate
        noise = release.cell_noise / SCALE / rate * math.sqrt(bins / (rounds * count))
        expected = release.manifest.get("private_records")
        return cls(names, records, noise, None if expected is None else float(expected))

    @property
    def total(self) -> float:
        """About how many records are in some class."""
        return float(self.records.sum())

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of each class, array of size [C]: of all records where their number is public, else of those in a class."""
        whole = max(self.expected or self.total, self.noise, 1.0)
        return np.asarray(np.maximum(self.records, 0.0) / whole)

    @property
    def sentence(self) -> str:
        """The shares, largest first."""
        order = np.argsort(-self.records, kind="stable")
        shown = ", ".join(f"{self.names[i]} {self.shares[i]:.1%}" for i in order[:_SHOWN])
        more = f" and {len(order) - _SHOWN} more" if len(order) > _SHOWN else ""
        return f"Released classes: {shown}{more}"

    @property
    def warning(self) -> str | None:
        """A sentence where most of the records, or all that can be told from noise, are in no class."""
        spread = _SURE * self.noise * math.sqrt(len(self.names))
        if self.expected is None:
            if self.total > spread:
                return None
            found = (
                "Hardly any private record is in a class: what is released of them cannot be told from noise."
            )
        else:
            if self.total + spread >= self.expected / 2:
                return None
            share = max(self.total, 0.0) / max(self.expected, 1.0)
            found = f"About {share:.0%} of the {self.expected:,.0f} private records are in a class, the others in none."
        return f"{found} See whether data.classes holds the labels as they are written in the data, and data.label."
