"""Few labels for every user: pieces of the records sorted by label (McMahan et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.federated.population.base import Partitioner

__all__ = ["ShardsPartitioner"]


@dataclass(frozen=True)
class ShardsPartitioner(Partitioner):
    """Records are sorted by label and cut into users * shards pieces; every user gets `shards` of them at random."""

    users: int
    shards: int

    def assign(self, labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """See `Partitioner`."""
        pieces = self.users * self.shards
        shuffled = rng.permutation(len(labels))
        order = shuffled[np.argsort(labels[shuffled], kind="stable")]
        owner = rng.permutation(pieces) % self.users
        users = np.empty(len(labels), dtype=np.int64)
        users[order] = owner[np.arange(len(labels)) * pieces // max(len(labels), 1)]
        return users
