"""From noisy tables to valid CDFs: post-processing, free of privacy cost.

Clipping and projecting each noisy slice on its own leaves noise in the empty tails, and a transport distance
weighs tails by their distance squared. Instead, each slice is fitted by a density f >= 0 behind the known
smoothing kernel G,

    minimise  |y - G f|^2 / (2 s^2) + kappa KL(f | f_ref),      f in the simplex,

where the reference (`release.shape`) is what all slices of one distribution share: mean, covariance, shape and low
cumulants, fitted to all directions. There are two of them. One has the mean and the covariance that are likeliest under
one symmetric shape: good where there is much noise, wrong where a class has another, however many its records. The
other has those of the slices that the first one led to. A class takes the reference and the weight kappa for which
Stein's unbiased estimate of the risk, |y - G f|^2 + 2 s^2 div(G f), is smallest (Stein 1981), the divergence by one
random probe (Ramani, Blu and Unser 2008); the noise's variance is known.

That is the risk of the slices one by one. No distribution has slices that are each wrong in a way of their own, so the
flow averages some of their noise away, while what a pull towards the reference costs is common to them and stays: less
pull is best for the particles than for the slices, 0.3 of it on mixtures as on public images
(`benchmarks/denoising.py --pulls 0.3 3.33`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.tables.release import Release
from dpsw_ray.tables.shape import references, references_of
from dpsw_ray.tables.simplex import mirror_descent

__all__ = ["Targets", "denoise", "smoothing_matrix"]

Array = NDArray[np.float64]

_BLOCK = 1024  # directions that are fitted together
_LOG_KAPPA = np.arange(14.0, -1.1, -1.0)
_RISES = 3  # of the risk in a row, before smaller weights are left untried
_PROBE = 0.1  # of the noise
_FLOOR = 1e-6  # KL needs support everywhere
_PULL = 0.3  # of the weight that is best for a slice by itself: what is best for the particles


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

    All rounds are tables of one distribution and are fitted together. Noise on projections is not taken away: it is
    the smoothing, and the flow's particles are smoothed alike.

    Args:
        release: any.
        strength: weight of what the slices share, in multiples of what is estimated to be best for the particles.
    """
    counts = release.counts.astype(np.float64) / SCALE
    noise = release.cell_noise / SCALE
    if noise == 0:
        tables = [_exact(table) for table in counts]
    else:
        rounds, _, count, bins = counts.shape
        flat = counts.swapaxes(0, 1).reshape(release.blocks, rounds * count, bins)
        density, weights = _fitted(flat, noise, release.grid, np.concatenate(release.directions), strength)
        tables = [(part, weights) for part in density.reshape(-1, rounds, count, bins).swapaxes(0, 1)]
    return [
        Targets(Slices(directions, release.grid, release.kernel, _cumulate(density)), weights)
        for directions, (density, weights) in zip(release.directions, tables, strict=True)
    ]


def _exact(counts: Array) -> tuple[Array, Array]:
    """Densities and class shares of a table without noise; uniform densities for a class without records."""
    sums = counts.sum(axis=2).mean(axis=1)
    empty = sums == 0
    if empty.all():
        sums = np.ones_like(sums)
    return np.where(empty[:, None, None], 1.0, counts), sums / sums.sum()


