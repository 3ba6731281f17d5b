"""Where a person lets something be written: looked at before anything is computed, never over what is kept."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_json
from dpsw_ray.config.run import RunConfig

__all__ = ["HOME_FOLDERS", "check_folder", "check_free", "check_place", "out_file"]

HOME_FOLDERS = ("audits", "baselines", "classifiers", "datasets", "downloads", "encoders")
"""What the program keeps in its home; everything else there is the owner's own."""

_DATABASE = b"SQLite format 3\0"

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_place(path: Path) -> None:
    """Refuses a folder of results whose name is not UTF-8, which reports and trackers cannot hold."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"--output must be a path in UTF-8, found {os.fspath(path)!a}.") from None


def out_file(option: str, path: Path, suffixes: Sequence[str]) -> Path:
    """The file that an option names, links followed, if it may be written.

    Args:
        option: its name, such as `--out`.
        path: what it was given.
        suffixes: what the file's name may end in, in lower case; capital letters are the same.

    Raises:
        UserError: another suffix; something that is no regular file; a ledger or another data base; a place inside a
            run, an experiment, an encoder, a stored data set or the home; or no access.
    """
    target = _resolved(option, path)
    if kind := _irregular(target):
        raise UserError(f"{option} {path} is {kind}: give a file to write.")
    if blocking := next((place for place in target.parents if place.exists() and not place.is_dir()), None):
        raise UserError(f"{option} {path} lies inside {blocking}, which is a file: give another path.")
    check_free(option, path, RunConfig())
    if target.suffix.lower() not in suffixes:
        found = f"ends in {target.suffix}" if target.suffix else "has no ending"
        raise UserError(f"{option} takes a name that ends in {_either(suffixes)}, and {path} {found}.")
    existing = next(place for place in target.parents if place.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{option} {path}: nothing can be written to {existing}, access is refused; give another."
        )
    return target


def check_free(option: str, path: Path, config: RunConfig, folder: bool = False) -> None:
    """Refuses to write over what is kept: by a run, in a home, in a ledger, or as the source of records.

    Args:
        option: which names the path.
        path: a file, or a folder.
        config: whose home, ledger and source are kept.
        folder: whether it is a folder; one that is a run itself is left to its owner, and so is a trial's.

    Raises:
        UserError: it may not be written, or the path cannot be followed.
    """
    target = _resolved(option, path)
    kept = _database(target, config) or _source(target, config)
    for place in (*(() if folder else (target,)), *target.parents):
        kept = kept or _kept(place, folder)
    home = _resolved("paths.home", config.home)
    if not kept and target.is_relative_to(home) and target.relative_to(home).parts[:1]:
        first = target.relative_to(home).parts[0]
        kept = f"into {home / first}, which the program keeps" if first in HOME_FOLDERS else None
    if kept:
        raise UserError(f"{option} {path} would write {kept}: give a place of its own.")


def check_folder(path: Path, config: RunConfig) -> None:
    """`check_free` of a folder that `--output` names."""
    check_free("--output", path, config, folder=True)


def _resolved(option: str, path: Path) -> Path:
    try:
        return Path(os.path.realpath(path.expanduser(), strict=False))
    except (OSError, RuntimeError, ValueError):  # a user that is not there, a NUL byte
        raise UserError(f"{option} {str(path)!r} is no path that can be followed: give another.") from None


def _irregular(target: Path) -> str | None:
    """What stands there if it is no regular file, in words."""
    try:
        mode = target.lstat().st_mode  # links are followed already: one that is left leads in a circle
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return None
    return next((words for test, words in _KINDS if test(mode)), "a link that leads in a circle")


def _kept(place: Path, folder: bool) -> str | None:
    """What of the program's own a place is, in words."""

    def has(*names: str) -> bool:
        return all((place / name).exists() for name in names)

    if has("config.yaml") and (has(".lock") or has("privacy.json") or has("release/manifest.json")):
        return f"into the run in {place}"
    if has("dataset.json", "private"):
        return f"into the stored data set in {place}"
    if has("encoder.json", "weights.pt"):
        return f"into the encoder in {place}"
    if has("experiment.json", ".lock") and not folder:
        return f"into the experiment in {place}"
    return None


def _database(target: Path, config: RunConfig) -> str | None:
    ledger = config.ledger_path
    for name in (ledger, *(ledger.with_name(ledger.name + end) for end in ("-journal", "-wal", "-shm"))):
        if target == Path(os.path.realpath(name)) or (
            target.exists() and name.exists() and target.samefile(name)
        ):
            return f"over the privacy ledger {ledger}"
    if target.is_file():
        with target.open("rb") as stream:
            if stream.read(len(_DATABASE)) == _DATABASE:
                return f"over the data base {target}"
    return None


def _source(target: Path, config: RunConfig) -> str | None:
    """What records a place holds: the config's own, or those that a data set of the home was divided from."""
    if not target.exists():
        return None  # a folder of records may have results in it, as long as they are no record
    for source in _sources(config):
        if source.exists() and (
            target.samefile(source) or (target.is_file() and target.is_relative_to(source))
        ):
            return f"over the records in {source}"
    return None


def _sources(config: RunConfig) -> Iterator[Path]:
    if config.data.path is not None:
        yield Path(os.path.realpath(config.data.path.expanduser()))
    for manifest in sorted(config.home.glob("datasets/[!.]*/[!.]*/dataset.json")):
        with contextlib.suppress(UserError, OSError):  # a damaged one is said where it is used
            if isinstance(path := read_json(manifest).get("path"), str):
                yield Path(os.path.realpath(path))


def _either(suffixes: Sequence[str]) -> str:
    *others, last = suffixes
    return f"{', '.join(others)} or {last}" if others else last
