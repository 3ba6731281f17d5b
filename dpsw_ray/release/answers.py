"""The noisy answers of a plan as they are: what a method releases that needs no format of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DAMAGE, read_arrays, read_manifest, write_arrays, write_manifest
from dpsw_ray.release.plan import Plan

__all__ = ["FORMAT", "Answers"]

FORMAT = "dpsw_ray answers 1"


@dataclass(frozen=True)
class Answers:
    """What a plan's questions were answered, noise included.

    Attributes:
        answers: array of size `plan.cells`, int64, in lattice units.
        manifest: what a method says of them, privacy, ledger entry; as in `manifest.json`.
    """

    answers: NDArray[np.int64] = field(repr=False)
    manifest: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        self.answers.setflags(write=False)
        object.__setattr__(self, "manifest", MappingProxyType(dict(self.manifest)))

    @classmethod
    def from_plan(cls, plan: Plan, learnt: NDArray[np.int64], manifest: Mapping[str, Any]) -> Self:
        """The answers that a plan's questions were given."""
        return cls(learnt, manifest)

    def save(self, folder: Path) -> None:
        """Writes `answers.npz` and then `manifest.json`: a folder with a manifest is whole."""
        write_arrays(folder / "answers.npz", {"answers": self.answers})
        write_manifest(folder / "manifest.json", {"format": FORMAT, **self.manifest}, ["answers.npz"])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            UserError: the folder holds no answers, or damaged ones.
        """
        if not os.path.lexists(folder / "manifest.json"):
            raise UserError(
                f"{folder} holds no release (manifest.json is missing): give the folder of a finished run."
            )
        try:
            stored = read_manifest(folder / "manifest.json")
            if stored.pop("format") != FORMAT:
                raise UserError(f"{folder}/manifest.json is not of the format {FORMAT!r}.")
            return cls(read_arrays(folder / "answers.npz")["answers"], stored)
        except DAMAGE as error:
            raise UserError(
                f"{folder} holds a damaged release ({type(error).__name__}): restore it from a copy."
            ) from None
