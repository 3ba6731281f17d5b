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
from dpsw_ray.files import atomic_path, write_arrow

__all__ = ["write_particles", "write_samples"]


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
