"""Canaries whose moments lie far apart."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.methods.canaries import Canaries
from dpsw_ray.methods.gaussian.mechanism import class_sums
from dpsw_ray.methods.gaussian.plan import ClassMomentsPlan
from dpsw_ray.privacy.events import DpPcaEvent
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.release.answers import Answers

__all__ = ["MomentCanaries"]


class MomentCanaries(Canaries):
    """See the module; entries beside the diagonal are taken times sqrt(2), as their noise is smaller by that."""

    def added(
        self, latents: NDArray[np.float64], labels: NDArray[np.int32], plan: ClassMomentsPlan
    ) -> NDArray[np.float64]:
        """Their moments."""
        return _even(class_sums([(latents, labels)], plan), plan.dim)

    def answer(self, release: Answers) -> NDArray[np.float64]:
        """The noisy moments."""
        return _even(release.answers, release.manifest["dim"])

    def classes(self, plan: ClassMomentsPlan) -> int:
        """The plan's."""
        return plan.classes

    def sensitivity(self, plan: ClassMomentsPlan, relation: Relation) -> float:
        """How far one record moves the moments."""
        return plan.lattice.longest**2 * (math.sqrt(2.0) if relation == "replace_one" else 1.0)

    def of_group(self, event: DpPcaEvent, size: int) -> DpPcaEvent:
        """The event with so many times its sensitivity, which is a multiple of the radius squared."""
        return dataclasses.replace(event, radius=event.radius * math.sqrt(size))


def _even(triangles: NDArray[np.int64], dim: int) -> NDArray[np.float64]:
    rows, columns = np.triu_indices(dim + 1)
    return np.asarray(triangles * np.where(rows == columns, 1.0, math.sqrt(2.0)))
