"""One stored part: `records.arrow`, the digests of its records and of its files, in a folder of its own.

`records.arrow` is an uncompressed Arrow IPC file with the columns `values` (FixedSizeList<uint8 | float64>)
and `label` (int32) in a single record batch, so that a memory map is one contiguous array and nothing is
read before it is touched. `digests.npy` holds the records' 16-byte digests in sorted order, `part.json` the SHA-256 of
both files.
"""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dpsw_ray.base.files import (
    DAMAGE,
    DamagedFile,
    atomic_path,
    read_arrow,
    read_bytes,
    read_manifest,
    write_bytes,
    write_manifest,
)
from dpsw_ray.data.records import Part, RecordSchema

__all__ = [
    "DIGEST",
    "DamagedPart",
    "found_in",
    "overlap",
    "read_digests",
    "read_part",
    "refused",
    "write_part",
]

DIGEST = np.dtype("S16")  # sorts and compares as bytes; cutting trailing zeros keeps 16-byte strings distinct


def refused(error: Exception) -> bool:
    """Whether the system refuses a file, which may be whole all the same: no permission, say, or no more memory."""
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, missing)


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
        mode: permission bits of the files.
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
    # Beside the part and as secret as it: a digest of private records would confirm a guess of them.
    write_manifest(folder / "part.json", {}, ["records.arrow", "digests.npy"], mode)


def read_part(folder: Path, schema: RecordSchema) -> Part:
    """Opens a stored part, memory-mapped; the part is called as its folder.

    Raises:
        DamagedPart: a file is missing, damaged or of another form.
        OSError: the system refuses it.
    """
    try:
        _check(folder, "records.arrow")
        table = read_arrow(folder / "records.arrow")
        values, labels = (_contiguous(table.column(name)) for name in ("values", "label"))
        array = values.flatten().to_numpy(zero_copy_only=True).reshape(len(labels), *schema.shape)
        part = Part(array, labels.to_numpy(zero_copy_only=True), folder.name)
    except (DamagedFile, *DAMAGE, OSError) as error:
        if isinstance(error, OSError) and refused(error):
            error.filename = error.filename or str(folder)  # Arrow names none
            raise
        raise DamagedPart from None
    if part.values.dtype != schema.dtype or part.labels.dtype != np.int32:
        raise DamagedPart
    return part


def _check(folder: Path, name: str) -> None:
    """Compares a file of a part with its SHA-256; once in a process, as long as the file stays as it is.

    Raises:
        DamagedFile: it is another one, or missing.
    """
    if os.path.lexists(folder / "part.json") and (folder / name).exists():  # earlier versions took no digests
        status = (folder / name).stat()
        _checked(folder, name, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=64)
def _checked(folder: Path, name: str, state: tuple[int, ...]) -> None:
    read_manifest(folder / "part.json", [name])


def _contiguous(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def read_digests(folder: Path) -> npt.NDArray[np.bytes_]:
    """The sorted digests of a stored part, S16 [n].

    Raises:
        DamagedPart: the file is missing, damaged or of another form.
        OSError: the system refuses it.
    """
    try:
        _check(folder, "digests.npy")
        digests: npt.NDArray[np.bytes_] = np.load(
            io.BytesIO(read_bytes(folder / "digests.npy")), allow_pickle=False
        )
    except (DamagedFile, ValueError, EOFError):
        raise DamagedPart from None
    if digests.dtype != DIGEST or digests.ndim != 1:
        raise DamagedPart
    return digests


def found_in(digests: npt.NDArray[np.bytes_], known: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Which digests [n] are among many known ones, which are sorted: far faster than `numpy.isin` for few digests."""
    if not len(known):
        return np.zeros(len(digests), np.bool_)
    place = np.minimum(np.searchsorted(known, digests), len(known) - 1)
    return np.asarray(known[place] == digests)


def overlap(first: npt.NDArray[np.bytes_], second: npt.NDArray[np.bytes_]) -> bool:
    """Whether two arrays of digests have one in common."""
    return bool(np.isin(first, second).any())
