"""What can happen to a stored file: cut, flipped, replaced, or right in form and wrong in content."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpsw_ray.base.files import read_arrow, write_arrow
from fuzzing.places import lay_device
from fuzzing.values import JSON_VALUES, STRUCTURES, YAML_VALUES, leaves, replaced

__all__ = ["Harm", "harms_of"]

Harm = Callable[[Path], None]
"""Does something to the file at a path."""

FLIPS = 4
"""Random bits flipped of each file, one at a time."""


def harms_of(path: Path, name: str, seed: int, others: dict[str, Path]) -> Iterator[tuple[str, Harm]]:
    """All harms of one file, by name.

    Args:
        path: of the unharmed file.
        name: its path in the subject, from which the random draws come.
        seed: of the draws.
        others: files of the same kind from elsewhere, by name.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    yield from _ANYTHING.items()
    size = path.stat().st_size
    for at in sorted(rng.integers(0, 8 * size, FLIPS).tolist()) if size else []:
        yield f"bit {at}", partial(flip, bit=at)
    yield "random bytes", partial(write, data=rng.bytes(max(size, 64)))
    for called, other in others.items():
        yield f"{called} instead", partial(swap, other=other)
    if path.suffix == ".json":
        yield from _json_harms(path, rng)
    elif path.suffix == ".yaml":
        yield from _yaml_harms(path, rng)
    elif path.suffix == ".sqlite":
        yield from _ledger_harms(path)
    elif path.suffix in _ARRAYS:
        for value in ("nan", "inf", "-1", "1e300"):
            yield f"holds {value}", partial(_ARRAYS[path.suffix], value=float(value))
        yield "a row less", partial(_ARRAYS[path.suffix], value=None)


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def more(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def swap(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def become(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "full folder":
        path.mkdir()
        (path / "x").write_text("x")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "/dev/zero":
        lay_device(path, 5)
    elif kind == "/dev/full":
        lay_device(path, 7)


_ANYTHING: dict[str, Harm] = {
    "empty": partial(cut, share=0.0),
    "half": partial(cut, share=0.5),
    "almost": partial(cut, share=0.97),
    "longer": partial(more, data=b"\0" * 100),
    "zeros": partial(write, data=b"\0" * 4096),
    **{
        kind: partial(become, kind=kind)
        for kind in ("gone", "folder", "full folder", "FIFO", "loop", "dangling", "/dev/zero", "/dev/full")
    },
}


def _json_harms(path: Path, rng: np.random.Generator) -> Iterator[tuple[str, Harm]]:
    """Every value as a whole, and every entry with three of the values."""
    values = json.loads(path.read_bytes())
    for called, raw in JSON_VALUES.items():
        yield f"is {called}", partial(write, data=raw.encode())
    yield "has no end", partial(write, data=b'{"a": ' * 100_000)
    names = sorted(JSON_VALUES)
    for entry in leaves(values):
        for called in rng.choice(names, 3, replace=False).tolist():
            what = f"{'.'.join(map(str, entry))} is {called}"
            yield what, partial(write, data=replaced(values, entry, JSON_VALUES[called]).encode())


def _yaml_harms(path: Path, rng: np.random.Generator) -> Iterator[tuple[str, Harm]]:
    import yaml

    for called, data in STRUCTURES.items():
        yield f"is {called}", partial(write, data=data)
    values = yaml.safe_load(path.read_bytes())
    names = sorted(YAML_VALUES)
    for entry in leaves(values):
        called = str(rng.choice(names))
        what = f"{'.'.join(map(str, entry))} is {called}"
        yield what, partial(write, data=replaced(values, entry, YAML_VALUES[called]).encode())


def _ledger_harms(path: Path) -> Iterator[tuple[str, Harm]]:
    """Cells of another type, rows gone or swallowed, a schema that says something else."""
    with contextlib.closing(sqlite3.connect(path)) as book:
        rows = [row for (row,) in book.execute("SELECT seq FROM log ORDER BY seq")]
        columns = [str(row[1]) for row in book.execute("PRAGMA table_info(log)")]
    free = ("DROP TRIGGER IF EXISTS log_no_update", "DROP TRIGGER IF EXISTS log_no_delete")
    cells = {
        "a number": "3",
        "a blob": "x'ff00'",
        "empty text": "''",
        "nested lists": f"'{'[' * 3000}'",
        "JSON": "'[]'",
    }
    for row in dict.fromkeys([rows[0], rows[-1]]):
        for column in columns:
            for called, cell in cells.items():
                change = f"UPDATE OR IGNORE log SET {column} = {cell} WHERE seq = {row}"
                yield f"{column} of row {row} is {called}", partial(query, script=(*free, change))
        yield f"row {row} is gone", partial(query, script=(*free, f"DELETE FROM log WHERE seq = {row}"))
    scripts: dict[str, tuple[str, ...]] = {
        "rolled back": (*free, f"DELETE FROM log WHERE seq = {rows[-1]}"),
        "all rows are gone": (*free, "DELETE FROM log"),
        "no triggers": free,
        "no log": ("DROP TABLE log",),
        "log is a view": (
            "ALTER TABLE log RENAME TO old",
            "CREATE VIEW log AS SELECT * FROM old",
        ),
        "rows are swallowed": (
            "CREATE TRIGGER swallow BEFORE INSERT ON log BEGIN SELECT RAISE(IGNORE); END",
        ),
        "rows vanish": (
            "CREATE TRIGGER vanish AFTER INSERT ON log BEGIN DELETE FROM log WHERE seq = NEW.seq; END",
        ),
        "another table": ("CREATE TABLE more (x)",),
        "schema of another type": (
            "PRAGMA writable_schema = 1",
            "UPDATE sqlite_master SET sql = replace(sql, 'body TEXT', 'body BLOB') WHERE name = 'log'",
        ),
        "schema is no SQL": (
            "PRAGMA writable_schema = 1",
            "UPDATE sqlite_master SET sql = 'CREATE TABLE log (' WHERE name = 'log'",
        ),
        "another version": ("PRAGMA user_version = 2147483647",),
    }
    for called, script in scripts.items():
        yield called, partial(query, script=script)


def query(path: Path, script: tuple[str, ...]) -> None:
    """Runs SQL on a database, whatever it says about it: what cannot be done is left."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as book:
        for statement in script:
            with contextlib.suppress(sqlite3.Error):
                book.execute(statement)


def _changed(array: np.ndarray[Any, Any], value: float | None) -> np.ndarray[Any, Any]:
    if value is None:
        return array[:-1]
    array = array.copy()
    if array.size and np.issubdtype(array.dtype, np.number):
        with contextlib.suppress(ValueError, OverflowError), np.errstate(all="ignore"):
            array.reshape(-1)[array.size // 2] = value
    return array


def in_npy(path: Path, value: float | None) -> None:
    np.save(path, _changed(np.load(path), value))


def in_npz(path: Path, value: float | None) -> None:
    with np.load(path) as stored:
        arrays = {
            name: _changed(stored[name], value) if stored[name].ndim else stored[name]
            for name in stored.files
        }
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    path.write_bytes(stream.getvalue())


def _in_table(table: pa.Table, value: float | None) -> pa.Table:
    if value is None:
        return table.slice(0, len(table) - 1)
    for index, column in enumerate(table.column_names):
        cells = table.column(index).combine_chunks()
        flat = cells.flatten() if pa.types.is_fixed_size_list(cells.type) else cells
        if not pa.types.is_floating(flat.type) and not pa.types.is_integer(flat.type):
            continue
        new = pa.array(_changed(flat.to_numpy(zero_copy_only=False), value)).cast(flat.type, safe=False)
        if pa.types.is_fixed_size_list(cells.type):
            new = pa.FixedSizeListArray.from_arrays(new, cells.type.list_size)
        return table.set_column(index, table.schema.field(column), new)
    return table


def in_arrow(path: Path, value: float | None) -> None:
    table = _in_table(read_arrow(path), value)
    path.unlink()  # it is mapped into memory
    write_arrow(path, table)


def in_parquet(path: Path, value: float | None) -> None:
    pq.write_table(_in_table(pq.read_table(path), value), path)


_ARRAYS = {".npy": in_npy, ".npz": in_npz, ".arrow": in_arrow, ".parquet": in_parquet}
