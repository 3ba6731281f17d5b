"""The plan of noisy slices: a sequence of rounds, each with directions of its own, charged and stored as a whole.

The mechanisms differ in what a record adds to a round and where the noise goes; each has a plan of its own.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.privacy.events import Event, NoiseKind
from dpsw_ray.privacy.noise import SAMPLER
from dpsw_ray.privacy.relations import Unit
from dpsw_ray.release.form import Form
from dpsw_ray.release.plan import Summed
from dpsw_ray.slicing.grid import BinGrid

__all__ = ["SlicesPlan", "changed_cells"]


@dataclass(frozen=True)
class SlicesPlan(Summed, ABC):
    """One release before it happens.

    Attributes:
        release_id: random name of this release; the ledger's charge and the noise secret carry it.
        directions: array of size [T, K, d] on the lattice: K directions in each of T rounds.
        grid: bins and smoothing.
        table: array of size [phases, taps], the integer rows in use. It travels with the plan, so that shards
            on different machines bin with the same integers and the sensitivity is that of these integers.
        classes: number of cell blocks C (1: not class-conditional).
        class_conditional: whether labels choose the block.
        noise_std: standard deviation of the noise, in lattice units; of the discrete Gaussian it is the parameter
            sigma, which is what is charged.
        noise: how it is sampled.
        unit: whose contribution is bounded.
    """

    release_id: str
    directions: NDArray[np.float64] = field(repr=False)
    grid: BinGrid
    table: NDArray[np.int64] = field(repr=False)
    classes: int
    class_conditional: bool
    noise_std: float
    noise: NoiseKind | Literal["skellam"] = "gaussian"
    unit: Unit = "record"

    @property
    @abstractmethod
    def event(self) -> Event:
        """What the whole release costs."""

    @property
    @abstractmethod
    def mechanism(self) -> str:
        """Name of the module that answers."""

    @property
    def form(self) -> Form | None:
        """Of one holder: a row of the table in each direction, in one block."""
        return Form(self.cells[1:], self._row_norm_sq, int(self.table.sum(axis=1).max()), axis=1)

    @property
    def seeded(self) -> bool:
        """Whether the public seed decides the directions; else the random release id does."""
        return True

    @property
    def cells(self) -> tuple[int, int, int, int]:
        """Shape [T, C, K, bins] of the released tables."""
        rounds, directions, _ = self.directions.shape
        return (rounds, self.classes, directions, self.grid.bins)

    @property
    def stretches(self) -> tuple[tuple[float, int], ...]:
        """One: all cells have the same noise."""
        return ((self.noise_std, math.prod(self.cells)),)

    @property
    def cell_noise(self) -> float:
        """Standard deviation of the noise on each released cell; 0 where it is on the projections instead."""
        return self.noise_std

    def rounds(self, number: int) -> slice:
        """The rounds that question `number` asks for."""
        cuts = np.linspace(0, len(self.directions), self.questions + 1).astype(int)
        return slice(int(cuts[number]), int(cuts[number + 1]))

    def shape(self, number: int) -> tuple[int, ...]:
        """[rounds of question `number`, C, K, bins]."""
        rounds = self.rounds(number)
        return (rounds.stop - rounds.start, *self.cells[1:])

    def counts(self, totals: NDArray[np.int64]) -> NDArray[np.int64]:
        """The released counts, `SCALE` for each unit, that the added-up answers stand for."""
        return totals

    def digest(self) -> str:
        """Hash of everything that decides the release's numbers apart from the data and the noise secret.

        The random `release_id` is not in it: under `noise_seed` the same plan must give the same bits.
        """
        h = hashlib.sha256()
        own = (
            type(self).__name__,
            SAMPLER,
            self.grid,
            self.cells,
            self.class_conditional,
            self.noise,
            self.unit,
        )
        for part in (*own, self.noise_std.hex(), *self._more()):
            h.update(repr(part).encode() + b"\0")
        h.update(np.ascontiguousarray(self.directions).tobytes())
        h.update(np.ascontiguousarray(self.table).tobytes())
        return h.hexdigest()

    def _more(self) -> tuple[object, ...]:
        """What a subclass adds to the digest."""
        return ()

    @property
    def _row_norm_sq(self) -> int:
        return int((self.table**2).sum(axis=1).max())


def changed_cells(directions: int, grid: BinGrid) -> int:
    """How many cells of sliced histograms a replaced record can change: two rows in each direction."""
    return 2 * directions * int(grid.table.shape[1])
