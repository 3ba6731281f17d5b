"""What is going to be released: public, decided before any private record is read."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.calibration import calibrate_histogram_noise
from dpsw_ray.privacy.discrete import MAX_DRAWN
from dpsw_ray.privacy.events import NoiseKind, SlicedHistogramEvent
from dpsw_ray.privacy.noise import MAX_STD
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.slicing.directions import haar_frames
from dpsw_ray.slicing.grid import SCALE, BinGrid

__all__ = ["ReleasePlan"]


@dataclass(frozen=True)
class ReleasePlan:
    """One release of smoothed sliced histograms (DPSWflow-h), before it happens.

    Attributes:
        release_id: random name of this release; the ledger's charge and the noise secret carry it.
        directions: array of size [K, d] on the lattice.
        grid: bins and smoothing.
        table: array of size [phases, taps], the integer rows in use. It travels with the plan, so that shards
            on different machines bin with the same integers and the sensitivity is that of these integers.
        classes: number of cell blocks C (1: not class-conditional).
        class_conditional: whether labels choose the block.
        noise_std: standard deviation of the noise per cell, in lattice units; of the discrete Gaussian it is the
            parameter sigma, which is what is charged.
        noise: how it is sampled.
    """

    release_id: str
    directions: NDArray[np.float64] = field(repr=False)
    grid: BinGrid
    table: NDArray[np.int64] = field(repr=False)
    classes: int
    class_conditional: bool
    noise_std: float
    noise: NoiseKind = "gaussian"

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
    ) -> ReleasePlan:
        """Draws the directions from the public seed and calibrates the noise to (epsilon, delta)."""
        directions = haar_frames(frames, dim, seed)
        std = calibrate_histogram_noise(
            len(directions), grid.row_norm_sq, relation, epsilon, delta, noise=noise
        )
        if std > MAX_STD:
            raise UserError(
                f"privacy.epsilon {epsilon:g} with {len(directions)} directions needs noise of {std / SCALE:.3g} "
                "records per cell, more than the sums can hold: choose a larger epsilon or fewer release.frames."
            )
        plan = cls(release_id, directions, grid, grid.table, classes, class_conditional, std, noise)
        if noise == "discrete_gaussian" and math.prod(plan.cells) > MAX_DRAWN:
            raise UserError(
                f"privacy.noise discrete_gaussian draws at most {MAX_DRAWN:,} cells, the plan has "
                f"{math.prod(plan.cells):,}: choose fewer release.frames or release.bins, or privacy.noise gaussian."
            )
        return plan

    @property
    def cells(self) -> tuple[int, int, int]:
        """Shape [C, K, bins] of the released table."""
        return (self.classes, len(self.directions), self.grid.bins)

    @property
    def event(self) -> SlicedHistogramEvent:
        """What the release costs: its sensitivity is computed from the integer rows in use."""
        row_norm_sq = int((self.table**2).sum(axis=1).max())
        return SlicedHistogramEvent(
            directions=len(self.directions),
            row_norm_sq=row_norm_sq,
            noise_std=self.noise_std,
            noise=self.noise,
        )

    def digest(self) -> str:
        """Hash of everything that decides the release's numbers apart from the data and the noise secret.

        The random `release_id` is not in it: under `noise_seed` the same plan must give the same bits.
        """
        h = hashlib.sha256()
        for part in (self.grid, self.cells, self.class_conditional, self.noise, self.noise_std.hex()):
            h.update(repr(part).encode() + b"\0")
        h.update(np.ascontiguousarray(self.directions).tobytes())
        h.update(np.ascontiguousarray(self.table).tobytes())
        return h.hexdigest()
