"""The drift of the smoothed sliced-Wasserstein flow: what it is, and a plain implementation to test against.

For one direction theta, z = <theta, x> are the projected particles, F their smoothed empirical CDF, Q the
target's smoothed quantile function; the particle's displacement is Q(F(z)) - z. It is evaluated at the ends of
the release's own bins, where both CDFs are known exactly, and interpolated between them. The particles are
binned with the very integer table the records were binned with, so a flow that has arrived stays.

Contributions are accumulated as int64 fixed point: displacements are rounded to multiples of 2^-20, directions
are multiples of 2^-26, so every product is a multiple of 2^-46 and sums are exact in any order, for any division
of the directions among workers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.slicing.grid import PHASES, SCALE, BinGrid

__all__ = ["COST_UNIT", "DISPLACEMENT_UNIT", "DRIFT_UNIT", "Slices", "check_particles", "drift_reference"]

DISPLACEMENT_UNIT = 2.0**-20
DRIFT_UNIT = 2.0**-46
"""Unit of the accumulated displacements: DISPLACEMENT_UNIT times the directions' 2^-26."""

COST_UNIT = 2.0**-32
"""Unit of the accumulated squared distances: a thousandth of what matters, with room for noise far larger than 1."""


@dataclass(frozen=True)
class Slices:
    """Target CDFs along directions, for independent flows side by side (one per class).

    Attributes:
        directions: array of size [K, d], on the lattice.
        grid: the release's bins and smoothing.
        kernel: array of size [PHASES, taps]: the integer rows records and particles are binned with.
        cdf: array of size [C, K, bins + 1]: the smoothed target's CDF at the bins' ends, rising from 0 to 1.
    """

    directions: NDArray[np.float64]
    grid: BinGrid
    kernel: NDArray[np.int64]
    cdf: NDArray[np.float64]

    def fits(self) -> bool:
        """Whether sums over these directions stay within int64, wherever the particles are."""
        span = self.grid.width * self.grid.bins
        longest = float(np.abs(self.directions).sum(axis=0).max())
        return span * longest < 2.0**63 * DRIFT_UNIT and len(self.directions) * span**2 < 2.0**63 * COST_UNIT

    def select(self, chosen: slice | NDArray[np.int64]) -> Slices:
        """The slices of some directions."""
        return Slices(
            np.ascontiguousarray(self.directions[chosen]),
            self.grid,
            self.kernel,
            np.ascontiguousarray(self.cdf[:, chosen]),
        )


def check_particles(particles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns particles that the kernels can be given: their cells are looked up without any check of bounds.

    Args:
        particles: array of size [n, d].

    Raises:
        UserError: one of them lies outside the unit ball, or is no number.
    """
    if not (np.einsum("nd,nd->n", particles, particles) <= 1.0).all():
        raise UserError(
            "Particles lie outside the unit ball, or are no numbers: a stored file they came from is damaged."
        )
    return particles


def drift_reference(
    particles: NDArray[np.float64], offsets: NDArray[np.int64], slices: Slices
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums displacements over all directions: plain NumPy in float64, one class and direction at a time.

    Args:
        particles: array of size [n, d] in the unit ball, sorted by class.
        offsets: array of size [C + 1]: class c owns the particles offsets[c] to offsets[c + 1].
        slices: the targets.

    Returns:
        Array of size [n, d], the sum over directions of (Q(F(z)) - z) theta (the drift is minus this, over K);
        array of size [C], the sum over directions of the squared sliced distance.
    """
    grid = slices.grid
    total = np.zeros_like(particles)
    cost = np.zeros(len(offsets) - 1)
    for c, (first, last) in enumerate(itertools.pairwise(offsets)):
        if first == last:
            continue
        for theta, cdf in zip(slices.directions, slices.cdf[c], strict=True):
            z = particles[first:last] @ theta
            fine = np.floor((z - grid.low) * (PHASES / grid.width)).astype(int)
            bins, phase = fine // PHASES, fine % PHASES
            counts = np.zeros(grid.bins, dtype=np.int64)
            for tap in range(slices.kernel.shape[1]):
                np.add.at(counts, bins - grid.margin + tap, slices.kernel[phase, tap])
            level = np.concatenate([[0], np.cumsum(counts)]) / (SCALE * (last - first))
            nodes = _map_edges(level, cdf, grid.edges) - grid.edges
            displacement = np.interp(z, grid.edges, nodes)
            total[first:last] += displacement[:, None] * theta
            mass = np.bincount(bins, minlength=grid.bins) / (last - first)
            left, right = nodes[:-1], nodes[1:]
            cost[c] += float((mass * (left**2 + left * right + right**2)).sum() / 3)
    return total, cost


def _map_edges(
    level: NDArray[np.float64], cdf: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Q(level) per edge; where Q is a whole interval (an empty stretch), its point nearest to the edge."""
    left = np.array([_quantile(u, cdf, edges, "left") for u in level])
    right = np.array([_quantile(u, cdf, edges, "right") for u in level])
    return np.clip(edges, left, right)


def _quantile(u: float, cdf: NDArray[np.float64], edges: NDArray[np.float64], side: str) -> float:
    if side == "left":  # the smallest x with F(x) >= u
        i = int(np.searchsorted(cdf, u, side="left"))
        if i == 0:
            return float(edges[0])
    else:  # the largest x with F(x) <= u
        i = int(np.searchsorted(cdf, u, side="right"))
        if i == len(cdf):
            return float(edges[-1])
    if i == len(cdf):
        return float(edges[-1])
    return float(edges[i - 1] + (edges[i] - edges[i - 1]) * (u - cdf[i - 1]) / (cdf[i] - cdf[i - 1]))
