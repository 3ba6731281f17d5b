"""One stored part: `records.arrow` and the digests of its records, in a folder of its own.

`records.arrow` is an uncompressed Arrow IPC file with the columns `values` (FixedSizeList<uint8 | float64>)
and `label` (int32) in a single record batch, so that a memory map is one contiguous array and nothing is
read before it is touched. `digests.npy` holds the records' 16-byte digests in sorted order.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dpsw_ray.data.records import Part, RecordSchema
from dpsw_ray.files import atomic_path, read_arrow, write_bytes

__all__ = ["DIGEST", "DamagedPart", "overlap", "read_digests", "read_part", "write_part"]

DIGEST = np.dtype("S16")  # sorts and compares as bytes; cutting trailing zeros keeps 16-byte strings distinct


class DamagedPart(Exception):
    """A stored part is not what `write_part` wrote. Carries no text: the caller knows which side it is on."""


def write_part(
    folder: Path,
    values: npt.NDArray[Any],
    labels: npt.NDArray[np.int32],
    digests: npt.NDArray[np.bytes_],
    *,
    mode: int = 0o644,
) -> None:
    """Writes one part into an existing folder.

    Args:
        folder: where the part lives.
        values: [n, size], uint8 or little-endian float64; may be a memory map of any size.
        labels: int32 [n].
        digests: S16 [n], in any order.
        mode: permission bits of both files.
    """
    flat = pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype.newbyteorder("=")),
        values.size,
        [None, pa.py_buffer(values.reshape(-1))],
    )
    batch = pa.record_batch(
        [pa.FixedSizeListArray.from_arrays(flat, values.shape[1]), pa.array(labels, pa.int32())],
        names=["values", "label"],
    )
    with (
        atomic_path(folder / "records.arrow", mode=mode) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    buffer = io.BytesIO()  # written straight to a full disk, NumPy would raise an error without its reason
    np.save(buffer, np.sort(digests), allow_pickle=False)
    write_bytes(folder / "digests.npy", buffer.getvalue(), mode=mode)


def read_part(folder: Path, schema: RecordSchema) -> Part:
    """Opens a stored part, memory-mapped; the part is called as its folder.

    Raises:
        DamagedPart: a file is missing, damaged or of another form.
    """
    try:
        table = read_arrow(folder / "records.arrow")
        values, labels = (_contiguous(table.column(name)) for name in ("values", "label"))
        array = values.flatten().to_numpy(zero_copy_only=True).reshape(len(labels), *schema.shape)
        part = Part(array, labels.to_numpy(zero_copy_only=True), folder.name)
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError):
        raise DamagedPart from None
    if part.values.dtype != schema.dtype or part.labels.dtype != np.int32:
        raise DamagedPart
    return part


def _contiguous(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def read_digests(folder: Path) -> npt.NDArray[np.bytes_]:
    """The sorted digests of a stored part, S16 [n].

    Raises:
        DamagedPart: the file is missing, damaged or of another form.
    """
    try:
        digests: npt.NDArray[np.bytes_] = np.load(folder / "digests.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise DamagedPart from None
    if digests.dtype != DIGEST or digests.ndim != 1:
        raise DamagedPart
    return digests


def overlap(first: npt.NDArray[np.bytes_], second: npt.NDArray[np.bytes_]) -> bool:
    """Whether two arrays of digests have one in common."""
    return bool(np.isin(first, second).any())
