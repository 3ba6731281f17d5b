"""Noisy first and second moments of private records: what a private encoder is computed from.

A record x of the unit ball is extended by a constant, so that one matrix holds everything: with v = (x, k) the sum of
v v^T has the second moments of x, k times their sum, and k^2 times their number. One mechanism, one noise, and the
scaling between the parts is k. In whole numbers: with a public whole number c a coordinate is a multiple of 1 / (24 c)
and k is 7 c of them, because 24^2 + 7^2 = 25^2 makes the longest extended record exactly 25 c long. The more noise the
plan has, the coarser the lattice (`Lattice.fitting`), or the low bits of the noise would tell of records.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DAMAGE, read_arrow, read_manifest, write_arrow, write_manifest
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.discrete import MAX_DISCRETE_STD, MAX_DRAWN
from dpsw_ray.privacy.events import DpPcaEvent, NoiseKind
from dpsw_ray.privacy.noise import LOW_BITS, MAX_STD, SAMPLER, low_bits
from dpsw_ray.privacy.relations import Relation, Unit
from dpsw_ray.release.plan import Summed

__all__ = ["FORMAT", "RATIO", "Lattice", "Moments", "MomentsPlan", "moments_event", "triangle"]

FORMAT = "dpsw_ray moments 1"

RATIO = 24 / 7
"""Of a coordinate's unit to the constant that extends a record."""

_FINEST, _COARSEST = 4096, 8


