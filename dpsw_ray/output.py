"""A run's folder: where it is, whose it is, and what it holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import yaml

from dpsw_ray.config import RunConfig
from dpsw_ray.errors import UserError
from dpsw_ray.files import write_text

__all__ = ["RunFolder", "resolve_output"]

_MAY_DIFFER = ("cluster", "tracking")
"""Sections that change who works and who watches, not what comes out: a run may be resumed with others."""


def resolve_output(config: RunConfig, output: Path | None) -> Path:
    """The absolute folder of a run: `output`, else `runs/<name>` under the current folder.

    In a submitted job the current folder is a copy that vanishes with the job. Relative paths are then taken
    from `DPSW_OUTPUT_ROOT`, or from the home of data sets and caches.
    """
    path = Path(output) if output is not None else Path("runs") / config.name
    path = path.expanduser()
    if path.is_absolute():
        return path
    root = os.environ.get("DPSW_OUTPUT_ROOT")
    if root is None and "runtime_resources" in Path.cwd().parts:
        root = str(config.home)
    return (Path(root).expanduser() if root else Path.cwd()).absolute() / path


class RunFolder:
    """The claimed folder of one run, locked while this object is open.

    Attributes:
        path: absolute.
        resumed: whether the folder held this very run before.
    """

    def __init__(self, config: RunConfig, path: Path) -> None:
        """Claims `path` for `config`.

        Raises:
            UserError: it holds another run, other files, or a run that is being written at this moment.
        """
        self.path = path
        if path.exists() and not path.is_dir():
            raise UserError(f"--output {path} is a file: give a folder that does not exist yet.")
        self.resumed = (path / "config.yaml").exists()
        if self.resumed:
            self._compare(config)
        elif path.exists() and any(entry.name != ".lock" for entry in path.iterdir()):
            raise UserError(f"--output {path} holds files that are not a run: give an empty or a new folder.")
        path.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(
                f"Another process is writing the run in {path}: wait for it, or give another --output."
            ) from None
        write_text(path / "config.yaml", config.to_yaml())

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _compare(self, config: RunConfig) -> None:
        try:
            stored = yaml.safe_load((self.path / "config.yaml").read_text())
        except yaml.YAMLError:
            stored = None
        if not isinstance(stored, dict):
            raise UserError(f"{self.path / 'config.yaml'} cannot be read: give another --output.")
        mine = yaml.safe_load(config.to_yaml())
        for section in _MAY_DIFFER:
            mine.pop(section, None)
            stored.pop(section, None)
        difference = _first_difference(stored, mine)
        if difference:
            key, there, here = difference
            raise UserError(
                f"{self.path} holds another run ({key} is {there!r} there and {here!r} here): give another --output, "
                "or the same config to go on with that run."
            )


def _first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    for key in {**there, **here}:
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found = _first_difference(a, b, f"{prefix}{key}.")
            if found:
                return found
        elif a != b:
            return f"{prefix}{key}", a, b
    return None