def _fitted(
    counts: Array, noise: float, grid: BinGrid, directions: Array, strength: float
) -> tuple[Array, Array]:
    """Smoothed densities [C, K, bins] and class shares [C] of tables with noise of a known standard deviation."""
    _, count, bins = counts.shape
    sums = counts.sum(axis=2).mean(axis=1)  # every direction counts the same records
    floor = 4 * noise * np.sqrt(bins / count)  # a class with less is not told from an empty one
    there = np.flatnonzero(sums > floor)
    hidden = np.flatnonzero(sums <= floor)
    tables, totals, deviations = counts[there], sums[there], np.full(len(there), noise)
    pooled, pooled_floor = float(sums[hidden].sum()), floor / 2 * np.sqrt(len(hidden))
    together = len(hidden) > 0 and pooled > pooled_floor
    if together:  # classes too small to be seen one by one are taken for alike, and get equal shares
        tables = np.concatenate([tables, counts[hidden].sum(axis=0, keepdims=True)])
        deviations = np.append(deviations, noise * np.sqrt(len(hidden)))
        totals = np.append(totals, pooled)
    if not len(tables):
        return np.full(counts.shape, 1.0 / bins), np.full(len(counts), 1.0 / len(counts))
    y, s, kernel = tables / totals[:, None, None], deviations / totals, smoothing_matrix(grid)
    fits = np.empty(y.shape)
    for block in np.array_split(np.arange(count), -(-count // _BLOCK)):
        part, along = y[:, block], directions[block]
        first = [
            _least_risk(rows, kernel, shared, float(level))
            for rows, shared, level in zip(part, references(part, s, grid, kernel, along), s, strict=True)
        ]
        shapes = references_of(np.stack([fit.density for fit in first]), part, s, grid, kernel, along)
        for c, (fit, shared) in enumerate(zip(first, shapes, strict=True)):
            best = min(fit, _least_risk(part[c], kernel, shared, float(s[c])), key=lambda fit: fit.risk)
            fits[c, block] = best.pulled(part[c], kernel, float(s[c]), _PULL * strength) @ kernel.T
    # The tails hold noise and no records: a class's total is what its fit explains.
    totals *= np.maximum((y * fits).sum(axis=(1, 2)), 0.0) / (fits * fits).sum(axis=(1, 2))
    density, weights = np.full(counts.shape, 1.0 / bins), np.zeros(len(counts))
    density[there], weights[there] = fits[: len(there)], totals[: len(there)]
    if together:
        density[hidden], weights[hidden] = fits[-1], max(totals[-1], 1.0) / len(hidden)
    return density, weights / weights.sum()


@dataclass(frozen=True)
class _Fit:
    """Of one class: reference and density [K, inner], weight of the reference, estimated risk up to a constant."""

    reference: Array
    density: Array
    kappa: float
    risk: float

    def pulled(self, y: Array, kernel: Array, noise: float, times: float) -> Array:
        """Densities [K, inner] with another multiple of the weight."""
        return mirror_descent(y, kernel, self.reference, noise, times * self.kappa, self.density)


def _least_risk(y: Array, kernel: Array, reference: Array, noise: float) -> _Fit:
    """Fits the noisy histograms [K, bins] of one class, drawn to the reference [K, inner] as much as pays."""
    reference = (reference + _FLOOR) / (1.0 + _FLOOR * reference.shape[1])
    probe = np.random.default_rng(0).choice([-1.0, 1.0], y.shape)
    nudged = y + _PROBE * noise * probe
    fit, moved = reference, reference
    best = _Fit(reference, reference, float(np.exp(_LOG_KAPPA[0])), np.inf)
    rises, before = 0, np.inf
    for kappa in np.exp(_LOG_KAPPA).tolist():  # each from where the one before arrived
        fit = mirror_descent(y, kernel, reference, noise, kappa, fit)
        moved = mirror_descent(nudged, kernel, reference, noise, kappa, moved)
        divergence = float((probe * ((moved - fit) @ kernel.T)).sum()) / (_PROBE * noise)
        risk = float(((y - fit @ kernel.T) ** 2).sum()) + 2 * noise**2 * divergence
        if risk < best.risk:
            best = _Fit(reference, fit, kappa, risk)
        rises = rises + 1 if risk > before else 0
        before = risk
        if rises == _RISES:
            break
    return best


def smoothing_matrix(grid: BinGrid) -> Array:
    """Array of size [bins, inner bins]: where the mass of each inner bin is released, phases averaged."""
    inner = grid.bins - 2 * grid.margin
    column = grid.table.mean(axis=0) / SCALE
    matrix = np.zeros((grid.bins, inner))
    for b in range(inner):
        matrix[b : b + len(column), b] = column
    return matrix


def _cumulate(density: Array) -> Array:
    """CDFs [..., bins + 1], exactly 0 and 1 at the ends."""
    cdf = np.zeros((*density.shape[:-1], density.shape[-1] + 1))
    np.cumsum(density, axis=-1, out=cdf[..., 1:])
    cdf /= cdf[..., -1:]
    cdf[..., -1] = 1.0
    return np.minimum(cdf, 1.0)
