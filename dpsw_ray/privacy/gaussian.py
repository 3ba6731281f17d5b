"""The analytic Gaussian mechanism: delta(epsilon; mu) and its inverse, with bounds that are verified.

Statement: a mechanism with L2 sensitivity Delta and N(0, s^2 I) noise, mu = Delta / s, is (epsilon, delta)-DP
exactly when delta >= Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)  (Balle and Wang 2018,
Theorem 8), and a composition of such mechanisms, adaptive or not, is one with mu^2 = sum of the mu_i^2
(Dong, Roth and Su 2022, Corollary 3.3).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from scipy.special import erfcx, ndtr

from dpsw_ray.base.errors import UserError, shown

__all__ = ["AccountingError", "EpsilonBounds", "check_delta", "gaussian_delta", "gaussian_epsilon"]

_ULP = 2.0**-50  # a few units in the last place: covers exp, erfcx, ndtr and the arithmetic around them
_MU_MARGIN = 2.0**-48  # mu itself comes out of a square root, a quotient and a sum
_SMALLEST_DELTA = 1e-200
_LARGEST_MU = 1e100  # beyond it epsilon, about mu^2 / 2, leaves the range where float64 can bound anything


class AccountingError(UserError):
    """No accountant gave a number that can be trusted; nothing may be released on it."""


@dataclass(frozen=True)
class EpsilonBounds:
    """Epsilon at a given delta: report `upper`; the truth is not below `lower`."""

    lower: float
    estimate: float
    upper: float

    def to_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return {"lower": self.lower, "estimate": self.estimate, "upper": self.upper}


def check_delta(delta: float) -> float:
    """Returns `delta` where it lies strictly between 0 and 1.

    Raises:
        UserError: it does not.
    """
    if not 0 < delta < 1:
        raise UserError(f"delta must lie between 0 and 1, found {shown(delta)}.")
    if delta < _SMALLEST_DELTA:
        raise UserError(
            f"delta must be at least {_SMALLEST_DELTA:g} to be worked with, found {shown(delta)}."
        )
    return delta


def _delta(epsilon: float, mu: float) -> tuple[float, float]:
    """The value of delta(epsilon; mu) in float64 and a bound on its error, for 0 < mu < inf.

    With x-+ = epsilon/mu -+ mu/2, e^epsilon phi(x+) = phi(x-), so the second term is phi(x-) M(x+), with M
    the Mills ratio Q/phi: nothing overflows, and the subtraction is between two smooth factors.
    """
    minus, plus = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    density = math.exp(-minus * minus / 2) / math.sqrt(2 * math.pi)
    if density == 0:
        return (1.0, _ULP) if minus < 0 else (0.0, sys.float_info.min)
    first = density * _mills(minus) if minus > 0 else float(ndtr(-minus))
    error = _ULP * (first + density * (1 + abs(minus)) * (1 + plus)) + sys.float_info.min
    return first - density * _mills(plus), error


def _mills(x: float) -> float:
    return math.sqrt(math.pi / 2) * float(erfcx(x / math.sqrt(2)))


def _delta_upper(epsilon: float, mu: float) -> float:
    value, error = _delta(epsilon, mu * (1 + _MU_MARGIN))
    return value + error


def _delta_lower(epsilon: float, mu: float) -> float:
    value, error = _delta(epsilon, mu * (1 - _MU_MARGIN))
    return value - error


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Smallest delta for which a Gaussian mechanism of parameter `mu` is (`epsilon`, delta)-DP.

    Args:
        epsilon: not negative.
        mu: L2 sensitivity over noise standard deviation, 0 to infinity.
    """
    if mu == 0 or epsilon == math.inf:
        return 0.0
    if mu == math.inf:
        return 1.0
    return min(max(_delta(epsilon, mu)[0], 0.0), 1.0)


def gaussian_epsilon(mu: float, delta: float) -> EpsilonBounds:
    """Epsilon at `delta` of a Gaussian mechanism of parameter `mu`.

    Rounding errors are bounded, not hoped away: delta(`upper`) <= `delta` and delta(`lower`) >= `delta`
    (or `lower` is 0) hold for the exact function. The three agree to six digits, for mu above 1e-3 to nine.

    Raises:
        UserError: delta outside (0, 1).
        AccountingError: mu is negative, not a number, or too large to bound epsilon.
    """
    check_delta(delta)
    if mu == math.inf:
        return EpsilonBounds(math.inf, math.inf, math.inf)
    if not 0 <= mu <= _LARGEST_MU:
        raise AccountingError(
            f"The noise gives mu = {mu!r}, which is not a number epsilon can be worked out from."
        )
    if mu / 2 <= delta:
        return EpsilonBounds(0.0, 0.0, 0.0)  # delta(0; mu) = erf(mu / sqrt(8)) < mu / 2
    # mu^2/2 + mu sqrt(2 ln(1/delta)) bounds epsilon (zero-concentrated DP); doubled where rounding spoils it.
    largest = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    while _delta_upper(largest, mu) > delta:
        largest *= 2
        if not math.isfinite(largest):
            raise AccountingError(f"No finite epsilon could be verified for mu = {mu} and delta = {delta}.")
    _, upper = bisect(lambda e: _delta_upper(e, mu) > delta, 0.0, largest)
    lower, _ = bisect(lambda e: _delta_lower(e, mu) >= delta, 0.0, upper)
    middle, _ = bisect(lambda e: _delta(e, mu)[0] >= delta, lower, upper)
    return EpsilonBounds(lower, middle, upper)


def bisect(holds: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Closes in on where `holds`, true to the left, turns false, down to neighbouring floats.

    `high` only ever moves to points where `holds` is false, `low` to points where it is true, so either can
    be used as a verified bound even where rounding makes `holds` ragged near the turn.

    Args:
        holds: the predicate.
        low: left end; returned for both where `holds(low)` is false.
        high: right end, where `holds` is false.
    """
    if not holds(low):
        return low, low
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            return low, high
        if holds(middle):
            low = middle
        else:
            high = middle
