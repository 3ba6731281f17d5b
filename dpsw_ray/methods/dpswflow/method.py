"""DPSWflow: noisy projections of every record, and a flow that follows them."""

from __future__ import annotations

from dpsw_ray.methods.dpswflow.config import DpswflowConfig
from dpsw_ray.methods.dpswflow.plan import Law, RowPlan
from dpsw_ray.methods.method import Facts
from dpsw_ray.methods.sections import SlicedConfig
from dpsw_ray.methods.sliced import FlowingMethod

__all__ = ["METHOD", "ROWS_STATEMENT", "rows_plan"]

ROWS_STATEMENT = (
    "Histograms of the private records' projections onto random directions, every projection with noise of its own "
    "before it is counted. That noise is drawn once; samples and figures are computed from these histograms."
)


class Dpswflow(FlowingMethod[DpswflowConfig]):
    """See the module."""

    Config = DpswflowConfig

    def plan(self, config: DpswflowConfig, facts: Facts, release_id: str) -> RowPlan:
        """Rows of all records, in one round."""
        return rows_plan(config, config.release.law, facts, release_id)

    def statement(self, config: DpswflowConfig) -> str:
        """What is released."""
        return ROWS_STATEMENT

    def slice_keys(self, config: DpswflowConfig) -> tuple[str, ...]:
        """All of the release: projections smooth the slices by their own noise."""
        return ("release.",)


def rows_plan(
    config: SlicedConfig, law: Law, facts: Facts, release_id: str, epochs: int = 1,
    batches: int = 1,
) -> RowPlan:  # fmt: skip
    """Noisy projections in epochs of disjoint batches; under `haar` the directions make whole frames."""
    p, asked = config.privacy, config.slices
    wanted = asked.directions or asked.frames * facts.dim
    return RowPlan.make(
        release_id=release_id,
        dim=facts.dim,
        directions=wanted if law == "iid" else -(-wanted // facts.dim) * facts.dim,
        law=law,
        epochs=epochs,
        batches=batches,
        relation=p.relation,
        epsilon=p.epsilon,
        delta=p.delta,
        seed=config.seed,
    )


METHOD = Dpswflow()