@dataclass(frozen=True)
class Lattice:
    """The whole numbers that records are summed in.

    Attributes:
        fineness: c.
    """

    fineness: int = _FINEST

    @property
    def steps(self) -> int:
        """Of a coordinate: 1.0 in lattice units."""
        return 24 * self.fineness

    @property
    def constant(self) -> int:
        """The constant k that extends a record, in the same units."""
        return 7 * self.fineness

    @property
    def longest(self) -> int:
        """Length of the longest extended record, exactly."""
        return 25 * self.fineness

    @classmethod
    def of(cls, event: DpPcaEvent) -> Self:
        """The lattice in which moments were charged."""
        return cls(round(event.radius) // 25)

    @classmethod
    def fitting(cls, mu: float, apart: float, cells: int) -> Self | None:
        """The finest lattice on which double precision can draw the noise that `mu` asks for; None where none can.

        Args:
            mu: of the moments; infinity for no noise.
            apart: sensitivity over the squared length of the longest record.
            cells: of the upper triangle.
        """
        if mu == math.inf:
            return cls()
        # std = apart * longest^2 / mu, and low_bits(std, cells) <= LOW_BITS * mu
        most = min(LOW_BITS * mu / low_bits(1.0, cells), MAX_STD) * mu / apart
        fineness = min(math.isqrt(int(most / 25**2)), _FINEST)
        return cls(fineness) if fineness >= _COARSEST else None


def moments_event(
    relation: Relation, epsilon: float, delta: float, share: float, dim: int, noise: NoiseKind = "gaussian"
) -> DpPcaEvent:
    """What noisy moments cost that take a share of a budget.

    Args:
        relation: the data set's.
        epsilon: of the whole.
        delta: of the whole.
        share: of the squared mu that (epsilon, delta) allow, between 0 and 1.
        dim: the records have at most so many dimensions.
        noise: how it is sampled.

    Raises:
        UserError: there is no such noise.
    """
    mu = math.sqrt(share) * calibrate_gaussian_mu(epsilon, delta)
    apart = math.sqrt(2.0) if relation == "replace_one" else 1.0
    cells = triangle(dim)
    if noise == "discrete_gaussian":
        if cells > MAX_DRAWN:
            raise UserError(
                f"privacy.noise discrete_gaussian draws at most {MAX_DRAWN:,} cells, the moments of {dim:,} dimensions "
                f"have {cells:,}: choose privacy.noise gaussian, or a smaller encoder.basis."
            )
        lattice: Lattice | None = Lattice()
    else:
        lattice = Lattice.fitting(mu, apart, cells)
    std = math.inf if lattice is None else apart * lattice.longest**2 / mu
    if lattice is None or std > MAX_DISCRETE_STD:
        way_out = ", or privacy.noise discrete_gaussian" if lattice is None and cells <= MAX_DRAWN else ""
        raise UserError(
            f"privacy.epsilon {epsilon:g} with encoder.share {share:.3g} needs more noise on the {cells:,} moments of "
            "the encoder than can be drawn in double precision without its low bits telling of a record: choose a "
            f"larger epsilon or share, a smaller encoder.basis{way_out}."
        )
    return DpPcaEvent(noise_std=std, radius=float(lattice.longest), noise=noise)


def triangle(dim: int) -> int:
    """Cells of the upper triangle of extended records' moments, the diagonal included."""
    return (dim + 1) * (dim + 2) // 2


@dataclass(frozen=True)
class MomentsPlan(Summed):
    """The release of moments before it happens.

    Attributes:
        release_id: its random name.
        dim: p, of the records.
        noise_std: standard deviation of the noise on the diagonal, in squared lattice units; beside the diagonal it is
            smaller by sqrt(2), as such an entry stands for two of the matrix.
        lattice: in whose units.
        noise: how it is sampled; of the discrete Gaussian `noise_std` is the parameter sigma.
        unit: whose contribution is bounded.
    """

    release_id: str
    dim: int
    noise_std: float
    lattice: Lattice = Lattice()
    noise: NoiseKind = "gaussian"
    unit: Unit = "record"

    @classmethod
    def of(cls, event: DpPcaEvent, dim: int, release_id: str) -> Self:
        """The plan that costs `event`, of records in `dim` dimensions."""
        return cls(release_id, dim, event.noise_std, Lattice.of(event), event.noise, event.unit)

    @property
    def event(self) -> DpPcaEvent:
        """What the release costs: the longest extended record, in exact integers."""
        return DpPcaEvent(self.noise_std, float(self.lattice.longest), self.unit, noise=self.noise)

    @property
    def mechanism(self) -> str:
        """The private side's module."""
        return "dpsw_ray.private.moments"

    @property
    def form(self) -> None:
        """None: the bound is of v v^T for a vector of bounded length."""
        return None

    @property
    def cells(self) -> tuple[int, ...]:
        """Shape of the answer: the upper triangle with the diagonal, row by row."""
        return (triangle(self.dim),)

    def shape(self, number: int) -> tuple[int, ...]:
        """`cells`."""
        return self.cells

    @property
    def stretches(self) -> tuple[tuple[float, int], ...]:
        """The diagonal, and what is beside it row by row."""
        return (self.noise_std, self.dim + 1), (self.beside_std, triangle(self.dim) - self.dim - 1)

    @property
    def beside_std(self) -> float:
        """Standard deviation of the noise beside the diagonal, rounded up."""
        return math.nextafter(self.noise_std * math.sqrt(0.5), math.inf) if self.noise_std else 0.0

    def digest(self) -> str:
        """Hash of everything that decides the numbers apart from the data and the noise secret."""
        parts = ("MomentsPlan", SAMPLER, self.lattice, self.dim, self.noise_std.hex(), self.noise, self.unit)
        return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()


@dataclass(frozen=True)
class Moments:
    """Noisy moments of records in the unit ball: differentially private, so everything computed from them is.

    Attributes:
        matrix: array of size [p + 1, p + 1], int64, symmetric: the noisy sum of v v^T in squared lattice units.
        noise_std: standard deviation of the noise on the diagonal, in the same units.
        lattice: in whose units.
        manifest: mechanism, privacy, ledger entry; as in `manifest.json`.
    """

    matrix: NDArray[np.int64] = field(repr=False)
    noise_std: float
    lattice: Lattice
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
        return cls(matrix + np.triu(matrix, 1).T, plan.noise_std, plan.lattice, manifest)

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
        return max(float(self.matrix[-1, -1]) / self.lattice.constant**2, 1.0)

    def mean(self, records: float) -> NDArray[np.float64]:
        """Noisy mean, array of size [p], of so many records."""
        unit = float(self.lattice.steps) * self.lattice.constant
        return np.asarray(self.matrix[:-1, -1] / (unit * records))

    def second(self, records: float) -> NDArray[np.float64]:
        """Noisy mean of x x^T, array of size [p, p], of so many records; perhaps with negative eigenvalues."""
        return np.asarray(self.matrix[:-1, :-1] / (float(self.lattice.steps) ** 2 * records))

    def noise(self, records: float) -> float:
        """Standard deviation of the noise beside the diagonal of `second`."""
        return self.noise_std * math.sqrt(0.5) / (float(self.lattice.steps) ** 2 * records)

    def save(self, folder: Path) -> None:
        """Writes `moments.arrow` and then `manifest.json`: a folder with a manifest is whole."""
        size = len(self.matrix)
        rows = pa.FixedSizeListArray.from_arrays(pa.array(self.matrix.ravel()), size)
        write_arrow(folder / "moments.arrow", pa.table({"row": rows}))
        layout = {
            "format": FORMAT,
            "steps": self.lattice.steps,
            "constant": self.lattice.constant,
            "noise_std": self.noise_std,
        }
        write_manifest(folder / "manifest.json", {**layout, **self.manifest}, ["moments.arrow"])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            UserError: the folder holds no moments, or damaged ones.
        """
        try:
            stored = read_manifest(folder / "manifest.json")
            lattice = Lattice(int(stored["constant"]) // 7)
            if (stored["format"], stored["steps"], stored["constant"]) != (
                FORMAT,
                lattice.steps,
                lattice.constant,
            ):
                raise UserError(f"{folder}/manifest.json is not of the format {FORMAT!r}.")
            rows = read_arrow(folder / "moments.arrow").column("row").combine_chunks()
            matrix = rows.flatten().to_numpy().reshape(-1, rows.type.list_size).copy()
            if matrix.shape[0] != matrix.shape[1] or (matrix != matrix.T).any():
                raise ValueError
            own = ("format", "steps", "constant", "noise_std")
            manifest = {key: value for key, value in stored.items() if key not in own}
            moments = cls(matrix, float(stored["noise_std"]), lattice, manifest)
        except DAMAGE as error:
            raise UserError(
                f"{folder} holds damaged moments ({type(error).__name__}): restore it from a copy."
            ) from None
        moments._check_sampler(folder)
        return moments

    def _check_sampler(self, folder: Path) -> None:
        """Refuses moments that an earlier version drew on a lattice too fine for their noise."""
        std, cells = self.noise_std, triangle(self.dim)
        known = "sampler" in self.manifest or std == 0 or self.manifest.get("reproducible_noise")
        if not known and low_bits(std, cells) > LOW_BITS * self.lattice.longest**2 / std:
            raise UserError(
                f"{folder} holds moments that an earlier version drew: the low bits of their noise may tell more of a "
                "record than was charged. Publish nothing that came of them; begin anew in another --output, which is "
                "charged."
            )
