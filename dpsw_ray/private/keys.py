"""Noise keys: they live on the private side until the release they belong to is committed.

A retry under the same key gives the same bits, so it shows nothing new. The key is tied to the plan and to the
latents: with either changed, the same noise would show the difference of two exact sums, so such a retry finds
no key and must be charged as a release of its own.

One release has one key in its life: it is made before the release is charged, a charge is never made twice
under one id, and summing finds a key but never makes one. Whoever holds an old `pending.json`, perhaps of a
copied run folder, can therefore repeat the very same noise or none.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.release.plan import ReleasePlan

__all__ = ["KeyStore"]


class KeyStore:
    """The noise keys of one data set's releases that are not committed yet."""

    def __init__(self, private_dir: Path) -> None:
        """Points at the folder; nothing is read yet."""
        self.folder = Path(private_dir) / "keys"

    def find(self, plan: ReleasePlan, fingerprint: str) -> NoiseKey | None:
        """The key that a retry of this very release may use, or None."""
        try:
            stored = json.loads(self._path(plan.release_id).read_text())
            if stored["plan"] != plan.digest() or stored["latents"] != fingerprint:
                return None
            return NoiseKey(bytes.fromhex(stored["key"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or one that was never finished
            return None

    def create(self, plan: ReleasePlan, fingerprint: str) -> NoiseKey:
        """Draws the key from operating-system entropy and makes it durable before anything uses it.

        Raises:
            RuntimeError: a key of that release exists already.
            ValueError: the release's id is none.
        """
        path = self._path(plan.release_id)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = os.urandom(32)
        stored = {"plan": plan.digest(), "latents": fingerprint, "key": secret.hex()}
        try:
            # Not written aside and renamed: of two that create at once, one must fail.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise RuntimeError("this release has a noise key already") from None
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(json.dumps(stored).encode())
            stream.flush()
            os.fsync(stream.fileno())
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return NoiseKey(secret)

    def destroy(self, release_id: str) -> None:
        """Overwrites and removes the key once the release is committed; without one, does nothing."""
        try:
            path = self._path(release_id)
        except ValueError:
            return
        if not path.exists():
            return
        with path.open("r+b") as stream:
            stream.write(b"\0" * path.stat().st_size)
            stream.flush()
            os.fsync(stream.fileno())
        path.unlink()

    def _path(self, release_id: str) -> Path:
        # The id comes out of a run's folder, which may be anybody's: it must not lead to another file.
        if not re.fullmatch(r"[A-Za-z0-9]{1,64}", release_id):
            raise ValueError("this is not the id of a release")
        return self.folder / f"{release_id}.json"
