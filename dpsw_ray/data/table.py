"""Tables: numeric columns, optionally a label column, from a Parquet, Arrow IPC or Feather file.

A missing, NaN or infinite value is not an error: naming it would tell about a record. It goes on as NaN, and so does a
decimal number of more digits than its column has. Neither is a label whose bytes are no text, or that is none of its
dictionary's: its record has no label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpsw_ray.base.errors import UserError
from dpsw_ray.data.records import BATCH, Batch, RecordSchema

__all__ = ["TableSource"]


class TableSource:
    """One table file.

    Args:
        path: a .parquet or .pq, .arrow (file or stream) or .feather (version 2) file.
        label: the label column (integers, booleans or text), or None.
        columns: the numeric columns in the order wanted; None: all but the label, those of `other`, and what pandas
            has stored as the index of its rows.
        other: columns that are something else than numbers to learn from.

    Raises:
        UserError: no such file, damaged, or columns that are missing or of the wrong type.
    """

    class_names = None
    has_test = False

    def __init__(
        self, path: Path, label: str | None, columns: Sequence[str] | None, other: Sequence[str | None] = ()
    ) -> None:
        self.path = path
        self.files = (path,)
        self.name = str(path)
        self.label = label
        self.labelled = label is not None
        if not path.is_file():
            found = "is no regular file" if path.exists() else "does not exist"
            found = "is a folder" if path.is_dir() else found
            raise UserError(
                f"data.path {path} {found}, where a .parquet, .arrow or .feather file was expected."
            )
        suffix = path.suffix.lower()
        if suffix not in _FORMATS:
            raise UserError(
                f"data.path {path} ends in {path.suffix!r}; a table must be a .parquet, .arrow or .feather."
            )
        self._format = _FORMATS[suffix]
        schema = self._arrow_schema()
        names: list[str] = schema.names
        has = f"it has {', '.join(names) or 'none'}"
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"{path} has more than one column called {repeated[0]}; column names must differ."
            )
        if label is not None:
            if label not in names:
                raise UserError(f"{path} has no column {label} for data.label; {has}.")
            kind = schema.field(label).type
            if not _is_label(kind):
                raise UserError(
                    f"{path}: the label column {label} has the Arrow type {kind}; "
                    "labels must be integers, booleans or text."
                )
        known = [name for name in names if name not in {label, *other, *_row_index(schema)}]
        chosen = known if columns is None else list(columns)
        if label is not None and label in chosen:
            raise UserError(f"data.columns must not name {label}, which is data.label.")
        if len(set(chosen)) < len(chosen):
            raise UserError(f"data.columns names a column twice: {', '.join(chosen)}.")
        if not chosen:
            raise UserError(f"{path} leaves no numeric column to learn from; {has}.")
        stretched = self._stretched()
        for name in chosen:
            if name not in names:
                raise UserError(f"{path} has no column {name}, which data.columns names; {has}.")
            if not _is_numeric(kind := schema.field(name).type):
                raise UserError(
                    f"{path}: column {name} has the Arrow type {kind}; "
                    "data.columns must list numeric columns only."
                )
            if name in stretched:
                raise UserError(
                    f"{path}: column {name} is stored as decimal numbers of any length (Parquet's BYTE_ARRAY); "
                    "write it with a fixed length, or as floating point."
                )
        self.schema = RecordSchema("table", (len(chosen),), columns=tuple(chosen))

    def stretches(self, part: Literal["train", "test"]) -> int:
        """A Parquet file's row groups, an Arrow file's record batches, a stream as a whole; see `Source.stretches`."""
        try:
            if self._format == _PARQUET:
                return int(pq.read_metadata(self.path).num_row_groups)
            reader = _open_ipc(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None
        return int(getattr(reader, "num_record_batches", 1))

    def batches(self, part: Literal["train", "test"], stretches: range | None = None) -> Iterator[Batch]:
        """Yields float64 [n, columns], NaN where missing or infinite, and labels; see `Source.batches`."""
        assert part == "train", "a table has no test part of its own"
        names = [*self.schema.columns, *([self.label] if self.label is not None else [])]
        for batch in self._guarded(names, stretches):
            if batch.num_rows == 0:
                continue
            values = np.stack([_floats(batch.column(name)) for name in self.schema.columns], axis=1)
            yield values, None if self.label is None else _texts(batch.column(self.label))

    def _arrow_schema(self) -> pa.Schema:
        try:
            if self._format == _PARQUET:
                return pq.read_schema(self.path)
            return _open_ipc(self.path).schema
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def _stretched(self) -> set[str]:
        """Decimal columns whose every value has a length of its own: a single one too long ends their reading."""
        if self._format != _PARQUET:
            return set()
        try:
            schema = pq.read_metadata(self.path).schema
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None
        columns = (schema.column(i) for i in range(len(schema)))
        return {
            c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.logical_type.type == "DECIMAL"
        }

    def _guarded(self, names: list[str], stretches: range | None) -> Iterator[pa.RecordBatch]:
        read = _parquet_batches if self._format == _PARQUET else _ipc_batches
        batches = read(self.path, names, stretches)
        while True:
            try:
                batch = next(batches, None)
                if batch is not None:
                    batch = _undecoded(batch, self.label)
                    for column in batch.columns:
                        _check_form(column)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from None
            if batch is None:
                return
            yield batch

    def _damaged(self, error: Exception) -> Exception:
        # Arrow reports corrupt bytes as an OSError without errno; the text may quote values, so it stays out
        if isinstance(error, OSError) and error.errno is not None:
            return error
        return UserError(
            f"{self.path} cannot be read as {self._format}: it is damaged or of another format; write it again."
        )


_PARQUET = "Parquet"
_FORMATS = {".parquet": _PARQUET, ".pq": _PARQUET, ".arrow": "Arrow IPC", ".feather": "Feather (version 2)"}


def _row_index(schema: pa.Schema) -> set[str]:
    """The columns that pandas has made of its rows' index: numbers of rows, not data."""
    named = {name for name in schema.names if re.fullmatch(r"__index_level_\d+__", name)}
    try:
        stored = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        return named | {name for name in stored if isinstance(name, str)}
    except (KeyError, TypeError, ValueError, RecursionError):
        return named


