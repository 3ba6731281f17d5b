"""What a partitioner is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

__all__ = ["Partitioner"]


class Partitioner(ABC):
    """Gives every private record to one user. Frozen dataclasses; their fields and the seed decide everything."""

    @abstractmethod
    def assign(self, labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """The user of each record.

        Args:
            labels: array of size [n], -1 for none.
            rng: public.

        Returns:
            Array of size [n], from 0 to the number of users; a user may get none.
        """
