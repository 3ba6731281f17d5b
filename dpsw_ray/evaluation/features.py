"""Distances and scores between samples of features: what is near, what is missing, what is varied.

The features are those of a classifier trained on public records of the same data set (`evaluation.classifier`), so
that figures compare only with figures taken in the same classifier's features, never with Inception ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coverage", "coverage", "inception_score", "kernel_distance", "nearest_rows"]

Features = NDArray[np.floating[Any]]

_SUBSET = 1_000
_SUBSETS = 20
_NEIGHBOURS = 5
_BLOCK = 1_000


@dataclass(frozen=True)
class Coverage:
    """How two samples lie in each other (Naeem et al., 2020, "Reliable fidelity and diversity metrics").

    Attributes:
        precision: share of the synthetic records within some real record's ball, whose radius is the distance to its
            5th nearest real neighbour (Kynkaanniemi et al., 2019).
        recall: share of the real records within some synthetic record's ball.
        density: real balls that hold a synthetic record, on average, over 5: not misled by one outlier's large ball.
        coverage: share of the real balls that hold at least one synthetic record.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(synthetic: Features, real: Features) -> Coverage:
    """Precision, recall, density and coverage of synthetic features [n, f] beside real ones [m, f].

    `nan` where either has fewer than 6 records.
    """
    from sklearn.metrics import pairwise_distances_chunked

    if min(len(synthetic), len(real)) <= _NEIGHBOURS:
        return Coverage(*[float("nan")] * 4)
    real_radius, synthetic_radius = _radii(real), _radii(synthetic)
    inside = np.zeros(len(synthetic), np.int64)  # real balls that hold each synthetic record
    held = np.zeros(len(real), bool)
    recalled = np.zeros(len(real), bool)
    start = 0
    for distances in pairwise_distances_chunked(real, synthetic):
        rows = slice(start, start + len(distances))
        within = distances <= real_radius[rows, None]
        inside += within.sum(axis=0)
        held[rows] = within.any(axis=1)
        recalled[rows] = (distances <= synthetic_radius).any(axis=1)
        start = rows.stop
    return Coverage(
        float((inside > 0).mean()),
        float(recalled.mean()),
        float(inside.mean() / _NEIGHBOURS),
        float(held.mean()),
    )


def _radii(x: Features) -> NDArray[np.float64]:
    """Distance of each row of x [n, f] to its 5th nearest other row: array of size [n]."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(x).kneighbors()  # without itself
    return np.asarray(distances[:, -1])


def kernel_distance(x: Features, y: Features, seed: int) -> float:
    """KID: the unbiased squared maximum mean discrepancy under the kernel (x.y / f + 1)^3 (Binkowski et al., 2018).

    The mean over 20 random subsets of 1,000 records, or of all where there are fewer. It may be a little below zero.

    Args:
        x: features [n, f], n at least 2.
        y: features [m, f], m at least 2.
        seed: of the subsets.
    """
    from sklearn.metrics.pairwise import polynomial_kernel

    size = min(_SUBSET, len(x), len(y))
    if size < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(_SUBSETS):
        a, b = x[rng.permutation(len(x))[:size]], y[rng.permutation(len(y))[:size]]
        within = sum(float(k.sum() - np.trace(k)) for k in (polynomial_kernel(a), polynomial_kernel(b)))
        total += within / (size * (size - 1)) - 2 * float(polynomial_kernel(a, b).mean())
    return total / _SUBSETS


def inception_score(probabilities: NDArray[np.float64]) -> float:
    """exp(mean over records of KL(p(class | record) || p(class))) (Salimans et al., 2016).

    Args:
        probabilities: array of size [n, classes], rows sum to one. The score is at most the number of classes.
    """
    if not len(probabilities):
        return float("nan")
    p = np.maximum(probabilities, 1e-300)
    return float(np.exp((probabilities * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def nearest_rows(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers [n] of the rows of y [m, *shape] with the least squared distance to each row of x [n, *shape].

    A block of y at a time: y may be a file larger than memory.
    """
    flat = x.reshape(len(x), math.prod(x.shape[1:])).astype(np.float64)
    least, chosen = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    for start in range(0, len(y), _BLOCK):
        block = np.asarray(y[start : start + _BLOCK]).reshape(-1, flat.shape[1]).astype(np.float64)
        gaps = (block**2).sum(axis=1) - 2 * flat @ block.T
        near = gaps.argmin(axis=1)
        found = gaps[np.arange(len(x)), near]
        chosen = np.where(found < least, start + near, chosen)
        least = np.minimum(found, least)
    return chosen
