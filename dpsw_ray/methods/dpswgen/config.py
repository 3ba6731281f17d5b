"""The config of DPSWgen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpsw_ray.generator.config import GeneratorConfig
from dpsw_ray.methods.dpswflow_r.config import RoundsRunConfig
from dpsw_ray.methods.sections import PointsConfig

__all__ = ["DpswgenConfig"]


class DpswgenConfig(RoundsRunConfig):
    """A run of DPSWgen: the releases of DPSWflow-r, from which a generator learns."""

    method: Literal["dpswgen"] = "dpswgen"
    flow: PointsConfig = Field(default_factory=PointsConfig)
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
