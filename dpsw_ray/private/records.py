"""The one reader of private records. Its result must not leave the private wing."""

from __future__ import annotations

from pathlib import Path

from dpsw_ray.base.errors import PrivateSideError
from dpsw_ray.data.parts import DamagedPart, overlap, read_digests, read_part
from dpsw_ray.data.records import Part
from dpsw_ray.data.split import read_info

__all__ = ["open_private_records"]


def open_private_records(private_dir: Path) -> Part:
    """Opens the private part of a stored data set, memory-mapped, once it is seen to be disjoint.

    Args:
        private_dir: `Dataset.private_dir`.

    Returns:
        values [N, *shape], in tables perhaps with NaN, and labels [N], -1 for none or not in the class list.

    Raises:
        PrivateSideError: damaged, or sharing a record with the public or test part; no count, no record.
        UserError: the public manifest beside it is missing or damaged.
        OSError: the system refuses a file, such as for want of a permission: that is no damage.
    """
    folder = private_dir.parent
    info = read_info(folder)
    try:
        part = read_part(private_dir, info.schema)
        private, *others = (read_digests(path) for path in (private_dir, folder / "public", folder / "test"))
    except DamagedPart:
        raise _refused(folder, "a file of it is missing or damaged") from None
    if any(overlap(private, other) for other in others):
        raise _refused(folder, "its private part has records in common with the public or test part")
    if len(private) != len(part) or info.private_count not in (None, len(part)):
        raise _refused(folder, "its private part does not hold the number of records it should")
    return part


def _refused(folder: Path, what: str) -> PrivateSideError:
    return PrivateSideError(f"The stored data set {folder} cannot be used: {what}; restore it from a copy.")
