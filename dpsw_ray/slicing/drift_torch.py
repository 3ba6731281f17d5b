"""The drift in Torch operations, for CUDA: the same exact arithmetic as the CPU kernel.

Projections, counts and sums of displacements are exact in any order, and the formulas that round are single operations
on float64, which every device rounds alike: on tensors of the CPU the results have the bits of `drift_numba`. On CUDA
only the sum over bins in the squared distance is taken in another order, and the step's norms (`TorchBlock.move`).
"""

from __future__ import annotations

import itertools
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsw_ray.slicing.drift import COST_UNIT, DISPLACEMENT_UNIT, DRIFT_UNIT, Slices, check_particles
from dpsw_ray.slicing.grid import PHASES, SCALE, BinGrid

__all__ = ["TorchBlock", "TorchDrift", "smoothing_matrix"]

_GROUP = 16  # directions per exact float64 sum, as in the CPU kernel
_HELD_BYTES = 256 << 20  # of projections kept between counting and displacing, on the CPU
_ROWS = 1 << 16  # particles in a batch: bounds the memory of what is between two operations
_GPU_SHARE = 16  # of its free memory, one part of this many for kept projections


class Step(Protocol):
    """The new positions [m, d] of particles, from positions, displacements in DRIFT_UNIT and the first's number."""

    def __call__(
        self, particles: NDArray[np.float64], total: NDArray[np.int64], first: int
    ) -> NDArray[np.float64]: ...

    def on_device(self, particles: Tensor, total: Tensor, first: int) -> Tensor:
        """The same in Torch operations, where norms may be rounded in another way."""


