"""The users' latents on disk, user by user: memory-mapped by whoever sums, on the private side."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.files import DamagedFile, open_regular, read_bytes, write_bytes
from dpsw_ray.federated.population.base import Partitioner
from dpsw_ray.private.latents import CHUNK, LatentStore
from dpsw_ray.slicing.directions import LATTICE

__all__ = ["UserStore"]

_FILES = ("latents.npy", "labels.npy", "offsets.npy")


class UserStore:
    """Latents in multiples of 2^-26, labels, and where each user's begin; a user's records are sorted by label.

    How many records a user has is private: nothing outside the private folder tells it. The store is made beside its
    place and appears there whole; it never changes afterwards, so that whoever has mapped it can go on reading.
    """

    def __init__(self, folder: Path) -> None:
        """Points at the folder; nothing is read yet."""
        self.folder = Path(folder)
        self._part = self.folder.with_name(f".{self.folder.name}.part")

    @property
    def ready(self) -> bool:
        """Whether the store is whole."""
        return (self.folder / "ready.json").exists()

    def inspect(self) -> None:
        """Removes a store that is not what was written, so that it is made anew: before a round is charged."""
        with self._locked():
            if self.ready and not self._is_whole():
                shutil.rmtree(self.folder)

    def _is_whole(self) -> bool:
        try:
            told = json.loads(read_bytes(self.folder / "ready.json"))
            if told is not True and told["digest"] != self.fingerprint():
                return False
            latents, labels, offsets = (np.load(self.folder / name, mmap_mode="r") for name in _FILES)
            kinds = (latents.dtype, labels.dtype, offsets.dtype) == (np.int32, np.int32, np.int64)
            return bool(kinds and latents.ndim == 2 and len(latents) == len(labels) == offsets[-1])
        except (DamagedFile, ValueError, KeyError, TypeError, IndexError, EOFError):
            return False

    def create(self, counts: NDArray[np.int64], dim: int) -> None:
        """Makes the files for users with these numbers of records, where nobody has; what they hold comes later.

        Whoever makes the same users up at the same time writes the same bytes to the same files.

        Args:
            counts: array of size [users].
            dim: d.
        """
        with self._locked():
            if not self.ready and not self._part.exists():
                self._create(counts, dim)

    def _create(self, counts: NDArray[np.int64], dim: int) -> None:
        for left in self.folder.parent.glob(
            f"{self._part.name}*"
        ):  # by a process that was killed: the lock is ours
            shutil.rmtree(left)
        fresh = Path(tempfile.mkdtemp(prefix=self._part.name, dir=self.folder.parent))  # for the owner only
        total = int(counts.sum())
        shapes = {"latents.npy": ((total, dim), np.int32), "labels.npy": ((total,), np.int32)}
        for name, (shape, kind) in shapes.items():
            os.close(os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            np.lib.format.open_memmap(fresh / name, mode="w+", dtype=kind, shape=shape).flush()
            (fresh / name).chmod(0o600)
        os.close(os.open(fresh / "offsets.npy", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        np.save(fresh / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        fresh.rename(self._part)

    def put(
        self, place: slice | NDArray[np.int64], latents: NDArray[np.float64], labels: NDArray[np.int32]
    ) -> None:
        """Writes bounded latents and their labels to some of the rows; not to a store that is whole already."""
        if self.ready:
            return
        for name, values in (("latents", np.rint(latents / LATTICE).astype(np.int32)), ("labels", labels)):
            rows = np.load(self._part / f"{name}.npy", mmap_mode="r+")
            rows[place] = values
            rows.flush()

    def finish(self) -> None:
        """Declares the store whole, and puts it in its place."""
        with self._locked():
            if not self.ready:
                self._finish()

    def _finish(self) -> None:
        for name in _FILES:
            with (self._part / name).open("rb") as stream:
                os.fsync(stream.fileno())
        ready = {"digest": _digest(self._part)}
        write_bytes(self._part / "ready.json", json.dumps(ready).encode(), mode=0o600)
        shutil.rmtree(self.folder, ignore_errors=True)  # not ready: nobody reads it
        self._part.rename(self.folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            self.folder.with_name(f".{self.folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def arrange(self, records: LatentStore, partitioner: Partitioner, users: int, seed: int) -> None:
        """Sorts the private latents by user, and a user's by label, where nobody has."""
        with self._locked():
            if not self.ready:
                self._arrange(records, partitioner, users, seed)
                self._finish()

    def _arrange(self, records: LatentStore, partitioner: Partitioner, users: int, seed: int) -> None:
        rows = records.rows()
        labels = np.concatenate([labels for _, labels in records.batches(0, rows)] or [np.empty(0, np.int32)])
        owners = partitioner.assign(labels, np.random.default_rng([seed, 0xF00D]))
        order = np.lexsort((labels, owners))
        place = np.empty(rows, dtype=np.int64)
        place[order] = np.arange(rows)
        start = 0
        for start, (latents, own) in zip(range(0, rows, CHUNK), records.batches(0, rows), strict=True):
            if start == 0:
                self._create(np.bincount(owners, minlength=users), latents.shape[1])
            self.put(place[start : start + len(own)], latents, own)
        if not rows:
            self._create(np.zeros(users, np.int64), 1)

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
        return _digest(self.folder)


def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for name in _FILES:
        with open_regular(folder / name) as stream:
            digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).digest())
    return digest.hexdigest()
