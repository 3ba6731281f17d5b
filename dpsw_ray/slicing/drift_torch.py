"""The drift in Torch operations, for CUDA: the same exact arithmetic as the CPU kernel."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsw_ray.slicing.drift import COST_UNIT, DISPLACEMENT_UNIT, DRIFT_UNIT, Slices
from dpsw_ray.slicing.grid import PHASES, SCALE

__all__ = ["TorchDrift"]

_GROUP = 16  # directions per exact float64 sum, as in the CPU kernel


class TorchDrift:
    """Keeps the slices on the device; called once a step."""

    def __init__(self, slices: Slices, device: str = "cuda") -> None:
        """Moves the slices to the device."""
        self._device = device
        self._grid = slices.grid
        self._directions = torch.as_tensor(slices.directions.copy(), device=device)
        self._cdf = torch.as_tensor(slices.cdf.copy(), device=device)
        self._edges = torch.as_tensor(slices.grid.edges.copy(), device=device)
        self._smooth = self._smoothing(slices)

    def __call__(
        self, particles: NDArray[np.float64], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sums displacements over all directions; arguments and results as `drift_numba`."""
        x = torch.tensor(particles, device=self._device)
        total = torch.zeros(x.shape, dtype=torch.int64, device=self._device)
        cost = torch.zeros(len(offsets) - 1, dtype=torch.int64, device=self._device)
        for c, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            for j in range(0, len(self._directions) if last > first else 0, _GROUP):
                theta = self._directions[j : j + _GROUP]
                moves, squared = self._displacements(x[first:last], theta, self._cdf[c, j : j + _GROUP])
                total[first:last] += (moves @ theta * (DISPLACEMENT_UNIT / DRIFT_UNIT)).to(torch.int64)
                cost[c] += torch.round(squared / COST_UNIT).to(torch.int64).sum()
        return total.cpu().numpy(), cost.cpu().numpy()

    def _displacements(self, x: Tensor, theta: Tensor, cdf: Tensor) -> tuple[Tensor, Tensor]:
        """Displacements [n, g] in DISPLACEMENT_UNIT and squared distances [g] along directions [g, d]."""
        grid, n, group = self._grid, len(x), len(theta)
        z = x @ theta.T - grid.low
        fine = (z * (PHASES / grid.width)).to(torch.int64)
        cells = grid.bins * PHASES
        flat = fine + torch.arange(group, device=x.device) * cells
        histogram = torch.bincount(flat.ravel(), minlength=group * cells).view(group, cells)
        # Integers below 2^53 in float64: the products and sums are exact, and cuBLAS has no integer product.
        coarse = histogram.double() @ self._smooth
        risen = torch.zeros(group, grid.bins + 1, dtype=torch.float64, device=x.device)
        torch.cumsum(coarse, 1, out=risen[:, 1:])
        nodes = self._map_edges(risen * (1.0 / (n * SCALE)), cdf) - self._edges
        nodes = nodes / DISPLACEMENT_UNIT
        position = z * (1.0 / grid.width)
        b = position.to(torch.int64).T
        left, right = nodes.gather(1, b), nodes.gather(1, b + 1)
        moves = torch.round(left + (position.T - b) * (right - left)).T
        here = histogram.view(group, grid.bins, PHASES).sum(2)
        a, e = nodes[:, :-1], nodes[:, 1:]
        squared = (here * (a * a + a * e + e * e)).sum(1) * DISPLACEMENT_UNIT**2 / (3.0 * n)
        return moves, squared

    def _map_edges(self, u: Tensor, cdf: Tensor) -> Tensor:
        """Q(u) at every edge, [g, bins + 1]; on an empty stretch its point nearest to the edge."""
        edges, last = self._edges, self._grid.bins

        def between(index: Tensor) -> Tensor:
            above = index.clamp(1, last)
            low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
            return edges[above - 1] + self._grid.width * (u - low) / (high - low).clamp_min(1e-300)

        left = torch.searchsorted(cdf, u.contiguous(), right=False)
        right = torch.searchsorted(cdf, u.contiguous(), right=True)
        low = torch.where(left == 0, edges[0], between(left))
        high = torch.where(right > last, edges[-1], between(right))
        return torch.minimum(torch.maximum(edges.expand_as(u), low), high)

    def _smoothing(self, slices: Slices) -> Tensor:
        """The integer kernel as a matrix [bins * PHASES, bins] from fine to coarse cells."""
        grid = slices.grid
        matrix = np.zeros((grid.bins * PHASES, grid.bins))
        for b in range(grid.margin, grid.bins - grid.margin):
            matrix[b * PHASES : (b + 1) * PHASES, b - grid.margin : b + grid.margin + 1] = slices.kernel
        return torch.as_tensor(matrix, device=self._device)
