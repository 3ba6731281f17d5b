"""What configs of methods that release slices have in common."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from dpsw_ray.config.fields import MOST_DIRECTIONS, Real, Section, Whole, or_auto
from dpsw_ray.config.run import RunConfig
from dpsw_ray.flow.config import FlowConfig

__all__ = [
    "Bins",
    "FlowingConfig",
    "Frames",
    "PointsConfig",
    "SlicedConfig",
    "Slices",
    "Smoothing",
    "check_tails",
]

Frames = Annotated[int | Literal["auto"], BeforeValidator(or_auto(1, MOST_DIRECTIONS, True))]
Bins = Annotated[int | Literal["auto"], BeforeValidator(or_auto(2, 4096, True))]
Smoothing = Annotated[float | Literal["auto"], BeforeValidator(or_auto(0.0, 64.0, False))]


class Slices(NamedTuple):
    """What a config asks for, `auto` taken for the usual numbers.

    Attributes:
        frames: orthonormal frames of a round.
        bins: cells of a direction.
        smoothing: sigma, in bin widths.
        directions: K, where the config gives it in place of frames.
        labelled: whether classes are told apart.
        rounds: T.
        rate: the share of the records that a round is of.
    """

    frames: int
    bins: int
    smoothing: float = 1.0
    directions: int | None = None
    labelled: bool = False
    rounds: int = 1
    rate: float = 1.0


def usual(frames: int | str, bins: int | str, smoothing: float | str) -> tuple[int, int, float]:
    """Frames, bins and smoothing, with what `auto` stands for where no planner chooses."""
    return (
        16 if isinstance(frames, str) else frames,
        32 if isinstance(bins, str) else bins,
        1.0 if isinstance(smoothing, str) else smoothing,
    )


class PointsConfig(Section):
    """Post-processing: everything here is free of privacy cost."""

    particles: Whole = Field(10_000, ge=1, le=10**10, description="how many are drawn")
    class_balance: Literal["released", "equal"] = Field("released", description="particles per class")
    denoising: Real = Field(
        1.0,
        gt=0.0,
        le=100.0,
        description="pull of noisy slices towards what all of them share, in multiples of the estimated best",
    )


class SlicedConfig(RunConfig):
    """A run of a method that releases slices."""

    flow: FlowConfig | PointsConfig

    @property
    def count(self) -> int:
        """How many samples the run draws."""
        return self.flow.particles

    @property
    def slices(self) -> Slices:
        """What is asked for."""
        raise NotImplementedError


class FlowingConfig(SlicedConfig):
    """A run whose particles flow."""

    flow: FlowConfig = Field(default_factory=FlowConfig)


def check_tails(bins: int | str, smoothing: float | str) -> None:
    """Refuses a grid without room for the tails.

    Raises:
        ValueError: naming both keys.
    """
    if isinstance(bins, str) or isinstance(smoothing, str):
        return
    margin = math.ceil(4 * smoothing)
    if bins - 2 * margin < 2:
        raise ValueError(
            f"release.bins must exceed 2 * ceil(4 * smoothing) + 1 = {2 * margin + 1} to leave room for the "
            f"tails, found {bins} with release.smoothing {smoothing:g}"
        )


def check_conditional(config: RunConfig, labelled: bool, key: str = "release.class_conditional") -> None:
    """Refuses a decoder that is told a class, where the release tells none.

    Raises:
        ValueError: naming the keys.
    """
    if config.encoder.conditional and not labelled:
        raise ValueError(
            f"{key} must be true for encoder.conditional true, found false: without the class nothing can be decoded"
        )
