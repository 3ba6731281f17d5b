"""Tables: numeric columns, optionally a label column, from a Parquet, Arrow IPC or Feather file.

A missing, NaN or infinite value is not an error: naming it would tell about a record. It goes on as NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpsw_ray.data.records import BATCH, Batch, RecordSchema
from dpsw_ray.errors import UserError

__all__ = ["TableSource"]


class TableSource:
    """One table file.

    Args:
        path: a .parquet, .arrow (file or stream) or .feather (version 2) file.
        label: the label column (integers, booleans or text), or None.
        columns: the numeric columns in the order wanted; None: all but the label and those of `other`.
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
        self.name = str(path)
        self.label = label
        self.labelled = label is not None
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(
                f"data.path {path} {found}, where a .parquet, .arrow or .feather file was expected."
            )
        if path.suffix not in _FORMATS:
            raise UserError(
                f"data.path {path} ends in {path.suffix!r}; a table must be a .parquet, .arrow or .feather."
            )
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
        known = [name for name in names if name != label and name not in other]
        chosen = known if columns is None else list(columns)
        if label is not None and label in chosen:
            raise UserError(f"data.columns must not name {label}, which is data.label.")
        if len(set(chosen)) < len(chosen):
            raise UserError(f"data.columns names a column twice: {', '.join(chosen)}.")
        if not chosen:
            raise UserError(f"{path} leaves no numeric column to learn from; {has}.")
        for name in chosen:
            if name not in names:
                raise UserError(f"{path} has no column {name}, which data.columns names; {has}.")
            if not _is_numeric(kind := schema.field(name).type):
                raise UserError(
                    f"{path}: column {name} has the Arrow type {kind}; "
                    "data.columns must list numeric columns only."
                )
        self.schema = RecordSchema("table", (len(chosen),), columns=tuple(chosen))

    def stretches(self, part: Literal["train", "test"]) -> int:
        """A Parquet file's row groups, an Arrow file's record batches, a stream as a whole; see `Source.stretches`."""
        try:
            if self.path.suffix == ".parquet":
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
            if self.path.suffix == ".parquet":
                return pq.read_schema(self.path)
            return _open_ipc(self.path).schema
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def _guarded(self, names: list[str], stretches: range | None) -> Iterator[pa.RecordBatch]:
        read = _parquet_batches if self.path.suffix == ".parquet" else _ipc_batches
        batches = read(self.path, names, stretches)
        while True:
            try:
                batch = next(batches, None)
                if batch is not None:
                    batch.validate(full=True)  # damaged offsets would otherwise be followed out of the buffer
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from None
            if batch is None:
                return
            yield batch

    def _damaged(self, error: Exception) -> Exception:
        # Arrow reports corrupt bytes as an OSError without errno; the text may quote values, so it stays out
        if isinstance(error, OSError) and error.errno is not None:
            return error
        kind = _FORMATS[self.path.suffix]
        return UserError(
            f"{self.path} cannot be read as {kind}: it is damaged or of another format; write it again."
        )


_FORMATS = {".parquet": "Parquet", ".arrow": "Arrow IPC", ".feather": "Feather (version 2)"}


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
    return np.where(np.isfinite(values), values + 0.0, np.nan)


def _texts(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    texts: list[str | None] = column.cast(pa.string()).to_pylist()
    return texts
