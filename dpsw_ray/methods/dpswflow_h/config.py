"""The config of DPSWflow-h."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dpsw_ray.config.fields import MOST_RECORDS, Section, Whole
from dpsw_ray.methods.sections import (
    Bins,
    FlowingConfig,
    Frames,
    Slices,
    Smoothing,
    check_conditional,
    check_tails,
    usual,
)

__all__ = ["DpswflowHConfig", "TablesConfig"]


class TablesConfig(Section):
    """What is released: histograms of all records. `auto` leaves frames, bins and smoothing to the planner."""

    frames: Frames = Field(16, description="orthonormal frames m; directions K = m * latent dimension")
    bins: Bins = Field(32, description="cells per direction, the room for the tails included")
    smoothing: Smoothing = Field(1.0, description="sigma, in bin widths")
    expected_records: Whole | None = Field(
        None,
        ge=1,
        le=MOST_RECORDS,
        description="public guess of the private records' number, for auto where it is protected or not known yet; "
        "default: 30,000",
    )
    class_conditional: bool = True

    @model_validator(mode="after")
    def _check(self) -> TablesConfig:
        check_tails(self.bins, self.smoothing)
        return self


class DpswflowHConfig(FlowingConfig):
    """A run of DPSWflow-h."""

    own_encoder: ClassVar[bool] = True

    method: Literal["dpswflow-h"] = "dpswflow-h"
    release: TablesConfig = Field(default_factory=TablesConfig)

    def _check_method(self) -> None:
        super()._check_method()
        check_conditional(self, self.release.class_conditional)

    @property
    def expected_records(self) -> int | None:
        """A public guess of the private records' number, where the config has one."""
        return self.release.expected_records

    @property
    def slices(self) -> Slices:
        """What is asked for."""
        r = self.release
        return Slices(*usual(r.frames, r.bins, r.smoothing), labelled=r.class_conditional)
