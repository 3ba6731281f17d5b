"""Synthetic records as files: Parquet for programs, Arrow for particles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpsw_ray.data.records import RecordSchema
from dpsw_ray.errors import UserError
from dpsw_ray.files import atomic_path, read_arrow, write_arrow

__all__ = ["read_particles", "read_samples", "write_particles", "write_samples"]


def write_samples(
    path: Path,
    records: NDArray[Any],
    labels: NDArray[np.int32],
    schema: RecordSchema,
    classes: Sequence[str],
    whole: Sequence[bool] = (),
) -> None:
    """Writes records as Parquet.

    Tables get their own columns; images one column `pixels` (fixed-size list of uint8, row-major, shape in the
    schema's metadata under `shape`). With classes there is a column `label` of their names.

    Args:
        path: the file.
        records: [n, *shape].
        labels: class numbers [n], -1 without.
        schema: what a record is.
        classes: the classes' names by number; empty without.
        whole: of a table, which columns hold whole numbers and are written as such; default: none.
    """
    columns: dict[str, Any] = {}
    if schema.kind == "table":
        for i, name in enumerate(schema.columns):
            values = np.ascontiguousarray(records[:, i])
            columns[name] = pa.array(values.astype(np.int64) if any(whole[i : i + 1]) else values)
    else:
        flat = np.ascontiguousarray(records).reshape(-1)
        columns["pixels"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), schema.size)
    if classes:
        codes = pa.array(labels, mask=labels < 0)
        name = "label" if "label" not in columns else "label_"
        columns[name] = pa.DictionaryArray.from_arrays(codes, pa.array(list(classes)))
    table = pa.table(columns).replace_schema_metadata({"shape": json.dumps(list(schema.shape))})
    with atomic_path(path) as aside:
        pq.write_table(table, aside)


def write_particles(path: Path, particles: NDArray[np.float64], labels: NDArray[np.int32]) -> None:
    """Writes particles [n, d] and their class blocks [n] as an Arrow file."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(particles.ravel()), particles.shape[1])
    write_arrow(path, pa.table({"latent": column, "class": labels}))


def read_samples(
    path: Path, schema: RecordSchema, classes: Sequence[str]
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The inverse of `write_samples`: records [n, *shape], and class numbers [n], -1 without.

    Raises:
        UserError: the file is not what `write_samples` wrote for such records.
    """
    try:
        table = pq.read_table(path)
        if schema.kind == "table":
            columns = [table.column(name).to_numpy().astype(np.float64) for name in schema.columns]
            records = np.stack(columns, axis=1)
        else:
            flat = table.column("pixels").combine_chunks().flatten().to_numpy()
            records = flat.reshape(-1, *schema.shape).astype(schema.dtype)
        if not classes:
            return records, np.full(len(records), -1, np.int32)
        numbers = {name: number for number, name in enumerate(classes)}
        names = table.column("label_" if "label" in schema.columns else "label").to_pylist()
        return records, np.array([numbers.get(name, -1) for name in names], np.int32)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): restore it from a copy.") from None


def read_particles(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The inverse of `write_particles`: particles [n, d] and their class blocks [n].

    Raises:
        UserError: the file is damaged.
    """
    try:
        table = read_arrow(path)
        latents, labels = table.column("latent").combine_chunks(), table.column("class").to_numpy()
        return latents.flatten().to_numpy().reshape(len(labels), -1), labels.astype(np.int32)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): restore it from a copy.") from None
