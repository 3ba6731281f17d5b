"""How many frames, how many bins, how much smoothing: chosen from public facts, so the choice costs nothing.

What a table tells of a class of n records is limited by its noise. A record adds `beta` to a direction, K directions
share the budget, and what is fitted (`release.shape`) sees all of them: K drops out, and what is left is the noise per
record of the class

    nu = sqrt(2) / (mu n)    (replace_one; without the root for the other relations).

Along its slices a distribution differs from a Gaussian by fields over the sphere of directions: the mean (degree 1),
the covariance (2), higher cumulants. A field of degree l has D_l = C(d + l - 1, l) numbers, of which K directions tell
at most q = min(K, D_l), each under noise of variance v_l. With a_l for the field's mean square, the posterior leaves

    e_l = a_l (1 - q / D_l  a_l / (a_l + q v_l)).

The Fisher information on a shift, of a density smoothed from standard deviation tau to (tau^2 + sigma^2)^(1/2), gives

    v_l = c nu^2 (tau^2 + sigma^2)^(3/2) / sigma  (1 + sigma^2 / tau^2)^(l - 1)  l^b

(the bins' width drops out, as beta^2 is width / (2 sqrt(pi) sigma)): much noise asks for wide smoothing, little for
narrow. With a_1 = 1 / d, a_l = a l^-p / d above, tau = t / sqrt(d), what the smoothing hides and what n records are
themselves, the squared sliced W2 distance between particles and records is modelled as

    E^2 = r (sum of e_l up to l = 8  +  e^h sigma^i)  +  s / n.

The constants a, p, t, c, b, h, i, r, s are fitted to distances of 1,000 and 10,000 records of the *public* half of
Fashion-MNIST, encoded in 8 dimensions, and of 30,000 generated ones (`benchmarks/planning.py --fit` does such a fit to
what it measures; it also compares the choices with the best of a grid). In other dimensions the choices hold better
than the distances: of 10,000 generated latents at epsilon 1 (one seed) the choice was within 5 % of the best of six in
16 and in 48 dimensions, and the predicted distance 0.7 and 0.45 of the measured one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.slicing.grid import BinGrid

__all__ = [
    "ASSUMED_RECORDS",
    "FRAMES",
    "GRIDS",
    "MOST_DIRECTIONS",
    "Choice",
    "choose",
    "encoder_share",
    "noise_per_record",
    "predict",
    "squared_distance",
]

ASSUMED_RECORDS = 30_000
"""Where the number of records is protected or not known yet and the config has no guess."""

FRAMES = (8, 16, 32)
MOST_DIRECTIONS = 1024
"""More than so many are work and hardly gain: frames are then fewer, but never fewer than the fewest."""
GRIDS = (BinGrid(24, 1.0), BinGrid(32, 1.0), BinGrid(48, 1.0))

_DEGREES = 8
# ln a, p, ln t, ln c, b, h, i, ln r, ln s
_COEFFICIENTS = (-1.694, 6.708, -0.657, -0.916, 0.413, -9.974, 0.867, 0.489, -6.07)
_LEAST_NOISE = 1e-7  # of a release without noise
_SHARE_FACTOR, _SHARE_POWER = 7.2, 0.45
_SHARES = (0.05, 0.3)


@dataclass(frozen=True)
class Choice:
    """What to release.

    Attributes:
        frames: number m of frames.
        grid: bins and smoothing.
        distance: predicted sliced W2 distance between particles and records, all classes together.
    """

    frames: int
    grid: BinGrid
    distance: float


def noise_per_record(relation: Relation, epsilon: float, delta: float, records: float) -> float:
    """Noise of a direction per unit of beta, over the number of records of one class."""
    mu = calibrate_gaussian_mu(epsilon, delta)
    twice = math.sqrt(2.0) if relation == "replace_one" else 1.0
    return max(twice / (mu * max(records, 1.0)), _LEAST_NOISE)


def predict(nu: float, records: float, dim: int, frames: int, sigma: float) -> float:
    """The modelled sliced W2 distance.

    Args:
        nu: `noise_per_record`.
        records: of one class.
        dim: dimension d of the latents.
        frames: number m of frames.
        sigma: of the smoothing, in units of the latents' ball.
    """
    return math.sqrt(squared_distance(_COEFFICIENTS, nu, records, dim, frames, sigma))


def squared_distance(
    coefficients: Sequence[float], nu: float, records: float, dim: int, frames: int, sigma: float
) -> float:
    """E^2 with other coefficients: the logarithms of a, t, c, r, s and the others as they are; else as `predict`."""
    a, p, t, c, b, h, i, r, s = coefficients
    directions = float(frames * dim)
    spread, width = math.exp(2 * t) / dim, sigma**2
    shift = math.exp(c) * nu**2 * (spread + width) ** 1.5 / sigma
    total = float(math.exp(h) * sigma**i)
    for degree in range(1, _DEGREES + 1):
        size = 1.0 / dim if degree == 1 else math.exp(a) * degree**-p / dim
        numbers = math.comb(dim + degree - 1, degree)
        told = min(directions, numbers)
        noise = shift * (1.0 + width / spread) ** (degree - 1) * degree**b
        total += size * (1.0 - told / numbers * size / (size + told * noise))
    return math.exp(r) * total + math.exp(s) / max(records, 1.0)


def choose(
    *,
    records: int,
    classes: int,
    dim: int,
    relation: Relation,
    epsilon: float,
    delta: float,
    frames: int | None = None,
    bins: int | None = None,
    smoothing: float | None = None,
) -> Choice:
    """The plan with the smallest predicted distance among those that keep what is given.

    Args:
        records: number of private records, public or guessed.
        classes: cell blocks C.
        dim: dimension d of the latents.
        relation: the data set's.
        epsilon: of the release.
        delta: of the release.
        frames: kept where given, as are `bins` and `smoothing`.
        bins: see `frames`.
        smoothing: see `frames`.
    """
    nu = noise_per_record(relation, epsilon, delta, records / classes)
    grids = {(bins or grid.bins, grid.smoothing if smoothing is None else smoothing) for grid in GRIDS}
    # A given number of bins may leave no room for every smoothing, and the other way round.
    fitting = [BinGrid(*pair) for pair in grids if pair[0] - 2 * math.ceil(4 * pair[1]) >= 2]
    if not fitting and bins is not None:
        fitting = [BinGrid(bins, 0.0)]
    if not fitting and smoothing is not None:
        fitting = [BinGrid(8 * math.ceil(smoothing) + 24, smoothing)]
    choices = [
        Choice(m, grid, predict(nu, records / classes, dim, m, max(grid.sigma, 0.3 * grid.width)))
        for m in ((frames,) if frames is not None else FRAMES)
        if m * dim <= MOST_DIRECTIONS or m in (frames, FRAMES[0])
        for grid in fitting
    ]
    return min(choices, key=lambda choice: (choice.distance, choice.frames, choice.grid.bins))


def encoder_share(relation: Relation, epsilon: float, delta: float, records: int) -> float:
    """Part of the squared mu that a private encoder gets; the release gets the rest.

    The components' error falls with their noise and the release's hardly grows, so that accuracies on Fashion-MNIST
    are flat between wide ends; the middle moves with the noise per record, whose power law this is.

    Args:
        relation: the data set's.
        epsilon: of the run.
        delta: of the run.
        records: number of private records, a public guess.
    """
    nu = noise_per_record(relation, epsilon, delta, records)
    middle = _SHARE_FACTOR * math.pow(nu, _SHARE_POWER)
    return min(max(middle, _SHARES[0]), _SHARES[1])
