"""Reading the raw source, which mixes public and private records: on the private side, behind a seal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpsw_ray.config.run import DataConfig
from dpsw_ray.data import split
from dpsw_ray.data.split import DatasetInfo, import_dataset
from dpsw_ray.private.sealing import sealed

__all__ = ["ingest", "source_changed"]


def _log(config: DataConfig, home: Path, *_: Any, **__: Any) -> Path:
    return home / "datasets" / config.account / ".private"


@sealed("dividing the data set into public, private and test parts", _log)
def ingest(
    config: DataConfig,
    home: Path,
    relation: str,
    processes: int = 1,
    pinned: Mapping[str, Any] | None = None,
    again: bool = False,
    told: bool = False,
) -> DatasetInfo:
    """Makes the stored split, or opens it where it is there already; see `data.split.import_dataset`."""
    return import_dataset(config, home, relation, processes, pinned, again=again, told=told)


@sealed("looking at the data set's source", _log)
def source_changed(config: DataConfig, home: Path, relation: str) -> bool:
    """Whether the source holds something else than the stored split; see `data.split.source_changed`."""
    return split.source_changed(config, home, relation)
