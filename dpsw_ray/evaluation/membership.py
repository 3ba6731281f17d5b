"""Can samples tell who was in the data? The attack by nearest samples, and the most that a promise lets it find.

A record of the private part is likelier to have a sample near it than one that nobody looked at, if samples remember
records (the black-box attack of Chen et al., 2020, "GAN-Leaks"). The score is the distance to the nearest sample; the
curve is over private records (members) and as many test records (outsiders). Reads private records without noise:
its figures are for `research/` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

__all__ = ["Membership", "auc_at_most", "membership"]

_RATE = 0.01


@dataclass(frozen=True)
class Membership:
    """How well the attack tells members from outsiders.

    Attributes:
        auc: area under its curve; 0.5 is guessing.
        found: share of the members it finds where it takes 1 % of the outsiders for members.
        records: members, and outsiders, that it was tried on.
    """

    auc: float
    found: float
    records: int


def membership(
    samples: NDArray[np.float64],
    members: NDArray[np.float64],
    outsiders: NDArray[np.float64],
    most: int,
    seed: int,
) -> Membership:
    """Attacks samples [n, d] with private latents [m, d] and latents of records that were not in the data [k, d].

    Args:
        samples: what was published.
        members: PRIVATE.
        outsiders: of the same distribution.
        most: members, and outsiders, at most.
        seed: of which ones.
    """
    from sklearn.metrics import roc_auc_score, roc_curve
    from sklearn.neighbors import NearestNeighbors

    count = min(most, len(members), len(outsiders))
    if not count or not len(samples):
        return Membership(math.nan, math.nan, 0)
    rng = np.random.default_rng(seed)
    tried = np.concatenate([x[rng.permutation(len(x))[:count]] for x in (members, outsiders)])
    nearest, _ = NearestNeighbors(n_neighbors=1).fit(samples).kneighbors(tried)
    truth = np.repeat([1, 0], count)
    false, true, _ = roc_curve(truth, -nearest[:, 0])
    return Membership(float(roc_auc_score(truth, -nearest[:, 0])), float(true[false <= _RATE].max()), count)


def auc_at_most(mu: float) -> float:
    """The largest expected area of any such attack under mu-Gaussian privacy of `replace_one`: Phi(mu / 2).

    The area is the chance that a member scores above an outsider. Replacing the member by the outsider swaps their
    roles, so an attack with area p tells two neighbours apart with both errors 1 - p; their trade-off asks that
    1 - p >= Phi(Phi^-1(p) - mu) (Dong, Roth and Su, 2022, equation 6). Records are taken to be exchangeable.
    """
    return float(ndtr(mu / 2.0))
