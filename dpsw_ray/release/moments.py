"""Noisy first and second moments of private records: what a private encoder is computed from.

A record x of the unit ball is extended by a constant, so that one matrix holds everything: with v = (x, k) the sum of
v v^T has the second moments of x, k times their sum, and k^2 times their number. One mechanism, one noise, and the
scaling between the parts is k. In whole numbers: a coordinate is a multiple of 1 / 98,304 and k is 28,672 of them,
because 24^2 + 7^2 = 25^2 makes the longest extended record exactly 102,400 long.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpsw_ray.errors import UserError
from dpsw_ray.files import read_arrow, write_arrow, write_json
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.events import DpPcaEvent
from dpsw_ray.privacy.noise import MAX_STD
from dpsw_ray.privacy.relations import Relation, Unit

__all__ = ["CONSTANT", "FORMAT", "LONGEST", "STEPS", "Moments", "MomentsPlan", "moments_event"]

FORMAT = "dpsw_ray moments 1"

STEPS = 24 << 12
"""Of a coordinate: 1.0 in lattice units."""

CONSTANT = 7 << 12
"""The constant that extends a record, in the same units."""

LONGEST = 25 << 12
"""Length of the longest extended record, exactly."""


def moments_event(relation: Relation, epsilon: float, delta: float, share: float) -> DpPcaEvent:
    """What noisy moments cost that take a share of a budget.

    Args:
        relation: the data set's.
        epsilon: of the whole.
        delta: of the whole.
        share: of the squared mu that (epsilon, delta) allow, between 0 and 1.

    Raises:
        UserError: the sums cannot hold such noise.
    """
    mu = math.sqrt(share) * calibrate_gaussian_mu(epsilon, delta)
    apart = math.sqrt(2.0) if relation == "replace_one" else 1.0
    std = apart * LONGEST**2 / mu
    if std > MAX_STD:
        raise UserError(
            f"privacy.epsilon {epsilon:g} with encoder.share {share:g} needs more noise on the encoder's moments than "
            "the sums can hold: choose a larger one."
        )
    return DpPcaEvent(noise_std=std, radius=float(LONGEST))


@dataclass(frozen=True)
class MomentsPlan:
    """The release of moments before it happens.

    Attributes:
        release_id: its random name.
        dim: p, of the records.
        noise_std: standard deviation of the noise on the diagonal, in squared lattice units; beside the diagonal it is
            smaller by sqrt(2), as such an entry stands for two of the matrix.
        noise: how it is sampled.
        unit: whose contribution is bounded.
    """

    release_id: str
    dim: int
    noise_std: float
    noise: Literal["gaussian"] = "gaussian"
    unit: Unit = "record"

    @property
    def event(self) -> DpPcaEvent:
        """What the release costs: the longest extended record, in exact integers."""
        return DpPcaEvent(noise_std=self.noise_std, radius=float(LONGEST), unit=self.unit)

    @property
    def messages(self) -> int:
        """One."""
        return 1

    @property
    def cells(self) -> tuple[int, ...]:
        """Shape of a message: the upper triangle with the diagonal, row by row."""
        return ((self.dim + 1) * (self.dim + 2) // 2,)

    @property
    def beside_std(self) -> float:
        """Standard deviation of the noise beside the diagonal, rounded up."""
        return math.nextafter(self.noise_std * math.sqrt(0.5), math.inf) if self.noise_std else 0.0

    def digest(self) -> str:
        """Hash of everything that decides the numbers apart from the data and the noise secret."""
        parts = ("MomentsPlan", STEPS, CONSTANT, self.dim, self.noise_std.hex(), self.noise, self.unit)
        return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()


@dataclass(frozen=True)
class Moments:
    """Noisy moments of records in the unit ball: differentially private, so everything computed from them is.

    Attributes:
        matrix: array of size [p + 1, p + 1], int64, symmetric: the noisy sum of v v^T in squared lattice units.
        noise_std: standard deviation of the noise on the diagonal, in the same units.
        manifest: mechanism, privacy, ledger entry; as in `manifest.json`.
    """

    matrix: NDArray[np.int64] = field(repr=False)
    noise_std: float
    manifest: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        self.matrix.setflags(write=False)
        object.__setattr__(self, "manifest", MappingProxyType(dict(self.manifest)))

    @classmethod
    def from_plan(cls, plan: MomentsPlan, totals: NDArray[np.int64], manifest: Mapping[str, Any]) -> Self:
        """The matrix that a plan's noisy upper triangle makes."""
        size = plan.dim + 1
        matrix = np.zeros((size, size), dtype=np.int64)
        matrix[np.triu_indices(size)] = totals
        return cls(matrix + np.triu(matrix, 1).T, plan.noise_std, manifest)

    @property
    def source(self) -> dict[str, str]:
        """What computed from them names as its source: the release's id, and the SHA-256 of the matrix."""
        digest = hashlib.sha256(np.ascontiguousarray(self.matrix).tobytes()).hexdigest()
        return {"release_id": str(self.manifest["release_id"]), "sha256": digest}

    @property
    def dim(self) -> int:
        """Dimension p of the records."""
        return len(self.matrix) - 1

    @property
    def records(self) -> float:
        """The noisy number of records, at least 1."""
        return max(float(self.matrix[-1, -1]) / CONSTANT**2, 1.0)

    def mean(self, records: float) -> NDArray[np.float64]:
        """Noisy mean, array of size [p], of so many records."""
        return np.asarray(self.matrix[:-1, -1] / (float(STEPS) * CONSTANT * records))

    def second(self, records: float) -> NDArray[np.float64]:
        """Noisy mean of x x^T, array of size [p, p], of so many records; perhaps with negative eigenvalues."""
        return np.asarray(self.matrix[:-1, :-1] / (float(STEPS) ** 2 * records))

    def noise(self, records: float) -> float:
        """Standard deviation of the noise beside the diagonal of `second`."""
        return self.noise_std * math.sqrt(0.5) / (float(STEPS) ** 2 * records)

    def save(self, folder: Path) -> None:
        """Writes `moments.arrow` and then `manifest.json`: a folder with a manifest is whole."""
        size = len(self.matrix)
        rows = pa.FixedSizeListArray.from_arrays(pa.array(self.matrix.ravel()), size)
        write_arrow(folder / "moments.arrow", pa.table({"row": rows}))
        layout = {"format": FORMAT, "steps": STEPS, "constant": CONSTANT, "noise_std": self.noise_std}
        write_json(folder / "manifest.json", {**layout, **self.manifest})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            UserError: the folder holds no moments, or damaged ones.
        """
        try:
            stored = json.loads((folder / "manifest.json").read_text())
            if (stored["format"], stored["steps"], stored["constant"]) != (FORMAT, STEPS, CONSTANT):
                raise UserError(f"{folder}/manifest.json is not of the format {FORMAT!r}.")
            rows = read_arrow(folder / "moments.arrow").column("row").combine_chunks()
            matrix = rows.flatten().to_numpy().reshape(-1, rows.type.list_size).copy()
            if matrix.shape[0] != matrix.shape[1] or (matrix != matrix.T).any():
                raise ValueError
            own = ("format", "steps", "constant", "noise_std")
            manifest = {key: value for key, value in stored.items() if key not in own}
            return cls(matrix, float(stored["noise_std"]), manifest)
        except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException, OSError) as error:
            raise UserError(
                f"{folder} holds damaged moments ({type(error).__name__}): restore it from a copy."
            ) from None
