"""Private latents on disk: fixed chunks of Arrow in the private folder, memory-mapped by the shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from dpsw_ray.base.files import DamagedFile, open_regular, read_arrow, write_arrow, write_bytes
from dpsw_ray.data.records import NULL
from dpsw_ray.encoders.base import Encoder
from dpsw_ray.private.records import open_private_records
from dpsw_ray.slicing.directions import LATTICE

__all__ = ["BALL", "NULL", "LatentStore", "bounded"]

CHUNK = 8192
BALL = 1.0 - 1e-6
"""Radius every latent is projected into: inside the unit ball by more than all rounding errors together."""

_DIGEST = b"digest"
"""Key of a chunk's hash in its own schema."""


def bounded(
    latents: NDArray[np.float64], labels: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Makes every record one that the sensitivity covers.

    A latent outside the ball is scaled onto it; one with a NaN or an infinity becomes the null record (latent
    zero, label NULL), silently: saying so would be a statistic of the private data.

    Args:
        latents: array of size [n, d].
        labels: array of size [n].

    Returns:
        Latents on the lattice, rounded towards zero so that norms stay within 1 - 1e-6, and labels.
    """
    finite = np.asarray(np.isfinite(latents).all(axis=1))
    safe = np.where(finite[:, None], latents, 0.0)
    # Scaled by the largest coordinate first: the square of a huge finite number would overflow.
    peak = np.maximum(np.abs(safe).max(axis=1, keepdims=True), 1.0)
    norm = np.linalg.norm(safe / peak, axis=1, keepdims=True) * peak
    safe = safe / peak * (np.minimum(1.0, BALL / np.maximum(norm, BALL)) * peak)
    safe = np.trunc(safe / LATTICE) * LATTICE  # to nearest, a norm in many dimensions could pass 1
    return safe, np.where(finite, labels, np.int32(NULL)).astype(np.int32)


class LatentStore:
    """The latents of one data set under one encoder.

    Chunks have a fixed number of rows whatever the number of shards, and a chunk is encoded whole, by one
    thread: its bits do not depend on who encodes it.
    """

    def __init__(self, private_dir: Path, encoder_key: str) -> None:
        """Points at the store; nothing is read yet."""
        self.private_dir = Path(private_dir)
        self.folder = self.private_dir / "latents" / encoder_key

    def encode(self, encoder: Encoder, rank: int, size: int) -> None:
        """Writes the chunks `rank, rank + size, ...` that are not there yet, or are not what was written.

        Before a release is charged: one whose latents are damaged could never be made. Encoded anew they have the same
        bits.
        """
        part = open_private_records(self.private_dir)
        values, labels = part.values, part.labels
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for chunk in range(rank, -(-len(values) // CHUNK), size):
                path = self._chunk(chunk)
                rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
                if _is_whole(path, min(CHUNK, len(values) - rows.start), encoder.latent_dim):
                    continue
                classes = np.asarray(labels[rows], np.int32)
                null = classes == NULL
                latents = encoder.encode(np.asarray(values[rows]), np.where(null, -1, classes))
                latents[null] = np.nan
                column = pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel()), latents.shape[1])
                table = pa.table({"latent": column, "label": pa.array(classes)})
                table = table.replace_schema_metadata({_DIGEST: _digest(table)})
                write_arrow(path, table, mode=0o600)
        finally:
            torch.set_num_threads(threads)
        if rank == 0:
            write_bytes(self.folder / "rows.json", json.dumps(len(values)).encode(), mode=0o600)

    def rows(self) -> int:
        """Number of records: a private number under `add_remove`."""
        return int(json.loads((self.folder / "rows.json").read_text()))

    def batches(self, start: int, stop: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int32]]]:
        """Yields bounded latents and labels of the rows `start` to `stop`, a chunk at a time."""
        for chunk in range(start // CHUNK, -(-stop // CHUNK)):
            table = read_arrow(self._chunk(chunk))
            first = chunk * CHUNK
            table = table.slice(max(start - first, 0), min(stop - first, CHUNK) - max(start - first, 0))
            dim = table.schema.field("latent").type.list_size
            latents = _numbers(table.column("latent")).reshape(-1, dim)
            yield bounded(latents, table.column("label").to_numpy())

    def fingerprint(self) -> str:
        """Hash of the chunk files and of the number of rows: changes with the latents, whatever their times say."""
        digest = hashlib.blake2b((self.folder / "rows.json").read_bytes(), digest_size=32)
        for path in sorted(self.folder.glob("chunk-*.arrow")):
            with open_regular(path) as stream:
                content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).digest()
            digest.update(path.name.encode() + content)
        return digest.hexdigest()

    def _chunk(self, index: int) -> Path:
        return self.folder / f"chunk-{index:06d}.arrow"


def _is_whole(path: Path, rows: int, dim: int) -> bool:
    """Whether a chunk holds what was written; of one that has no digest, whether it has the right form."""
    try:
        table = read_arrow(path)
        wanted = pa.schema({"latent": pa.list_(pa.float64(), dim), "label": pa.int32()})
        if len(table) != rows or not table.schema.equals(wanted):
            return False
        told = (table.schema.metadata or {}).get(_DIGEST)
        return told is None or told == _digest(table)
    except (DamagedFile, pa.ArrowException, ValueError):
        return False


def _digest(table: pa.Table) -> bytes:
    """Hash of the numbers in a chunk."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(_numbers(table.column("latent")).tobytes())
    digest.update(table.column("label").to_numpy().tobytes())
    return digest.hexdigest().encode()


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """The latents of a column, one after the other."""
    joined = column.combine_chunks()
    return np.asarray(joined.flatten().to_numpy())
