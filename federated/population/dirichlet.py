"""Every user has a mixture of labels of its own (Hsu, Qi and Brown 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.federated.population.base import Partitioner

__all__ = ["DirichletPartitioner"]


@dataclass(frozen=True)
class DirichletPartitioner(Partitioner):
    """User u takes an even share of the records, their labels from a law p_u ~ Dirichlet(alpha, ..., alpha).

    The records of a label are dealt in proportion to how much of it the users want, so that all are given away; small
    alpha leaves every user with one or two labels.
    """

    users: int
    alpha: float

    def assign(self, labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """See `Partitioner`."""
        if not len(labels):
            return np.empty(0, dtype=np.int64)
        kinds, place = np.unique(labels, return_inverse=True)
        # Of tiny alphas every gamma number may underflow: such a user wants one label, whichever.
        wanted = rng.gamma(self.alpha, size=(self.users, len(kinds)))
        empty = wanted.sum(axis=1) == 0
        wanted[empty, rng.integers(0, len(kinds), int(empty.sum()))] = 1.0
        wanted /= wanted.sum(axis=1, keepdims=True)
        users = np.empty(len(labels), dtype=np.int64)
        for kind in range(len(kinds)):
            mine = np.flatnonzero(place == kind)
            ends = np.cumsum(wanted[:, kind])
            if ends[-1] == 0:
                ends = np.arange(1.0, self.users + 1)
            points = rng.random(len(mine)) * ends[-1]
            users[mine] = np.minimum(np.searchsorted(ends, points, side="right"), self.users - 1)
        return users
