"""Attacks on the low bits of the noise, where distances tell nothing: parities, and the grid of doubles.

Pair: integer vectors whose cells differ by an odd number, so that the parity of every cell tells the worlds apart if
the noise prefers even numbers. All of them run at the largest noise that a plan of as many cells may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.audit.attack import Attack, Randomness, Scores
from dpsw_ray.audit.releases import moments_plan
from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.discrete import discrete_gaussian
from dpsw_ray.privacy.events import DiscreteGaussianEvent, GaussianEvent
from dpsw_ray.privacy.noise import LOW_BITS, MAX_STD, drawn_std, lattice_gaussian, low_bits
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.private import moments
from dpsw_ray.release.moments import MomentsPlan
from dpsw_ray.slicing.directions import round_to_lattice

__all__ = [
    "discrete_parity",
    "gaussian_grid",
    "gaussian_parity",
    "grid_ratio",
    "grid_std",
    "moments_parity",
    "odd_parity",
]

Integers = NDArray[np.int64]

_CELLS = 2**14


def gaussian_parity(relation: Relation, level: float, std: float | None = None) -> Attack:
    """Lattice noise on many cells. Score: how many of them are odd.

    Args:
        relation: of the pair.
        level: noise over sensitivity.
        std: of the noise, in lattice units; default: the largest that a plan may have.
    """
    return _gaussian("gaussian_parity", relation, level, std, lambda shown, step, std: odd_parity(shown))


def gaussian_grid(relation: Relation, level: float, std: float | None = None) -> Attack:
    """Lattice noise on many cells. Score: likelihood ratio of the doubles that are rounded to each integer."""
    return _gaussian("gaussian_grid", relation, level, std, grid_ratio)


def _gaussian(
    name: str,
    relation: Relation,
    level: float,
    std: float | None,
    score: Callable[[Integers, int, float], NDArray[np.float64]],
) -> Attack:
    noise_std = grid_std(level) if std is None else std
    sensitivity = noise_std / level
    step = _odd(sensitivity / math.sqrt(_CELLS))
    event = GaussianEvent("vector", {relation: sensitivity}, noise_std)

    def scores(runs: int, source: Randomness) -> Scores:
        shown = np.empty((2, runs))
        for run in range(runs):
            drawn = lattice_gaussian(source.key.derive(b"run %d" % run), noise_std, 0, 2 * _CELLS)
            worlds = drawn.reshape(2, _CELLS) + np.array([[0], [step]])
            shown[:, run] = score(worlds, step, noise_std)
        return shown[0], shown[1]

    return Attack(name, (event,), relation, scores)


def odd_parity(shown: Integers) -> NDArray[np.float64]:
    """How many integers of [..., n] are odd, less half of them."""
    return np.asarray((shown & 1).sum(axis=-1) - shown.shape[-1] / 2)


def grid_ratio(shown: Integers, step: int, std: float) -> NDArray[np.float64]:
    """Log-likelihood ratio of what is shown, [..., n], by the grid of doubles alone: [...].

    Noise of standard deviation 3 * 2^j is that times a double m 2^(e - 52) with 2^52 <= |m| < 2^53; the product is
    rounded to a double, ties to even, and then to an integer. How many m lead to an integer is known exactly.

    Args:
        shown: integers of either world.
        step: what the second world adds to each.
        std: a charged standard deviation from `grid_std`.
    """
    return np.asarray((_log_points(shown - step, std) - _log_points(shown, std)).sum(axis=-1))


def _log_points(noise: Integers, std: float) -> NDArray[np.float64]:
    exponent = round(math.log2(drawn_std(std) / 3))
    # Of the double, by octaves; around zero there are so many points that their number tells nothing.
    octave = np.maximum(np.floor(np.log2(np.maximum(np.abs(noise), 1) / drawn_std(std))), -8).astype(np.int64)
    unit = 52 - exponent - octave  # the noise is 3 m in units of 2^-unit
    # Doubles near it are 2^(half + 1) units apart. The edges of integers are even multiples of that, so that what is
    # half of it below an edge is rounded up to it.
    half = np.floor(np.log2(np.maximum(np.abs(noise), 1))).astype(np.int64) - 53 + unit
    below = np.where(half < 0, 0, np.int64(1) << np.maximum(half, 0))

    def first(edge: Integers) -> Integers:
        """The first m whose product reaches edge / 2."""
        return np.asarray(-((below - (edge << (unit - 1))) // 3))

    points = first(2 * noise + 1) - first(2 * noise - 1)
    return np.asarray(np.log(np.maximum(points, 1) / np.exp2(unit)))


def grid_std(level: float, cells: int = _CELLS) -> float:
    """The largest charged standard deviation of `level` times the sensitivity that is drawn as 3 * 2^j.

    Raises:
        UserError: there is none that moves a cell by one unit.
    """
    most = min(LOW_BITS / level / low_bits(1.0, cells), MAX_STD)
    drawn = 3 * 2.0 ** math.floor(math.log2(drawn_std(most) / 3))
    near = drawn / drawn_std(1.0)
    for std in (near, math.nextafter(near, 0), math.nextafter(near, math.inf)):
        if drawn_std(std) == drawn and std / level >= math.sqrt(cells):
            return std
    raise UserError(
        f"There is no noise of {level:.3g} times the sensitivity to audit: choose a larger --epsilon."
    )


def discrete_parity(relation: Relation, level: float) -> Attack:
    """Exact discrete noise, of sigma 2^40, on a few cells. Score: how many of them are odd."""
    cells, sigma = 2**8, 2.0**40
    step = _odd(sigma / level / math.sqrt(cells))
    event = DiscreteGaussianEvent("vector", {relation: round((sigma / level) ** 2)}, sigma)

    def scores(runs: int, source: Randomness) -> Scores:
        drawn = discrete_gaussian(sigma, runs * cells).reshape(runs, cells)
        return odd_parity(drawn), odd_parity(drawn + step)

    return Attack("discrete_parity", (event,), relation, scores)


def moments_parity(relation: Relation, level: float, plan: MomentsPlan | None = None) -> Attack:
    """DP-PCA's moments as a run plans, sums and draws them. Score: in how many cells the parity is the second record's.

    Pair: two ordinary records whose moments differ by odd numbers in about half of the cells; or one of them, and none.

    Args:
        relation: of the pair.
        level: noise over sensitivity.
        plan: what is released; default: moments in 128 dimensions.
    """
    released = plan or moments_plan(relation, level, 128)
    records = np.random.default_rng(0).normal(size=(2, released.dim))
    records = round_to_lattice(0.9 * records / np.linalg.norm(records, axis=1, keepdims=True))
    label = np.zeros(1, np.int32)
    start = [(records[:1], label)] if relation == "replace_one" else []
    first, second = (moments.moment_sums(world, released) for world in (start, [(records[1:], label)]))
    differing = ((first ^ second) & 1).astype(bool)
    wanted = second[differing]

    def scores(runs: int, source: Randomness) -> Scores:
        shown = np.empty((2, runs))
        for run in range(runs):
            drawn = moments.noise(source.key.derive(b"run %d" % run), released)
            shown[:, run] = [-odd_parity((world + drawn)[differing] - wanted) for world in (first, second)]
        return shown[0], shown[1]

    return Attack("dp_pca_parity", (released.event,), relation, scores)


def _odd(number: float) -> int:
    """The largest integer that is not above it and shares no factor with the grid: odd, and no multiple of 3."""
    whole = math.floor(number)
    return whole - (1, 0, 1, 2, 3, 0)[whole % 6]
