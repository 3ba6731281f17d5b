"""Reading the raw source, which mixes public and private records: on the private side, behind a seal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpsw_ray.config import DataConfig
from dpsw_ray.data.split import DatasetInfo, import_dataset
from dpsw_ray.private.sealing import sealed

__all__ = ["ingest"]


@sealed("dividing the data set into public, private and test parts")
def ingest(
    config: DataConfig,
    home: Path,
    relation: str,
    processes: int = 1,
    pinned: Mapping[str, Any] | None = None,
) -> DatasetInfo:
    """Makes the stored split, or opens it where it is there already; see `data.split.import_dataset`."""
    return import_dataset(config, home, relation, processes, pinned)
