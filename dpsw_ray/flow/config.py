"""The section of a config that a flow is made by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpsw_ray.config.fields import MOST_DIRECTIONS, MOST_REPEATS, MOST_STEP, Real, Section, StepSize, Whole

__all__ = ["FlowConfig"]


class FlowConfig(Section):
    """Post-processing: everything here is free of privacy cost."""

    particles: Whole = Field(10_000, ge=1, le=10**10)
    steps: Whole | None = Field(
        None,
        ge=1,
        le=MOST_REPEATS,
        description="at most; an early stop may end it before; default: 300, and every round of a release once",
    )
    subset: Whole | None = Field(
        None,
        ge=1,
        le=MOST_DIRECTIONS,
        description="directions used in each step, drawn anew from those released; default: all",
    )
    step_size: StepSize = Field("auto", description="h; auto: the full transport step h = d")
    schedule: Literal["auto", "constant", "cosine", "inverse"] = Field(
        "auto",
        description="of the step size; inverse falls like 1 / t, which averages over noisy rounds; auto: constant for "
        "one round, inverse for several",
    )
    diffusion: Real = Field(
        0.0, ge=0.0, le=MOST_STEP, description="lambda of the Wiener term sqrt(2 lambda h) Z"
    )
    class_balance: Literal["released", "equal"] = Field("released", description="particles per class")
    patience: Whole = Field(
        10, ge=1, le=MOST_REPEATS, description="steps without progress before the early stop"
    )
    tolerance: Real = Field(
        5e-3, ge=0.0, le=1.0, description="relative fall of the sliced distance that counts"
    )
    denoising: Real = Field(
        1.0,
        gt=0.0,
        le=100.0,
        description="pull of noisy slices towards what all of them share, in multiples of the estimated best",
    )
    parallel: Literal["auto", "directions", "particles", "classes"] = Field(
        "auto",
        description="what the actors divide among them; the same bits on CPUs, to 2^-26 a step on GPUs. particles: any "
        "number of them; classes: nothing is exchanged; directions: few particles, many directions; auto: by size",
    )
    kernel: Literal["auto", "numba", "torch"] = "auto"
