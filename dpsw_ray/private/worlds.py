"""Two copies of a data set that differ in canaries, in a scratch folder of the owner's only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_manifest, write_manifest
from dpsw_ray.data.parts import write_part
from dpsw_ray.data.records import Part
from dpsw_ray.data.split import Dataset, read_info, record_digests
from dpsw_ray.private.records import open_private_records
from dpsw_ray.private.sealing import sealed

__all__ = ["plant"]


@sealed("planting canaries")
def plant(private_dir: Path, folder: Path, canaries: Part, replaced: int) -> Dataset:
    """Writes a data set whose private part is that of `private_dir`, with canaries.

    Public and test part are links. The digests are made anew, so a canary that is a public record is found out
    when the part is opened, as any overlap is.

    Args:
        private_dir: of the stored data set.
        folder: to be made; readable by its owner only.
        canaries: put in front; perhaps none.
        replaced: how many private records, from the first on, make room for them.

    Raises:
        UserError: the private part is smaller than `replaced`, or damaged.
    """
    source, schema = private_dir.parent, read_info(private_dir.parent).schema
    part = open_private_records(private_dir)
    if len(part) < replaced:
        raise UserError(
            "The private part has fewer records than there are canaries: choose fewer (--canaries)."
        )
    values = np.concatenate([canaries.values, part.values[replaced:]])
    labels = np.concatenate([canaries.labels, part.labels[replaced:]])
    for path in (folder, folder / "private"):
        path.mkdir(mode=0o700)
    for name in ("public", "test"):
        (folder / name).symlink_to((source / name).resolve(), target_is_directory=True)
    flat = values.reshape(len(values), schema.size)
    write_part(folder / "private", flat, labels, record_digests(values, schema), mode=0o600)
    manifest = read_manifest(source / "dataset.json")
    if "private" in manifest["counts"]:
        manifest["counts"]["private"] = len(values)
    write_manifest(folder / "dataset.json", manifest)
    return Dataset(read_info(folder))
