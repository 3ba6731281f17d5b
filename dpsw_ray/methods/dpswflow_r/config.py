"""The config of DPSWflow-r, and what methods that learn from the same releases share with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dpsw_ray.config.fields import MOST_DIRECTIONS, MOST_RECORDS, MOST_REPEATS, Real, Section, Whole
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.methods.dpswflow.config import check_gaussian, check_rows
from dpsw_ray.methods.sections import (
    Bins,
    FlowingConfig,
    Frames,
    SlicedConfig,
    Slices,
    Smoothing,
    check_conditional,
    check_tails,
    usual,
)

__all__ = ["DpswflowRConfig", "RoundsConfig", "RoundsRunConfig"]


class RoundsConfig(Section):
    """What is released: rounds of slices. partition: law, directions. poisson: bins, smoothing, classes.

    `auto` stands for 16 frames, 32 bins and smoothing 1.
    """

    frames: Frames = Field(16, description="orthonormal frames m; directions K = m * latent dimension")
    law: Literal["haar", "iid"] = Field("haar", description="partition: the law of the directions")
    directions: Whole | None = Field(
        None,
        ge=1,
        le=MOST_DIRECTIONS,
        description="partition: K, rounded up to whole frames under haar; default: frames",
    )
    bins: Bins = Field(32, description="poisson: cells per direction, the room for the tails included")
    smoothing: Smoothing = Field(1.0, description="poisson: sigma, in bin widths")
    class_conditional: bool = True
    sampling: Literal["partition", "poisson"] = Field(
        "partition", description="noisy projections of disjoint batches, or histograms of secret samples"
    )
    batch: Whole = Field(250, ge=1, le=MOST_RECORDS, description="partition: records in a batch, about")
    epochs: Whole = Field(1, ge=1, le=MOST_REPEATS, description="partition: passes over the records")
    rate: Real = Field(
        0.01, gt=0.0, le=1.0, description="poisson: chance of a record to be in a round's sample"
    )
    rounds: Whole = Field(
        100, ge=1, le=MOST_REPEATS, description="poisson: rounds, each with frames of its own"
    )

    @model_validator(mode="after")
    def _check(self) -> RoundsConfig:
        check_tails(self.bins, self.smoothing)
        return self


class RoundsRunConfig(SlicedConfig):
    """A run whose release is a sequence of rounds."""

    release: RoundsConfig = Field(default_factory=RoundsConfig)

    def _check_method(self) -> None:
        super()._check_method()
        if self.partition:
            check_rows(self)
        elif self.privacy.relation == "replace_one":
            raise ValueError(
                "privacy.relation must be zero_out or add_remove for release.sampling poisson, found replace_one: "
                "amplification by sampling is not proved for a replaced record"
            )
        check_gaussian(self)
        check_conditional(self, self.release.class_conditional)

    @property
    def partition(self) -> bool:
        """Whether rounds are noisy projections of disjoint batches, else histograms of secret samples."""
        return self.release.sampling == "partition"

    @property
    def slices(self) -> Slices:
        """What is asked for."""
        r = self.release
        shape = usual(r.frames, r.bins, r.smoothing)
        if self.partition:
            return Slices(*shape, r.directions)
        return Slices(*shape, None, r.class_conditional, r.rounds, r.rate)


class DpswflowRConfig(RoundsRunConfig, FlowingConfig):
    """A run of DPSWflow-r."""

    method: Literal["dpswflow-r"] = "dpswflow-r"
    flow: FlowConfig = Field(default_factory=FlowConfig)
