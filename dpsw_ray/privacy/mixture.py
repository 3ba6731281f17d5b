"""Gaussian mechanisms whose mu depends on public randomness: exact accounting of slices on random directions.

Given the directions, a release of projections is a Gaussian mechanism with mu^2 = sum of mu_j^2 B_jk over the
directions, B_jk independent Beta(1/2, (d - 1)/2). The directions are published and independent of the data, so
delta(epsilon) is the mean over them of the Gaussian's, and compositions with further Gaussian mechanisms only
shift mu^2. All that is needed is the law of a sum, which is computed between a law above and a law below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.special import betainc, erfcx, ndtr

from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds, bisect
from dpsw_ray.privacy.losses import SlicedGaussian, log_moment

__all__ = ["GaussianMixture", "mixture"]

_ROUNDING = 1.6  # over the number of atoms: how far rounding up may move mu^2, as a part of its mean
_LARGEST_GRID = 2**24
_ATOMS = 2**13  # of the result: neighbouring grid points are put together
_MARGIN = 1e-11  # relative: rounding in the Gaussian's delta and in the sum over the atoms


@dataclass(frozen=True)
class GaussianMixture:
    """A law of mu^2 on finitely many atoms, as a bound on the true one.

    Args:
        mu_squared: array of size [n], the atoms of a law that is stochastically above the true one.
        weights: array of size [n].
        spread: the atoms less `spread` are a law below the true one.
        slack: probability that may be missing or misplaced: cut tails and rounding.
    """

    mu_squared: NDArray[np.float64]
    weights: NDArray[np.float64]
    spread: float
    slack: float

    def delta_upper(self, epsilon: float) -> float:
        """At least delta(epsilon) of the mechanism."""
        mean = float(self.weights @ _gaussian_deltas(epsilon, np.sqrt(self.mu_squared)))
        return mean * (1 + _MARGIN) + self.slack

    def delta_lower(self, epsilon: float) -> float:
        """At most delta(epsilon) of the mechanism."""
        below = np.sqrt(np.maximum(self.mu_squared - self.spread, 0.0))
        return float(self.weights @ _gaussian_deltas(epsilon, below)) * (1 - _MARGIN) - self.slack

    def epsilon(self, delta: float) -> EpsilonBounds:
        """Epsilon at `delta`, between bounds.

        Raises:
            AccountingError: `delta` is so small that cut tails and rounding would decide the figure.
        """
        if not self.slack < 0.01 * delta:
            raise AccountingError(
                f"The law of the directions is known up to a probability of {self.slack:.1e} only, too coarse for "
                f"delta = {delta:g}."
            )
        largest = 1.0
        while self.delta_upper(largest) > delta:
            largest *= 2
        _, upper = bisect(lambda e: self.delta_upper(e) > delta, 0.0, largest)
        lower, _ = bisect(lambda e: self.delta_lower(e) >= delta, 0.0, upper)
        return EpsilonBounds(lower, (lower + upper) / 2, upper)


def mixture(
    mu_squared: float, slices: dict[SlicedGaussian, int], tail: float, atoms: int = _ATOMS
) -> GaussianMixture:
    """The law of mu^2 of a composition of Gaussian mechanisms and slices on random directions.

    Every squared cosine is rounded up to a grid of step h; their sum is the power of a discrete Fourier
    transform. All true values lie within (number of directions) h below the rounded ones, surely, which gives
    the law below. Values beyond the grid's end have a probability of at most `tail` (Chernoff's bound with the
    moment generating function 1F1); on the cyclic grid they come back at its start, and `slack` counts them as lost.

    Args:
        mu_squared: of the Gaussian mechanisms, composed.
        slices: releases on random directions and how often each was made.
        tail: probability that may be cut off.
        atoms: at most so many are returned; fewer put the two laws further apart.
    """
    groups = [(s.mu**2, s.dim, s.directions * times) for s, times in slices.items() if s.mu > 0]
    count = sum(directions for _, _, directions in groups)
    if not groups:
        return GaussianMixture(np.array([mu_squared]), np.ones(1), 0.0, 0.0)
    mean = mu_squared + sum(scale * directions / dim for scale, dim, directions in groups)
    end = min(sum(scale * directions for scale, _, directions in groups), _chernoff(groups, tail))
    if count > _LARGEST_GRID // 4:
        raise AccountingError(f"{count} random directions are more than their law can be worked out for.")
    step = max(_ROUNDING / atoms * mean / count, end / (_LARGEST_GRID - 2 * count))
    size = fft.next_fast_len(math.ceil(end / step) + count + 1, real=True)
    transform = np.ones(size // 2 + 1, dtype=np.complex128)
    for scale, dim, directions in groups:
        cells = min(math.ceil(scale / step), size - 1)  # what one direction has beyond the end is in the tail
        below = betainc(0.5, (dim - 1) / 2, np.minimum(np.arange(cells + 1) * (step / scale), 1.0))
        mass = np.zeros(size)
        mass[1 : cells + 1] = np.diff(below)
        transform *= _power(fft.rfft(mass), directions)
    weights = fft.irfft(transform, size)
    # Forward error of transforms and powers, with room: each frequency is off by some (count + log2 size) ulps.
    rounding = 8 * (count + math.log2(size)) * 2.0**-52 * math.sqrt(size) * float(np.linalg.norm(weights))
    weights = np.maximum(weights, 0.0)
    block = -(-size // atoms)
    grouped = np.add.reduceat(weights, np.arange(0, size, block))
    tops = np.minimum(np.arange(0, size, block) + block - 1, size - 1) * step
    kept = grouped > 0
    return GaussianMixture(
        mu_squared=(mu_squared + tops[kept]) * (1 + 2.0**-40),
        weights=grouped[kept],
        spread=(count + block - 1) * step * (1 + 2.0**-40) + (mu_squared + float(tops[-1])) * 2.0**-39,
        slack=tail + rounding,
    )


def _power(base: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """By squaring: quicker and closer than complex logarithms."""
    result = np.ones_like(base)
    while exponent:
        if exponent & 1:
            result *= base
        base = base * base
        exponent >>= 1
    return result


def _chernoff(groups: list[tuple[float, int, int]], tail: float) -> float:
    """A value that the sum of scale * Beta(1/2, (dim - 1)/2) passes with probability at most `tail`."""
    largest = max(scale for scale, _, _ in groups)
    rates = np.geomspace(1e-3, 600.0, 400) / largest
    cumulant = sum(directions * log_moment(dim, rates * scale) for scale, dim, directions in groups)
    return float(np.min((cumulant + math.log(1 / tail)) / rates)) * (1 + 1e-9)


def _gaussian_deltas(epsilon: float, mus: NDArray[np.float64]) -> NDArray[np.float64]:
    """`gaussian_delta` for an array of mus, 0 included."""
    deltas = np.zeros_like(mus)
    positive = mus > 0
    mu = mus[positive]
    minus, plus = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    density = np.exp(-minus * minus / 2) / math.sqrt(2 * math.pi)
    first = np.where(minus > 0, density * _mills(np.maximum(minus, 0.0)), ndtr(-minus))
    deltas[positive] = np.maximum(first - density * _mills(plus), 0.0)
    return deltas


def _mills(x: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = math.sqrt(math.pi / 2) * erfcx(x / math.sqrt(2))
    return ratio
