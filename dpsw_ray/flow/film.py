"""The path of a few particles: where they are after 0, 1, 2, 4, ... steps and at the end.

A path is post-processing like the particles themselves. Only the chosen particles leave the workers, a dozen times in
a flow, and no step is computed in another way for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.files import DamagedFile, read_arrays

__all__ = ["Choice", "Film", "Recording", "evenly", "first_of_each", "next_frame", "read_film"]

Choice = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Takes the classes' offsets, array of size [C + 1], to the numbers of the particles to follow, in ascending order."""


@dataclass(frozen=True)
class Film:
    """Where some particles were.

    Attributes:
        steps: array of size [f], how many steps had been taken, in ascending order from 0.
        rows: array of size [m], the particles' numbers among all.
        frames: array of size [f, m, d].
    """

    steps: NDArray[np.int64]
    rows: NDArray[np.int64]
    frames: NDArray[np.float64]


class Recording:
    """A film while it is made."""

    def __init__(self, rows: NDArray[np.int64], start: NDArray[np.float64]) -> None:
        """Takes the first frame.

        Args:
            rows: the particles' numbers, array of size [m].
            start: all particles before the first step, array of size [n, d].
        """
        self.rows = rows
        self._frames = {0: start[rows]}

    def add(self, step: int, particles: NDArray[np.float64]) -> None:
        """Keeps where the film's particles, array of size [m, d], are after `step` steps."""
        self._frames[step] = particles

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Takes the frames of a checkpoint; those of other particles, or of none, are left aside."""
        if "film_rows" in stored and np.array_equal(stored["film_rows"], self.rows):
            self._frames |= dict(zip(stored["film_steps"].tolist(), stored["film_frames"], strict=True))

    def stored(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint keeps."""
        film = self.film()
        return {"film_rows": film.rows, "film_steps": film.steps, "film_frames": film.frames}

    def film(self) -> Film:
        """What was recorded."""
        steps = sorted(self._frames)
        return Film(np.array(steps), self.rows, np.stack([self._frames[step] for step in steps]))


def read_film(checkpoint: Path) -> Film | None:
    """The film of a finished flow's checkpoint; None where there is none."""
    try:
        stored = read_arrays(checkpoint)
        return Film(stored["film_steps"], stored["film_rows"], stored["film_frames"])
    except (DamagedFile, OSError, KeyError):
        return None


def next_frame(step: int) -> int:
    """The smallest power of two above a number of steps."""
    return 1 << step.bit_length()


def first_of_each(classes: int, most: int) -> Choice:
    """The first particles of each of the first `classes` classes, `most` of all together."""

    def choose(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        shown = min(classes, len(offsets) - 1)
        each = max(1, most // shown)
        ranges = [np.arange(offsets[c], min(offsets[c + 1], offsets[c] + each)) for c in range(shown)]
        return np.concatenate(ranges)

    return choose


def evenly(most: int) -> Choice:
    """At most `most` particles, evenly spaced over all: every class has its share."""
    return lambda offsets: np.unique(np.linspace(0, offsets[-1] - 1, most).astype(np.int64))
