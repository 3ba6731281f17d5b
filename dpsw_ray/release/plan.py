"""What is going to be released: public, decided before any private record is read.

A release is a sequence of rounds, each with directions of its own; it is made, charged and stored as a whole. The
mechanisms differ in what a record adds to a round and where the noise goes; each has a plan of its own.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.calibration import calibrate_histogram_noise, calibrate_noise
from dpsw_ray.privacy.discrete import MAX_DRAWN
from dpsw_ray.privacy.events import Event, NoiseKind, SampledGaussianEvent, SlicedHistogramEvent
from dpsw_ray.privacy.noise import MAX_STD
from dpsw_ray.privacy.relations import Relation, Unit
from dpsw_ray.slicing.directions import haar_frames, spread_frames
from dpsw_ray.slicing.grid import SCALE, BinGrid

__all__ = ["AnyPlan", "HistogramPlan", "ReleasePlan", "SampledHistogramPlan", "checked_std"]

_BLOCK_CELLS = 1 << 21  # of one message of a long sequence: 16 MiB


class AnyPlan(Protocol):
    """What the release protocol asks of a plan, whatever is released: slices, or moments."""

    @property
    def release_id(self) -> str:
        """Random name of this release."""

    @property
    def noise(self) -> str:
        """How the noise is sampled."""

    @property
    def noise_std(self) -> float:
        """Scale of the noise, in lattice units."""

    @property
    def cells(self) -> tuple[int, ...]:
        """Shape of what is released."""

    @property
    def event(self) -> Event:
        """What the whole release costs."""

    @property
    def messages(self) -> int:
        """Number of messages of each shard."""

    def digest(self) -> str:
        """Hash of everything that decides the released numbers apart from the data and the noise secret."""


@dataclass(frozen=True)
class ReleasePlan(ABC):
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
    def messages(self) -> int:
        """Number of messages that the rounds are sent in, for each shard."""

    @property
    def cells(self) -> tuple[int, int, int, int]:
        """Shape [T, C, K, bins] of the released tables."""
        rounds, directions, _ = self.directions.shape
        return (rounds, self.classes, directions, self.grid.bins)

    def rounds(self, message: int) -> slice:
        """The rounds that a message holds."""
        cuts = np.linspace(0, len(self.directions), self.messages + 1).astype(int)
        return slice(int(cuts[message]), int(cuts[message + 1]))

    def counts(self, totals: NDArray[np.int64]) -> NDArray[np.int64]:
        """The released counts, `SCALE` for each unit, that the added-up messages stand for."""
        return totals

    def digest(self) -> str:
        """Hash of everything that decides the release's numbers apart from the data and the noise secret.

        The random `release_id` is not in it: under `noise_seed` the same plan must give the same bits.
        """
        h = hashlib.sha256()
        own = (type(self).__name__, self.grid, self.cells, self.class_conditional, self.noise, self.unit)
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


@dataclass(frozen=True)
class HistogramPlan(ReleasePlan):
    """Smoothed sliced histograms of all records, in one round (DPSWflow-h)."""

    @classmethod
    def make(
        cls,
        *,
        release_id: str,
        dim: int,
        frames: int,
        grid: BinGrid,
        classes: int,
        class_conditional: bool,
        relation: Relation,
        epsilon: float,
        delta: float,
        seed: int,
        noise: NoiseKind = "gaussian",
        unit: Unit = "record",
        beside: Sequence[Event] = (),
    ) -> Self:
        """Draws the directions from the public seed; calibrates the noise to (epsilon, delta), `beside` included."""
        directions = spread_frames(frames, dim, seed)
        std = calibrate_histogram_noise(
            len(directions), grid.row_norm_sq, relation, epsilon, delta, noise=noise, beside=beside
        )
        plan = cls(
            release_id,
            directions[None],
            grid,
            grid.table,
            classes,
            class_conditional,
            checked_std(std, SCALE, epsilon, len(directions)),
            noise,
            unit,
        )
        if noise == "discrete_gaussian" and math.prod(plan.cells) > MAX_DRAWN:
            raise UserError(
                f"privacy.noise discrete_gaussian draws at most {MAX_DRAWN:,} cells, the plan has "
                f"{math.prod(plan.cells):,}: choose fewer release.frames or release.bins, or privacy.noise gaussian."
            )
        return plan

    @property
    def event(self) -> SlicedHistogramEvent:
        """What the release costs: its sensitivity is computed from the integer rows in use."""
        assert self.noise != "skellam"
        return SlicedHistogramEvent(
            directions=self.directions.shape[1],
            row_norm_sq=self._row_norm_sq,
            noise_std=self.noise_std,
            noise=self.noise,
            unit=self.unit,
        )

    @property
    def messages(self) -> int:
        """One."""
        return 1


@dataclass(frozen=True)
class SampledHistogramPlan(ReleasePlan):
    """Smoothed sliced histograms of a secret Poisson sample in every round (DPSWflow-r).

    Attributes:
        rate: probability that a record is in a round, a public constant.
    """

    rate: float = 1.0

    @classmethod
    def make(
        cls,
        *,
        release_id: str,
        dim: int,
        frames: int,
        rounds: int,
        rate: float,
        grid: BinGrid,
        classes: int,
        class_conditional: bool,
        relation: Relation,
        epsilon: float,
        delta: float,
        seed: int,
    ) -> Self:
        """Draws fresh frames for every round from the public seed and calibrates the noise of all of them."""
        directions = haar_frames(frames * rounds, dim, seed).reshape(rounds, frames * dim, dim)
        std = _sampled_std(rounds, frames * dim, grid.row_norm_sq, rate, relation, epsilon, delta)
        return cls(
            release_id,
            directions,
            grid,
            grid.table,
            classes,
            class_conditional,
            checked_std(std, SCALE, epsilon, frames * dim),
            "gaussian",
            rate=rate,
        )

    @property
    def event(self) -> SampledGaussianEvent:
        """What all rounds cost: its sensitivity is computed from the integer rows in use."""
        rounds, directions, _ = self.directions.shape
        return _sampled_event(rounds, directions, self._row_norm_sq, self.rate, self.noise_std)

    @property
    def messages(self) -> int:
        """As many as keep one message small."""
        return min(len(self.directions), -(-math.prod(self.cells) // _BLOCK_CELLS))

    def _more(self) -> tuple[object, ...]:
        return (self.rate.hex(),)


def _sampled_event(
    rounds: int, directions: int, row_norm_sq: int, rate: float, noise_std: float
) -> SampledGaussianEvent:
    return SampledGaussianEvent(
        sampling=rate,
        sensitivity=math.sqrt(directions * row_norm_sq),
        noise_std=noise_std,
        steps=rounds,
        label="sliced histograms of secret samples",
    )


@lru_cache(maxsize=64)
def _sampled_std(
    rounds: int,
    directions: int,
    row_norm_sq: int,
    rate: float,
    relation: Relation,
    epsilon: float,
    delta: float,
) -> float:
    """Seconds of work that a run asks for several times."""
    scale = math.sqrt(directions * row_norm_sq)
    level = calibrate_noise(
        lambda level: [_sampled_event(rounds, directions, row_norm_sq, rate, level * scale)],
        relation,
        epsilon,
        delta,
    )
    return level * scale


def checked_std(std: float, unit: float, epsilon: float, directions: int) -> float:
    """Returns `std` where the sums can hold such noise.

    Args:
        std: in lattice units.
        unit: lattice units of one record or one projection.
        epsilon: that asked for it.
        directions: in one round.

    Raises:
        UserError: they cannot.
    """
    if std > MAX_STD:
        raise UserError(
            f"privacy.epsilon {epsilon:g} with {directions} directions needs noise of {std / unit:.3g}, more than the "
            "sums can hold: choose a larger epsilon or fewer release.frames."
        )
    return std
