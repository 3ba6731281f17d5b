"""Records as their own latents: an affine map of the columns into the unit ball, from public knowledge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsw_ray.base.errors import UserError
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders.base import Encoder, to_records
from dpsw_ray.encoders.scaling import column_statistics, restored, standardised

__all__ = ["IdentityEncoder"]

QUANTILE = (
    0.999  # of the public norms; with MARGIN it decides how few private records are moved onto the sphere
)
MARGIN = 1.1


class IdentityEncoder(Encoder):
    """x -> (x - shift) / (scale * radius), projected onto the unit ball.

    Columns with public bounds map their box to [-1, 1] and are clipped to it; the others are standardised by
    the public mean and standard deviation, and what is constant in the public part becomes 0. The radius is
    sqrt(d) where every column has bounds (no record is moved), else a high quantile of the public norms with a
    margin.
    """

    family: ClassVar[str] = "identity"

    def __init__(
        self,
        schema: RecordSchema,
        shift: NDArray[np.float64],
        scale: NDArray[np.float64],
        box: NDArray[np.float64],
        radius: float,
    ) -> None:
        self.schema, self.latent_dim, self.sphere = schema, math.prod(schema.shape), False
        self._shift, self._scale, self._box, self._radius = shift, scale, box, radius

    @classmethod
    def fit(
        cls,
        schema: RecordSchema,
        public_values: NDArray[Any],
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> IdentityEncoder:
        """Takes the map from public records [n, *shape] and public bounds by column.

        Raises:
            UserError: where a bound names no column, or there is no public record to standardise by.
        """
        dim = math.prod(schema.shape)
        box = np.tile(np.array([-np.inf, np.inf]), (dim, 1))
        if schema.value_range is not None:
            box[:] = schema.value_range
        for column, limits in (bounds or {}).items():
            if column not in schema.columns:
                raise UserError(
                    f"data.bounds.{column} is no column; the columns are {', '.join(schema.columns)}."
                )
            box[list(schema.columns).index(column)] = limits
        public = np.asarray(public_values, dtype=np.float64).reshape(-1, dim)
        bounded = np.isfinite(box).all(axis=1)
        if not bounded.all() and len(public) < 2:
            raise UserError(
                "Standardising a table needs at least two public records; raise data.public_fraction, or give "
                "data.bounds of every column."
            )
        shift, scale = np.empty(dim), np.empty(dim)
        low, high = box[bounded].T / 2
        shift[bounded], scale[bounded] = high + low, high - low
        radius = math.sqrt(dim)
        if not bounded.all():
            shift[~bounded], scale[~bounded] = column_statistics(public[:, ~bounded])
            norms = np.linalg.norm(standardised(np.clip(public, box[:, 0], box[:, 1]), shift, scale), axis=1)
            radius = max(MARGIN * float(np.quantile(norms, QUANTILE)), 1.0)
        return cls(schema, shift, scale, box, radius)

    def encode(
        self, records: NDArray[Any], labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.float64]:
        """Records [n, *shape] to latents [n, d]; what lies outside the ball is moved to its surface.

        NaN for a record with a value that is not finite.
        """
        values = np.asarray(records, dtype=np.float64).reshape(-1, self.latent_dim)
        known = np.isfinite(values).all(axis=1, keepdims=True)
        values = np.where(known, np.clip(values, self._box[:, 0], self._box[:, 1]), self._shift)
        latents = standardised(values, self._shift, self._scale) / self._radius
        latents /= np.maximum(np.linalg.norm(latents, axis=1, keepdims=True), 1.0)
        return np.where(known, latents, np.nan)

    def decode(
        self, latents: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[Any]:
        """Latents [n, d] to records [n, *shape], clipped to the public bounds."""
        points = np.asarray(latents, dtype=np.float64).reshape(-1, self.latent_dim)
        values = restored(points * self._radius, self._shift, self._scale)
        values = np.clip(values, self._box[:, 0], self._box[:, 1])
        return to_records(values.reshape(-1, *self.schema.shape), self.schema)

    def manifest(self) -> dict[str, Any]:
        """Schema and radius."""
        return {"schema": self.schema.to_dict(), "radius": self._radius}

    def weights(self) -> dict[str, Tensor]:
        """Shift, scale and box of the columns."""
        return {
            "shift": torch.from_numpy(self._shift),
            "scale": torch.from_numpy(self._scale),
            "box": torch.from_numpy(self._box),
        }

    @classmethod
    def restore(cls, manifest: Mapping[str, Any], weights: dict[str, Tensor], device: str) -> IdentityEncoder:
        """The inverse of `manifest` and `weights`; the device plays no part."""
        schema = RecordSchema.from_dict(manifest["schema"])
        shift, scale, box = (weights[name].numpy() for name in ("shift", "scale", "box"))
        return cls(schema, shift, scale, box, float(manifest["radius"]))
