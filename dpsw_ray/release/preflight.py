"""Before the charge: what is known to fail afterwards is refused here, while it still costs nothing.

A charge is for ever. Whoever charges asks this module first: about what is left of a release that was paid for, and
about the disk.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.release.plan import Plan

__all__ = [
    "check_disk",
    "check_nothing_lost",
    "check_release_whole",
]

_PIECES = ("table.arrow", "moments.arrow", "answers.npz", "reply-*.npz")
"""Of a release; they have a manifest beside them, or a pending release that they are of."""

_NUMBER = 8  # bytes


def check_nothing_lost(folder: Path) -> None:
    """Refuses a run's folder that has results of a release which is gone: it would be paid for again.

    Args:
        folder: of the run.
    """
    if (folder / "privacy.json").exists() and not (folder / "release" / "manifest.json").exists():
        raise _lost(folder / "release", f"{folder / 'privacy.json'} says that there was one")
    for place in (folder / "release", folder / "release" / "encoder"):
        check_release_whole(place)


def check_release_whole(folder: Path) -> None:
    """Refuses a release's folder that holds a part of a release without its manifest, and none that is being made.

    Raises:
        UserError: naming the part.
    """
    if any((folder / name).exists() for name in ("manifest.json", "pending.json")):
        return
    left = next((path for piece in _PIECES for path in sorted(folder.glob(piece))), None)
    if left is not None:
        raise _lost(folder, f"{left.name} is a part of one")


def _lost(folder: Path, sign: str) -> UserError:
    return UserError(
        f"The release that was paid for in {folder} is not whole: {sign}, and manifest.json is missing; restore the "
        "folder from a copy, or give another --output for a run that is charged anew."
    )


def check_disk(plan: Plan, folder: Path) -> None:
    """Refuses a release that its disk has no room for.

    Args:
        plan: of the release.
        folder: where it is going to live.

    Raises:
        UserError: with what it needs, and what is free.
    """
    replies = 0 if plan.questions == 1 else 1  # those of a long conversation are stored first
    need = (1 + replies) * _NUMBER * math.prod(plan.cells)
    place = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise UserError(
            f"The release needs {_size(need)} in {folder}, and the disk has {_size(free)} left: free some space or "
            "give another --output; nothing was charged for it."
        )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.3g} {unit}" if count < 1e6 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError
