"""What a run takes at least, from its config alone: refused before anything is read, trained or paid for."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data.split import DatasetInfo
from dpsw_ray.methods.method import Held
from dpsw_ray.methods.registry import method_of

__all__ = ["check_memory", "machine_memory"]

_PIXELS = {"digits": 64, "fashion_mnist": 784, "mnist": 784, "celeba": 3 * 64 * 64}
_CLASSES = {"digits": 10, "fashion_mnist": 10, "mnist": 10, "celeba": 2}
_WORKER = 150 << 20  # bytes of a worker's process before it has any data
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """Bytes that a process of this machine, or of this container, can have."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
            sizes.append(int(Path(limit).read_text()))
    return min(sizes)


def check_memory(config: RunConfig, info: DatasetInfo | None = None, count: int | None = None) -> None:
    """Refuses a run that cannot fit: the driver holds all particles, all samples and the whole release at once.

    Args:
        config: the run.
        info: of its data set, where it is divided already.
        count: number of samples; default: the config's.

    Raises:
        UserError: what is too large, how much it takes at least, and how much there is.
    """
    room = machine_memory()
    for what, size in _sizes(config, info, config.count if count is None else count).items():
        if size > room:
            raise UserError(
                f"{what} would take at least {_gigabytes(size)} of memory, and this machine has {_gigabytes(room)}: "
                "choose fewer."
            )


def _sizes(config: RunConfig, info: DatasetInfo | None, count: int) -> dict[str, int]:
    """Bytes by what takes them: lower bounds, of what is certain to be held at one time."""
    data = config.data
    columns = len(data.columns or data.bounds or [""])
    record = _PIXELS.get(data.source, columns) if info is None else info.schema.size
    dim = record if config.encoder.kind == "identity" else config.encoder.latent_dim
    classes = len(data.classes or ()) or _CLASSES.get(data.source, 1)
    if info is not None:
        classes = max(len(info.classes), 1)
    sizes = method_of(config).memory(config, Held(record, dim, classes, count))
    if config.cluster.executor == "ray" and not (config.cluster.address or os.environ.get("RAY_ADDRESS")):
        sizes[f"cluster.actors {config.cluster.actors:,} on one machine"] = config.cluster.actors * _WORKER
    return sizes


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
