"""What parts with a memory have said: for each one file, so that a retry gives the same bytes and no other answer.

A sum of integers is computed again to the same bits. The answer of a part that remembers, or computes in floating
point, is not: under the same noise another rounding would show, by subtraction, the rounding without noise. So its
message and the state after it are durable before anything is sent, and asked again it gives back what is stored.

A file holds the newest answer only: being asked the next question proves that the driver has the reply durably.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.files import read_arrays, write_arrays
from dpsw_ray.private.keys import checked_id

__all__ = ["Answered", "SaidStore", "State"]

State = Mapping[str, NDArray[Any]]
"""What a part remembers: arrays whose sizes follow from the plan, never from a record."""


@dataclass(frozen=True)
class Answered:
    """A part's newest answer.

    Attributes:
        plan: digest of the plan.
        number: of the question.
        question: its digest.
        message: what the part sends.
        state: what it remembers; None for nothing.
    """

    plan: str
    number: int
    question: str
    message: NDArray[np.int64] = field(repr=False)
    state: State | None = field(repr=False)


class SaidStore:
    """The newest answers of one data set's parts, of the releases that are not committed yet."""

    def __init__(self, private_dir: Path) -> None:
        """Points at the folder; nothing is read yet."""
        self.folder = Path(private_dir) / "said"

    def load(self, release_id: str, chunk: int) -> Answered | None:
        """A part's newest answer; None where it has given none, or its file is lost.

        Raises:
            DamagedFile: the file is not what was written.
        """
        path = self._path(release_id, chunk)
        if not path.exists():
            return None
        arrays = read_arrays(path)
        state = {
            name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")
        }
        plan, question = str(arrays["plan"]), str(arrays["question"])
        return Answered(plan, int(arrays["number"]), question, arrays["message"], state or None)

    def save(self, release_id: str, chunk: int, answered: Answered) -> Answered | None:
        """Makes an answer durable in the place of the one before it, unless another worker did so meanwhile.

        Returns:
            What is stored: this answer, or what it found in place of the one before it.
        """
        arrays: dict[str, NDArray[Any]] = {
            "plan": np.array(answered.plan),
            "number": np.array(answered.number),
            "question": np.array(answered.question),
            "message": answered.message,
            **{f"state.{name}": array for name, array in (answered.state or {}).items()},
        }
        path = self._path(release_id, chunk)
        for folder in (self.folder, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            stored = self.load(release_id, chunk)
            if (-1 if stored is None else stored.number) != answered.number - 1:
                return stored
            write_arrays(path, arrays, mode=0o600)
        finally:
            os.close(descriptor)
        return answered

    def destroy(self, release_id: str) -> None:
        """Removes all that was said under a release's id."""
        with contextlib.suppress(ValueError):  # the id of no release
            shutil.rmtree(self.folder / checked_id(release_id), ignore_errors=True)

    def _path(self, release_id: str, chunk: int) -> Path:
        return self.folder / checked_id(release_id) / f"{chunk:06d}.npz"
