"""Skellam noise as a Gaussian in disguise: how far the law of one may be from the other's, cell by cell.

Statement. Let p be the law of a Skellam number of variance v, g that of N(0, v) rounded to the nearest integer, and
R = `reach` sqrt(v). For all integers |k| <= R, |ln p(k) - ln g(k)| <= eta, and either law lies beyond R with a
probability of at most tau, where

    tau = 2 exp(-R^2 / (2 (v + R))),
    eta = R^4 / (24 v^3) + R (R + 1) / (2 v^2) + R^2 / (8 v^2) + 1 / (24 v) + 4 tau + 4 exp(-2 pi^2 v).

Proof. p(k) = e^-v I_k(v). Amos (1974, equation 16) encloses I_{k+1}(v) / I_k(v), k >= 0: with a = k + 1/2 the step
ln p(k) - ln p(k+1) lies between asinh(a / v) and that plus (2 a + 1) / (2 v^2), and asinh(u) between u - u^3 / 6 and u.
The step of the density phi of N(0, v) is a / v exactly. Summed over the steps from 0 to k, ln p - ln phi changes by at
most R^4 / (24 v^3) upwards (a sum of cubes at midpoints is below the integral) and R (R + 1) / (2 v^2) downwards. Both
sum to 1 over the integers, but for their tails and for 2 exp(-2 pi^2 v) + ... by Poisson's summation formula, which
fixes the constant up to the same. Rounding: ln g(k) - ln phi(k) is between -1 / (24 v) (Jensen) and k^2 / (8 v^2)
(ln cosh(x) <= x^2 / 2). tau: Bernstein's inequality, as cosh(t) - 1 <= t^2 / (2 - 2 t) for 0 <= t < 1.

Consequence. On all cells of all releases together, adaptive ones included, the two laws are within a factor e^H of each
other but for a probability T, H and T the sums of eta and tau over the cells. A release with rounded Gaussian noise is
a post-processed Gaussian mechanism; if it is (e, d)-private, the one with Skellam noise is (e + 2 H, d')-private, with
d' = e^H d + T (1 + e^(H + e)). This holds for every e that is not negative, which gives a privacy curve; left of 2 H it
rises by at most e^(2 H) - e^epsilon, as P(S) <= e^(2 H) Q(S) + d' <= e^epsilon Q(S) + d' + e^(2 H) - e^epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds, gaussian_epsilon
from dpsw_ray.privacy.losses import Skellam
from dpsw_ray.privacy.mixture import GaussianMixture

__all__ = ["likeness", "near_gaussian_delta", "near_gaussian_epsilon"]

Noises = Sequence[tuple[Skellam, int]]
"""Skellam losses that know their number of cells, and how often each was suffered."""

_SMALLEST_VARIANCE = 100.0
_LARGEST_EPSILON = 300.0
_WORTH = 0.03  # 2 H over epsilon: above it Renyi's bound is no worse
_SLACK = 1e-3  # of delta, for the tails
_LEAST_TAIL = 1e-16  # of a curve's points, where delta is nothing


def likeness(variance: float, reach: float) -> tuple[float, float]:
    """The eta and tau of one cell: see the module's statement.

    Args:
        variance: v, at least 100.
        reach: R in standard deviations.
    """
    far = reach * math.sqrt(variance)
    tau = 2 * math.exp(-(far**2) / (2 * (variance + far)))
    steps = far**4 / (24 * variance**3) + far * (far + 1) / (2 * variance**2)
    rounding = far**2 / (8 * variance**2) + 1 / (24 * variance)
    eta = steps + rounding + 4 * tau + 4 * math.exp(-2 * math.pi**2 * variance)
    return eta * (1 + 1e-9), tau * (1 + 1e-9)


def near_gaussian_epsilon(mu_squared: float, noises: Noises, delta: float) -> EpsilonBounds:
    """Epsilon of Gaussian mechanisms and Skellam ones together; an upper bound, the lower one is 0.

    Args:
        mu_squared: of the Gaussian mechanisms, composed.
        noises: the Skellam mechanisms.
        delta: in (0, 1).

    Raises:
        AccountingError: the noise is too small, or the cells too many, for this to say more than Renyi's bound.
    """
    mu = math.sqrt(_composed(mu_squared, noises))
    likely = gaussian_epsilon(mu, delta).upper
    if likely > _LARGEST_EPSILON or min(loss.variance for loss, _ in noises) < _SMALLEST_VARIANCE:
        raise AccountingError("Skellam noise of this size is not near enough to Gaussian noise.")
    factor, tail = _together(noises, likely - math.log(delta))
    if factor > 1:
        raise AccountingError("Skellam noise on so many cells is not near enough to Gaussian noise.")
    slack = tail * (1 + math.exp(factor + likely + 1))
    if 2 * factor > _WORTH * likely or slack > _SLACK * delta:
        raise AccountingError("Skellam noise on so many cells is not near enough to Gaussian noise.")
    inner = gaussian_epsilon(mu, (delta - slack) * math.exp(-factor)).upper
    if inner > likely + 1:
        raise AccountingError("The tails of the Skellam noise are not small enough beside delta.")
    upper = (inner + 2 * factor) * (1 + 1e-12)
    return EpsilonBounds(0.0, upper, upper)


def near_gaussian_delta(
    mu_squared: float, noises: Noises, epsilons: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Upper bound on delta at each epsilon, of Gaussian mechanisms and Skellam ones together.

    Args:
        mu_squared: of the Gaussian mechanisms, composed.
        noises: the Skellam mechanisms.
        epsilons: array of size [n], not negative, in ascending order.

    Returns:
        Array of size [n], falling; 1 where the noise is too small, or the cells too many, to say anything.
    """
    deltas = np.ones(len(epsilons))
    if min(loss.variance for loss, _ in noises) < _SMALLEST_VARIANCE:
        return deltas
    law = GaussianMixture(np.array([_composed(mu_squared, noises)]), np.ones(1), 0.0, 0.0)
    for i, epsilon in enumerate(map(float, epsilons)):
        if epsilon > _LARGEST_EPSILON:
            break
        likely = max(law.delta_upper(epsilon), _LEAST_TAIL)
        factor, tail = _together(noises, epsilon - math.log(likely))
        if factor > 1:
            continue
        inner = max(epsilon - 2 * factor, 0.0) * (1 - 1e-12)
        outer = math.exp(factor) * law.delta_upper(inner) + tail * (1 + math.exp(factor + inner))
        deltas[i] = outer + max(math.exp(2 * factor) - math.exp(epsilon), 0.0)
    falling: NDArray[np.float64] = np.minimum.accumulate(np.minimum(deltas * (1 + 1e-9), 1.0))
    return falling


def _composed(mu_squared: float, noises: Noises) -> float:
    return mu_squared + sum(times * loss.sensitivity_sq / loss.variance for loss, times in noises)


def _together(noises: Noises, depth: float) -> tuple[float, float]:
    """H and T of all cells, at a reach that leaves tails of some e^-`depth`."""
    cells = sum(times * loss.cells for loss, times in noises)
    reach = math.sqrt(2 * (math.log(cells) + depth + 12))
    factor = tail = 0.0
    for loss, times in noises:
        eta, tau = likeness(loss.variance, reach)
        factor += times * loss.cells * eta
        tail += times * loss.cells * tau
    return factor, tail
