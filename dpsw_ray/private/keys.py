"""Noise secrets: they live on the private side until the release they belong to is committed.

The secret of a release is what fixes its noise: a key that the noise is derived from, or, where the sampler
takes no key, the drawn table itself. Here the two are bytes, and everything below holds for both.

A retry under the same secret gives the same bits, so it shows nothing new. The secret is tied to the plan and to
the latents: with either changed, the same noise would show the difference of two exact sums, so such a retry
finds no secret and must be charged as a release of its own.

One release has one secret in its life: it is made before the release is charged, a charge is never made twice
under one id, and summing finds a secret but never makes one. Ids of destroyed secrets are kept, for a worker that was
taken for lost and wakes when it is about to make the secret: none is made, or found, under such an id. Whoever holds
an old `pending.json`, perhaps of a copied run folder, can therefore repeat the very same noise or none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dpsw_ray.private.mechanism import NoiseSecret, draw_secret, restore_secret
from dpsw_ray.release.plan import AnyPlan

__all__ = ["KeyStore"]


class KeyStore:
    """The noise secrets of one data set's releases that are not committed yet."""

    def __init__(self, private_dir: Path) -> None:
        """Points at the folder; nothing is read yet."""
        self.folder = Path(private_dir) / "keys"
        self.spent = Path(private_dir) / "spent"

    def find(self, plan: AnyPlan, fingerprint: str) -> NoiseSecret | None:
        """The secret that a retry of this very release may use, or None."""
        try:
            stored = json.loads(self._path(plan.release_id).read_text())
            if self._spent(plan.release_id).exists():
                return None
            if stored["plan"] != plan.digest() or stored["latents"] != fingerprint:
                return None
            return restore_secret(bytes.fromhex(stored["secret"]), plan)
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or one that was never finished
            return None

    def create(self, plan: AnyPlan, fingerprint: str) -> NoiseSecret:
        """Draws the secret and makes it durable before anything uses it.

        Raises:
            RuntimeError: the release has a secret already, or had one.
            ValueError: the release's id is none.
        """
        path = self._path(plan.release_id)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        drawn = draw_secret(plan)
        stored = {"plan": plan.digest(), "latents": fingerprint, "secret": drawn.secret.hex()}
        try:
            # Not written aside and renamed: of two that create at once, one must fail.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise RuntimeError("this release has a noise secret already") from None
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(json.dumps(stored).encode())
            stream.flush()
            os.fsync(stream.fileno())
        _sync(self.folder)
        if self._spent(plan.release_id).exists():  # since it was destroyed: this worker slept meanwhile
            self.destroy(plan.release_id)
            raise RuntimeError("this release had a noise secret, which is destroyed")
        return drawn

    def destroy(self, release_id: str) -> None:
        """Overwrites and removes the secret once the release is committed, or given up: its id has none for ever."""
        try:
            path = self._path(release_id)
        except ValueError:
            return
        if not self.folder.exists():  # nothing was ever drawn on this data set's noise
            return
        self.spent.mkdir(mode=0o700, exist_ok=True)
        self._spent(release_id).touch(mode=0o600)
        _sync(self.spent)  # before the secret goes: whoever makes another one sees it
        if not path.exists():
            return
        with path.open("r+b") as stream:
            stream.write(b"\0" * path.stat().st_size)
            stream.flush()
            os.fsync(stream.fileno())
        path.unlink()

    def forget(self, release_ids: Iterable[str]) -> None:
        """Removes what tells that these secrets were destroyed; for ids that no worker can be about to use."""
        for release_id in release_ids:
            self._spent(release_id).unlink(missing_ok=True)

    def _spent(self, release_id: str) -> Path:
        return self.spent / self._path(release_id).stem

    def _path(self, release_id: str) -> Path:
        # The id comes out of a run's folder, which may be anybody's: it must not lead to another file.
        if not re.fullmatch(r"[A-Za-z0-9]{1,64}", release_id):
            raise ValueError("this is not the id of a release")
        return self.folder / f"{release_id}.json"


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
