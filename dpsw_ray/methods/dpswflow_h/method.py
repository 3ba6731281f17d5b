"""DPSWflow-h: noisy sliced histograms of all records, released once, and a flow that follows them."""

from __future__ import annotations

from typing import Any

from dpsw_ray.methods.dpswflow_h.config import DpswflowHConfig
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.methods.method import Audit, Facts
from dpsw_ray.methods.sliced import FlowingMethod
from dpsw_ray.tables.planner import ASSUMED_RECORDS, Choice, choose

__all__ = ["METHOD"]


class DpswflowH(FlowingMethod[DpswflowHConfig]):
    """See the module."""

    Config = DpswflowHConfig

    def plan(self, config: DpswflowHConfig, facts: Facts, release_id: str) -> HistogramPlan:
        """Histograms, of every class where there are classes."""
        p = config.privacy
        conditional = config.release.class_conditional and facts.classes > 0
        blocks = facts.classes if conditional else 1
        shape = _shape(config, facts, blocks)
        return HistogramPlan.make(
            release_id=release_id, dim=facts.dim, frames=shape.frames, grid=shape.grid, classes=blocks,
            class_conditional=conditional, relation=p.relation, epsilon=p.epsilon, delta=p.delta, seed=config.seed,
            noise=p.noise, beside=facts.beside,
        )  # fmt: skip

    def predicted(self, config: DpswflowHConfig, facts: Facts, blocks: int) -> dict[str, Any]:
        """How close the planner expects the particles to come, and what it chose by."""
        r = config.release
        choice = _shape(config, facts, blocks)
        told = "chosen" if "auto" in (r.frames, r.bins, r.smoothing) else "predicted"
        number = facts.records or r.expected_records or ASSUMED_RECORDS
        return {
            "predicted sliced W2": f"{choice.distance:.2g}, between particles and private latents",
            told: f"for {number:,} records in {blocks} class{'es' if blocks > 1 else ''}"
            + ("" if facts.records else " (assumed: release.expected_records)"),
        }

    def statement(self, config: DpswflowHConfig) -> str:
        """What is released."""
        return (
            "Histograms of the private records' projections onto random directions, with noise added to every cell. "
            "The noise is drawn once; samples and figures are computed from the noisy histograms."
        )

    def slice_keys(self, config: DpswflowHConfig) -> tuple[str, ...]:
        """The grid."""
        return ("release.bins", "release.smoothing")

    def audit(self) -> Audit:
        """Canaries whose tables lie far apart."""
        from dpsw_ray.methods.dpswflow_h.audit import TableCanaries

        return TableCanaries()


def _shape(config: DpswflowHConfig, facts: Facts, blocks: int) -> Choice:
    """Frames and grid: the config's, or the planner's where the config says `auto`; with the predicted distance."""
    r, p = config.release, config.privacy
    return choose(
        records=facts.records or r.expected_records or ASSUMED_RECORDS,
        classes=blocks,
        dim=facts.dim,
        relation=p.relation,
        epsilon=p.epsilon,
        delta=p.delta,
        frames=None if r.frames == "auto" else r.frames,
        bins=None if r.bins == "auto" else r.bins,
        smoothing=None if r.smoothing == "auto" else r.smoothing,
    )


METHOD = DpswflowH()
