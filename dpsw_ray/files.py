"""Files that appear whole or not at all: write aside, fsync, rename."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

__all__ = ["atomic_path", "read_arrow", "to_json", "write_arrow", "write_bytes", "write_json", "write_text"]


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


def write_arrow(path: Path, table: pa.Table, *, mode: int = 0o644) -> None:
    """Writes an Arrow table as an uncompressed IPC file, so that readers can memory-map it."""
    with (
        atomic_path(path, mode=mode) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_arrow(path: Path) -> pa.Table:
    """Opens an Arrow IPC file memory-mapped: columns are read from disk when touched."""
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
