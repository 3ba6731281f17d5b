"""The config of DPSWflow."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpsw_ray.config.fields import MOST_DIRECTIONS, Section, Whole
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.sections import FlowingConfig, Frames, Slices, usual

__all__ = ["DpswflowConfig", "RowsConfig", "check_gaussian", "check_rows"]


class RowsConfig(Section):
    """What is released: noisy projections of all records."""

    frames: Frames = Field(
        16, description="orthonormal frames m; directions K = m * latent dimension; auto: 16"
    )
    law: Literal["haar", "iid"] = Field("haar", description="of the directions")
    directions: Whole | None = Field(
        None,
        ge=1,
        le=MOST_DIRECTIONS,
        description="K, rounded up to whole frames under haar; default: frames",
    )


class DpswflowConfig(FlowingConfig):
    """A run of DPSWflow."""

    method: Literal["dpswflow"] = "dpswflow"
    release: RowsConfig = Field(default_factory=RowsConfig)

    def _check_method(self) -> None:
        super()._check_method()
        check_rows(self)
        check_gaussian(self)

    @property
    def slices(self) -> Slices:
        """What is asked for."""
        r = self.release
        return Slices(*usual(r.frames, 32, 1.0), r.directions)


def check_rows(config: RunConfig) -> None:
    """Refuses what noisy projections cannot promise, or do not carry.

    Raises:
        ValueError: naming the key.
    """
    if config.privacy.relation == "add_remove":
        raise ValueError(
            f"privacy.relation must be replace_one or zero_out for method {config.method}, found add_remove: noisy "
            "projections show how many records there are"
        )
    if config.encoder.conditional:
        raise ValueError(
            f"encoder.conditional must be false for method {config.method}, found true: noisy projections carry no "
            "class to decode by"
        )


def check_gaussian(config: RunConfig) -> None:
    """Refuses noise that the method has not.

    Raises:
        ValueError: naming the key.
    """
    if config.privacy.noise != "gaussian":
        raise ValueError(
            f"privacy.noise must be gaussian for method {config.method}, found {config.privacy.noise}"
        )
