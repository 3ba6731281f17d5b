"""Points that a model drew, and how they came to be."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.flow.film import Film

__all__ = ["Points"]


@dataclass(frozen=True)
class Points:
    """What a model drew.

    Attributes:
        particles: array of size [n, d], sorted by class.
        labels: array of size [n], int32: the class block of each point.
        distances: sliced W2 distance to the release before each step; empty where there are no slices.
        stopped: why the steps ended, in words.
        film: the path of the particles that were followed, None where none were.
    """

    particles: NDArray[np.float64]
    labels: NDArray[np.int32]
    distances: list[float] = field(default_factory=list)
    stopped: str = ""
    film: Film | None = None
