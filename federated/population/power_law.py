"""Few users hold most of the records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.federated.population.base import Partitioner

__all__ = ["PowerLawPartitioner"]


@dataclass(frozen=True)
class PowerLawPartitioner(Partitioner):
    """The user of rank k gets a record with probability proportional to k^-exponent; many get one or none."""

    users: int
    exponent: float

    def assign(self, labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """See `Partitioner`."""
        shares = np.arange(1.0, self.users + 1) ** -self.exponent
        ranks = np.searchsorted(np.cumsum(shares / shares.sum()), rng.random(len(labels)), side="right")
        return np.asarray(rng.permutation(self.users)[np.minimum(ranks, self.users - 1)], dtype=np.int64)
