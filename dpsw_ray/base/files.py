"""Files that appear whole or not at all (write aside, fsync, rename), and that show when they were damaged.

What is read back carries SHA-256 digests: JSON of its own values and of the files beside it that it speaks for
(`write_manifest`), archives of their arrays (`write_arrays`). They show damage, not malice: whoever changes a file on
purpose can change its digest. Files without a digest, which earlier versions wrote, are read as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError

__all__ = [
    "DAMAGE",
    "DamagedFile",
    "atomic_path",
    "check_replaceable",
    "digest_arrays",
    "open_regular",
    "read_arrays",
    "read_arrow",
    "read_bytes",
    "read_json",
    "read_manifest",
    "to_json",
    "write_arrays",
    "write_arrow",
    "write_bytes",
    "write_json",
    "write_manifest",
    "write_text",
]

_DIGESTS = "sha256"
_VALUES = "these values"
"""In a manifest's digests, the name of the one over the manifest itself."""


DAMAGE = (LookupError, ArithmeticError, ValueError, TypeError, AttributeError, pa.ArrowException)
"""What stored values of another form than was written lead their reader into."""


class DamagedFile(UserError):
    """A stored file is not what was written: missing, cut, changed, or something else in its place."""

    @classmethod
    def of(cls, path: Path, what: str) -> Self:
        """The sentence on one file. It is the error's only argument: errors travel between processes by them."""
        return cls(f"{path} {what}: restore it from a copy.")


@contextlib.contextmanager
def atomic_path(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    Args:
        path: the final path; its folder is created where missing.
        mode: permission bits, in force before the first byte is written (0o600 on the private side).

    Raises:
        OSError: as the operating system gives it, with the name of `path`; the temporary file is gone and
            `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield aside
        fd = os.open(aside, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        aside.replace(path)
        fd = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive a crash
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.filename in (None, str(aside)):  # a failed write names no file
            error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes `data` to `path` atomically."""
    with atomic_path(path, mode=mode) as aside:
        aside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `to_json(value)` to `path` atomically."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any) -> str:
    """Indented JSON; infinities become the strings "inf" and "-inf", which JSON lacks, and nan null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    if isinstance(value, float) and value != value:
        return None
    return value


def _finite_constant(text: str) -> Any:
    raise ValueError(text)  # NaN and the like, which `to_json` never writes


def write_manifest(
    path: Path, values: Mapping[str, Any], files: Sequence[str] = (), mode: int = 0o644
) -> None:
    """Writes `values` as JSON together with their SHA-256, and that of `files`.

    Args:
        path: the manifest.
        values: without a key `sha256`.
        files: names of files in the same folder that are written already.
        mode: permission bits.
    """
    content = json.loads(to_json(values))
    digests = {name: _sha256(path.parent / name) for name in files}
    digests[_VALUES] = _sha256_values(content, digests)
    write_bytes(path, (to_json({**content, _DIGESTS: digests}) + "\n").encode(), mode=mode)


def read_manifest(path: Path, files: Sequence[str] | None = None) -> dict[str, Any]:
    """Reads what `write_manifest` wrote, once its digests are seen to be right.

    Args:
        path: the manifest.
        files: those beside it that are looked at; default: all that it speaks for.

    Raises:
        DamagedFile: it, or a file that it speaks for, is damaged.
        OSError: as the operating system gives it, where access is refused.
    """
    values = read_json(path)
    digests = values.pop(_DIGESTS, None)
    if digests is None:
        return values
    if not isinstance(digests, dict) or digests.pop(_VALUES, None) != _sha256_values(values, digests):
        raise DamagedFile.of(path, "is damaged (its SHA-256 is another one than it says)")
    for name in digests if files is None else files:
        if _sha256(path.parent / name) != digests.get(name):
            raise DamagedFile.of(
                path.parent / name, f"is damaged (its SHA-256 is not the one in {path.name})"
            )
    return values


def _sha256(path: Path) -> str:
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_values(values: Mapping[str, Any], digests: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([values, digests], sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        DamagedFile: missing, no regular file, or no JSON object.
        OSError: as the operating system gives it, where access is refused.
    """
    try:
        value = json.loads(read_bytes(path), parse_constant=_finite_constant)
    except (ValueError, RecursionError):  # text in no encoding, numbers of too many digits, too deep
        raise DamagedFile.of(path, "is damaged (it cannot be read as JSON)") from None
    if not isinstance(value, dict):
        raise DamagedFile.of(path, "is damaged (it holds no section of keys)")
    return value


def read_bytes(path: Path) -> bytes:
    """Reads a regular file; anything else, such as a pipe, is refused and not waited for.

    Raises:
        DamagedFile: missing, or no regular file.
        OSError: as the operating system gives it, where access is refused.
    """
    with open_regular(path) as stream:
        return stream.read()


def check_replaceable(path: Path) -> None:
    """Refuses a folder where a file is going to be written.

    Raises:
        DamagedFile: there is one.
    """
    if path.is_dir() and not path.is_symlink():
        raise DamagedFile.of(path, "is a folder where a file was written")


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a regular file for reading; anything else, such as a pipe or a device that never ends, is refused.

    Raises:
        DamagedFile: missing, or no regular file.
        OSError: as the operating system gives it, where access is refused.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedFile.of(path, "is missing") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedFile.of(path, "is no regular file")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], *, mode: int = 0o644) -> None:
    """Writes arrays as an NPZ archive with the SHA-256 of them all, not compressed: its size follows from theirs."""
    with atomic_path(path, mode=mode) as aside, aside.open("wb") as stream:
        np.savez(stream, **arrays, **{_DIGESTS: np.array(digest_arrays(**arrays))})  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads what `write_arrays` wrote, once its digest is seen to be right.

    Raises:
        DamagedFile: missing or damaged.
        OSError: as the operating system gives it, where access is refused.
    """
    with open_regular(path) as stream:
        try:
            with np.load(stream, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            told = arrays.pop(_DIGESTS, None)
        except Exception:  # the readers of NumPy and of ZIP meet damage with whatever it leads them into
            raise DamagedFile.of(path, "is damaged (it cannot be read as arrays)") from None
    if told is not None and str(told) != digest_arrays(**arrays):
        raise DamagedFile.of(path, "is damaged (its SHA-256 is another one than it says)")
    return arrays


def digest_arrays(*arrays: NDArray[Any], **named: NDArray[Any]) -> str:
    """SHA-256 of arrays with their types and shapes, order and names included."""
    digest = hashlib.sha256()
    everything: Mapping[str, NDArray[Any]] = {**{str(i): array for i, array in enumerate(arrays)}, **named}
    for name, array in everything.items():
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_arrow(path: Path, table: pa.Table, *, mode: int = 0o644) -> None:
    """Writes an Arrow table as an uncompressed IPC file, so that readers can memory-map it."""
    with (
        atomic_path(path, mode=mode) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_arrow(path: Path) -> pa.Table:
    """Opens an Arrow IPC file memory-mapped: columns are read from disk when touched.

    Raises:
        DamagedFile: missing, or no Arrow file.
        OSError: as the operating system gives it, where access is refused.
    """
    with open_regular(path):  # refuses what a memory map would wait for
        try:
            return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
        except (pa.ArrowException, OSError):
            raise DamagedFile.of(path, "is damaged (it cannot be read as an Arrow file)") from None
