"""How many frames, how many bins, how much smoothing: chosen from public facts, so the choice costs nothing.

What a table tells of a class of n records is limited by its noise. A record adds `beta` to a direction, K directions
share the budget, and what is fitted (`release.shape`) sees all of them: K drops out, and what is left is the noise per
record of the class

    nu = sqrt(2) / (mu n)    (replace_one; without the root for the other relations),

thinned by the smoothing (the noise's density along a slice falls like 1 / sigma). The squared sliced W2 distance
between particles and records is modelled as the sum of what the noise, the number of frames m and the smoothing's
width sigma add,

    E^2 = e^a nu^b sigma^c m^e  +  e^f m^g  +  e^h sigma^i nu^j.

The coefficients are fitted to runs measured on Fashion-MNIST's latents (`benchmarks/planning.py --latents`, which also
compares the choices with the best of a grid). They hold for latents of about 8 dimensions; elsewhere the frames' part
is a guess and the rest carries over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.slicing.grid import BinGrid

__all__ = [
    "ASSUMED_RECORDS",
    "FRAMES",
    "GRIDS",
    "Choice",
    "choose",
    "encoder_share",
    "noise_per_record",
    "predict",
]

ASSUMED_RECORDS = 30_000
"""Where the number of records is protected or not known yet and the config has no guess."""

FRAMES = (4, 8, 16, 32)
GRIDS = (BinGrid(24, 1.0), BinGrid(32, 1.0), BinGrid(64, 2.0))

_COEFFICIENTS = (-3.344, 1.225, -0.18, 0.037, -6.121, -2.643, -9.895, 0.367, 0.0)
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


def predict(nu: float, frames: int, sigma: float) -> float:
    """The modelled sliced W2 distance.

    Args:
        nu: `noise_per_record`.
        frames: number m of frames.
        sigma: of the smoothing, in units of the latents' ball.
    """
    a, b, c, e, f, g, h, i, j = _COEFFICIENTS
    noise, width, spread = math.log(nu), math.log(sigma), math.log(frames)
    return math.sqrt(
        math.exp(a + b * noise + c * width + e * spread)
        + math.exp(f + g * spread)
        + math.exp(h + i * width + j * noise)
    )


def choose(
    *,
    records: int,
    classes: int,
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
        Choice(m, grid, predict(nu, m, max(grid.sigma, 0.3 * grid.width)))
        for m in ((frames,) if frames is not None else FRAMES)
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
