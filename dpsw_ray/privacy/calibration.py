"""The other way round: the smallest noise whose upper bound on epsilon stays within the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.privacy.accountants import RdpAccountant, bound, compose_mu
from dpsw_ray.privacy.events import Event, NoiseKind, SlicedHistogramEvent
from dpsw_ray.privacy.gaussian import AccountingError, bisect, check_delta, gaussian_delta, gaussian_epsilon
from dpsw_ray.privacy.relations import Relation

__all__ = ["calibrate_gaussian_mu", "calibrate_histogram_noise", "calibrate_noise"]

_TOLERANCE = 1e-3  # of epsilon, where there is no closed form
_MOST_TRIALS = 60
_MOST_CORRECTIONS = 8


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
    _check_target(epsilon, delta)
    if epsilon == math.inf:
        return math.inf
    high = 1.0
    while gaussian_delta(epsilon, high) <= delta:
        high *= 2
    mu, _ = bisect(lambda m: m == 0 or gaussian_delta(epsilon, m) <= delta, 0.0, high)
    return 1 / _raise_until(1 / mu, lambda noise: gaussian_epsilon(1 / noise, delta).upper <= epsilon)


def calibrate_noise(
    events: Callable[[float], Sequence[Event]], relation: Relation, epsilon: float, delta: float
) -> float:
    """Smallest noise for any list of events whose upper bound on epsilon is at most `epsilon`.

    Args:
        events: from a noise level above 0 to what is released with it. Every noise in it is proportional to the
            level, or does not depend on it.
        relation: the data set's.
        epsilon: target, positive; infinity gives 0.
        delta: in (0, 1).

    Returns:
        The level. The upper bound by `bound(events(level), relation, delta)` is at most `epsilon`, and within
        0.1 % of it (Gaussian mechanisms alone: within rounding).

    Raises:
        UserError: a parameter out of range, events without meaning under `relation`.
        AccountingError: no level meets the target, for instance because of what does not depend on it.
    """
    _check_target(epsilon, delta)
    if epsilon == math.inf:
        return 0.0

    def upper(level: float) -> float:
        return bound(events(level), relation, delta).epsilon.upper

    try:
        return _closed_form(events, relation, epsilon, delta, upper) or _by_model(
            events, relation, epsilon, delta, upper
        )
    except AccountingError:  # a shortcut that does not lead there; the search below says so itself
        return _search(upper, epsilon, _TOLERANCE)


def _closed_form(
    events: Callable[[float], Sequence[Event]],
    relation: Relation,
    epsilon: float,
    delta: float,
    upper: Callable[[float], float],
) -> float | None:
    """The level for Gaussian mechanisms: mu(level)^2 = fixed^2 + (scaled / level)^2; None for others."""
    once, twice = compose_mu(events(1.0), relation), compose_mu(events(2.0), relation)
    if once is None or twice is None:
        return None
    scaled_sq = (once**2 - twice**2) * 4 / 3
    room = calibrate_gaussian_mu(epsilon, delta) ** 2 - max(once**2 - scaled_sq, 0.0)
    if not (scaled_sq > 0 and room > 0):
        return None
    return _raise_until(math.sqrt(scaled_sq / room), lambda level: upper(level) <= epsilon)


def _by_model(
    events: Callable[[float], Sequence[Event]],
    relation: Relation,
    epsilon: float,
    delta: float,
    upper: Callable[[float], float],
) -> float:
    """The level with Renyi's bound as a model: quick, and the exact bound is a nearly constant part of it."""

    def model(level: float) -> float:
        return RdpAccountant().epsilon(events(level), relation=relation, delta=delta).upper

    aim = wanted = (1 - _TOLERANCE / 2) * epsilon
    for _ in range(_MOST_CORRECTIONS):
        level = _search(model, aim, _TOLERANCE / 20)
        found = upper(level)
        if (1 - _TOLERANCE) * epsilon <= found <= epsilon:
            return level
        if found == 0:  # so small an epsilon that delta pays for all of it
            break
        aim *= wanted / found
    raise AccountingError("The exact bound does not follow Renyi's.")


