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

Durable beside it is what the release was last asked, with keyed hashes of all chunks' messages, before the
noise of that question exists. What is asked again must be the same, and so must every chunk's message.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpsw_ray.base.files import write_bytes
from dpsw_ray.private.noise import NoiseSecret, draw_secret, restore_secret
from dpsw_ray.release.plan import Plan

__all__ = ["Asked", "KeyStore", "checked_id"]

_RULES = 2
"""By which noise is derived from a secret: one made under others would give a second noise for its charge."""


@dataclass(frozen=True)
class Asked:
    """What a release was last asked and is about to answer, or has answered.

    Attributes:
        number: of the question, from 0; -1: nothing yet.
        question: its digest.
        messages: keyed hashes of all chunks' messages, in their order.
    """

    number: int
    question: str
    messages: tuple[str, ...]


_NOTHING = Asked(-1, "", ())


class KeyStore:
    """The noise secrets of one data set's releases that are not committed yet."""

    def __init__(self, private_dir: Path) -> None:
        """Points at the folder; nothing is read yet."""
        self.folder = Path(private_dir) / "keys"
        self.spent = Path(private_dir) / "spent"
        self.questions = Path(private_dir) / "asked"

    def make_folders(self) -> None:
        """Makes room for secrets and for what tells that they are destroyed: what cannot be made fails before a charge.

        Raises:
            OSError: something else is in their place, or nothing may be written there.
        """
        for folder in (self.folder, self.spent, self.questions):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass

    def find(self, plan: Plan, fingerprint: str | None, seed: int | None = None) -> NoiseSecret | None:
        """The secret that a retry of this very release may use, or None.

        Args:
            plan: of the release.
            fingerprint: of the latents; None by a worker that leaves this to the designated one.
            seed: of reproducible noise, or None.
        """
        stored = self._stored(plan.release_id)
        try:
            if stored["rules"] != _RULES:
                return None
            if stored["promised"] != _promised(plan) or fingerprint not in (None, stored["latents"]):
                return None
            if stored["seed"] != seed:
                return None
            return restore_secret(bytes.fromhex(stored["secret"]), plan)
        except (ValueError, KeyError, TypeError):  # none, or one that was never finished
            return None

    def chunks(self, release_id: str) -> int:
        """How many chunks of holders answer for a release, whose secret was found."""
        return int(self._stored(release_id)["chunks"])

    def hashing(self, release_id: str) -> bytes:
        """Key of the hashes of messages, of a release whose secret was found.

        It is of its own: whoever takes a guess at the exact sum from a drawn table's noisy one has the table, and would
        see from a hash under it whether the guess is right.
        """
        return bytes.fromhex(self._stored(release_id)["hashing"])

    def create(self, plan: Plan, fingerprint: str, chunks: int = 1, seed: int | None = None) -> NoiseSecret:
        """Draws the secret and makes it durable before anything uses it.

        Args:
            plan: of the release.
            fingerprint: of the latents.
            chunks: of holders, who answer together.
            seed: of reproducible noise, which the secret then has no part in.

        Raises:
            RuntimeError: the release has a secret already, or had one.
            ValueError: the release's id is none, or its sampler takes no seed.
        """
        if seed is not None and plan.noise == "discrete_gaussian":
            raise ValueError("discrete Gaussian noise has no seed")
        path = self._path(plan.release_id)
        self.make_folders()
        drawn = draw_secret(plan)
        stored = {
            "rules": _RULES, "promised": _promised(plan), "latents": fingerprint, "chunks": chunks, "seed": seed,
            "hashing": secrets.token_hex(32), "secret": drawn.secret.hex(),
        }  # fmt: skip
        try:  # that nothing was asked comes first: a secret without it is one whose answers nobody knows
            if os.path.lexists(path):
                raise FileExistsError
            _write_new(self._asked(plan.release_id), json.dumps(asdict(_NOTHING)).encode())
            _write_new(path, json.dumps(stored).encode())
        except FileExistsError:
            raise RuntimeError("this release has a noise secret already") from None
        if os.path.lexists(
            self._spent(plan.release_id)
        ):  # since it was destroyed: this worker slept meanwhile
            self.destroy(plan.release_id)
            raise RuntimeError("this release had a noise secret, which is destroyed")
        return drawn

    @contextlib.contextmanager
    def locked(self, release_id: str) -> Iterator[None]:
        """Nobody else asks under this id meanwhile, or destroys its secret.

        Raises:
            FileNotFoundError: there is no secret.
        """
        with self._path(release_id).open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def asked(self, release_id: str) -> Asked | None:
        """What a release was last asked, number -1 for nothing yet; None where the record of it is lost.

        Raises:
            RuntimeError: what is stored cannot be read: nobody knows what was answered.
        """
        try:
            stored = json.loads(self._asked(release_id).read_bytes())
            return Asked(int(stored["number"]), str(stored["question"]), tuple(map(str, stored["messages"])))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise RuntimeError("the record of what a release was asked is damaged") from None

    def ask(self, release_id: str, asked: Asked) -> None:
        """Makes durable what a release is going to answer, before its noise is drawn; `locked`."""
        write_bytes(self._asked(release_id), json.dumps(asdict(asked)).encode(), mode=0o600)

    def destroy(self, release_id: str) -> None:
        """Overwrites and removes the secret once the release is committed, or given up: its id has none for ever."""
        try:
            path = self._path(release_id)
        except ValueError:
            return
        if not self.folder.exists():  # nothing was ever drawn on this data set's noise
            return
        self.make_folders()
        if not os.path.lexists(self._spent(release_id)):
            self._spent(release_id).touch(mode=0o600)
        _sync(self.spent)  # before the secret goes: whoever makes another one sees it
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # whoever asks has asked, or sees that it is spent
            stream.write(b"\0" * path.stat().st_size)
            stream.flush()
            os.fsync(stream.fileno())
            path.unlink()
        self._asked(release_id).unlink(missing_ok=True)

    def forget(self, release_ids: Iterable[str]) -> None:
        """Removes what tells that these secrets were destroyed; for ids that no worker can be about to use."""
        for release_id in release_ids:
            self._spent(release_id).unlink(missing_ok=True)

    def _stored(self, release_id: str) -> dict[str, Any]:
        """What is stored with a secret; empty where there is none, or one that was never finished."""
        try:
            stored = json.loads(self._path(release_id).read_text())
            spent = os.path.lexists(self._spent(release_id))
        except (FileNotFoundError, ValueError):
            return {}
        return {} if spent or not isinstance(stored, dict) else stored

    def _asked(self, release_id: str) -> Path:
        return self.questions / f"{checked_id(release_id)}.json"

    def _spent(self, release_id: str) -> Path:
        return self.spent / checked_id(release_id)

    def _path(self, release_id: str) -> Path:
        return self.folder / f"{checked_id(release_id)}.json"


def checked_id(release_id: str) -> str:
    """Returns a release's id, which comes out of a run's folder, perhaps anybody's: it must not lead to another file.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9]{1,64}", release_id):
        raise ValueError("this is not the id of a release")
    return release_id


def _promised(plan: Plan) -> str:
    """Hash of all that decides a release's answers and what they cost, also of what a plan's own digest leaves out."""
    own = (
        plan.digest(), plan.mechanism, plan.questions, plan.parts, plan.form, plan.noise, plan.noise_on,
        float(plan.noise_std).hex(), plan.cells, plan.stretches, json.dumps(plan.event.to_dict(), sort_keys=True),
    )  # fmt: skip
    return hashlib.sha256(repr(own).encode()).hexdigest()


def _write_new(path: Path, content: bytes) -> None:
    """Not written aside and renamed: of two that create at once, one must fail."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
