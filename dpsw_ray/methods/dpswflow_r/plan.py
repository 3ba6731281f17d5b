"""What DPSWflow-r releases under Poisson sampling: sliced histograms of a secret sample in every round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from dpsw_ray.privacy.calibration import calibrate_noise
from dpsw_ray.privacy.events import SampledGaussianEvent
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.release.plan import checked_std
from dpsw_ray.slicing.directions import haar_frames
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.plan import SlicesPlan, changed_cells

__all__ = ["SampledHistogramPlan"]

_BLOCK_CELLS = 1 << 21  # of one answer of a long sequence: 16 MiB


@dataclass(frozen=True)
class SampledHistogramPlan(SlicesPlan):
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
        sensitivity = math.sqrt(frames * dim * grid.row_norm_sq)
        return cls(
            release_id,
            directions,
            grid,
            grid.table,
            classes,
            class_conditional,
            checked_std(std, sensitivity, changed_cells(frames * dim, grid), epsilon),
            "gaussian",
            rate=rate,
        )

    @property
    def event(self) -> SampledGaussianEvent:
        """What all rounds cost: its sensitivity is computed from the integer rows in use."""
        rounds, directions, _ = self.directions.shape
        return _sampled_event(rounds, directions, self._row_norm_sq, self.rate, self.noise_std)

    @property
    def mechanism(self) -> str:
        """The module beside this one."""
        return "dpsw_ray.methods.dpswflow_r.mechanism"

    @property
    def questions(self) -> int:
        """As many as keep one answer small."""
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
