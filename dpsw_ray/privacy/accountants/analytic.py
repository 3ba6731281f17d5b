"""The closed form: Gaussian mechanisms, also given public random directions, and what is nearly Gaussian."""

from __future__ import annotations

import math
from collections import Counter

from dpsw_ray.privacy.accountants.base import Accountant, gaussian_part
from dpsw_ray.privacy.gaussian import EpsilonBounds, gaussian_epsilon
from dpsw_ray.privacy.losses import Cost, Gaussian, Skellam, SlicedGaussian
from dpsw_ray.privacy.mixture import GaussianMixture, mixture
from dpsw_ray.privacy.near_gaussian import near_gaussian_epsilon

__all__ = ["GaussianAccountant", "conditional", "skellam_losses"]

_TAIL = 1e-4
"""Probability cut off the law of the directions, as a part of delta."""


class GaussianAccountant(Accountant):
    """The analytic Gaussian formula, averaged over random directions where there are any.

    See `dpsw_ray.privacy.gaussian` and `dpsw_ray.privacy.mixture`; for Skellam noise `dpsw_ray.privacy.near_gaussian`.
    """

    name = "analytic Gaussian"

    def applies(self, cost: Cost) -> bool:
        """True for Gaussian losses with sliced Gaussian ones, or with Skellam ones whose cells are known."""
        others = [loss for loss in cost if not isinstance(loss, Gaussian)]
        return all(isinstance(loss, SlicedGaussian) for loss in others) or all(
            isinstance(loss, Skellam) and loss.cells for loss in others
        )

    def cost_epsilon(self, cost: Cost, delta: float) -> EpsilonBounds:
        """Epsilon by the formula; bounds include rounding and what is unknown of the directions' law."""
        mu, rest = gaussian_part(cost)
        if not rest or mu == math.inf:
            return gaussian_epsilon(mu, delta)
        if noises := skellam_losses(rest):
            return near_gaussian_epsilon(mu**2, noises, delta)
        return conditional(cost, _TAIL * delta).epsilon(delta)


def conditional(cost: Cost, tail: float) -> GaussianMixture:
    """The law of mu^2 given the directions, of Gaussian losses and sliced Gaussian ones.

    Raises:
        ValueError: the cost has losses of other kinds, which this law would leave out.
    """
    mu, rest = gaussian_part(cost)
    slices = Counter({loss: times for loss, times in rest.items() if isinstance(loss, SlicedGaussian)})
    if len(slices) < len(rest):
        raise ValueError("only Gaussian losses have a law of mu^2")
    return mixture(mu**2, slices, tail)


def skellam_losses(cost: Cost) -> list[tuple[Skellam, int]]:
    """The Skellam losses, and how often each was suffered."""
    return [(loss, times) for loss, times in cost.items() if isinstance(loss, Skellam)]
