"""Folders of the LEAF format: train/*.json and test/*.json with `users` and `user_data` (Caldas et al. 2018)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.data.records import RecordSchema

__all__ = ["LeafSource", "UserBatch"]

UserBatch = tuple[Sequence[str], Sequence[str], NDArray[Any], Sequence[str | None]]
"""Users, whether they hold records or not; the owners, values [n, *shape] and labels of their records."""

_DIGITS = 18  # of a whole number that is read as one
_DEPTH = 8  # of lists and objects in each other; a pixel is in five
_BRACKETS = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL
)  # and strings, in which a bracket is none


class LeafSource:
    """Square images with pixels from 0 to 1, user by user.

    What is wrong with a file is said, and so is what is wrong with a record that is not protected. A protected
    record that is no image is left out in silence, and a protected user who has no other holds none.
    """

    labelled = True

    def __init__(self, path: Path, protected: Callable[[str], bool]) -> None:
        """Looks at the files, until a record that is not protected tells the size of an image.

        Args:
            path: of the folder.
            protected: whether a user is private.

        Raises:
            UserError: no such files, one of another form, or no public record that is a square image.
        """
        self.name = str(path)
        self._protected = protected
        self._files = [file for part in ("train", "test") for file in sorted((path / part).glob("*.json"))]
        if not self._files:
            raise UserError(
                f"data.path {path} holds no LEAF data: a folder train/ with .json files was expected."
            )
        side = next(self._sides(), None)
        if side is None:
            raise UserError(
                f"{path} has no public user with a record: it is too small for data.public_fraction, or no LEAF data."
            )
        self.schema = RecordSchema("image", (side, side, 1), value_range=(0, 255))

    def batches(self) -> Iterator[UserBatch]:
        """The records of one user in one file at a time, perhaps none."""
        for file in self._files:
            for user, held in _users(file):
                lists = _lists(held)
                if not self._protected(user):
                    _check(file, lists, self.schema.size)
                records, labels = lists or ([], [])
                pixels, whole = _pixels(records, self.schema.size)
                images = np.rint(pixels * 255).astype(np.uint8).reshape(-1, *self.schema.shape)
                yield [user], [user] * len(images), images, [_text(labels[i]) for i in whole]

    def _sides(self) -> Iterator[int]:
        for file in self._files:
            for user, held in _users(file):
                if self._protected(user):
                    continue
                lists = _lists(held)
                for record in lists[0] if lists else [None]:
                    if not isinstance(record, list):
                        raise _no_list(file)
                    side = math.isqrt(len(record))
                    if not side or side * side != len(record):
                        raise UserError(
                            f"{file} has records of {len(record)} numbers; square images were expected, such as "
                            "FEMNIST's."
                        )
                    yield side


def _users(file: Path) -> Iterator[tuple[str, Any]]:
    """The users of a file, each once, and whatever it holds of them."""
    try:
        text = file.read_bytes().decode(errors="surrogateescape")  # one broken name or label spoils no other
        content = json.loads(_shallow(text), parse_int=_whole, strict=False)
        users, data = content["users"], content["user_data"]
        if not isinstance(users, list) or not isinstance(data, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{file} is no file of the LEAF format: users and user_data were expected.") from None
    for user in dict.fromkeys(map(str, users)):
        yield user, data.get(user)


def _shallow(text: str) -> str:
    """JSON text without what is nested too deep for a record: one of thousands of levels would end the whole file."""
    kept, start, depth = [], 0, 0
    for found in _BRACKETS.finditer(text):
        bracket = found[0]
        if bracket in "[{":
            depth += 1
            if depth == _DEPTH + 1:
                kept.append(text[start : found.start()])
        elif bracket in "]}":
            if depth == _DEPTH + 1:
                kept.append("[]")  # no pixel, and no missing one
                start = found.end()
            depth -= 1
    return "".join([*kept, text[start:]]) if depth <= _DEPTH else text


def _lists(held: Any) -> tuple[list[Any], list[Any]] | None:
    """A user's records and their labels; None where they are none, or not as many."""
    records, labels = (held.get("x"), held.get("y")) if isinstance(held, dict) else (None, None)
    if not isinstance(records, list) or not isinstance(labels, list) or len(records) != len(labels):
        return None
    return records, labels


def _check(file: Path, lists: tuple[list[Any], list[Any]] | None, size: int) -> None:
    """Says what is wrong with records that are not protected; a value may be missing."""
    for record in lists[0] if lists else [None]:
        values = _numbers(record)
        if values is None or len(values) != size:
            raise _no_list(file, f" of {size} numbers")
        if ((values < 0) | (values > 1)).any():
            raise UserError(f"{file} has pixels outside 0 to 1: divide them by the largest that they can be.")


def _no_list(file: Path, of: str = "") -> UserError:
    return UserError(
        f"{file} is no file of the LEAF format: every record must be a list{of} and have a label."
    )


def _pixels(records: list[Any], size: int) -> tuple[NDArray[np.float64], list[int]]:
    """The records that are images, array of size [m, size], and their numbers."""
    found: list[NDArray[np.float64]] = []
    whole: list[int] = []
    for number, record in enumerate(records):
        values = _numbers(record)
        if values is not None and values.shape == (size,) and ((values >= 0) & (values <= 1)).all():
            found.append(values)
            whole.append(number)
    return np.concatenate([np.empty((0, size)), *(values[None] for values in found)]), whole


def _numbers(record: Any) -> NDArray[np.float64] | None:
    """A list of numbers as an array, NaN where one is missing; None for anything else."""
    if not isinstance(record, list):
        return None
    try:
        values = np.asarray([math.nan if value is None else value for value in record])
    except ValueError:  # ragged
        return None
    return values.astype(np.float64) if values.ndim == 1 and values.dtype.kind in "iuf" else None


def _text(label: Any) -> str | None:
    """A label as text; None where it is neither text nor a whole number."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, str | int):
        return None
    text = str(label).lower() if isinstance(label, bool) else str(label)
    try:
        text.encode()
    except UnicodeEncodeError:  # broken bytes, which no file can hold
        return None
    return text


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS else math.nan
