"""Skellam noise: users' shares of it, their total at once, and the modulus that holds sum and noise.

Statement: a Skellam variable of variance v is the difference of two Poisson variables of mean v / 2 each. Sums of
independent ones are Skellam with the variances added, so the total of n shares may be drawn in one go, exactly in law.

Source: Agarwal, Kairouz and Liu 2021; Skellam 1946. Poisson variables: Hörmann 1993 (transformed rejection), with the
density in Loader's form (2000), which keeps its precision at means where logarithms of factorials have none left.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import poisson

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.noise import NoiseKey, mask_stream

__all__ = ["centred", "modulus_bits", "share_variance", "skellam", "wrap_probability"]

_SMALL_MEAN = 10.0
_EXACT_LOGS = 1e5  # means below it: gammaln is precise enough
_SAFE = 2.0**-40  # chance that any cell wraps around, where the bits are ours to choose


def share_variance(variance: float, threshold: int, corrupted: int) -> float:
    """Variance of one user's share, so that the fewest survivors' noise that protects somebody is `variance`.

    Against a neighbour the noise of the others counts, less that of `corrupted` users who tell theirs.

    Args:
        variance: needed.
        threshold: t, survivors without which a round is aborted.
        corrupted: c, at most t - 2.
    """
    return variance / (threshold - 1 - corrupted)


def skellam(key: NoiseKey, variance: float, count: int) -> NDArray[np.int64]:
    """Independent Skellam numbers from a cryptographic stream: the same key gives the same numbers.

    Args:
        key: of this table and nothing else.
        variance: of each number; 0 gives zeros.
        count: how many.

    Returns:
        Array of size [count].
    """
    if variance == 0:
        return np.zeros(count, dtype=np.int64)
    bound = key.derive(b"skellam" + np.float64(variance).tobytes())
    first = _centred_poisson(bound.derive(b"first"), variance / 2, count)
    return first - _centred_poisson(bound.derive(b"second"), variance / 2, count)


def _centred_poisson(key: NoiseKey, mean: float, count: int) -> NDArray[np.int64]:
    """Poisson numbers less the whole part of their mean."""
    whole, part = math.floor(mean), mean - math.floor(mean)
    if mean < _SMALL_MEAN:
        uniform = (mask_stream(key, count).astype(np.float64) + 0.5) * 2.0**-64
        return np.asarray(poisson.ppf(np.minimum(uniform, 1 - 2.0**-53), mean)).astype(np.int64) - whole
    root = math.sqrt(mean)
    b = 0.931 + 2.53 * root
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2)
    numbers, waiting, attempt = np.empty(count, dtype=np.int64), np.arange(count), 0
    while len(waiting):
        words = mask_stream(key.derive(b"attempt %d" % attempt), 2 * len(waiting)).astype(np.float64)
        uniform = (words + 0.5) * 2.0**-64
        u, v = uniform[: len(waiting)] - 0.5, uniform[len(waiting) :]
        edge = np.maximum(0.5 - np.abs(u), 2.0**-54)
        found = np.floor((2 * a / edge + b) * u + part + 0.43)
        inside = found + whole >= 0
        quick = (edge >= 0.07) & (v <= squeeze)
        hopeless = ~inside | ((edge < 0.013) & (v > edge))
        bound = np.log(v) + math.log(inverse_alpha) - np.log(a / edge**2 + b)
        safe = np.where(inside, found, 0.0)
        accepted = inside & (quick | (~hopeless & (bound <= _log_density(safe, whole, part))))
        numbers[waiting[accepted]] = found[accepted].astype(np.int64)
        waiting, attempt = waiting[~accepted], attempt + 1
    return numbers


def _log_density(offset: NDArray[np.float64], whole: int, part: float) -> NDArray[np.float64]:
    """Log of the Poisson density at `whole` + `offset`, the mean being `whole` + `part`."""
    mean, k = whole + part, whole + offset
    if mean < _EXACT_LOGS:
        return np.asarray(k * math.log(mean) - mean - gammaln(k + 1))
    away = offset - part
    ratio = np.maximum(away / mean, -0.5)  # further down the density is nothing
    deviance = mean * ((1 + ratio) * np.log1p(ratio) - ratio)
    k = np.maximum(k, mean / 2)
    return np.asarray(-deviance - 0.5 * np.log(2 * math.pi * k) - 1 / (12 * k))


def wrap_probability(bits: int, users: int, precision: int, variance: float, cells: int) -> float:
    """Bound on the chance that some cell's sum and noise leave the window of the modulus.

    Cells hold 0 to users * 2^precision and Skellam noise, whose tail beyond x is at most exp(-x^2 / (2 (v + x)))
    on either side (Bernstein; cosh(t) - 1 <= t^2 / (2 - 2 t) below t = 1).

    Args:
        bits: of the modulus.
        users: whose messages are added.
        precision: bits of one user's mass.
        variance: of the whole noise on a cell.
        cells: how many.
    """
    room = 2.0 ** (bits - 1) - users * 2.0 ** (precision - 1)  # on either side of the possible sums
    if room <= 0:
        return 1.0
    if variance == 0:
        return 0.0
    return min(1.0, 2 * cells * math.exp(-(room**2) / (2 * (variance + room))))


def modulus_bits(users: int, precision: int, variance: float, cells: int) -> int:
    """The fewest bits at which wrapping around is out of the question (2^-40).

    Raises:
        UserError: 63 are not enough.
    """
    for bits in range(8, 64):
        if wrap_probability(bits, users, precision, variance, cells) <= _SAFE:
            return bits
    raise UserError(
        "The noise on users' messages does not fit the 63 bits that are sent: choose a larger privacy.epsilon."
    )


def centred(total: NDArray[np.int64], bits: int, users: int, precision: int) -> NDArray[np.int64]:
    """The sums that residues modulo 2^bits stand for: those nearest to the middle of the possible ones.

    Args:
        total: array of any size, residues (any representatives).
        bits: of the modulus.
        users: whose messages were added.
        precision: bits of one user's mass.
    """
    middle = users << (precision - 1)
    modulus = 1 << bits
    shifted = (total - (middle - (modulus >> 1))) & (modulus - 1)
    return np.asarray(shifted + (middle - (modulus >> 1)))
