"""What a chunk of record holders holds: PRIVATE, handed to the mechanism that answers for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.latents import LatentStore

__all__ = ["Batches", "HeldRecords"]

Batches: TypeAlias = Iterable[tuple[NDArray[np.float64], NDArray[np.int32]]]
"""Bounded latents [n, d] and labels [n], a part of the records at a time, in the order of the rows."""


@dataclass(frozen=True)
class HeldRecords:
    """A stretch of the private latents.

    Attributes:
        store: of all latents.
        start: first row.
        stop: one past the last row.
        threads: that may be used.
        choices: key of what is chosen in secret for this question; None where the plan's noise is a drawn table.
    """

    store: LatentStore = field(repr=False)
    start: int
    stop: int
    threads: int = 1
    choices: NoiseKey | None = None

    @property
    def batches(self) -> Batches:
        """The rows, a chunk of the store at a time."""
        return self.store.batches(self.start, self.stop)

    @property
    def rows(self) -> int:
        """Number of rows of all chunks."""
        return self.store.rows()

    @property
    def key(self) -> NoiseKey:
        """`choices`, by a mechanism whose plans have a key.

        Raises:
            RuntimeError: there is none.
        """
        if self.choices is None:
            raise RuntimeError("these plans have a key")
        return self.choices
