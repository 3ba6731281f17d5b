"""Where stored records are from: whether their files have changed since, and whether another data set has them already.

All of it is read and kept on the private side, in `private/origin.json` and the parts' `digests.npy`: a file's size and
digest, and the share of records that two data sets have in common, are statistics of private records.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DAMAGE, DamagedFile, read_json, to_json, write_bytes
from dpsw_ray.data.parts import DamagedPart, read_digests

__all__ = ["Origin", "check_files_are_new", "check_records_are_new"]

_NAME = "origin.json"
_PARTS = ("public", "test", "private")
_SHARE = 0.9
"""Of the distinct records of the smaller data set: what is left over, a new export of the same people may well have."""
_DISTINCT = 10
"""Records that occur once: with fewer, tables of few values would be alike by chance."""


@dataclass(frozen=True)
class Origin:
    """The files that records were read from, as they were.

    Attributes:
        stats: size in bytes and time of the last change in nanoseconds, of every file in the source's order.
        digest: BLAKE2b-256 of all of them; of a folder, of the names and sizes in it.
    """

    stats: tuple[tuple[int, int], ...]
    digest: str

    @classmethod
    def of(cls, files: Sequence[Path]) -> Origin:
        """Reads the files as they are."""
        digest = hashlib.blake2b(digest_size=32)
        for path in files:
            digest.update(_digest(path))
        return cls(_stats(files), digest.hexdigest())

    @classmethod
    def load(cls, private: Path) -> Origin | None:
        """Of a stored data set's private folder; None where it does not know, or not any more."""
        try:
            stored = read_json(private / _NAME)
            return cls(tuple((int(size), int(time)) for size, time in stored["stats"]), str(stored["digest"]))
        except (DamagedFile, OSError, *DAMAGE):
            return None

    def save(self, private: Path) -> None:
        """Into a private folder, readable by its owner only."""
        stored = {"stats": [list(pair) for pair in self.stats], "digest": self.digest}
        write_bytes(private / _NAME, to_json(stored).encode(), mode=0o600)

    def differs(self, files: Sequence[Path]) -> bool:
        """Whether the files hold something else; they are read again only where size or time say so."""
        return bool(files) and _stats(files) != self.stats and Origin.of(files).digest != self.digest


def check_files_are_new(account: str, origin: Origin, datasets: Path, told: bool) -> None:
    """Refuses files that another data set of the home was read from, whatever they are called by now.

    Args:
        account: the data set that is going to be made.
        origin: of its records.
        datasets: the folder of all data sets of the home.
        told: whether the person who owns both data sets reads the sentence, and no log keeps it.

    Raises:
        UserError: another data set has the same files.
    """
    for folder in _others(account, datasets) if origin.stats else ():
        known = Origin.load(folder / "private")
        if known is not None and known.digest == origin.digest:
            raise _known(account, folder, told)


def check_records_are_new(account: str, digests: npt.NDArray[np.bytes_], datasets: Path, told: bool) -> None:
    """Refuses records nearly all of which another data set of the home has: its name would be a second budget.

    Records that occur more than once say nothing of where they are from. Of the others, those that both data sets have
    are counted against the smaller of the two; where there are too few, the data sets must be equal.

    Args:
        account: the data set that is going to be made.
        digests: of all its records, public ones too, S16 [n].
        datasets: the folder of all data sets of the home.
        told: as in `check_files_are_new`.

    Raises:
        UserError: another data set has them; no smaller overlap is told.
    """
    own = np.sort(digests)
    own_once = _once(own)
    for folder in _others(account, datasets):
        try:
            theirs = np.sort(np.concatenate([read_digests(folder / part) for part in _PARTS]))
        except (DamagedPart, OSError):
            continue  # its own affair; it is refused where it is used
        once = _once(theirs)
        smaller = min(len(own_once), len(once))
        common = len(np.intersect1d(own_once, once, assume_unique=True))
        alike = common >= _SHARE * smaller if smaller >= _DISTINCT else np.array_equal(own, theirs)
        if alike and len(own):
            raise _known(account, folder, told)


def _once(ordered: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bytes_]:
    """What occurs once in a sorted array."""
    new = np.ones(len(ordered) + 1, np.bool_)
    new[1:-1] = ordered[1:] != ordered[:-1]
    return ordered[new[1:] & new[:-1]]


def _others(account: str, datasets: Path) -> Iterator[Path]:
    """The folders of other accounts' data sets of real records."""
    for manifest in sorted(datasets.glob("[!.]*/[!.]*/dataset.json")):
        if manifest.parent.parent.name == account:
            continue
        try:
            if read_json(manifest)["source"] != "generated":
                yield manifest.parent
        except (DamagedFile, OSError, *DAMAGE):
            continue


def _known(account: str, folder: Path, told: bool) -> UserError:
    if not told:
        return UserError(
            f"Data set {account} is not divided, and why is told at a terminal only: run `dpsw data import` with this "
            "config there, or the federated run."
        )
    other = folder.parent.name
    return UserError(
        f"The records of data set {account}, or nearly all of them, are those of the data set {other}, in {folder}, "
        f"and what is spent on them is counted there: give data.name: {other}, not {account}; if these are other "
        "people's records, keep them in another paths.home."
    )


def _stats(files: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    found = [path.stat() for path in files]
    return tuple((0 if stat.S_ISDIR(s.st_mode) else s.st_size, s.st_mtime_ns) for s in found)


def _digest(path: Path) -> bytes:
    if path.is_dir():
        return hashlib.blake2b(
            b"\0".join(sorted(b"%s %d" % (os.fsencode(e.name), e.stat().st_size) for e in os.scandir(path)))
        ).digest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, hashlib.blake2b).digest()
