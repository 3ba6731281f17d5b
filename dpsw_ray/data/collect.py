"""Sends every record of a source to its part: in one pass, or in several processes that read stretches of it.

Values go through files on the private side, a batch at a time; what stays in memory is a code for the label and a
digest of every record, 20 bytes. Stretches are put together in their order: how many there are changes no result.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from dpsw_ray.config.run import DataConfig
from dpsw_ray.data.parts import DIGEST, found_in, write_part
from dpsw_ray.data.records import NULL, RecordSchema, Source
from dpsw_ray.data.sources import open_source

__all__ = ["PARTS", "Collected", "Unprotected", "collect", "record_digests"]

PARTS = ("public", "test", "private")
_STRETCHES = 4  # for each process: some are read faster than others
# No picture's: where two null records are one, and no real record is theirs.
_NULL_DIGEST = hashlib.blake2b(digest_size=16, person=b"dpsw null record").digest()

Digests = npt.NDArray[np.bytes_]
Unprotected: TypeAlias = Mapping[str, Digests] | None
"""By part the sorted digests of what was public, or a test record, in all earlier divisions: no other record becomes
one, as it may be a private one with a value mended. None where there is no earlier division."""


@dataclass(frozen=True)
class Collected:
    """A part before it is stored.

    Attributes:
        path: the raw file of its values.
        codes: int32 [n], the labels by number of their first appearance, -1 for none, NULL for a null record.
        digests: S16 [n].
    """

    path: Path
    codes: npt.NDArray[np.int32]
    digests: Digests

    def store(self, folder: Path, schema: RecordSchema, lookup: npt.NDArray[np.int32], mode: int) -> None:
        """Writes the part with its final labels and removes the raw file.

        Args:
            folder: of the part.
            schema: of the records.
            lookup: int32, the label of every code, and NULL and -1 at the end, where the codes NULL and -1 find them.
            mode: permission bits of the files.
        """
        shape = (len(self.codes), schema.size)
        values: npt.NDArray[Any] = (
            np.memmap(self.path, schema.dtype, "r", shape=shape)
            if len(self.codes)
            else np.empty(shape, schema.dtype)
        )
        write_part(folder, values, lookup[self.codes], self.digests, mode=mode)
        self.path.unlink()


def collect(
    source: Source, cfg: DataConfig, home: Path, folder: Path, before: Unprotected, processes: int = 1
) -> tuple[list[str], dict[str, Collected]]:
    """Reads the whole source once.

    Args:
        source: of the records.
        cfg: the `data` section it was opened from.
        home: the home folder.
        folder: on the private side, for the raw files.
        before: which records earlier divisions left unprotected.
        processes: how many read at a time, where the source has several stretches.

    Returns:
        The labels by code, and the parts by name.

    Raises:
        UserError: the source is damaged.
    """
    whole = _Whole(source.schema, folder)
    taken = np.empty(0, DIGEST)
    if source.has_test:
        whole.add(_read(source, cfg, "test", None, taken, before, folder / "test"))
        taken = np.unique(np.concatenate(whole.digests["test"]))
    count = source.stretches("train") if processes > 1 else 1
    if count <= 1:
        whole.add(_read(source, cfg, "train", None, taken, before, folder / "train"))
    else:
        cuts = np.linspace(0, count, min(count, _STRETCHES * processes) + 1).astype(int).tolist()
        context = multiprocessing.get_context("spawn")  # a forked process would hold our locks and threads
        attempt = secrets.token_hex(8)  # whoever outlives an attempt must not write into the next one
        readers = min(processes, len(cuts) - 1)
        with ProcessPoolExecutor(readers, context, _end_with, (os.getpid(),)) as pool:
            tasks = [
                pool.submit(
                    _read_apart,
                    cfg,
                    home,
                    range(cuts[i], cuts[i + 1]),
                    taken,
                    before,
                    folder / f"{attempt}-{i}",
                )
                for i in range(len(cuts) - 1)
            ]
            try:
                for task in tasks:
                    whole.add(task.result())
            finally:
                pool.shutdown(cancel_futures=True)
    return list(whole.codes), whole.parts()


def record_digests(values: npt.NDArray[Any], schema: RecordSchema) -> Digests:
    """The digests of records, S16 [n]: BLAKE2b over the little-endian bytes of values [n, *shape]."""
    data, step = values.astype(schema.dtype, copy=False).tobytes(), schema.size * schema.dtype.itemsize
    digests = (
        hashlib.blake2b(data[i : i + step], digest_size=16).digest() for i in range(0, len(data), step)
    )
    return np.frombuffer(bytearray(b"".join(digests)), DIGEST)  # of a bytearray: writable


@dataclass(frozen=True)
class _Stretch:
    """What one pass over some records found: values by part in files `folder/<part>.raw`."""

    folder: Path
    labels: list[str]
    codes: dict[str, npt.NDArray[np.int32]]
    digests: dict[str, Digests]


class _Whole:
    """The stretches so far, one after the other."""

    def __init__(self, schema: RecordSchema, folder: Path) -> None:
        self._schema, self._folder = schema, folder
        self.codes: dict[str, int] = {}
        self.digests: dict[str, list[Digests]] = {name: [np.empty(0, DIGEST)] for name in PARTS}
        self._labels: dict[str, list[npt.NDArray[np.int32]]] = {
            name: [np.empty(0, np.int32)] for name in PARTS
        }
        for name in PARTS:
            _create(self._path(name)).close()

    def add(self, stretch: _Stretch) -> None:
        known = [self.codes.setdefault(label, len(self.codes)) for label in stretch.labels]
        lookup = np.array([*known, NULL, -1], np.int32)
        for name, codes in stretch.codes.items():
            self._labels[name].append(lookup[codes])
            self.digests[name].append(stretch.digests[name])
            raw = stretch.folder / f"{name}.raw"
            if not self._path(name).stat().st_size:
                raw.replace(self._path(name))
                continue
            with raw.open("rb") as source, self._path(name).open("ab") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            raw.unlink()
        stretch.folder.rmdir()

    def parts(self) -> dict[str, Collected]:
        return {
            name: Collected(
                self._path(name), np.concatenate(self._labels[name]), np.concatenate(self.digests[name])
            )
            for name in PARTS
        }

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.raw"


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that started it: a killed import leaves no reader with records behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_apart(
    cfg: DataConfig, home: Path, stretches: range, taken: Digests, before: Unprotected, folder: Path
) -> _Stretch:
    """In a process of its own; what a library warns of may quote a record."""
    warnings.simplefilter("ignore")
    return _read(open_source(cfg, home), cfg, "train", stretches, taken, before, folder)


def _read(
    source: Source,
    cfg: DataConfig,
    part: Literal["train", "test"],
    stretches: range | None,
    taken: Digests,
    before: Unprotected,
    folder: Path,
) -> _Stretch:
    """Sends the records of some stretches to their parts; those of the source's own test part, `taken`, to none."""
    folder.mkdir(mode=0o700)
    seen: dict[str, int] = {}
    codes: dict[str, list[npt.NDArray[np.int32]]] = {name: [np.empty(0, np.int32)] for name in PARTS}
    digests: dict[str, list[Digests]] = {name: [np.empty(0, DIGEST)] for name in PARTS}
    files = {name: _create(folder / f"{name}.raw") for name in PARTS}
    try:
        for values, labels in source.batches(part, stretches):
            null = np.ma.getmaskarray(values).reshape(len(values), -1).any(axis=1)
            values = np.ma.getdata(values)
            numbers = np.full(len(values), -1, np.int32)
            if labels is not None:
                numbers[:] = [-1 if x is None else seen.setdefault(x, len(seen)) for x in labels]
            found = record_digests(values, source.schema)
            numbers[null], found[null] = NULL, _NULL_DIGEST
            for name, rows in _chosen(source, cfg, part, values, found, taken, before):
                try:
                    files[name].write(np.ascontiguousarray(values[rows], dtype=source.schema.dtype).data)
                except OSError as error:
                    error.filename = str(folder)  # a failed write names no file
                    raise
                codes[name].append(numbers[rows])
                digests[name].append(found[rows])
    finally:
        for file in files.values():
            file.close()
    return _Stretch(
        folder,
        list(seen),
        {name: np.concatenate(parts) for name, parts in codes.items()},
        {name: np.concatenate(parts) for name, parts in digests.items()},
    )


