"""Noise keys: they live on the private side from the first noise until the release is committed.

A retry under the same key gives the same bits, so it shows nothing new. The key is tied to the plan and to the
latents: with either changed, the same noise would show the difference of two exact sums, so such a retry finds
no key and must be charged as a release of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from dpsw_ray.files import write_bytes
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
        except FileNotFoundError:
            return None
        if stored["plan"] != plan.digest() or stored["latents"] != fingerprint:
            return None
        return NoiseKey(bytes.fromhex(stored["key"]))

    def create(self, plan: ReleasePlan, fingerprint: str) -> NoiseKey:
        """Draws the key from operating-system entropy and makes it durable before anything uses it.

        Raises:
            RuntimeError: a key of that release exists already.
        """
        path = self._path(plan.release_id)
        if path.exists():
            raise RuntimeError("this release has a noise key already, of another plan or of other latents")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = os.urandom(32)
        stored = {"plan": plan.digest(), "latents": fingerprint, "key": secret.hex()}
        write_bytes(path, json.dumps(stored).encode(), mode=0o600)
        return NoiseKey(secret)

    def destroy(self, release_id: str) -> None:
        """Overwrites and removes the key once the release is committed; without one, does nothing."""
        path = self._path(release_id)
        if not path.exists():
            return
        with path.open("r+b") as stream:
            stream.write(b"\0" * path.stat().st_size)
            stream.flush()
            os.fsync(stream.fileno())
        path.unlink()

    def _path(self, release_id: str) -> Path:
        return self.folder / f"{release_id}.json"
