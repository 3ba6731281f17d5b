"""Records that say themselves whose they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.federated.population.base import Partitioner

__all__ = ["NaturalPartitioner"]


@dataclass(frozen=True, eq=False)
class NaturalPartitioner(Partitioner):
    """The users of the records, as they were read with them: array of size [n], from 0."""

    owners: NDArray[np.int64]

    def assign(self, labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """See `Partitioner`; nothing is drawn.

        Raises:
            ValueError: the records are not those that the users were read with.
        """
        if len(labels) != len(self.owners):
            raise ValueError("the stored users are not those of the stored records")
        return self.owners
