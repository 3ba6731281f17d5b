"""The sliced 2-Wasserstein distance between two samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["sliced_wasserstein"]

BLOCK = 4_000_000  # projections held at once


def sliced_wasserstein(
    x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], directions: int, seed: int
) -> float:
    """Sliced W2: the root of the mean over random directions of the squared one-dimensional W2.

    For one direction W2^2 = int_0^1 (Q_x(u) - Q_y(u))^2 du with the samples' exact, piecewise constant
    quantile functions, so the sizes may differ (Bonneel et al., "Sliced and Radon Wasserstein barycenters",
    2015).

    Args:
        x: sample [n, d].
        y: sample [m, d].
        directions: number of independent uniform directions.
        seed: of the directions.
    """
    if len(x) == 0 or len(y) == 0:
        return float("nan")
    thetas = np.random.default_rng(seed).standard_normal((directions, x.shape[1]))
    thetas /= np.linalg.norm(thetas, axis=1, keepdims=True)
    pairing = None if len(x) == len(y) else _pairing(len(x), len(y))
    centre = x.mean(axis=0)  # a common shift leaves the distance and saves the float32 sort from cancellation
    x, y = x - centre, y - centre
    total = 0.0
    for block in _blocks(thetas, len(x) + len(y)):
        qx = np.sort((block @ x.T).astype(np.float32), axis=1)
        qy = np.sort((block @ y.T).astype(np.float32), axis=1)
        if pairing is None:
            gap = qx - qy
            total += float(np.einsum("kn,kn->", gap, gap, dtype=np.float64)) / len(x)
        else:
            left, right, weights = pairing
            gap = np.take(qx, left, axis=1) - np.take(qy, right, axis=1)
            total += float((np.square(gap) @ weights).sum(dtype=np.float64))
    return float(np.sqrt(total / directions))


def _pairing(n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Which order statistics face each other on each piece of [0, 1], and the pieces' lengths.

    In units of 1/(nm) the breakpoints are the integers i*m and j*n, so that nothing is lost to rounding.
    """
    ends = np.union1d(np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)


def _blocks(thetas: NDArray[np.float64], points: int) -> Iterator[NDArray[np.float64]]:
    size = max(1, BLOCK // points)
    for start in range(0, len(thetas), size):
        yield thetas[start : start + size]
