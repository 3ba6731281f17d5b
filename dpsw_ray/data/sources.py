"""The sources by their name in `data.source`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import DataConfig
from dpsw_ray.data.celeba import CelebaSource, find_celeba_folder
from dpsw_ray.data.idx import IdxSource, find_idx_folder
from dpsw_ray.data.records import Batch, RecordSchema, Source
from dpsw_ray.data.table import TableSource

__all__ = ["DigitsSource", "open_source", "resolved_path"]


class DigitsSource:
    """Scikit-learn's handwritten digits: grey 8x8 images with values 0 to 16, shipped with the library."""

    schema = RecordSchema("image", (8, 8, 1), value_range=(0, 16))
    class_names = None
    labelled = True
    has_test = False
    name = "digits"
    files = ()

    def stretches(self, part: Literal["train", "test"]) -> int:
        """One; see `Source.stretches`."""
        return 1

    def batches(self, part: Literal["train", "test"], stretches: range | None = None) -> Iterator[Batch]:
        """Yields uint8 [n, 8, 8, 1] and labels; see `Source.batches`."""
        assert part == "train", "digits has no test part of its own"
        from sklearn.datasets import load_digits

        digits = load_digits()
        yield digits.images.astype(np.uint8)[..., None], [str(label) for label in digits.target.tolist()]


def resolved_path(cfg: DataConfig) -> Path | None:
    """`data.path` as an absolute path without links, None where it is not set.

    Raises:
        UserError: it can be no path: an unknown user's home, a NUL byte, links in a circle.
    """
    if cfg.path is None:
        return None
    try:
        path = cfg.path.expanduser().resolve()
        path.stat()
        return path
    except FileNotFoundError:
        return path
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise
        raise UserError(
            f"data.path {str(cfg.path)!r} leads nowhere: it must be the path of a file or folder, without an unknown "
            "user's home, a NUL byte, or links in a circle."
        ) from None


def open_source(cfg: DataConfig, home: Path) -> Source:
    """Opens the source that `cfg` names, without reading a record.

    Args:
        cfg: the `data` section.
        home: where downloads are kept.

    Raises:
        UserError: the data set is missing or has another form, or a key does not apply to this source.
    """
    path = resolved_path(cfg)
    if cfg.label is not None and cfg.source not in ("table", "celeba"):
        raise UserError(
            f"data.label is for the sources table and celeba; {cfg.source} has labels of its own."
        )
    match cfg.source:
        case "digits":
            if path is not None:
                raise UserError(
                    "data.path does not apply to the source digits, which comes with scikit-learn."
                )
            return DigitsSource()
        case "mnist" | "fashion_mnist":
            return IdxSource(cfg.source, find_idx_folder(cfg.source, path, home, download=cfg.download))
        case "celeba":
            return CelebaSource(find_celeba_folder(path, home), cfg.label)
        case "table":
            assert path is not None, "checked by DataConfig"
            return TableSource(path, cfg.label, cfg.columns)
