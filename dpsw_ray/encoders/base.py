"""What an encoder is, and how one is stored: a folder with `encoder.json` and `weights.pt`."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DAMAGE, DamagedFile, read_bytes, read_manifest, write_bytes, write_manifest
from dpsw_ray.data.records import RecordSchema

__all__ = ["Encoder", "load_encoder", "read_weights", "to_records", "write_weights"]

FORMAT = 1

_FAMILIES: dict[str, type[Encoder]] = {}
"""Every encoder by its family's name; importing the package `dpsw_ray.encoders` defines them all."""


class Encoder(ABC):
    """Records to latents in the closed unit ball and back; fitted on public records, or on what was released.

    Attributes:
        schema: what a record is.
        latent_dim: d.
        sphere: whether every latent lies on the unit sphere.
        conditional: whether records and latents are read with their classes: a latent then says only how a record
            differs from others of its class.
        source: the release that it was computed from, by id and digest; empty where no private record took part.
        history: `train_loss` and `holdout_loss` of every epoch, both of public records and in the units of the
            loss; empty where nothing was trained.
    """

    family: ClassVar[str]
    schema: RecordSchema
    latent_dim: int
    sphere: bool
    conditional: bool = False
    source: Mapping[str, str] = MappingProxyType({})
    history: Sequence[Mapping[str, float]] = ()

    def __init_subclass__(cls) -> None:
        _FAMILIES[cls.family] = cls

    @abstractmethod
    def encode(
        self, records: NDArray[Any], labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.float64]:
        """Records [n, *shape] to latents [n, d] of norm at most 1, equal to 1 where `sphere`, to rounding.

        A record's latent is finite and depends on that record (with its label) alone, whatever records stand beside
        it, so a shard's latents do not depend on how the records were divided.

        Args:
            records: array of size [n, *shape].
            labels: their classes [n], -1 without; only a conditional encoder reads and needs them.
        """

    @abstractmethod
    def decode(
        self, latents: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[Any]:
        """Latents [n, d] to records [n, *shape] of the schema's type; images are rounded and clipped.

        Args:
            latents: array of size [n, d].
            labels: their classes [n], -1 without; only a conditional encoder reads and needs them.
        """

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The weights by name."""

    @classmethod
    @abstractmethod
    def restore(cls, manifest: Mapping[str, Any], weights: dict[str, Tensor], device: str) -> Encoder:
        """The inverse of `manifest` and `weights`."""

    def save(self, folder: Path) -> None:
        """Writes the encoder into `folder`, the manifest last: a folder without it was never finished."""
        write_weights(folder, "encoder.json", {"family": self.family, **self.manifest()}, self.weights())


def load_encoder(folder: Path, device: str = "cpu") -> Encoder:
    """Reads what `Encoder.save` wrote.

    Raises:
        UserError: where the folder is not a whole encoder, or its weights are not those of the manifest.
    """
    manifest, weights = read_weights(folder, "encoder.json")
    try:
        return _FAMILIES[manifest["family"]].restore(manifest, weights, device)
    except (*DAMAGE, RuntimeError) as error:
        raise UserError(
            f"{folder} does not hold an encoder of this version ({type(error).__name__})."
        ) from error


def to_records(values: NDArray[np.floating[Any]], schema: RecordSchema) -> NDArray[Any]:
    """Values [n, *shape] in the records' own units to records: images are rounded and clipped to uint8."""
    if schema.value_range is not None:
        values = np.clip(np.rint(values), *schema.value_range)
    records: NDArray[Any] = values.astype(schema.dtype)
    return records


def write_weights(
    folder: Path, name: str, manifest: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Writes `weights.pt` and then the manifest `name`, which carries the weights' SHA-256."""
    buffer = io.BytesIO()
    torch.save({key: value.detach().cpu() for key, value in weights.items()}, buffer)
    data = buffer.getvalue()
    write_bytes(folder / "weights.pt", data)
    write_manifest(
        folder / name, {"format": FORMAT, **manifest, "weights_sha256": hashlib.sha256(data).hexdigest()}
    )


def read_weights(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what `write_weights` wrote.

    Raises:
        UserError: where a file is missing or damaged, or the format is another version's.
        OSError: as the operating system gives it, where access is refused.
    """
    manifest, data = read_manifest(folder / name), read_bytes(folder / "weights.pt")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder / name} is not of format {FORMAT}.")
    if hashlib.sha256(data).hexdigest() != manifest.get("weights_sha256"):
        raise DamagedFile.of(folder / "weights.pt", "is damaged (its SHA-256 is not the manifest's)")
    return manifest, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