class TorchDrift:
    """Keeps the slices on the device; called once a step."""

    def __init__(self, slices: Slices, device: str = "cuda") -> None:
        """Moves the slices to the device."""
        self._device = device
        self._grid = slices.grid
        self._directions = torch.as_tensor(slices.directions.copy(), device=device)
        self._cdf = torch.as_tensor(slices.cdf.copy(), device=device)
        self._edges = torch.as_tensor(slices.grid.edges.copy(), device=device)
        self._smooth = smoothing_matrix(slices.grid, slices.kernel, device)

    def __call__(
        self, particles: NDArray[np.float64], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sums displacements over all directions; arguments and results as `drift_numba`."""
        x = torch.tensor(check_particles(particles), device=self._device)
        total = torch.zeros(x.shape, dtype=torch.int64, device=self._device)
        cost = self.add(x, offsets, total)
        return total.cpu().numpy(), cost

    def add(self, x: Tensor, offsets: NDArray[np.int64], total: Tensor) -> NDArray[np.int64]:
        """Adds the displacements of particles [n, d] to `total` [n, d]; returns the cost of every class."""
        cost = torch.zeros(len(offsets) - 1, dtype=torch.int64, device=self._device)
        for c, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            for j in range(0, len(self._directions) if last > first else 0, _GROUP):
                theta = self._directions[j : j + _GROUP]
                share, bins, here, coarse = count_particles(x[first:last], theta, self._grid, self._smooth)
                nodes, squared = self._nodes(here, coarse, last - first, self._cdf[c, j : j + _GROUP])
                add_displacements(total[first:last], share, bins, nodes, theta)
                cost[c] += torch.round(squared / COST_UNIT).to(torch.int64).sum()
        return np.asarray(cost.cpu().numpy())

    def _nodes(self, here: Tensor, coarse: Tensor, n: int, cdf: Tensor) -> tuple[Tensor, Tensor]:
        """Displacements [g, bins + 1] at the bins' ends in DISPLACEMENT_UNIT and squared distances [g]."""
        risen = torch.zeros(len(coarse), self._grid.bins + 1, dtype=torch.float64, device=coarse.device)
        torch.cumsum(coarse, 1, out=risen[:, 1:])
        nodes = self._map_edges(risen * (1.0 / (n * SCALE)), cdf) - self._edges
        nodes = nodes / DISPLACEMENT_UNIT
        a, e = nodes[:, :-1], nodes[:, 1:]
        squared = (here * (a * a + a * e + e * e)).sum(1) * DISPLACEMENT_UNIT**2 / (3.0 * n)
        return nodes, squared

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


class TorchBlock:
    """A block of particles that stays on the device from step to step; as `drift_numba.NumbaBlock`.

    Attributes:
        offsets: array of size [C + 1]: class c owns the particles offsets[c] to offsets[c + 1] of the block.
    """

    def __init__(self, particles: NDArray[np.float64], offsets: NDArray[np.int64], device: str) -> None:
        """Moves particles [n, d], sorted by class, to the device."""
        self.offsets = offsets
        self._device = device
        self._x = torch.tensor(check_particles(particles), device=device)
        self._total = torch.zeros(self._x.shape, dtype=torch.int64, device=device)
        self._counted: list[tuple[Tensor, Tensor]] = []
        self._theta = self._x[:0]
        self._targets: tuple[Slices, TorchDrift] | None = None

    def at_once(self) -> int:
        """How many directions `count` may be asked for: their projections are kept, in bounded memory."""
        held = _HELD_BYTES
        if self._device != "cpu":
            held = max(held, torch.cuda.mem_get_info()[0] // _GPU_SHARE)
        return max(1, held // (16 * max(1, len(self._x)) * _GROUP)) * _GROUP

    def count(self, slices: Slices) -> NDArray[np.int64]:
        """As `NumbaBlock.count`: array of size [2, C, K, bins]."""
        count, grid = len(slices.directions), slices.grid
        smooth = smoothing_matrix(grid, slices.kernel, self._device)
        self._theta = torch.as_tensor(slices.directions.copy(), device=self._device)
        shape = (2, len(self.offsets) - 1, count, grid.bins)
        counts = torch.zeros(shape, dtype=torch.float64, device=self._device)
        self._counted = []
        for c, rows in self._batches():
            share, bins, here, coarse = count_particles(self._x[rows], self._theta, grid, smooth)
            self._counted.append((share, bins))
            counts[0, c] += here
            counts[1, c] += coarse
        return np.asarray(counts.to(torch.int64).cpu().numpy())

    def displace(self, nodes: NDArray[np.float64]) -> None:
        """As `NumbaBlock.displace`."""
        known = torch.tensor(nodes, device=self._device)
        for (c, rows), (share, bins) in zip(self._batches(), self._counted, strict=True):
            for j in range(0, len(self._theta), _GROUP):
                group = slice(j, j + _GROUP)
                add_displacements(
                    self._total[rows], share[:, group], bins[:, group], known[c, group], self._theta[group]
                )
        self._counted = []

    def drift(self, slices: Slices) -> NDArray[np.int64]:
        """As `NumbaBlock.drift`."""
        if self._targets is None or self._targets[0] is not slices:
            self._targets = slices, TorchDrift(slices, self._device)
        return self._targets[1].add(self._x, self.offsets, self._total)

    def move(self, step: Step) -> None:
        """As `NumbaBlock.move`; on CUDA the step is taken there."""
        for s in range(0, len(self._x), _ROWS):
            x, total = self._x[s : s + _ROWS], self._total[s : s + _ROWS]
            if self._device == "cpu":
                x[:] = torch.from_numpy(step(x.numpy(), total.numpy(), s))
            else:
                x[:] = step.on_device(x, total, s)
        self._total.zero_()

    def put(self, first: int, particles: NDArray[np.float64]) -> None:
        """As `NumbaBlock.put`."""
        self._x[first : first + len(particles)] = torch.tensor(
            check_particles(particles), device=self._device
        )

    def positions(self, first: int = 0, last: int | None = None) -> NDArray[np.float64]:
        """As `NumbaBlock.positions`."""
        return np.array(self._x[first:last].cpu().numpy())

    def _batches(self) -> list[tuple[int, slice]]:
        """Classes and rows of the block's particles, a bounded number of rows at a time."""
        ends = self.offsets.tolist()
        return [
            (c, slice(s, min(s + _ROWS, last)))
            for c, (first, last) in enumerate(itertools.pairwise(ends))
            for s in range(first, last, _ROWS)
        ]


def smoothing_matrix(grid: BinGrid, kernel: NDArray[np.int64], device: str) -> Tensor:
    """The integer kernel as a matrix [bins * PHASES, bins] from fine to coarse cells."""
    matrix = np.zeros((grid.bins * PHASES, grid.bins))
    for b in range(grid.margin, grid.bins - grid.margin):
        matrix[b * PHASES : (b + 1) * PHASES, b - grid.margin : b + grid.margin + 1] = kernel
    return torch.as_tensor(matrix, device=device)


def count_particles(
    x: Tensor, theta: Tensor, grid: BinGrid, smooth: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bins the projections of particles [n, d] on directions [g, d].

    Returns:
        The share of its bin that lies below each projection [n, g], its bin [n, g]; the particles in each bin
        [g, bins] and their mass behind the kernel [g, bins], integers in float64.
    """
    group, cells = len(theta), grid.bins * PHASES
    position = (x @ theta.T - grid.low) * (PHASES / grid.width)
    fine = position.to(torch.int64)
    flat = fine + torch.arange(group, device=x.device) * cells
    histogram = torch.bincount(flat.ravel(), minlength=group * cells).view(group, cells)
    bins = fine // PHASES
    # Integers below 2^53 in float64: the products and sums are exact, and cuBLAS has no integer product.
    coarse = histogram.double() @ smooth
    here = histogram.view(group, grid.bins, PHASES).sum(2).double()
    return position * (1.0 / PHASES) - bins, bins, here, coarse


def add_displacements(total: Tensor, share: Tensor, bins: Tensor, nodes: Tensor, theta: Tensor) -> None:
    """Adds to `total` [n, d] the displacements at `nodes` [g, bins + 1] of counted particles, interpolated."""
    left, right = nodes.gather(1, bins.T), nodes.gather(1, bins.T + 1)
    moves = torch.round(left + share.T * (right - left)).T
    total += (moves @ theta * (DISPLACEMENT_UNIT / DRIFT_UNIT)).to(torch.int64)
