"""Canaries whose tables lie far apart."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.methods.canaries import Canaries
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy.events import SlicedHistogramEvent
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.tables.release import Release

__all__ = ["TableCanaries"]


class TableCanaries(Canaries):
    """See the module."""

    def added(
        self, latents: NDArray[np.float64], labels: NDArray[np.int32], plan: HistogramPlan
    ) -> NDArray[np.int64]:
        """Their table, array of size [C, K, bins]."""
        return bound([(latents, labels)], plan)

    def answer(self, release: Release) -> NDArray[np.int64]:
        """The counts of the only round, array of size [C, K, bins]."""
        counts: NDArray[np.int64] = release.counts[0]
        return counts

    def classes(self, plan: HistogramPlan) -> int:
        """The plan's, where it has some."""
        return plan.classes if plan.class_conditional else 0

    def sensitivity(self, plan: HistogramPlan, relation: Relation) -> float:
        """How far one record moves the table."""
        return math.sqrt(plan.event.sensitivity_sq(relation))

    def of_group(self, event: SlicedHistogramEvent, size: int) -> SlicedHistogramEvent:
        """The event with so many times its sensitivity."""
        return dataclasses.replace(event, row_norm_sq=event.row_norm_sq * size**2)
