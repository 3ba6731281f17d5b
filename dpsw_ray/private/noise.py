"""What fixes the noise of a release: a key that the noise is derived from, or the drawn table itself."""

from __future__ import annotations

import math
from typing import TypeAlias

from dpsw_ray.privacy.discrete import NoiseTable
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.release.plan import Plan

__all__ = ["NoiseSecret", "draw_secret", "restore_secret"]

NoiseSecret: TypeAlias = NoiseKey | NoiseTable
"""A table where the sampler takes no key; such a release has one question."""


def draw_secret(plan: Plan) -> NoiseSecret:
    """Fixes the release's noise from fresh entropy: another noise on every call.

    Raises:
        ValueError: a table would have to answer more than one question.
    """
    if plan.noise != "discrete_gaussian":
        return NoiseKey.generate()
    if plan.questions != 1:
        raise ValueError("discrete Gaussian noise is drawn for one question")
    return NoiseTable.draw(*plan.stretches)


def restore_secret(secret: bytes, plan: Plan) -> NoiseSecret:
    """The secret that these bytes were the `secret` of, for a retry of the same plan.

    Raises:
        ValueError: they are of another length than the plan's secret.
    """
    if plan.noise != "discrete_gaussian":
        return NoiseKey(secret)
    table = NoiseTable(secret)
    if table.cells().size != math.prod(plan.cells):
        raise ValueError("the drawn noise is not of the plan's cells")
    return table
