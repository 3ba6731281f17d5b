"""Canaries: synthetic records far from all real ones, whose tables are as far apart as can be found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.data.records import Part, RecordSchema
from dpsw_ray.encoders import Encoder
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy.events import SlicedHistogramEvent
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.private.latents import bounded
from dpsw_ray.tables.release import Release

__all__ = ["TableCanaries", "canary_pair"]

_EXTREME = 1e6  # of a column, in its own units; encoders bound it


class TableCanaries:
    """See `methods.method.Audit`."""

    def pair(
        self, encoder: Encoder, plan: HistogramPlan, relation: Relation, copies: int
    ) -> tuple[Part, Part, NDArray[np.float64]]:
        """See `canary_pair`."""
        return canary_pair(encoder, plan, relation, copies)

    def sensitivity(self, plan: HistogramPlan, relation: Relation) -> float:
        """How far one record moves the table."""
        return math.sqrt(plan.event.sensitivity_sq(relation))

    def of_group(self, event: SlicedHistogramEvent, size: int) -> SlicedHistogramEvent:
        """The event with so many times its sensitivity."""
        return dataclasses.replace(event, row_norm_sq=event.row_norm_sq * size**2)

    def answer(self, release: Release) -> NDArray[np.int64]:
        """The counts of the only round."""
        counts: NDArray[np.int64] = release.counts[0]
        return counts


def canary_pair(
    encoder: Encoder, plan: HistogramPlan, relation: Relation, copies: int
) -> tuple[Part, Part, NDArray[np.float64]]:
    """The canaries of the first and of the second world, and the difference of their tables.

    Under `replace_one` the pair with the largest distance among some extreme records, in two classes where
    the release has classes; under the other relations none and the one with the largest table. Nothing here
    depends on a real record but through the public encoder.

    Args:
        encoder: the run's.
        plan: the run's.
        relation: the run's.
        copies: of each canary.

    Returns:
        Canaries of the first world, of the second, and the second's table minus the first's: array [C * K * bins].
    """
    values = np.stack(list(_extremes(encoder.schema)))
    labels = np.array([0, plan.classes - 1] if plan.class_conditional else [0], np.int32)
    kinds = [(i, label) for label in labels for i in range(len(values))]
    own = np.array([label for _, label in kinds], np.int32)
    latents, own = bounded(encoder.encode(values[[i for i, _ in kinds]], own), own)
    tables = np.array(
        [bound([(latents[k : k + 1], own[k : k + 1])], plan).ravel() for k in range(len(kinds))], np.float64
    )
    products = tables @ tables.T
    norms = np.diag(products)
    if relation == "replace_one":
        distances = norms[:, None] + norms[None, :] - 2 * products
        first, second = (int(i) for i in np.unravel_index(int(np.argmax(distances)), distances.shape))
        difference = tables[second] - tables[first]
    else:
        first, second = -1, int(np.argmax(norms))
        difference = tables[second]

    def part(kind: int) -> Part:
        count = copies if kind >= 0 else 0
        index, label = kinds[kind]
        return Part(
            np.repeat(values[index : index + 1], count, axis=0), np.full(count, label, np.int32), "private"
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
