"""What noisy answers become: an artefact that is stored, and that everything else is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from numpy.typing import NDArray

from dpsw_ray.release.plan import Plan

__all__ = ["Released"]

P_contra = TypeVar("P_contra", bound=Plan, contravariant=True)


class Released(Protocol[P_contra]):
    """A release of some kind, immutable; it is saved whole or not at all, `manifest.json` last."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What it says of itself; as in `manifest.json`."""

    def save(self, folder: Path) -> None:
        """Writes its files, the manifest last."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads it.

        Raises:
            UserError: the folder holds no release of this kind, or one that is damaged.
        """

    @classmethod
    def from_plan(cls, plan: P_contra, learnt: NDArray[Any], manifest: Mapping[str, Any], /) -> Self:
        """Builds what a plan's answers make.

        Args:
            plan: that was asked.
            learnt: the answers to all of its questions, one after the other.
            manifest: what it says of itself.
        """
