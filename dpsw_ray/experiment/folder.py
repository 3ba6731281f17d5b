"""An experiment's folder: claimed, locked while somebody works in it, known by a random name of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path
from typing import Self

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DamagedFile, read_manifest, write_manifest

__all__ = ["ExperimentFolder"]

_MARK = "experiment.json"

_BEFORE = {".lock", _MARK, "sweep.yaml", "base.yaml"}
"""What an experiment writes before it makes anything."""


class ExperimentFolder:
    """The folder of one experiment, locked while this object is open; readable by its owner only.

    Attributes:
        path: absolute.
        id: random, made when the folder was; under it the experiment is known to MLflow.
    """

    def __init__(self, path: Path, kind: str) -> None:
        """Claims `path` for an experiment of this kind, such as `compare`.

        Raises:
            UserError: it holds something else, or somebody works in it.
        """
        self.path = path
        if blocking := next((place for place in (path, *path.parents) if place.is_file()), None):
            raise UserError(f"--output {path}: {blocking} is a file; give a folder.")
        inside = {entry.name for entry in path.iterdir()} - {".lock"} if path.exists() else set()
        if inside and _MARK not in inside:
            raise UserError(f"--output {path} holds other files: give an empty or a new folder.")
        self._made = [place for place in (path, *path.parents) if not place.exists()]
        self._fresh = not inside
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._claim(kind)
        except BaseException:
            os.close(self._lock)
            raise

    def trial(self, name: str) -> Path:
        """The folder of a trial's run."""
        return self.path / "trials" / name

    def log(self, name: str) -> Path:
        """The file that a trial's messages go to."""
        return self.path / "logs" / f"{name}.log"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._fresh and {entry.name for entry in self.path.iterdir()} <= _BEFORE:
            with contextlib.suppress(OSError):  # refused before anything was made: no trace is left
                for entry in self.path.iterdir():
                    entry.unlink()
                for folder in self._made:
                    folder.rmdir()
        os.close(self._lock)

    def _claim(self, kind: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"Another process is working in {self.path}: wait for it, or give another --output."
            ) from None
        mark = self.path / _MARK
        if not mark.exists():
            write_manifest(mark, {"kind": kind, "id": secrets.token_hex(16)})
        try:
            stored = read_manifest(mark)
            self.id, found = str(stored["id"]), stored["kind"]
        except (DamagedFile, KeyError):
            raise UserError(f"{mark} is damaged: give another --output.") from None
        if found != kind:
            raise UserError(f"--output {self.path} is the folder of a {found}: give another one.")
