"""The closed form: Gaussian mechanisms, and Gaussian mechanisms given public random directions."""

from __future__ import annotations

import math
from collections import Counter

from dpsw_ray.privacy.accountants.base import Accountant, gaussian_part
from dpsw_ray.privacy.gaussian import EpsilonBounds, gaussian_epsilon
from dpsw_ray.privacy.losses import Cost, Gaussian, SlicedGaussian
from dpsw_ray.privacy.mixture import GaussianMixture, mixture

__all__ = ["GaussianAccountant"]

_TAIL = 1e-4
"""Probability cut off the law of the directions, as a part of delta."""


class GaussianAccountant(Accountant):
    """The analytic Gaussian formula, averaged over random directions where there are any.

    See `dpsw_ray.privacy.gaussian` and `dpsw_ray.privacy.mixture`.
    """

    name = "analytic Gaussian"

    def applies(self, cost: Cost) -> bool:
        """True for Gaussian and sliced Gaussian losses."""
        return all(isinstance(loss, Gaussian | SlicedGaussian) for loss in cost)

    def cost_epsilon(self, cost: Cost, delta: float) -> EpsilonBounds:
        """Epsilon by the formula; bounds include rounding and what is unknown of the directions' law."""
        mu, rest = gaussian_part(cost)
        if not rest or mu == math.inf:
            return gaussian_epsilon(mu, delta)
        return conditional(cost, _TAIL * delta).epsilon(delta)


def conditional(cost: Cost, tail: float) -> GaussianMixture:
    """The law of mu^2 given the directions."""
    mu, rest = gaussian_part(cost)
    slices = Counter({loss: times for loss, times in rest.items() if isinstance(loss, SlicedGaussian)})
    return mixture(mu**2, slices, tail)
