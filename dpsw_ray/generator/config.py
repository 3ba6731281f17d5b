"""The section of a config that a generator is trained by."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dpsw_ray.config.fields import MOST_RATE, MOST_REPEATS, Real, Section, Whole

__all__ = ["GeneratorConfig"]


class GeneratorConfig(Section):
    """The generator of DPSWgen: post-processing, free of privacy cost."""

    noise_dim: Whole = Field(8, ge=1, le=4096, description="dimension of the Gaussian noise that goes in")
    hidden: tuple[Annotated[Whole, Field(ge=1, le=65_536)], ...] = Field(
        (256, 512),
        min_length=1,
        max_length=32,
        description="widths of the hidden layers; the widest has the batch norm",
    )
    steps: Whole | None = Field(
        None,
        ge=1,
        le=MOST_REPEATS,
        description="steps of Adam; step t uses round t modulo their number; default: 2,000, and every round once",
    )
    batch_size: Whole = Field(
        250, ge=2, le=10**7, description="generated points per step, divided among the classes"
    )
    learning_rate: Real = Field(1e-3, gt=0.0, le=MOST_RATE)
