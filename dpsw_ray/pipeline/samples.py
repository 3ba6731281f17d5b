"""Synthetic records as files: Parquet, Arrow or CSV for programs, Arrow for particles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpsw_ray.base.files import DAMAGE, DamagedFile, atomic_path, read_arrow, read_bytes, write_arrow
from dpsw_ray.data.records import RecordSchema

__all__ = ["SUFFIXES", "read_particles", "read_samples", "write_particles", "write_samples"]

SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".csv")
"""What a file of samples may end in: Parquet, Arrow IPC (which Feather is), and text."""

_LABEL = "label"


def write_samples(
    path: Path,
    records: NDArray[Any],
    labels: NDArray[np.int32],
    schema: RecordSchema,
    classes: Sequence[str],
    whole: Sequence[bool] = (),
    label: str | None = None,
) -> None:
    """Writes records as Parquet, Arrow or CSV, as the suffix says.

    Tables get their own columns; images one column `pixels` (fixed-size list of uint8, row-major, shape in the
    schema's metadata under `shape`), in CSV a column `pixel0`, `pixel1`, ... for each value. With classes there is a
    column of their names, called like the label of the source.

    Args:
        path: the file; its name ends in one of `SUFFIXES`.
        records: [n, *shape].
        labels: class numbers [n], -1 without.
        schema: what a record is.
        classes: the classes' names by number; empty without.
        whole: of a table, which columns hold whole numbers and are written as such; default: none.
        label: the source's name of its labels; default: `label`.
    """
    text = path.suffix.lower() == ".csv"
    columns: dict[str, Any] = {}
    if schema.kind == "table":
        for i, name in enumerate(schema.columns):
            values = np.ascontiguousarray(records[:, i])
            columns[name] = pa.array(values.astype(np.int64) if any(whole[i : i + 1]) else values)
    elif text:
        pixels = np.ascontiguousarray(records.reshape(len(records), schema.size).T)
        columns = {f"pixel{i}": pa.array(values) for i, values in enumerate(pixels)}
    else:
        flat = pa.array(np.ascontiguousarray(records).reshape(-1))
        columns["pixels"] = pa.FixedSizeListArray.from_arrays(flat, schema.size)
    if classes:
        codes = pa.array(labels, mask=labels < 0)
        column = pa.DictionaryArray.from_arrays(codes, pa.array(list(classes)))
        columns[label or _LABEL] = column.cast(pa.string()) if text else column
    table = pa.table(columns).replace_schema_metadata({"shape": json.dumps(list(schema.shape))})
    if path.suffix.lower() in (".arrow", ".feather"):
        write_arrow(path, table)
        return
    with atomic_path(path) as aside:
        if text:
            pyarrow.csv.write_csv(table, aside)
        else:
            pq.write_table(table, aside)


def write_particles(path: Path, particles: NDArray[np.float64], labels: NDArray[np.int32]) -> None:
    """Writes particles [n, d] and their class blocks [n] as an Arrow file."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(particles.ravel()), particles.shape[1])
    write_arrow(path, pa.table({"latent": column, "class": labels}))


def read_samples(
    path: Path, schema: RecordSchema, classes: Sequence[str], label: str | None = None
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The inverse of `write_samples` for Parquet: records [n, *shape], and class numbers [n], -1 without.

    Raises:
        UserError: the file is not what `write_samples` wrote for such records.
    """
    content = pa.BufferReader(read_bytes(path))
    try:
        table = pq.read_table(content)
        if schema.kind == "table":
            columns = [table.column(name).to_numpy().astype(np.float64) for name in schema.columns]
            records = np.stack(columns, axis=1)
        else:
            flat = table.column("pixels").combine_chunks().flatten().to_numpy()
            records = flat.reshape(-1, *schema.shape).astype(schema.dtype)
        if not classes:
            return records, np.full(len(records), -1, np.int32)
        numbers = {name: number for number, name in enumerate(classes)}
        if label not in table.column_names:  # where the source's own name was not kept
            label = f"{_LABEL}_" if _LABEL in schema.columns else _LABEL
        names = table.column(label).to_pylist()
        return records, np.array([numbers.get(name, -1) for name in names], np.int32)
    except (OSError, *DAMAGE) as error:  # an OSError of Arrow's: the file is read already
        raise DamagedFile.of(path, f"is damaged ({type(error).__name__})") from None


def read_particles(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The inverse of `write_particles`: particles [n, d] and their class blocks [n].

    Raises:
        UserError: the file is damaged.
    """
    table = read_arrow(path)
    try:
        latents, labels = table.column("latent").combine_chunks(), table.column("class").to_numpy()
        return latents.flatten().to_numpy().reshape(len(labels), -1), labels.astype(np.int32)
    except DAMAGE as error:
        raise DamagedFile.of(path, f"is damaged ({type(error).__name__})") from None