def _chosen(
    source: Source,
    cfg: DataConfig,
    part: str,
    values: npt.NDArray[Any],
    digests: Digests,
    taken: Digests,
    before: Unprotected,
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Which of a batch's records go to which part; null records to the private one, of a test part's source to none."""
    null = digests == _NULL_DIGEST
    if part == "test":
        yield "test", ~null
        return
    test_share = 0.0 if source.has_test else cfg.test_fraction
    u = _uniform(digests, cfg.split_seed)
    lots = {"test": u < test_share, "public": (u >= test_share) & (u < test_share + cfg.public_fraction)}
    drawn = ~null & (lots["test"] | lots["public"])
    for name, lot in lots.items():
        lot &= drawn if before is None else drawn & found_in(digests, before[name])
    keep = ~found_in(digests, taken)
    # rows with missing values are dropped here; on the private side they stay and become null records
    whole = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    for name, lot in lots.items():
        yield name, keep & whole & lot
    yield "private", keep & ~lots["test"] & ~lots["public"] & (whole | ~drawn)


def _uniform(digests: Digests, seed: int) -> npt.NDArray[np.float64]:
    key = hashlib.blake2b(str(seed).encode(), digest_size=32, person=b"dpsw split").digest()
    raw = digests.tobytes()  # whole digests: reading one element of the array would cut its trailing zeros
    hashes = (
        hashlib.blake2b(raw[i : i + 16], key=key, digest_size=8).digest() for i in range(0, len(raw), 16)
    )
    return (np.frombuffer(b"".join(hashes), "<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _create(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
