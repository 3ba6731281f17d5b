"""Canaries: synthetic records far from all real ones, whose answers are as far apart as can be found."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.data.records import Part, RecordSchema
from dpsw_ray.encoders import Encoder
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.private.latents import bounded

__all__ = ["Canaries"]

_EXTREME = 1e6  # of a column, in its own units; encoders bound it


class Canaries(ABC):
    """See `methods.method.Audit`; what is asked of a method is what its records add."""

    @abstractmethod
    def added(self, latents: NDArray[np.float64], labels: NDArray[np.int32], plan: Any) -> NDArray[Any]:
        """What bounded records add to an answer, in units in which the noise of every number is the plan's.

        Args:
            latents: array of size [n, d].
            labels: array of size [n].
            plan: what is released.

        Returns:
            Array in the order of `answer`.
        """

    @abstractmethod
    def answer(self, release: Any) -> NDArray[Any]:
        """The noisy numbers of a release, in the same units."""

    @abstractmethod
    def classes(self, plan: Any) -> int:
        """Length of the class list; 0 where classes are not told apart."""

    @abstractmethod
    def sensitivity(self, plan: Any, relation: Relation) -> float:
        """How far one record moves an answer, in the same units."""

    @abstractmethod
    def of_group(self, event: Any, size: int) -> Event:
        """The event for which neighbours differ in so many records."""

    def pair(
        self, encoder: Encoder, plan: Any, relation: Relation, copies: int
    ) -> tuple[Part, Part, NDArray[np.float64]]:
        """The canaries of the first and of the second world, and the difference of what they add.

        Under `replace_one` the pair with the largest distance among some extreme records, in two classes where
        the release has classes; under the other relations none and the one that adds most. Nothing here depends on a
        real record but through the public encoder.

        Args:
            encoder: the run's.
            plan: the run's.
            relation: the run's.
            copies: of each canary.

        Returns:
            Canaries of the first world, of the second, and what the second's add minus what the first's do, flat.
        """
        values = np.stack(list(_extremes(encoder.schema)))
        classes = self.classes(plan)
        labels = np.array([0, classes - 1] if classes else [0], np.int32)
        kinds = [(i, label) for label in labels for i in range(len(values))]
        own = np.array([label for _, label in kinds], np.int32)
        latents, own = bounded(encoder.encode(values[[i for i, _ in kinds]], own), own)
        added = np.array(
            [self.added(latents[k : k + 1], own[k : k + 1], plan).ravel() for k in range(len(kinds))],
            np.float64,
        )
        products = added @ added.T
        norms = np.diag(products)
        if relation == "replace_one":
            distances = norms[:, None] + norms[None, :] - 2 * products
            first, second = (int(i) for i in np.unravel_index(int(np.argmax(distances)), distances.shape))
            difference = added[second] - added[first]
        else:
            first, second = -1, int(np.argmax(norms))
            difference = added[second]

        def part(kind: int) -> Part:
            count = copies if kind >= 0 else 0
            index, label = kinds[kind]
            return Part(
                np.repeat(values[index : index + 1], count, axis=0),
                np.full(count, label, np.int32),
                "private",
            )

        return part(first), part(second), copies * difference


def _extremes(schema: RecordSchema) -> Iterator[NDArray[np.generic]]:
    if schema.kind == "table":
        signs = np.random.default_rng(0).choice([-_EXTREME, _EXTREME], (16, *schema.shape))
        yield from signs.astype(schema.dtype)
        return
    assert schema.value_range is not None
    low, high = schema.value_range
    rows, columns = np.mgrid[: schema.shape[0], : schema.shape[1]]
    half = math.ceil(schema.shape[0] / 2)
    patterns = [
        rows < 0,
        (rows + columns) % 2 == 0,
        (rows // 2 + columns // 2) % 2 == 0,
        rows % 2 == 0,
        columns % 2 == 0,
        rows < half,
        columns < half,
        *(np.random.default_rng(i).random(rows.shape) < 0.5 for i in range(3)),
    ]
    for pattern in patterns:
        for on, off in ((high, low), (low, high)):
            image = np.where(pattern, on, off).astype(schema.dtype)
            yield np.repeat(image[:, :, None], schema.shape[2], axis=2)
