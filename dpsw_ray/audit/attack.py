"""What an attack is: scores of one mechanism's releases in two neighbouring worlds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.privacy.relations import Relation

__all__ = ["Attack", "Randomness", "Scores"]

Scores = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Of independent runs in the first and in the second world, each of size [runs]; larger speaks for the second."""


@dataclass(frozen=True)
class Randomness:
    """Where an audit's runs take their randomness from.

    Attributes:
        rng: for mechanisms that are simulated.
        key: every run of a mechanism with the product's own noise derives a key of its own from it.
    """

    rng: np.random.Generator
    key: NoiseKey

    @classmethod
    def make(cls, seed: int | None, label: str) -> Randomness:
        """Fresh randomness, or with a `seed` the same at every call with the same label."""
        if seed is None:
            return cls(np.random.default_rng(), NoiseKey.generate())
        words = np.frombuffer(hashlib.blake2b(label.encode(), digest_size=16).digest(), "<u4")
        return cls(np.random.default_rng([seed, *words]), NoiseKey.from_seed(seed).derive(label.encode()))


@dataclass(frozen=True)
class Attack:
    """An attack on one mechanism, on a worst-case pair of synthetic neighbours.

    Attributes:
        name: of the mechanism.
        events: what the mechanism is charged as; the claim is worked out from them.
        relation: under which the pair are neighbours.
        scores: from a number of runs and their randomness to the scores.
    """

    name: str
    events: tuple[Event, ...]
    relation: Relation
    scores: Callable[[int, Randomness], Scores]
