"""A run's folder: where it is, whose it is, and what it holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.base.files import DamagedFile, read_bytes, read_json, write_text
from dpsw_ray.config.family import Family
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.registry import RUNS
from dpsw_ray.pipeline.destination import check_folder
from dpsw_ray.privacy.ledger import Ledger

__all__ = ["RunFolder", "at_terminal", "lasting", "resolve_output", "stored_config"]

_MAY_DIFFER = ("cluster", "tracking")
"""Sections that change who works and who watches, not what comes out: a run may be resumed with others."""

_OURS = {".lock", "config.yaml"}

_FREE = ("encoder", "checkpoints")
"""What a run makes before it has paid for anything; the encoder is also kept in the cache."""

_OUTCOME = (
    "privacy.json",
    "metrics.json",
    "particles.arrow",
    "samples.parquet",
    "samples.png",
    "report.html",
    "research",
)


def resolve_output(config: RunConfig, output: Path | None) -> Path:
    """The absolute folder of a run: `output`, else `runs/<name>` under the current folder.

    In a submitted job the current folder is a copy that vanishes with the job. Relative paths are then taken
    from `DPSW_OUTPUT_ROOT`, or from the home of data sets and caches.

    Raises:
        UserError: the place is kept by something else (`pipeline.destination`), or, in a submitted job, something that
            must outlive it is in its copy.
    """
    path = lasting(Path(output) if output is not None else Path("runs") / config.name, config.home)
    check_folder(path, config)
    if _in_job():
        store = (config.tracking.uri or "").removeprefix("sqlite:///").removeprefix("file:")
        for key, place in (
            ("paths.home", config.home),
            ("paths.ledger", config.ledger_path),
            ("tracking.uri", Path("/" if "://" in store or not store else store).absolute()),
            ("--output", path),
        ):
            if place.is_relative_to(Path.cwd()):
                raise UserError(
                    f"{key} is a relative path, and this job's folder is a copy that is deleted with it: give an "
                    f"absolute one, found {place.relative_to(Path.cwd())}."
                )
    return path


def lasting(path: Path, home: Path | None = None) -> Path:
    """An absolute path to write to; in a submitted job a relative one is taken from where things last."""
    path = path.expanduser()
    root = os.environ.get("DPSW_OUTPUT_ROOT")
    if root is None and _in_job():
        root = str(home or RunConfig().home)
    return path if path.is_absolute() else (Path(root).expanduser() if root else Path.cwd()).absolute() / path


def at_terminal() -> bool:
    """Whether a person reads standard error, and no log keeps it."""
    return sys.stderr.isatty() and not _in_job()


def _in_job() -> bool:
    """Whether the current folder is the copy that a submitted job works in."""
    return "runtime_resources" in Path.cwd().parts


class RunFolder:
    """The claimed folder of one run, locked while this object is open.

    An attempt that ended before it had paid for a release or shown a result (refused, interrupted) does not
    hold the folder: the corrected command takes it over.

    Attributes:
        path: absolute.
        resumed: whether the folder held this very run before.
    """

    def __init__(self, config: RunConfig, path: Path, family: Family[Any] = RUNS) -> None:
        """Claims `path` for `config`, whose family reads the config that is stored there.

        Raises:
            UserError: it holds another run, other files, or a run that is being written at this moment.
        """
        self.path, self._family = path, family
        _check_place(path)
        self._made = [place for place in (path, *path.parents) if not place.exists()]
        self._fresh = not os.path.lexists(path / "config.yaml")
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path)
        try:
            self.resumed = self._claim(config)
            write_text(path / "config.yaml", config.to_yaml())
        except BaseException:
            self._withdraw()
            raise

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            os.close(self._lock)
        else:
            self._withdraw()

    def _claim(self, config: RunConfig) -> bool:
        """Whether the folder holds this run; another one is refused, or cleared away if it never began."""
        path = self.path / "config.yaml"
        if not os.path.lexists(path):
            return False
        stored = _stored(path, self._family)
        mine = yaml.safe_load(config.to_yaml())
        difference = _first_difference(yaml.safe_load(stored.to_yaml()), mine)
        if difference is None:
            return True
        if _begun(self.path, stored):
            key, there, here = difference
            raise UserError(
                f"{self.path} holds another run ({key} is {shown(there)} there and {shown(here)} here): give another "
                "--output, or the same config to go on with that run."
            )
        for name in (*_FREE, "release"):
            if (self.path / name).exists():
                shutil.rmtree(self.path / name)
        return False

    def _withdraw(self) -> None:
        """Leaves no trace of an attempt that made nothing."""
        with contextlib.suppress(OSError):  # somebody else may be using the folder by now
            inside = list(self.path.rglob("*"))
            folders = [path for path in inside if path.is_dir()]
            if self._fresh and {path.name for path in inside} - {path.name for path in folders} <= _OURS:
                for folder in reversed(folders):
                    folder.rmdir()
                (self.path / "config.yaml").unlink(missing_ok=True)
                (self.path / ".lock").unlink()
                for folder in self._made:
                    folder.rmdir()
        os.close(self._lock)


def _check_place(path: Path) -> None:
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            where = "is a file" if place == path else f"lies inside {place}, which is a file"
            raise UserError(f"--output {path} {where}: give a folder that does not exist yet.")
    if not path.exists():
        return
    names = {entry.name for entry in path.iterdir()}
    # A config.yaml alone may be the user's own, which must not be written over.
    run = "config.yaml" in names and (".lock" in names or "release" in names)
    if names - {".lock"} and not run:
        raise UserError(f"--output {path} holds files that are not a run: give an empty or a new folder.")


def _lock(path: Path) -> int:
    """Locks a run's folder for this process; the system gives the lock back however the process ends."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), (path / ".lock").stat()):
            return descriptor
    except OSError:  # locked, or gone because its owner withdrew between our calls
        pass
    os.close(descriptor)
    raise UserError(f"Another process is writing the run in {path}: wait for it, or give another --output.")


