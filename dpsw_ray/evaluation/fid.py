"""The Frechet distance between Gaussians fitted to features.

The features are those of a classifier trained on public records of the same data set, so a figure is an "FID
in a classifier's feature space" and is comparable only with figures taken in the same classifier's features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["frechet_distance"]


def frechet_distance(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> float:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x^(1/2) S_y S_x^(1/2))^(1/2)) (Heusel et al., 2017).

    The symmetric form takes two symmetric eigendecompositions; negative eigenvalues of rounding are cut at
    zero, so singular covariances (dead features, few records) are no special case.

    Args:
        x: features [n, f], n at least 2.
        y: features [m, f], m at least 2.
    """
    if min(len(x), len(y)) < 2:
        return float("nan")
    mean_x, mean_y = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    cov_x, cov_y = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0.0)).sum()
    distance = np.square(mean_x - mean_y).sum() + np.trace(cov_x) + np.trace(cov_y) - 2.0 * overlap
    return max(float(distance), 0.0)
