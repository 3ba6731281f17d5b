"""Encoders that take nothing from public records: a public basis, and principal components from noisy moments.

`BasisEncoder` knows what everybody knows of a record: pixel ranges or column bounds. Images are turned to the lowest
frequencies of the 2-D discrete cosine transform, in which natural images are smooth; that costs nothing, and noise on
second moments has a spectral norm that grows with the root of the dimension. Its latents are what the moments are
summed over. `PcaEncoder` is computed from the noisy moments alone, so it is as private as they are.

Both map records by matrices on a lattice, whose products with whole pixels float64 adds exactly: a latent does not
depend on the records beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsw_ray.base.errors import UserError
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders.base import Encoder, to_records
from dpsw_ray.release.moments import RATIO, Moments

__all__ = ["BasisEncoder", "PcaEncoder"]

Array = NDArray[np.float64]

_LATTICE = 2.0**-26  # of the matrices' entries
_TABLE_STEP = 2.0**-18  # of a column, mapped to [-1, 1]; pixels are whole already
_REACH = 1.6  # of the ball, in root mean squares of the latents' length
_WHITENING = (
    0.5  # power of a component's deviation that its latent is divided by: 0 for none, 1 for white latents
)
_SMALLEST = 1e-3  # of the first component's variance, that a component is taken to have at least
_STORED = ("mean", "components", "gain", "residual", "room", "rows", "offset")
_LEAST_ROOM = 0.08  # of a value's box, whose whole is 1: what dark corners' noise is divided by at least


class BasisEncoder(Encoder):
    """x -> B (x - centre) / (half range * radius * sqrt(size)), scaled onto the unit ball where it lies outside.

    B has orthonormal rows: low frequencies for images, the identity for tables. The radius is a share of the longest
    record there can be, a corner of the box.
    """

    family: ClassVar[str] = "basis"

    def __init__(self, schema: RecordSchema, basis: Array, box: Array, radius: float) -> None:
        self.schema, self.latent_dim, self.sphere = schema, len(basis), False
        self.basis, self.box, self.radius = basis, box, radius

    @classmethod
    def make(
        cls,
        schema: RecordSchema,
        size: int,
        radius: float,
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> Self:
        """Takes the map from public knowledge.

        Args:
            schema: what a record is.
            size: most rows of the basis; a table keeps all its columns.
            radius: in (0, 1].
            bounds: public bounds by column; a table needs all of them.

        Raises:
            UserError: a column without bounds, or bounds of no column.
        """
        if schema.value_range is not None:
            box = np.tile(np.asarray(schema.value_range, dtype=np.float64), (schema.size, 1))
            return cls(schema, _low_frequencies(schema, size), box, radius)
        known = bounds or {}
        for column in known.keys() - set(schema.columns):
            raise UserError(
                f"data.bounds.{column} is no column; the columns are {', '.join(schema.columns)}."
            )
        if missing := [column for column in schema.columns if column not in known]:
            raise UserError(
                f"encoder.kind dp_pca needs public bounds of every column: data.bounds lacks {', '.join(missing)}."
            )
        box = np.array([known[column] for column in schema.columns], dtype=np.float64)
        return cls(schema, np.eye(schema.size), box, radius)

    @property
    def longest(self) -> float:
        """Length of coefficients that becomes 1."""
        return self.radius * math.sqrt(self.schema.size)

    @property
    def bands(self) -> NDArray[np.intp]:
        """Edges of runs of coefficients of about one size: half octaves in the order of frequencies; a table is one."""
        if self.schema.value_range is None:
            return np.array([0, self.latent_dim])
        channels, octaves = self.schema.shape[-1], math.log2(self.latent_dim) + 1
        edges = channels * np.unique(np.rint(2 ** np.arange(1, octaves, 0.5))).astype(np.intp)
        return np.array([0, *edges[edges < self.latent_dim], self.latent_dim])

    def coefficients(self, records: NDArray[Any], rows: Array) -> Array:
        """Exact products of lattice `rows` [k, size] with records [n, *shape], centred and scaled to [-1, 1].

        NaN for a record with a value that is not finite.
        """
        values = np.asarray(records, dtype=np.float64).reshape(-1, self.schema.size)
        low, high = self.box[:, 0], self.box[:, 1]
        if self.schema.value_range is not None:  # whole numbers: scaled after the exact sum
            out = (2 * values - (low + high)) @ rows.T
            return np.asarray(out / (high[0] - low[0]))
        known = np.asarray(np.isfinite(values).all(axis=1))
        inside = np.clip(np.where(known[:, None], values, low), low, high)
        scaled = (inside / 2 - low / 2) / (high / 2 - low / 2) * 2 - 1  # halves: the width may overflow
        out = (np.rint(scaled / _TABLE_STEP) * _TABLE_STEP) @ rows.T
        out[~known] = np.nan
        return np.asarray(out)

    def encode(self, records: NDArray[Any], labels: NDArray[np.integer[Any]] | None = None) -> Array:
        """Records [n, *shape] to the basis's coefficients in the unit ball, [n, p]."""
        return _into_ball(self.coefficients(records, _on_lattice(self.basis)) / self.longest)

    def decode(
        self, latents: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[Any]:
        """Coefficients [n, p] in units of the ball to records [n, *shape], clipped to the box."""
        return self.from_box(np.asarray(latents, dtype=np.float64) @ self.basis * self.longest)

    def from_box(self, scaled: Array) -> NDArray[Any]:
        """Values [n, size], in [-1, 1] between the ends of their box, to records [n, *shape]; clipped to the box."""
        low, high = self.box.T
        with np.errstate(over="ignore"):
            values = np.clip(low / 2 + high / 2 + (high / 2 - low / 2) * scaled, low, high)
        return to_records(values.reshape(-1, *self.schema.shape), self.schema)

    def manifest(self) -> dict[str, Any]:
        """Schema and radius."""
        return {"schema": self.schema.to_dict(), "radius": self.radius}

    def weights(self) -> dict[str, Tensor]:
        """Basis and box."""
        return {"basis": torch.from_numpy(self.basis), "box": torch.from_numpy(self.box)}

    @classmethod
    def restore(cls, manifest: Mapping[str, Any], weights: dict[str, Tensor], device: str) -> BasisEncoder:
        """The inverse of `manifest` and `weights`; the device plays no part."""
        schema = RecordSchema.from_dict(manifest["schema"])
        return cls(schema, weights["basis"].numpy(), weights["box"].numpy(), float(manifest["radius"]))


class PcaEncoder(Encoder):
    """x -> gain * V^T (c(x) - mean), c the coefficients in a public basis, V the top components of noisy moments.

    Attributes:
        basis: the public basis.
        above_noise: how many components have a variance that the noise alone does not reach.
    """

    family: ClassVar[str] = "dp_pca"

    def __init__(
        self,
        basis: BasisEncoder,
        mean: Array,
        components: Array,
        gain: Array,
        residual: Array,
        room: Array,
        rows: Array,
        offset: Array,
        above_noise: int,
        source: Mapping[str, str],
    ) -> None:
        self.basis, self.schema = basis, basis.schema
        self.latent_dim, self.sphere = len(gain), False
        self.above_noise, self.source = above_noise, dict(source)
        self._mean, self._components, self._gain, self._residual = mean, components, gain, residual
        self._room, self._rows, self._offset = room, rows, offset

    @classmethod
    def fit(
        cls, basis: BasisEncoder, moments: Moments, dim: int, records: int | None, residual: float
    ) -> PcaEncoder:
        """Post-processing of noisy moments.

        Frequencies that are near another have covariances of about one size: `_shrunk` weighs blocks of them by what
        their noise leaves. Noise on a symmetric matrix then moves an eigenvalue l to l + v / l, v the largest sum of
        its variances in a row, as long as l is above sqrt(v); below that nothing of its direction is seen
        (Benaych-Georges and Nadakuditi 2011, who have equal variances): variances are mended by the inverse, and below
        that taken as they come out.

        Args:
            basis: that the moments were summed in.
            moments: noisy.
            dim: d, of the latents, at most p.
            records: their number where it is public; default: the noisy one.
            residual: of the deviation along what the latents leave out, that decoding draws.
        """
        number = moments.records if records is None else float(records)
        mean, covariance, left = _shrunk(moments, number, basis.bands)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        seen = values > 2 * math.sqrt(left)
        mended = (values + np.sqrt(np.maximum(values**2 - 4 * left, 0.0))) / 2
        true = np.where(seen, mended, np.maximum(values, 0.0))
        true = np.maximum(true, max(_SMALLEST * float(true[0]), 1e-12))
        kept = true[:dim]
        gain = kept ** (-_WHITENING / 2)
        gain /= _REACH * math.sqrt(float((kept * gain**2).sum())) * basis.longest
        mean *= basis.longest
        left_out = (vectors[:, dim:] * (residual * np.sqrt(true[dim:]))).T * basis.longest
        components = vectors[:, :dim].copy()
        spread = ((components * (np.sqrt(kept) * basis.longest)).T @ basis.basis) ** 2
        room = np.maximum(1 - (mean @ basis.basis) ** 2 - spread.sum(axis=0), _LEAST_ROOM)
        # Stored rather than computed again: another processor's matrix product may round otherwise.
        rows, offset = _on_lattice(components.T @ basis.basis), components.T @ mean
        return cls(
            basis, mean, components, gain, left_out, room, rows, offset, int(seen.sum()), moments.source
        )

    def encode(self, records: NDArray[Any], labels: NDArray[np.integer[Any]] | None = None) -> Array:
        """Records [n, *shape] to latents [n, d] in the unit ball; NaN for a record that has none."""
        return _into_ball((self.basis.coefficients(records, self._rows) - self._offset) * self._gain)

    def decode(
        self, latents: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[Any]:
        """Latents [n, d] to records [n, *shape].

        What the components leave out is drawn with the variances that the moments tell of, from each latent's own
        bytes: the same latent gives the same record. Records without it are smoother than any real one, and a network
        that learns from them does worse on real ones. A pixel near an end of its range has little room to vary: one at
        x in [-1, 1] gets that variance times 1 - x^2, over the expectation of 1 - x^2, so that a dark background
        stays dark.
        """
        points = np.array(latents, dtype=np.float64, order="C").reshape(-1, self.latent_dim)
        scaled = (self._mean + (points / self._gain) @ self._components.T) @ self.basis.basis
        if self._residual.any():
            drawn = _drawn(points, len(self._residual)) @ self._residual @ self.basis.basis
            if self.schema.value_range is not None:
                drawn *= np.sqrt(np.maximum(1 - scaled**2, 0.0) / self._room)
            scaled += drawn
        return self.basis.from_box(scaled)

    def manifest(self) -> dict[str, Any]:
        """The basis's manifest, and what the moments said."""
        return {**self.basis.manifest(), "above_noise": self.above_noise, "source": dict(self.source)}

    def weights(self) -> dict[str, Tensor]:
        """Basis, mean, components, their scaling, and what is left out."""
        return {
            **self.basis.weights(),
            **{name: torch.from_numpy(np.ascontiguousarray(getattr(self, f"_{name}"))) for name in _STORED},
        }

    @classmethod
    def restore(cls, manifest: Mapping[str, Any], weights: dict[str, Tensor], device: str) -> PcaEncoder:
        """The inverse of `manifest` and `weights`; the device plays no part."""
        basis = BasisEncoder.restore(manifest, weights, device)
        stored = {name: weights[name].numpy() for name in _STORED}
        return cls(basis, **stored, above_noise=int(manifest["above_noise"]), source=manifest["source"])


def _shrunk(moments: Moments, records: float, bands: NDArray[np.intp]) -> tuple[Array, Array, float]:
    """Mean [p] and covariance [p, p], each block of them times what of its mean square is not noise.

    That is the linear estimate of least squared error, of entries of one size around zero, with the size estimated
    from the block (Efron and Morris 1973). A diagonal is drawn towards its block's mean instead. The third is the
    largest sum, over a row, of the variances of the noise that is left.
    """
    deviation = moments.noise(records)
    ratio = RATIO  # of the mean's noise to the second moments'
    mean, noise = moments.mean(records), deviation**2
    blocks = [slice(low, high) for low, high in pairwise(bands)]
    for own in blocks:
        mean[own] *= _signal(float(np.mean(mean[own] ** 2)), ratio**2 * noise)
    covariance = moments.second(records) - np.outer(mean, mean)
    variance = noise * (1 + ratio**2 * np.add.outer(mean**2, mean**2))
    np.fill_diagonal(variance, 2 * np.diag(variance))
    weight, towards = np.ones_like(variance), np.zeros_like(variance)
    for row in blocks:
        for column in blocks:
            beside = np.ones(variance[row, column].shape, dtype=bool)
            if row == column:
                np.fill_diagonal(beside, False)
                diagonal = np.diag(covariance)[row]
                share = _signal(float(diagonal.var()), float(np.diag(variance)[row].mean()))
                np.fill_diagonal(weight[row, row], share if len(diagonal) > 1 else 1.0)
                np.fill_diagonal(towards[row, row], diagonal.mean())
            if beside.any():
                square = float(np.mean(covariance[row, column][beside] ** 2))
                weight[row, column][beside] = _signal(square, float(variance[row, column][beside].mean()))
    covariance = towards + weight * (covariance - towards)
    return mean, covariance, float((weight**2 * variance).sum(axis=1).max())


def _signal(square: float, noise: float) -> float:
    """Part of a mean square that noise of known variance does not explain."""
    return max(square - noise, 0.0) / square if square > 0 else 0.0


def _low_frequencies(schema: RecordSchema, size: int) -> Array:
    """The `size` lowest frequencies of the 2-D cosine transform of every channel: orthonormal rows [p, size]."""
    height, width, channels = schema.shape
    down, across = _cosines(height), _cosines(width)
    row, column = np.divmod(np.arange(height * width), width)
    order = np.lexsort((row, (row / height) ** 2 + (column / width) ** 2))
    chosen = order[: -(-size // channels)]
    waves = np.einsum("ku,kv->kuv", down[row[chosen]], across[column[chosen]])
    rows = np.einsum("kuv,cd->kcuvd", waves, np.eye(channels)).reshape(-1, schema.size)
    return np.ascontiguousarray(rows[:size])


def _cosines(count: int) -> Array:
    """Orthonormal rows of the discrete cosine transform, the lowest frequency first."""
    k, x = np.arange(count)[:, None], np.arange(count)[None]
    waves = np.cos(np.pi * k * (2 * x + 1) / (2 * count)) * math.sqrt(2 / count)
    waves[0] /= math.sqrt(2)
    return np.asarray(waves)


def _on_lattice(rows: Array) -> Array:
    return np.asarray(np.rint(rows / _LATTICE) * _LATTICE)


def _into_ball(latents: Array) -> Array:
    return np.asarray(latents / np.maximum(np.linalg.norm(latents, axis=1, keepdims=True), 1.0))


def _drawn(points: Array, count: int) -> Array:
    """Standard normal numbers [n, count] that each row of points decides."""
    out = np.empty((len(points), count))
    for row, point in zip(out, points, strict=True):
        seed = int.from_bytes(hashlib.blake2b(point.tobytes(), digest_size=16).digest(), "little")
        row[:] = np.random.default_rng(seed).standard_normal(count)
    return out
