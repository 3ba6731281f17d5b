"""Privacy losses: the few elementary shapes that every mechanism's cost is made of, relation already applied.

An event says what a mechanism did; under a relation that becomes a composition of these losses, and accountants
know nothing else. Composition is addition: a `Cost` counts how often each loss was suffered.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, hyp1f1

__all__ = [
    "Cost",
    "Gaussian",
    "Loss",
    "SampledGaussian",
    "Skellam",
    "SlicedGaussian",
    "ZeroConcentrated",
    "between_whole_orders",
    "log_moment",
]

_LARGEST_RATE = 690.0


class Loss(ABC):
    """One use of an elementary mechanism on a pair of neighbours. Subclasses are frozen dataclasses."""

    @abstractmethod
    def rdp(self, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Upper bound on the Renyi divergence, in both directions.

        Args:
            orders: array of size [n], each above 1.

        Returns:
            Array of size [n].
        """


Cost = Counter[Loss]
"""A composition of losses: how often each occurs."""


@dataclass(frozen=True)
class Gaussian(Loss):
    """A Gaussian mechanism: N(mu, 1) against N(0, 1). Infinite without noise.

    Source: Renyi divergence alpha mu^2 / 2, Mironov (2017), Proposition 7.
    """

    mu: float

    def rdp(self, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Alpha mu^2 / 2."""
        return orders * (self.mu**2 / 2)


@dataclass(frozen=True)
class SlicedGaussian(Loss):
    """Projections on directions that are drawn uniformly, independently of the data, and published.

    Given the directions it is a Gaussian mechanism with mu^2 = `mu`^2 S, where S is the sum of K squared
    cosines between the record's change and a uniform direction, each Beta(1/2, (d - 1)/2).

    Args:
        directions: K.
        dim: d, at least 2.
        mu: length of the change over the noise standard deviation.
    """

    directions: int
    dim: int
    mu: float

    def rdp(self, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """K / (alpha - 1) ln 1F1(1/2; d/2; alpha (alpha - 1) mu^2 / 2).

        The directions are part of the output, so that exp((alpha - 1) D_alpha) is the mean over them of the
        Gaussian's exp(alpha (alpha - 1) mu^2 S / 2); 1F1 is the moment generating function of the Beta law.
        """
        exponents = orders * (orders - 1) * self.mu**2 / 2
        return self.directions * log_moment(self.dim, exponents) / (orders - 1)


def log_moment(dim: int, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper bound on ln E exp(z B) = ln 1F1(1/2; d/2; z), B the squared cosine to a uniform direction.

    Tight to nine digits up to z = 690, where the series would overflow; the derivative in z is the mean of B under a
    tilted law, at most 1, so that beyond it the bound goes on with slope 1.

    Args:
        dim: d, at least 2.
        rates: array of size [n], the z, not negative.

    Returns:
        Array of size [n].
    """
    inner = np.minimum(rates, _LARGEST_RATE)
    excess, term = np.zeros_like(inner), np.ones_like(inner)
    for k in range(24):  # enough below 1, where 1F1 - 1 would cancel
        term = term * np.minimum(inner, 1.0) * (0.5 + k) / ((dim / 2 + k) * (k + 1))
        excess += term
    logs = np.where(inner < 1, np.log1p(excess), np.log(hyp1f1(0.5, dim / 2, inner)) + 2.0**-50)
    bounds: NDArray[np.float64] = logs * (1 + 1e-12) + (rates - inner)
    return bounds


@dataclass(frozen=True)
class SampledGaussian(Loss):
    """A Gaussian mechanism on a secret Poisson sample, one record more or less.

    The pair is (1 - q) N(0, 1) + q N(mu, 1) against N(0, 1), in either order.

    Args:
        mu: of the mechanism without sampling.
        sampling: q, in (0, 1).
    """

    mu: float
    sampling: float

    def rdp(self, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mironov, Talwar and Zhang (2019), equation (5), at whole orders; see `between_whole_orders`.

        Below order 2, where the chord is flat and large losses want the bound, the same moment by integration.
        """
        curve = between_whole_orders(orders, lambda order: _sampled_bound(self.mu, self.sampling, order))
        low = np.flatnonzero(np.asarray(orders) < 2)
        finer = [_sampled_integral(self.mu, self.sampling, float(order)) for order in orders[low]]
        curve[low] = np.minimum(curve[low], finer)
        return curve


@functools.lru_cache(maxsize=65536)
def _sampled_bound(mu: float, q: float, order: int) -> float:
    """Accountants ask for the same orders many times over."""
    k = np.arange(2.0, order + 1)
    logs = gammaln(order + 1.0) - gammaln(k + 1) - gammaln(order - k + 1)
    logs += k * math.log(q) + (order - k) * math.log1p(-q)
    exponents = k * (k - 1) * mu**2 / 2
    # The binomial weights sum to 1: what is above 1 is summed by itself, or a small sum would drown in it.
    excess = logs + np.where(exponents > 1, exponents + np.log1p(-np.exp(-np.maximum(exponents, 1.0))), 0.0)
    excess = np.where(exponents > 1, excess, logs + np.log(np.expm1(np.minimum(exponents, 1.0))))
    largest = float(excess.max())
    total = largest + math.log(float(np.exp(excess - largest).sum()))
    moment = total + math.log1p(math.exp(-total)) if total > 0 else math.log1p(math.exp(total))
    return moment * (1 + 1e-9) / (order - 1)


_ROUNDING = 1e-13  # of the logarithm of a sum near 1


@functools.lru_cache(maxsize=65536)
def _sampled_integral(mu: float, q: float, order: float) -> float:
    """Renyi divergence of P = (1 - q) N(0, 1) + q N(mu, 1) from Q = N(0, 1); it bounds the other order.

    The moment E_Q[(P / Q)^order] by the trapezoidal rule: its integrand is analytic up to pi / mu beside the real
    line, so that the error of step h falls like exp(-2 pi^2 / (mu h)), and 1e-9 is more than all of it (Trefethen and
    Weideman 2014). Theorem 5 of Mironov, Talwar and Zhang (2019) is for all orders.
    """
    step = min(0.05, 0.4 / mu)
    if (order * mu + 24) / step > 1e6:
        return math.inf  # mu in the thousands is nobody's guarantee, and the chord of whole orders holds
    x = np.arange(-12.0, order * mu + 12, step)
    ratio = np.logaddexp(math.log1p(-q), math.log(q) + mu * x - mu**2 / 2)
    logs = order * ratio - x**2 / 2
    largest = float(logs.max())
    moment = largest + math.log(float(np.exp(logs - largest).sum()) * step / math.sqrt(2 * math.pi))
    return (max(moment, 0.0) * (1 + 1e-9) + _ROUNDING) / (order - 1)


@dataclass(frozen=True)
class ZeroConcentrated(Loss):
    """Anything rho-zCDP, such as a discrete Gaussian in many dimensions (Canonne, Kamath and Steinke 2020)."""

    rho: float

    def rdp(self, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Alpha rho."""
        return orders * self.rho


@dataclass(frozen=True)
class Skellam(Loss):
    """Integer sums with Skellam noise (Agarwal, Kairouz and Liu 2021, the bound in many dimensions).

    Args:
        sensitivity_sq: squared L2 sensitivity, whole.
        sensitivity_l1: L1 sensitivity, whole.
        variance: of the noise in all, per coordinate.
        cells: coordinates that a neighbour may change, at most; 0 where it is not known.
    """

    sensitivity_sq: int
    sensitivity_l1: int
    variance: float
    cells: int = 0

    def rdp(self, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """The paper's bound at whole orders; see `between_whole_orders`."""
        return between_whole_orders(orders, self._whole_order)

    def _whole_order(self, order: int) -> float:
        squared, absolute, variance = self.sensitivity_sq, self.sensitivity_l1, self.variance
        excess = ((2 * order - 1) * squared + 6 * absolute) / (4 * variance**2)
        return order * squared / (2 * variance) + min(excess, 3 * absolute / (2 * variance))


def between_whole_orders(orders: NDArray[np.float64], whole: Callable[[int], float]) -> NDArray[np.float64]:
    """Renyi bounds at any order above 1 from bounds at whole ones.

    (alpha - 1) D_alpha is convex in alpha and 0 at alpha = 1 (van Erven and Harremoes 2014, Corollary 2), so
    the chord between the neighbouring whole orders bounds it.

    Args:
        orders: array of size [n].
        whole: the bound at a whole order, 2 or more.

    Returns:
        Array of size [n].
    """
    below = np.floor(orders).astype(int)
    needed = {int(order) for order in np.concatenate([below, below + 1]) if order >= 2}
    moments = {order: (order - 1) * whole(order) for order in needed} | {1: 0.0}
    left = np.array([moments[int(order)] for order in below])
    right = np.array([moments[int(order) + 1] for order in below])
    part = orders - below
    bounds: NDArray[np.float64] = np.where(part == 0, left, (1 - part) * left + part * right) / (orders - 1)
    return bounds