def _open_ipc(path: Path) -> Any:
    source = pa.memory_map(str(path), "r")
    file_format = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if file_format else pa.ipc.open_stream(source)


def _ipc_batches(path: Path, names: list[str], stretches: range | None) -> Iterator[pa.RecordBatch]:
    reader = _open_ipc(path)
    whole = (
        (reader.get_batch(i) for i in (range(reader.num_record_batches) if stretches is None else stretches))
        if isinstance(reader, pa.ipc.RecordBatchFileReader)
        else reader
    )
    for batch in whole:
        chosen = batch.select(names)
        for start in range(0, chosen.num_rows, BATCH):
            yield chosen.slice(start, BATCH)


def _parquet_batches(path: Path, names: list[str], stretches: range | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, memory_map=True) as file:
        groups = None if stretches is None else list(stretches)
        for batch in file.iter_batches(batch_size=BATCH, row_groups=groups, columns=names):
            yield batch.select(names)


def _is_numeric(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    )


def _is_label(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_label(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(text or types.is_integer(kind) or types.is_boolean(kind))


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    # one NaN and one zero only: equal records must have equal bytes
    return np.where(np.isfinite(values) & _fits(column), values + 0.0, np.nan)


def _check_form(column: pa.Array) -> None:
    """Raises pa.ArrowException where buffers are too short, or offsets lead out of them: damage of the file."""
    if pa.types.is_dictionary(column.type):
        _check_form(column.indices)
        _check_form(column.dictionary)
    else:
        column.validate(full=not _judged_singly(column.type))


def _judged_singly(kind: pa.DataType) -> bool:
    """Whether Arrow's full validation would refuse the whole column for what a single record has in it."""
    return bool(pa.types.is_decimal(kind) or pa.types.is_binary_view(kind))


def _fits(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Which values are of the column's type, boolean [n]."""
    if not _judged_singly(column.type) or _is_valid(column):
        return np.ones(len(column), np.bool_)
    return np.array([_is_valid(column.slice(i, 1)) for i in range(len(column))], np.bool_)


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowException:
        return False
    return True


def _undecoded(batch: pa.RecordBatch, label: str | None) -> pa.RecordBatch:
    """The batch with the bytes of its labels: whether they are UTF-8 is each record's own affair."""
    if label is None:
        return batch
    number = batch.schema.get_field_index(label)
    return batch.set_column(number, label, _bytes(batch.column(number)))


def _bytes(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(column.indices, _bytes(column.dictionary), safe=False)
    if pa.types.is_string_view(kind):
        return column.view(pa.binary_view())
    if pa.types.is_large_string(kind):
        return column.view(pa.large_binary())
    return column.view(pa.binary()) if pa.types.is_string(kind) else column


def _texts(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        codes, words = column.indices.to_pylist(), column.dictionary
        known = {code for code in codes if code is not None and 0 <= code < len(words)}
        texts = {code: _texts(words.slice(code, 1))[0] for code in known}
        return [texts.get(code) for code in codes]
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        column = column.cast(pa.string())
    fits = _fits(column)
    found = (
        column.to_pylist()
        if fits.all()
        else [column[i].as_py() if good else None for i, good in enumerate(fits)]
    )
    return [_decoded(text) if isinstance(text, bytes) else text for text in found]


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
