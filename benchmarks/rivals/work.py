"""What one user does, for the rivals: its message in NumPy alone, bit for bit the one that this project sends.

Runs in environments that do not have this project: everything comes from a file.

A record adds one row of a public table to each direction. The rows for all positions are laid out whole, 32 bins each,
so that a message is a sum of looked-up rows: the fastest of the forms that were tried (one `bincount` over all cells, a
loop over records, Torch's `embedding_bag` within pfl).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Work", "report", "whole_rows"]


@dataclass(frozen=True)
class Work:
    """The cohort's data, and what is public.

    Attributes:
        latents: array of size [users, records, d], float64.
        directions: array of size [K, d], float64.
        rows: array of size [positions, bins], float32: what a record adds at each position along a direction.
        low: left end of the positions.
        steps: positions a unit of length.
        share: reciprocal of what a message is divided by, so that 20 records weigh one user.
        bound: L2 norm that no message passes.
        noise: standard deviation of the noise on a cell of the sum.
    """

    latents: NDArray[np.float64]
    directions: NDArray[np.float64]
    rows: NDArray[np.float32]
    low: float
    steps: float
    share: float
    bound: float
    noise: float

    @classmethod
    def load(cls, folder: Path) -> Work:
        """Reads what `save` wrote."""
        with np.load(folder / "work.npz") as file:
            arrays = {name: file[name] for name in ("latents", "directions", "rows")}
        return cls(**arrays, **json.loads((folder / "work.json").read_text()))

    def save(self, folder: Path) -> None:
        """Writes everything to a folder."""
        np.savez(folder / "work.npz", latents=self.latents, directions=self.directions, rows=self.rows)
        numbers = ("low", "steps", "share", "bound", "noise")
        (folder / "work.json").write_text(json.dumps({name: getattr(self, name) for name in numbers}))

    def message(self, records: NDArray[np.float64]) -> NDArray[np.float32]:
        """A user's message in NumPy.

        Args:
            records: array of size [records, d].

        Returns:
            Array of size [K, bins], whole numbers.
        """
        positions = ((records @ self.directions.T - self.low) * self.steps).astype(np.intp)
        total = self.rows.take(positions, axis=0, mode="clip").sum(axis=0)
        # Half a record's least part more: no rounding of the product can then take a whole number below itself.
        message: NDArray[np.float32] = np.floor((total + np.float32(0.5)) * np.float32(self.share))
        return message


def whole_rows(table: NDArray[np.int64], bins: int) -> NDArray[np.float32]:
    """What a record adds at each position along a direction, all bins of it.

    Args:
        table: array of size [phases, taps]: what a record in a phase of a bin adds to the bins around it.
        bins: of a direction.

    Returns:
        Array of size [bins * phases, bins]; nothing for the bins at the ends, where no record is.
    """
    phases, taps = table.shape
    margin = taps // 2
    rows = np.zeros((bins, phases, bins), dtype=np.float32)
    for place in range(margin, bins - margin):
        rows[place, :, place - margin : place + margin + 1] = table
    return rows.reshape(bins * phases, bins)


def report(folder: Path, name: str, seconds: list[float], processor_s: float, total: NDArray[Any]) -> None:
    """Hands the figures of one setting over.

    Args:
        folder: where the work came from.
        name: of the files.
        seconds: of every round.
        processor_s: of a round, on average, all processes together.
        total: the sum of a round without noise.
    """
    np.save(folder / f"{name}.npy", np.asarray(total, dtype=np.float64))
    (folder / f"{name}.json").write_text(json.dumps({"seconds": seconds, "processor_s": processor_s}))
