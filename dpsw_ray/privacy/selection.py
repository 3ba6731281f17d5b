"""Private selection: how often to try, so that the best of the tries costs little more than one (Papernot and Steinke).

Source: Papernot and Steinke (2022), "Hyperparameter tuning with Renyi differential privacy", Definition 1 (the law)
and Theorem 2 (the cost).
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.privacy.losses import Loss

__all__ = ["MOST_TRIALS", "NEGLIGIBLE", "Selected", "TrialsLaw"]

_ORDERS: NDArray[np.float64] = np.concatenate(
    [1 + np.geomspace(0.01, 63, 160), np.arange(65.0, 129.0), np.geomspace(129, 1e6, 200).round()]
)
"""Where the second order of the theorem is looked for: any one gives a valid bound."""

MOST_TRIALS = 100_000
"""That are ever drawn: laws under which more of them are likely are refused, for a law that is cut is another one."""

NEGLIGIBLE = 1e-12
"""Probability of more than `MOST_TRIALS` that is left out, far below any delta."""

_UNIFORM_BITS = 53
_LEAST_MEAN = 1 + 1e-6
_LEAST_GAMMA = 1e-150


@dataclass(frozen=True)
class TrialsLaw:
    """The truncated negative binomial law of the secret number of trials: 1, 2, 3, ...

    Args:
        eta: shape, above -1; 1 is the geometric law, 0 the logarithmic one.
        gamma: in (0, 1); smaller means more trials.
    """

    eta: float
    gamma: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and self.eta > -1):
            raise UserError(
                f"eta of a random number of trials must be a number above -1, found {shown(self.eta)}."
            )
        if not 0 < self.gamma < 1:
            raise UserError(
                f"gamma of a random number of trials must lie in (0, 1), found {shown(self.gamma)}."
            )

    @classmethod
    def with_mean(cls, eta: float, mean: float) -> TrialsLaw:
        """The law of this shape with at most this mean number of trials, to nine digits.

        Raises:
            UserError: a mean out of range.
        """
        if not _LEAST_MEAN <= mean <= 1e6:
            raise UserError(
                f"The mean number of trials must be at least {_LEAST_MEAN:.6f} and at most 1e6, found {shown(mean)}."
            )
        low, high = _LEAST_GAMMA, 1 - 1e-12  # the mean falls as gamma rises; below, the products underflow
        for _ in range(2_000):
            middle = math.sqrt(low * high) if low < 0.5 * high else (low + high) / 2
            if middle in (low, high):
                break
            low, high = (middle, high) if cls(eta, middle).mean > mean else (low, middle)
        return cls(eta, high)

    @property
    def mean(self) -> float:
        """E[T]."""
        eta, gamma = self.eta, self.gamma
        log = -math.log(gamma)
        if abs(eta) * log < 1e-8:
            return (1 / gamma - 1) / log
        return eta * (1 - gamma) / gamma / -math.expm1(-eta * log)

    @property
    def tail(self) -> float:
        """A bound on P[T > MOST_TRIALS]: the first such probability, and the rest by a geometric series."""
        eta, count = self.eta, MOST_TRIALS + 1
        ratio = (1 - self.gamma) * max(1.0, (count + eta) / (count + 1))
        if ratio >= 1:
            return 1.0
        log = (
            self._log_first()
            + (count - 1) * math.log1p(-self.gamma)
            + math.lgamma(count + eta)
            - math.lgamma(1 + eta)
            - math.lgamma(count + 1)
        )
        return min(1.0, math.exp(min(0.0, log)) / (1 - ratio))

    def draw(self) -> int:
        """T, from operating-system entropy.

        Raises:
            UserError: a law that may ask for more than `MOST_TRIALS`.
        """
        if self.tail > NEGLIGIBLE:
            raise UserError(
                f"A random number of trials with eta {self.eta:g} and mean {self.mean:g} may be more than "
                f"{MOST_TRIALS:,}: choose a smaller mean or a larger eta."
            )
        uniform = (secrets.randbits(_UNIFORM_BITS) + 0.5) / 2**_UNIFORM_BITS
        trials, cumulated, probability = 1, 0.0, self._first()
        while True:
            cumulated += probability
            if uniform < cumulated or trials >= MOST_TRIALS:
                return trials
            probability *= (1 - self.gamma) * (trials + self.eta) / (trials + 1)
            if probability < 1e-18 * cumulated and trials > self.mean:
                return trials
            trials += 1

    def _first(self) -> float:
        """P[T = 1]."""
        return math.exp(self._log_first())

    def _log_first(self) -> float:
        eta, gamma = self.eta, self.gamma
        log = -math.log(gamma)
        if abs(eta) * log < 1e-8:
            return math.log1p(-gamma) - math.log(log)
        if eta * log > 700:  # where expm1 has no figure, the 1 in it counts for nothing
            return math.log1p(-gamma) + math.log(eta) - eta * log
        return math.log1p(-gamma) + math.log(eta / math.expm1(eta * log))

    def probabilities(self, upto: int) -> list[float]:
        """P[T = 1], P[T = 2], ..., P[T = upto]."""
        found, probability = [], self._first()
        for trials in range(1, upto + 1):
            found.append(probability)
            probability *= (1 - self.gamma) * (trials + self.eta) / (trials + 1)
        return found


@dataclass(frozen=True)
class Selected(Loss):
    """The best of a secret, random number of trials, each of which suffers the same losses.

    Args:
        trial: what one trial suffers: losses and how often.
        law: of the number of trials.
    """

    trial: tuple[tuple[Loss, int], ...]
    law: TrialsLaw

    def rdp(self, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Theorem 2: eps(l) + (1 + eta) ((1 - 1/l^) eps(l^) + ln(1/gamma) / l^) + ln E[T] / (l - 1), least over l^."""
        log = -math.log(self.law.gamma)
        second = (1 - 1 / _ORDERS) * self._once(_ORDERS) + log / _ORDERS
        more = (1 + self.law.eta) * float(second.min()) * (1 + 1e-12)
        bounds: NDArray[np.float64] = (
            self._once(orders) + more + math.log(self.law.mean) / (orders - 1) * (1 + 1e-12)
        )
        return bounds

    def _once(self, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros_like(orders)
        for loss, times in self.trial:
            total = total + times * loss.rdp(orders)
        return total
