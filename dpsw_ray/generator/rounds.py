"""The rounds' targets as the training reads them: directions, and quantiles at the levels of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsw_ray.flow.particles import allocate
from dpsw_ray.tables.quantiles import Targets

__all__ = ["Round", "Rounds", "quantiles"]

_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Round:
    """What one step compares a batch with.

    Attributes:
        directions: tensor of size [K, d].
        spread: standard deviation of the Gaussian that the released CDFs carry beyond the records' own.
        offsets: of size [C + 1]: class c owns the points offsets[c] to offsets[c + 1] of the batch.
        labels: tensor of size [batch], int64: the classes of the points.
        quantiles: tensor of size [K, batch]: rising within each class, at the levels (i + 0.5) / its points.
    """

    directions: Tensor
    spread: float
    offsets: tuple[int, ...]
    labels: Tensor
    quantiles: Tensor


class Rounds:
    """Rounds by number, made when first asked for and kept while they fit into a gigabyte."""

    def __init__(self, targets: Sequence[Targets], batch: int, device: str) -> None:
        """Takes the targets; `batch` is the number of generated points per step."""
        self._targets, self._batch, self._device = targets, batch, device
        self._kept: dict[int, Round] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> Round:
        """The round of this number."""
        if index in self._kept:
            return self._kept[index]
        made = self._make(self._targets[index])
        size = 4 * (made.quantiles.numel() + made.directions.numel())
        if self._bytes + size <= _KEPT_BYTES:
            self._kept[index] = made
            self._bytes += size
        return made

    def _make(self, targets: Targets) -> Round:
        slices = targets.slices
        # Equal shares, whatever the weights: the two points that a rare class would get have no distribution.
        offsets = allocate(targets.weights, self._batch, "equal")
        sizes = np.diff(offsets)
        goal = np.concatenate(
            [
                quantiles(cdf, slices.grid.edges, int(size))
                for cdf, size in zip(slices.cdf, sizes, strict=True)
            ],
            axis=1,
        )
        return Round(
            torch.from_numpy(slices.directions.astype(np.float32)).to(self._device),
            # A CDF known at the bins' ends and linear between them has a variance larger by width^2 / 6: once
            # width^2 / 12 for the grouping (Sheppard's correction) and once for the spreading inside the bins.
            math.hypot(slices.grid.sigma, slices.grid.width / math.sqrt(6.0)),
            tuple(offsets.tolist()),
            torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(self._device),
            torch.from_numpy(goal.astype(np.float32)).to(self._device),
        )


def quantiles(cdf: NDArray[np.float64], edges: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Quantiles at the levels (i + 0.5) / count of CDFs that rise linearly inside each bin.

    Args:
        cdf: array of size [K, bins + 1], from 0 to 1.
        edges: array of size [bins + 1].
        count: number of levels.

    Returns:
        Array of size [K, count].
    """
    levels = (np.arange(count) + 0.5) / count if count else np.empty(0)
    return np.stack([np.interp(levels, row, edges) for row in cdf])
