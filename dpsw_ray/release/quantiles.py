"""From noisy tables to valid CDFs: post-processing, free of privacy cost.

Clipping and projecting each noisy slice on its own leaves noise in the empty tails, and a transport distance
weighs tails by their distance squared. Instead, each slice is fitted by a density f >= 0 behind the known
smoothing kernel G,

    minimise  |y - G f|^2 / (2 s^2) + kappa KL(f | f_ref),      f in the simplex,

where the reference is what all slices of one distribution share: one shape, averaged over the directions (which
averages the noise away), moved to each direction's mean <theta_j, m>, the vector m fitted to all directions.
The weight kappa is the largest for which the residual is no larger than the noise, whose variance is known
(Morozov's discrepancy principle): no tuning, at any budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from dpsw_ray.release.release import Release
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.grid import SCALE, BinGrid

__all__ = ["Targets", "denoise"]

Array = NDArray[np.float64]

_ROUNDS = 2  # reference, fit, better reference, fit
_BISECTIONS = 8  # of log kappa
_LOG_KAPPA = (0.0, 14.0)
_MIRROR_STEPS = 150  # at most
_MIRROR_TOLERANCE = 3e-4  # bound of the total variation that further steps could change
_FISTA_STEPS = 300


@dataclass(frozen=True)
class Targets:
    """What the flow moves towards.

    Attributes:
        slices: smoothed target CDFs along the released directions.
        weights: array of size [C]: the estimated share of each class, summing to one.
    """

    slices: Slices
    weights: Array


def denoise(release: Release, strength: float = 1.0) -> list[Targets]:
    """Turns every round's noisy table into CDFs and class shares; deterministic.

    Noise on projections is not taken away: it is the smoothing, and the flow's particles are smoothed alike.

    Args:
        release: any.
        strength: residual variance that the fit aims at, in multiples of the noise's; 1 is the discrepancy principle.
    """
    return [_round(release, number, strength) for number in range(release.rounds)]


def _round(release: Release, number: int, strength: float) -> Targets:
    counts = release.counts[number].astype(np.float64) / SCALE
    directions = release.directions[number]
    sums = counts.sum(axis=2).mean(axis=1)  # [C], every direction counts the same records
    noise = release.cell_noise / SCALE
    # A class whose total is within the noise of an empty one gets no particles.
    floor = 4 * noise * np.sqrt(release.grid.bins / len(directions))
    sums = np.where(sums > floor, sums, 0.0)
    if not sums.any():
        sums = np.ones_like(sums)
    cdf = np.empty((*counts.shape[:2], release.grid.bins + 1))
    for c, total in enumerate(sums):
        if total == 0:
            density = np.full(counts.shape[1:], 1.0 / release.grid.bins)
        elif noise == 0:
            density = counts[c]
        else:
            density = _fit(counts[c] / total, noise / total, release.grid, directions, strength)
        cdf[c] = _cumulate(density)
    return Targets(Slices(directions, release.grid, release.kernel, cdf), sums / sums.sum())


def _fit(y: Array, noise: float, grid: BinGrid, directions: Array, strength: float) -> Array:
    """Smoothed densities [K, bins] for noisy ones with noise of standard deviation `noise` per bin."""
    kernel = _smoothing_matrix(grid)
    f = _simplex_least_squares(y, kernel)
    for _ in range(_ROUNDS):
        reference = _shared_shape(y, f, grid, kernel, directions)
        low, high = _LOG_KAPPA
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            f = _mirror_descent(y, kernel, reference, noise, float(np.exp(middle)))
            fits = float(np.mean((y - f @ kernel.T) ** 2)) < strength * noise**2
            low, high = (middle, high) if fits else (low, middle)
    return np.asarray(f @ kernel.T)


def _smoothing_matrix(grid: BinGrid) -> Array:
    """Array of size [bins, inner bins]: where the mass of each inner bin is released, phases averaged."""
    inner = grid.bins - 2 * grid.margin
    column = grid.table.mean(axis=0) / SCALE
    matrix = np.zeros((grid.bins, inner))
    for b in range(inner):
        matrix[b : b + len(column), b] = column
    return matrix


def _shared_shape(y: Array, f: Array, grid: BinGrid, kernel: Array, directions: Array) -> Array:
    """References [K, inner]: the average shape over the directions, moved to each direction's mean."""
    centres = (np.arange(f.shape[1]) - (f.shape[1] - 1) / 2) * grid.width
    mean, *_ = np.linalg.lstsq(directions, f @ centres, rcond=None)
    offset = directions @ mean / grid.width
    aligned = _shift(y, -offset).mean(axis=0, keepdims=True)
    shape = _simplex_least_squares(aligned, kernel)
    moved = _shift(np.repeat(shape, len(y), axis=0), offset) + 1e-6  # KL needs support everywhere
    return np.asarray(moved / moved.sum(axis=1, keepdims=True))


def _shift(rows: Array, offset: Array) -> Array:
    """Moves each row by its offset in bins, interpolating linearly; what leaves the grid is lost."""
    n = rows.shape[1]
    source = np.arange(n) - offset[:, None]
    first = np.floor(source).astype(np.intp)
    share = source - first

    def at(index: NDArray[np.intp]) -> Array:
        inside = (index >= 0) & (index < n)
        return np.where(inside, np.take_along_axis(rows, np.clip(index, 0, n - 1), axis=1), 0.0)

    return at(first) * (1 - share) + at(first + 1) * share


def _mirror_descent(y: Array, kernel: Array, reference: Array, noise: float, kappa: float) -> Array:
    """Exponentiated gradient (Beck and Teboulle 2003) on the objective of the module's docstring."""
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
    f = np.ascontiguousarray(reference.T)
    log_f = np.log(f)
    constant = np.ascontiguousarray(target.T) * (step * precision) + log_f * (step * kappa)
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


def _simplex_least_squares(y: Array, kernel: Array) -> Array:
    """Argmin |y - G f|^2 over f in the simplex, row by row, by FISTA (Beck and Teboulle 2009)."""
    gram = kernel.T @ kernel
    return np.asarray(_fista(y @ kernel, gram, 1.0 / float(np.linalg.eigvalsh(gram)[-1]), _FISTA_STEPS))


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


def _cumulate(density: Array) -> Array:
    """CDFs [K, bins + 1], exactly 0 and 1 at the ends."""
    cdf = np.zeros((len(density), density.shape[1] + 1))
    np.cumsum(density, axis=1, out=cdf[:, 1:])
    cdf /= cdf[:, -1:]
    cdf[:, -1] = 1.0
    return np.minimum(cdf, 1.0)
