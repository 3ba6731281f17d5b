"""The plan of noisy projections: every record's projections with noise of their own (DPSWflow and DPSWflow-r).

What is published of them is their histogram on a public grid, fine against the noise. A histogram is a function of
the noisy rows, so it costs what they cost; it is smaller, needs no sorting across shards, and is what the flow reads.
The noise is the smoothing: the histogram is one of the projections' law convolved with N(0, s^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.calibration import calibrate_noise
from dpsw_ray.privacy.events import Event, SequentialEvent, SlicedGaussianEvent
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.release.plan import checked_std
from dpsw_ray.slicing.directions import LATTICE, haar_frames, iid_directions
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.plan import SlicesPlan

__all__ = ["Law", "RowPlan", "row_change", "row_grid"]

Law = Literal["haar", "iid"]

_NOISE_BINS = 6  # bins per standard deviation of the noise: a finer grid shows nothing more
_FINEST = 512  # bins over the ball without noise
_SLACK = 1e-6  # the latents' ball is smaller than the unit ball by this


@dataclass(frozen=True)
class RowPlan(SlicesPlan):
    """Noisy projections, in one round of all records, or in epochs of disjoint batches, a round for each batch.

    The sensitivity is that of exact projections of latents in the unit ball. The latents in use lie in the ball of
    radius 1 - 1e-6, which pays for the rounding of directions and projections; `make` checks that it does.

    Attributes:
        epochs: passes over the records; T is a multiple of it, the number of batches of one epoch.
        law: `haar` frames from the public seed, or `iid` directions that the random release id decides: it is drawn
            from operating-system entropy after the latents are stored, and published with the release.
    """

    epochs: int = 1
    law: Law = "haar"

    @classmethod
    def make(
        cls,
        *,
        release_id: str,
        dim: int,
        directions: int,
        law: Law,
        epochs: int,
        batches: int,
        relation: Relation,
        epsilon: float,
        delta: float,
        seed: int,
    ) -> Self:
        """Draws the directions of every round and calibrates the noise of all of them.

        Args:
            release_id: random; decides iid directions.
            dim: d, of the latents.
            directions: K, of one round; whole frames for `haar`.
            law: of the directions.
            epochs: passes over the records.
            batches: disjoint batches of one epoch.
            relation: `replace_one` or `zero_out`.
            epsilon: target.
            delta: at which it holds.
            seed: public; decides Haar frames and the division into batches.

        Raises:
            UserError: a relation under which rows have no meaning, no whole frames, or more noise than fits.
        """
        rounds = epochs * batches
        level = _row_level(directions, dim, law, epochs, relation, epsilon, delta)
        if law == "haar":
            drawn = haar_frames(rounds * directions // dim, dim, seed)
        else:
            drawn = iid_directions(rounds * directions, dim, release_id)
        drawn = drawn.reshape(rounds, directions, dim)
        _check_rounding(drawn, law)
        grid = row_grid(level)
        std = checked_std(
            level / LATTICE, row_change(directions, dim, relation) / LATTICE, directions, epsilon
        )
        return cls(release_id, drawn, grid, grid.table, 1, False, std, epochs=epochs, law=law)

    @property
    def event(self) -> Event:
        """What the release costs: a record is in one batch of every epoch, and batches are alike."""
        _, directions, dim = self.directions.shape
        return _row_event(directions, dim, self.law, self.epochs, self.noise_std * LATTICE)

    @property
    def cell_noise(self) -> float:
        """0: the noise is the slices' smoothing."""
        return 0.0

    @property
    def mechanism(self) -> str:
        """The module beside this one."""
        return "dpsw_ray.methods.dpswflow.mechanism"

    @property
    def noise_on(self) -> Literal["sum", "messages"]:
        """On every record's projections."""
        return "messages"

    @property
    def form(self) -> None:
        """None: what is bounded is a record's row of projections, which is counted after its noise."""
        return None

    @property
    def questions(self) -> int:
        """One for each epoch: a record's noise in an epoch is drawn once."""
        return self.epochs

    @property
    def seeded(self) -> bool:
        """Whether the public seed decides the directions: frames, not independent ones."""
        return self.law == "haar"

    @property
    def batches(self) -> int:
        """Disjoint batches of one epoch."""
        return len(self.directions) // self.epochs

    def _more(self) -> tuple[object, ...]:
        return (self.epochs, self.law)


def row_grid(noise: float) -> BinGrid:
    """The public grid for projections with noise of this standard deviation, smoothing by the same."""
    inner = _FINEST if noise == 0 else min(math.ceil(2 * _NOISE_BINS / noise), _FINEST)
    smoothing = noise * inner / 2
    return BinGrid(inner + 2 * math.ceil(4 * smoothing), smoothing)


def row_change(directions: int, dim: int, relation: Relation) -> float:
    """How far a record's row of projections moves under Haar frames, and in the mean under independent directions."""
    return (2 if relation == "replace_one" else 1) * math.sqrt(directions / dim)


def _row_event(directions: int, dim: int, law: Law, epochs: int, noise: float) -> Event:
    once = SlicedGaussianEvent(directions, dim, noise, law)
    return once if epochs == 1 else SequentialEvent((once,), epochs, "epochs of disjoint batches")


@lru_cache(maxsize=64)
def _row_level(
    directions: int, dim: int, law: Law, epochs: int, relation: Relation, epsilon: float, delta: float
) -> float:
    """Standard deviation of the noise on a projection."""
    return calibrate_noise(
        lambda level: [_row_event(directions, dim, law, epochs, level)], relation, epsilon, delta
    )


def _check_rounding(directions: NDArray[np.float64], law: Law) -> None:
    """Refuses directions whose rounding, with that of the projections, the ball's slack does not pay for.

    Of a change u of length at most 2 (1 - 1e-6), frames that are orthonormal up to rounding show at most their spectral
    norm. Independent directions show at most sqrt(S) |u| plus what rounding adds; the slack pays for that where S is at
    least a quarter of its mean K / d. Below it lies no probability that counts, nor a mu that would.
    """
    _, count, dim = directions.shape
    rounding = LATTICE * math.sqrt(count)
    if law == "haar":
        longest = float(np.linalg.norm(directions, ord=2, axis=(1, 2)).max())
        fits = longest * (1 - _SLACK) + rounding <= math.sqrt(count / dim)
    else:
        rounding += LATTICE / 2 * math.sqrt(count * dim)
        fits = rounding <= _SLACK * math.sqrt(count / dim) / 2
    if not fits:
        raise UserError(
            f"Projections on {count} directions in {dim} dimensions cannot be rounded within the slack of the latents' "
            "ball: choose a smaller encoder.latent_dim."
        )
