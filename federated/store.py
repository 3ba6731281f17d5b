"""The users' latents on disk, user by user: memory-mapped by whoever sums, on the private side."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.files import write_bytes
from dpsw_ray.private.latents import CHUNK, LatentStore
from dpsw_ray.slicing.directions import LATTICE
from federated.population.base import Partitioner

__all__ = ["UserStore"]

_FILES = ("latents.npy", "labels.npy", "offsets.npy")


class UserStore:
    """Latents in multiples of 2^-26, labels, and where each user's begin; a user's records are sorted by label.

    How many records a user has is private: nothing outside the private folder tells it.
    """

    def __init__(self, folder: Path) -> None:
        """Points at the folder; nothing is read yet."""
        self.folder = Path(folder)

    @property
    def ready(self) -> bool:
        """Whether the store is whole."""
        return (self.folder / "ready.json").exists()

    def create(self, users: int, counts: NDArray[np.int64], dim: int) -> None:
        """Makes the files for users with these numbers of records; what they hold comes later.

        Args:
            users: in the population.
            counts: array of size [users].
            dim: d.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        total = int(counts.sum())
        shapes = {"latents.npy": ((total, dim), np.int32), "labels.npy": ((total,), np.int32)}
        for name, (shape, kind) in shapes.items():
            os.close(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
            np.lib.format.open_memmap(self.folder / name, mode="w+", dtype=kind, shape=shape).flush()
            (self.folder / name).chmod(0o600)
        os.close(os.open(self.folder / "offsets.npy", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        np.save(self.folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def put(
        self, place: slice | NDArray[np.int64], latents: NDArray[np.float64], labels: NDArray[np.int32]
    ) -> None:
        """Writes bounded latents and their labels to some of the rows."""
        for name, values in (("latents", np.rint(latents / LATTICE).astype(np.int32)), ("labels", labels)):
            rows = np.load(self.folder / f"{name}.npy", mmap_mode="r+")
            rows[place] = values
            rows.flush()

    def finish(self) -> None:
        """Declares the store whole."""
        for name in _FILES:
            with (self.folder / name).open("rb") as stream:
                os.fsync(stream.fileno())
        write_bytes(self.folder / "ready.json", json.dumps(True).encode(), mode=0o600)

    def arrange(self, records: LatentStore, partitioner: Partitioner, users: int, seed: int) -> None:
        """Sorts the private latents by user, and a user's by label."""
        rows = records.rows()
        labels = np.concatenate([labels for _, labels in records.batches(0, rows)] or [np.empty(0, np.int32)])
        owners = partitioner.assign(labels, np.random.default_rng([seed, 0xF00D]))
        order = np.lexsort((labels, owners))
        place = np.empty(rows, dtype=np.int64)
        place[order] = np.arange(rows)
        start = 0
        for start, (latents, own) in zip(range(0, rows, CHUNK), records.batches(0, rows), strict=True):
            if start == 0:
                self.create(users, np.bincount(owners, minlength=users), latents.shape[1])
            self.put(place[start : start + len(own)], latents, own)
        if not rows:
            self.create(users, np.zeros(users, np.int64), 1)
        self.finish()

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Array of size [users + 1]."""
        return np.asarray(np.load(self.folder / "offsets.npy"))

    @cached_property
    def latents(self) -> NDArray[np.int32]:
        """Array of size [n, d], memory-mapped."""
        return np.asarray(np.load(self.folder / "latents.npy", mmap_mode="r"))

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Array of size [n], memory-mapped."""
        return np.asarray(np.load(self.folder / "labels.npy", mmap_mode="r"))

    def share(self, rank: int, size: int) -> tuple[int, int]:
        """The users `first` to `last` that are a rank's: about the same number of records for everybody."""
        # A user without records costs a little too.
        work = self.offsets + np.arange(len(self.offsets))
        cuts = np.searchsorted(work, np.linspace(0, work[-1], size + 1))
        cuts[0], cuts[-1] = 0, len(self.offsets) - 1
        return int(cuts[rank]), int(cuts[rank + 1])

    def fingerprint(self) -> str:
        """Hash of the files' contents."""
        digest = hashlib.blake2b(digest_size=32)
        for name in _FILES:
            with (self.folder / name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).digest())
        return digest.hexdigest()
