"""DPSWflow-r: a sequence of noisy slices, with fresh directions in every round, and a flow that follows them."""

from __future__ import annotations

from typing import TypeVar

from dpsw_ray.base.errors import UserError
from dpsw_ray.methods.dpswflow.method import ROWS_STATEMENT, rows_plan
from dpsw_ray.methods.dpswflow.plan import RowPlan
from dpsw_ray.methods.dpswflow_r.config import DpswflowRConfig, RoundsRunConfig
from dpsw_ray.methods.dpswflow_r.plan import SampledHistogramPlan
from dpsw_ray.methods.method import Facts
from dpsw_ray.methods.sliced import FlowingMethod, SlicedMethod
from dpsw_ray.slicing.grid import BinGrid

__all__ = ["METHOD", "RoundsMethod"]

R = TypeVar("R", bound=RoundsRunConfig)


class RoundsMethod(SlicedMethod[R]):
    """A method whose release is a sequence of rounds."""

    def plan(self, config: R, facts: Facts, release_id: str) -> RowPlan | SampledHistogramPlan:
        """Rows of disjoint batches, or histograms of secret samples.

        Raises:
            UserError: batches of records whose number nothing public tells yet.
        """
        r, p, asked = config.release, config.privacy, config.slices
        if config.partition:
            return rows_plan(config, r.law, facts, release_id, r.epochs, _batches(facts.records, r.batch))
        conditional = asked.labelled and facts.classes > 0
        return SampledHistogramPlan.make(
            release_id=release_id, dim=facts.dim, frames=asked.frames, rounds=asked.rounds, rate=asked.rate,
            grid=BinGrid(asked.bins, asked.smoothing),
            classes=facts.classes if conditional else 1, class_conditional=conditional, relation=p.relation,
            epsilon=p.epsilon, delta=p.delta, seed=config.seed,
        )  # fmt: skip

    def statement(self, config: R) -> str:
        """What is released."""
        if config.partition:
            return ROWS_STATEMENT
        return (
            "A sequence of histograms, each of a secret random sample of the private records' projections onto random "
            "directions of its own, with noise added to every cell. Samples and noise are drawn once; everything else "
            "is computed from the noisy histograms."
        )

    def slice_keys(self, config: R) -> tuple[str, ...]:
        """All of the release where projections smooth the slices by their own noise, else what makes them others."""
        if config.partition:
            return ("release.",)
        return ("release.bins", "release.smoothing", "release.law", "release.sampling")


class DpswflowR(RoundsMethod[DpswflowRConfig], FlowingMethod[DpswflowRConfig]):
    """See the module."""

    Config = DpswflowRConfig


def _batches(records: int | None, batch: int) -> int:
    if records is None:
        raise UserError(
            "release.batch divides records whose number is not known before the data set is divided: `dpsw data "
            "import` does it, at no cost."
        )
    return max(records // batch, 1)


METHOD = DpswflowR()
