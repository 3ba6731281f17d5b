"""What DPSWflow-h releases: smoothed sliced histograms of all records, in one round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.calibration import calibrate_histogram_noise
from dpsw_ray.privacy.discrete import MAX_DRAWN
from dpsw_ray.privacy.events import Event, NoiseKind, SlicedHistogramEvent
from dpsw_ray.privacy.relations import Relation, Unit
from dpsw_ray.release.plan import checked_std
from dpsw_ray.slicing.directions import spread_frames
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.plan import SlicesPlan, changed_cells

__all__ = ["HistogramPlan"]


@dataclass(frozen=True)
class HistogramPlan(SlicesPlan):
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
        noiseless = SlicedHistogramEvent(len(directions), grid.row_norm_sq, 0.0)
        checked_std(
            std, math.sqrt(noiseless.sensitivity_sq(relation)), changed_cells(len(directions), grid), epsilon,
            noise, exact=True,
        )  # fmt: skip
        plan = cls(
            release_id,
            directions[None],
            grid,
            grid.table,
            classes,
            class_conditional,
            std,
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
    def mechanism(self) -> str:
        """The module beside this one."""
        return "dpsw_ray.methods.dpswflow_h.mechanism"

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
