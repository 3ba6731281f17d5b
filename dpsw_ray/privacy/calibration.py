"""The other way round: the smallest noise whose upper bound on epsilon stays within the target."""

from __future__ import annotations

import math
from collections.abc import Callable

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.events import SlicedHistogramEvent
from dpsw_ray.privacy.gaussian import AccountingError, bisect, check_delta, gaussian_delta, gaussian_epsilon
from dpsw_ray.privacy.relations import Relation

__all__ = ["calibrate_gaussian_mu", "calibrate_histogram_noise"]


def calibrate_gaussian_mu(epsilon: float, delta: float) -> float:
    """Largest mu (least noise) of a Gaussian mechanism whose upper bound on epsilon is at most `epsilon`.

    Args:
        epsilon: target, positive; infinity asks for no noise.
        delta: in (0, 1).

    Returns:
        Mu, positive; infinity for an infinite `epsilon`.

    Raises:
        UserError: epsilon not positive, delta outside (0, 1).
    """
    if not epsilon > 0:
        raise UserError(f"epsilon must be positive, found {epsilon!r}.")
    check_delta(delta)
    if epsilon == math.inf:
        return math.inf
    high = 1.0
    while gaussian_delta(epsilon, high) <= delta:
        high *= 2
    mu, _ = bisect(lambda m: m == 0 or gaussian_delta(epsilon, m) <= delta, 0.0, high)
    return _shrink_until(mu, lambda m: gaussian_epsilon(m, delta).upper <= epsilon)


def calibrate_histogram_noise(
    directions: int, row_norm_sq: int, relation: Relation, epsilon: float, delta: float
) -> float:
    """Smallest noise for one `SlicedHistogramEvent` that stays within (`epsilon`, `delta`).

    Args:
        directions: K.
        row_norm_sq: largest squared L2 norm of one direction's integer bin vector.
        relation: the data set's.
        epsilon: target, positive; infinity gives 0.
        delta: in (0, 1).

    Returns:
        Standard deviation in lattice units; the event's upper bound on epsilon never exceeds `epsilon`.

    Raises:
        UserError: a parameter out of range.
    """
    noiseless = SlicedHistogramEvent(directions, row_norm_sq, 0.0)
    sensitivity = math.sqrt(noiseless.sensitivity_sq(relation))
    mu = calibrate_gaussian_mu(epsilon, delta)
    if mu == math.inf:
        return 0.0

    def fits(candidate: float) -> bool:
        event = SlicedHistogramEvent(directions, row_norm_sq, sensitivity / candidate)
        return gaussian_epsilon(event.gaussian_mu(relation), delta).upper <= epsilon

    return sensitivity / _shrink_until(mu, fits)


def _shrink_until(mu: float, fits: Callable[[float], bool]) -> float:
    """Lowers `mu` by steps that start at one unit in the last place and double, until it fits."""
    step = 2.0**-52
    while not fits(mu):
        mu *= 1 - step
        step *= 2
        if step > 2.0**-20:
            raise AccountingError("No noise could be verified to meet the target epsilon at this delta.")
    return mu
