"""Everybody's records follow the same law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.federated.population.base import Partitioner

__all__ = ["IidPartitioner"]


@dataclass(frozen=True)
class IidPartitioner(Partitioner):
    """A random division into parts that differ by at most one record."""

    users: int

    def assign(self, labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """See `Partitioner`."""
        return np.asarray(rng.permutation(len(labels)) % self.users, dtype=np.int64)
