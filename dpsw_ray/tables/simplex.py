"""Least squares and entropic fits over the simplex: valid densities from noisy histograms."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["mirror_descent", "simplex_least_squares"]

Array = NDArray[np.float64]

_MIRROR_STEPS = 150  # at most
_MIRROR_TOLERANCE = 3e-4  # bound of the total variation that further steps could change
_FISTA_STEPS = 300
_TINY = 1e-30


def mirror_descent(
    y: Array, kernel: Array, reference: Array, noise: float, kappa: float, start: Array | None = None
) -> Array:
    """Argmin |y - G f|^2 / (2 s^2) + kappa KL(f | reference) over f in the simplex, row by row.

    Exponentiated gradient (Beck and Teboulle 2003).

    Args:
        y: array of size [K, bins].
        kernel: array of size [bins, inner], G.
        reference: array of size [K, inner], positive, rows summing to one.
        noise: s.
        kappa: weight of the reference.
        start: array of size [K, inner], positive, where to begin; default: the reference.

    Returns:
        Array of size [K, inner].
    """
    gram, target = kernel.T @ kernel, y @ kernel
    precision = noise**-2
    # Relative smoothness: the Hessian's largest eigenvalue times the largest mass a bin realistically holds.
    step = 1.0 / (precision * float(np.linalg.eigvalsh(gram)[-1]) * 0.35 + kappa)
    # With log_f <- log_f - step * (precision * (f @ gram - target) + kappa * (log_f - anchor)), the last term
    # contracts by `shrink`: what is still to come is at most the last change times shrink / (1 - shrink).
    shrink = 1.0 - step * kappa
    enough = 2 * _MIRROR_TOLERANCE * (1.0 - shrink)
    pull = (step * precision) * gram  # symmetric
    # Transposed, [inner, K]: reductions over the bins then run along whole cache lines.
    anchor = np.log(np.ascontiguousarray(reference.T))
    f = np.ascontiguousarray((reference if start is None else start).T)
    log_f = np.log(np.maximum(f, _TINY))
    constant = np.ascontiguousarray(target.T) * (step * precision) + anchor * (step * kappa)
    for i in range(_MIRROR_STEPS):
        log_f = shrink * log_f
        log_f += constant
        log_f -= pull @ f
        log_f -= log_f.max(axis=0)
        before, f = f, np.exp(log_f)
        total = f.sum(axis=0)
        f /= total
        log_f -= np.log(total)
        if i % 4 == 3 and float(np.abs(f - before).sum(axis=0).max()) < enough:
            break
    return np.ascontiguousarray(f.T)


def simplex_least_squares(y: Array, kernel: Array | None, gram: Array | None = None) -> Array:
    """Argmin |y - G f|^2 over f in the simplex, row by row, by FISTA (Beck and Teboulle 2009).

    Args:
        y: array of size [K, bins]; without a kernel G'y, of size [K, inner].
        kernel: array of size [bins, inner], G.
        gram: array of size [inner, inner], G'G, where there is no kernel.

    Returns:
        Array of size [K, inner].
    """
    if kernel is not None:
        gram, y = kernel.T @ kernel, y @ kernel
    assert gram is not None
    return np.asarray(_fista(y, gram, 1.0 / float(np.linalg.eigvalsh(gram)[-1]), _FISTA_STEPS))


@numba.njit(nogil=True, cache=True)
def _fista(target, gram, step, steps):  # type: ignore[no-untyped-def]
    rows, n = target.shape
    f = np.full((rows, n), 1.0 / n)
    new, ahead = np.empty(n), np.empty(n)
    for r in range(rows):
        row, goal = f[r], target[r]
        ahead[:] = row
        momentum = 1.0
        for _ in range(steps):
            new[:] = goal
            for k in range(n):
                a = ahead[k]
                column = gram[k]
                for i in range(n):
                    new[i] -= a * column[i]
            for i in range(n):
                new[i] = ahead[i] + step * new[i]
            threshold = _simplex_threshold(new)
            following = (1.0 + np.sqrt(1.0 + 4.0 * momentum * momentum)) / 2.0
            for i in range(n):
                new[i] = max(new[i] - threshold, 0.0)
                ahead[i] = new[i] + (momentum - 1.0) / following * (new[i] - row[i])
                row[i] = new[i]
            momentum = following
    return f


@numba.njit(nogil=True, cache=True)
def _simplex_threshold(row):  # type: ignore[no-untyped-def]
    """What to subtract before clipping at 0 to project onto the simplex (Michelot 1986)."""
    threshold, support = (row.sum() - 1.0) / row.size, row.size
    while True:
        total, size = 0.0, 0
        for value in row:
            if value > threshold:
                total += value
                size += 1
        if size == support or size == 0:
            return threshold
        threshold, support = (total - 1.0) / size, size
