"""The config of a Gaussian fit."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dpsw_ray.config.fields import Section, Whole
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.sections import check_conditional

__all__ = ["GaussianConfig"]


class GaussianSection(Section):
    """What is released, and how many samples are drawn."""

    class_conditional: bool = Field(True, description="a Gaussian of each class, or one of all records")
    samples: Whole = Field(10_000, ge=1, le=10**10, description="how many are drawn")


class GaussianConfig(RunConfig):
    """A run of this method."""

    method: Literal["gaussian"] = "gaussian"
    gaussian: GaussianSection = Field(default_factory=GaussianSection)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_conditional(self, self.gaussian.class_conditional, "gaussian.class_conditional")
        return self

    @property
    def count(self) -> int:
        """How many samples the run draws."""
        return self.gaussian.samples