def _search(upper: Callable[[float], float], epsilon: float, tolerance: float) -> float:
    """A level with `upper` in [(1 - tolerance) epsilon, epsilon], by bracketing and false position in logarithms."""
    low, high = 1.0, 1.0
    at_high = upper(high)
    while at_high > epsilon:
        low, high = high, high * 4
        if high > 1e12:
            raise AccountingError(
                f"No noise brings epsilon down to {epsilon:g}: what does not depend on it costs {at_high:.6g} already."
            )
        at_high = upper(high)
    at_low = math.inf
    if low == high:
        while True:
            low /= 4
            at_low = _or_infinity(upper, low)
            if at_low > epsilon:
                break
            high, at_high = low, at_low
            if low < 1e-12:
                raise AccountingError(
                    f"Even without noise epsilon stays below {epsilon:g}: there is nothing to calibrate."
                )
    for trial in range(_MOST_TRIALS):
        if at_high >= (1 - tolerance) * epsilon:
            return high
        if math.isfinite(at_low) and at_high > 0 and trial % 3 != 2:
            target = math.log((1 - tolerance / 2) * epsilon)
            share = (math.log(at_low) - target) / (math.log(at_low) - math.log(at_high))
            level = math.exp(math.log(low) + min(max(share, 0.02), 0.98) * (math.log(high) - math.log(low)))
        else:
            level = math.sqrt(low * high)
        found = _or_infinity(upper, level)
        if found <= epsilon:
            high, at_high = level, found
        else:
            low, at_low = level, found
    return high  # the bound jumps over the tolerance: still the smallest noise known to meet the target


def _or_infinity(upper: Callable[[float], float], level: float) -> float:
    """At tiny noise no accountant may have a number; that is too little noise."""
    try:
        return upper(level)
    except AccountingError:
        return math.inf


def calibrate_histogram_noise(
    directions: int,
    row_norm_sq: int,
    relation: Relation,
    epsilon: float,
    delta: float,
    noise: NoiseKind = "gaussian",
    beside: Sequence[Event] = (),
) -> float:
    """Smallest noise for one `SlicedHistogramEvent` that stays within (`epsilon`, `delta`).

    Args:
        directions: K.
        row_norm_sq: largest squared L2 norm of one direction's integer bin vector.
        relation: the data set's.
        epsilon: target, positive; infinity gives 0.
        delta: in (0, 1).
        noise: the sampler.
        beside: what is released of the same records under the same budget, its noise fixed.

    Returns:
        Standard deviation in lattice units; the upper bound on epsilon of the event, with those beside it, never
        exceeds `epsilon`.

    Raises:
        UserError: a parameter out of range.
        AccountingError: what is beside it costs `epsilon` already.
    """
    sensitivity = math.sqrt(SlicedHistogramEvent(directions, row_norm_sq, 0.0).sensitivity_sq(relation))

    def events(level: float) -> list[Event]:
        return [*beside, SlicedHistogramEvent(directions, row_norm_sq, level * sensitivity, noise=noise)]

    return calibrate_noise(events, relation, epsilon, delta) * sensitivity


def _check_target(epsilon: float, delta: float) -> None:
    if not epsilon > 0:
        raise UserError(f"epsilon must be positive, found {shown(epsilon)}.")
    check_delta(delta)


def _raise_until(noise: float, fits: Callable[[float], bool]) -> float:
    """Raises `noise` by steps that start at one unit in the last place and double, until it fits."""
    step = 2.0**-52
    while not fits(noise):
        noise *= 1 + step
        step *= 2
        if step > 2.0**-20:
            raise AccountingError("No noise could be verified to meet the target epsilon at this delta.")
    return noise