def _stored(path: Path, family: Family[Any]) -> RunConfig:
    """The config of the run in a folder, with today's defaults for keys it did not know."""
    try:
        stored: RunConfig = family.load(stored_config(path.parent))
    except UserError:
        raise UserError(
            f"{path} cannot be read as the config of a run (damaged, or of another version): give another --output."
        ) from None
    return stored


def stored_config(folder: Path) -> Path:
    """The config that a run keeps in its folder; whether what is in it can be understood, its reader says.

    Raises:
        UserError: it is missing, empty, or no regular file.
    """
    path = folder / "config.yaml"
    if not os.path.lexists(path):
        raise UserError(f"{folder} is not the folder of a run (config.yaml is missing).")
    if not read_bytes(path).strip():  # every key has a default: nothing would be read as another run
        raise DamagedFile.of(path, "is empty")
    return path


def _begun(folder: Path, stored: RunConfig) -> bool:
    """Whether a run has paid for a release, one of several perhaps, or left results."""
    if any((folder / name).exists() for name in _OUTCOME) or any(folder.glob("release/**/manifest.json")):
        return True
    if not stored.ledger_path.exists():
        return False
    ledger = Ledger(stored.ledger_path)
    for pending in folder.glob("release/**/pending.json"):
        try:
            begun = str(read_json(pending)["release_id"])
        except (UserError, OSError, KeyError):
            return True  # nobody can say that it was not charged
        if ledger.find_charge(begun) is not None:
            return True
    return False


def _first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    for key in {**there, **here}:
        if not prefix and key in _MAY_DIFFER:
            continue
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found = _first_difference(a, b, f"{prefix}{key}.")
            if found:
                return found
        elif a != b:
            return f"{prefix}{key}", a, b
    return None
