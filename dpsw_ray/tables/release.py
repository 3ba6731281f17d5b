"""The Release: an immutable, differentially private artefact, and its file format.

A folder with two files: `table.arrow` (a row per round and direction: the direction in lattice units and its noisy
counts) and `manifest.json` (how it was made and what it cost). Everything behind this door is post-processing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DAMAGE, read_arrow, read_manifest, write_arrow, write_manifest
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.tables.plan import SlicesPlan

__all__ = ["FORMAT", "Release"]

FORMAT = "dpsw_ray release 2"


@dataclass(frozen=True)
class Release:
    """Noisy sliced histograms of private latents, in T rounds with directions of their own.

    Attributes:
        directions: array of size [T, K, d], unit directions on the lattice.
        counts: array of size [T, C, K, bins], int64: noisy sums, `SCALE` per record.
        kernel: array of size [phases, taps], integer rows: what one record adds, at each position inside a bin.
        grid: bins and smoothing.
        cell_noise: standard deviation of the noise on each cell, in the units of `counts`; 0 where the noise is on
            the projections, and is the smoothing.
        manifest: mechanism, relation, unit, events, epsilon bounds, classes, versions; as in `manifest.json`.
    """

    directions: NDArray[np.float64] = field(repr=False)
    counts: NDArray[np.int64] = field(repr=False)
    kernel: NDArray[np.int64] = field(repr=False)
    grid: BinGrid
    cell_noise: float
    manifest: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        for array in (self.directions, self.counts, self.kernel):
            array.setflags(write=False)
        object.__setattr__(self, "manifest", MappingProxyType(dict(self.manifest)))

    @classmethod
    def from_plan(cls, plan: SlicesPlan, counts: NDArray[np.int64], manifest: Mapping[str, Any]) -> Release:
        """Builds the release that a plan's noisy totals make."""
        return cls(
            plan.directions.copy(),
            plan.counts(counts),
            plan.table.copy(),
            plan.grid,
            plan.cell_noise,
            manifest,
        )

    @property
    def rounds(self) -> int:
        """Number of rounds T."""
        return len(self.directions)

    @property
    def dim(self) -> int:
        """Dimension d of the latents."""
        return int(self.directions.shape[2])

    @property
    def blocks(self) -> int:
        """Number of cell blocks C: classes, or 1."""
        return int(self.counts.shape[1])

    @property
    def publishable(self) -> bool:
        """False for noise-free, reproducible-noise and research releases."""
        return bool(self.manifest["publishable"])

    def save(self, folder: Path) -> None:
        """Writes the two files atomically, the manifest last: a folder with a manifest is a whole release."""
        dim, blocks, bins = self.dim, self.blocks, self.grid.bins
        lattice = np.rint(self.directions / LATTICE).astype(np.int32)
        rows = np.ascontiguousarray(self.counts.transpose(0, 2, 1, 3)).ravel()
        table = pa.table(
            {
                "direction": pa.FixedSizeListArray.from_arrays(pa.array(lattice.ravel()), dim),
                "counts": pa.FixedSizeListArray.from_arrays(pa.array(rows), blocks * bins),
            }
        )
        write_arrow(folder / "table.arrow", table)
        layout = {
            "format": FORMAT,
            "layout": {
                "direction": "int32, multiples of 2^-26",
                "counts": f"int64, noisy sums, {SCALE} per record; cells in the order [class, bin]",
                "rounds": self.rounds,
                "classes": blocks,
                "directions": self.directions.shape[1],
                "bins": bins,
                "dim": dim,
            },
            "grid": {"bins": bins, "smoothing": self.grid.smoothing, "kernel": self.kernel.tolist()},
            "cell_noise": self.cell_noise,
        }
        write_manifest(folder / "manifest.json", {**layout, **self.manifest}, ["table.arrow"])

    @classmethod
    def load(cls, folder: Path) -> Release:
        """Reads a release.

        Raises:
            UserError: the folder holds no release, or one that is damaged.
        """
        folder = Path(folder)
        if not os.path.lexists(folder / "manifest.json"):
            raise UserError(
                f"{folder} holds no release (manifest.json is missing): give the folder of a finished run."
            )
        try:
            stored = read_manifest(folder / "manifest.json")
            if stored["format"] != FORMAT:
                raise UserError(
                    f"{folder}/manifest.json has format {stored['format']!r}; this version reads {FORMAT!r}."
                )
            layout, grid = stored["layout"], stored["grid"]
            table = read_arrow(folder / "table.arrow")
            shape = (layout["rounds"], layout["directions"], layout["classes"], layout["bins"])
            lattice = table.column("direction").combine_chunks().flatten().to_numpy()
            counts = table.column("counts").combine_chunks().flatten().to_numpy().reshape(shape)
            own = ("format", "layout", "grid", "cell_noise")
            manifest = {k: v for k, v in stored.items() if k not in own}
            return cls(
                lattice.reshape(*shape[:2], layout["dim"]) * LATTICE,
                np.ascontiguousarray(counts.transpose(0, 2, 1, 3)),
                np.asarray(grid["kernel"], dtype=np.int64),
                BinGrid(grid["bins"], grid["smoothing"]),
                float(stored["cell_noise"]),
                manifest,
            )
        except DAMAGE as error:
            raise UserError(
                f"{folder} holds a damaged release ({type(error).__name__}): restore it from a copy."
            ) from None
