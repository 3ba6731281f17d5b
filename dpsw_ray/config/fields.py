"""Types of the values in a config, read as people write them, and what all sections share."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dpsw_ray.base.errors import shown
from dpsw_ray.base.numerals import EXAMPLES, plain_number
from dpsw_ray.base.paths import path_mistake

__all__ = [
    "MOST_DIRECTIONS",
    "MOST_EPSILON",
    "MOST_RATE",
    "MOST_RECORDS",
    "MOST_REPEATS",
    "MOST_SEED",
    "MOST_STEP",
    "Bounds",
    "Epsilon",
    "FilePlace",
    "FolderPlace",
    "Number",
    "Place",
    "Real",
    "Section",
    "Seed",
    "Share",
    "StepSize",
    "Text",
    "Whole",
    "or_auto",
]

MOST_EPSILON = 200.0
"""Of a finite epsilon: far below it nothing is protected; above it the noise's tails may tell what delta hides."""

MOST_SEED = 2**32 - 1
"""The largest seed that all libraries take: scikit-learn's and Optuna's have 32 bits."""

MOST_STEP = 1e6
"""Of a step and of what is added to it: latents live in the unit ball, so that far less throws every one to its rim."""

MOST_RATE = 10.0
"""Of a learning rate: Adam moves every weight by about so much at each step."""

MOST_REPEATS = 10**7
"""Of epochs, rounds and steps: a step takes a millisecond at least."""

MOST_RECORDS = 10**12

MOST_DIRECTIONS = 2**31

_LARGEST = 1e100
"""Of a public bound: its square, and sums of such squares, still fit float64."""

_LONGEST_TEXT = 1000


def _read(value: Any) -> Any:
    """The number that a value is, as it was given or as text; whatever else it is, unchanged.

    Text reaches a field that wants a number where YAML 1.1 does not take it for one (`1e-5`, without a dot), or takes
    it for one that we do not (`017`, `1:30`).
    """
    if isinstance(value, str):
        number = plain_number(value)
        return value if number is None else number
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(value: float) -> bool:
    """Whether float64 holds the number; an integer of Python's may have any length."""
    return isinstance(value, float) or abs(value) < 2**1023


def _refuse(wanted: str, value: Any) -> ValueError:
    looks = isinstance(value, str) and any(c.isdigit() for c in value)
    return ValueError(f"must be {wanted}, found {shown(value)}{f'; {EXAMPLES}' if looks else ''}")


def _number(value: Any) -> Any:
    found = _read(value)
    if not _is_number(found) or not _fits(found):
        raise _refuse("a number", value)
    return found


def _whole(value: Any) -> Any:
    found = _read(value)
    if not _is_number(found) or not math.isfinite(found) or found != int(found):
        raise _refuse("a whole number", value)
    return int(found)


def _epsilon(value: float) -> float:
    if MOST_EPSILON < value < math.inf:
        raise ValueError(
            f"must be at most {MOST_EPSILON:g}, or .inf for no noise and no privacy, found {shown(value)}"
        )
    return value


def _text(value: Any) -> Any:
    """A name or a class label may look like a whole number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _printable(text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"must have at most {_LONGEST_TEXT} characters, found {len(text):,}")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ValueError(f"must be text that can be printed, found {shown(text)}")
    return text


def _place(kind: Literal["file", "folder", "any"]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, str | Path) and (mistake := path_mistake(str(value), kind)):
            raise ValueError(mistake)
        return value

    return read


def _bounds(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"must be a pair [low, high], found {shown(value)}")
    return value


def or_auto(least: float, most: float, whole: bool) -> Callable[[Any], Any]:
    """Reads a number within bounds, or `auto`: a union would name each of its parts in a message."""

    def read(value: Any) -> Any:
        if value == "auto":
            return value
        found = _read(value)
        number = _is_number(found) and _fits(found) and math.isfinite(found)
        if not number or (whole and found != int(found)):
            raise _refuse(f"a {'whole ' if whole else ''}number or auto", value)
        if found < least:
            raise ValueError(f"must be at least {least:g}, found {shown(found)}")
        if found > most:
            raise ValueError(f"must be at most {most:.16g}, found {shown(found)}")
        return int(found) if whole else float(found)

    return read


def _step_size(value: Any) -> Any:
    found = _read(value)
    if found == "auto":
        return found
    if not (_is_number(found) and 0 < found < math.inf):
        raise _refuse("a positive number or auto", value)
    if found > MOST_STEP:
        raise ValueError(f"must be at most {MOST_STEP:g}, found {shown(found)}")
    return float(found)


def _share(value: Any) -> Any:
    found = _read(value)
    if found != "auto" and not (_is_number(found) and 0 < found < 1):
        raise _refuse("a number between 0 and 1, or auto", value)
    return found


Number = Annotated[float, BeforeValidator(_number)]
Real = Annotated[Number, Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_whole)]
Epsilon = Annotated[Number, Field(gt=0.0), AfterValidator(_epsilon)]
Seed = Annotated[Whole, Field(ge=0, le=MOST_SEED)]
Text = Annotated[str, BeforeValidator(_text), AfterValidator(_printable)]
Place = Annotated[Path, BeforeValidator(_place("any"))]
FilePlace = Annotated[Path, BeforeValidator(_place("file"))]
FolderPlace = Annotated[Path, BeforeValidator(_place("folder"))]
Bounds = Annotated[
    tuple[
        Annotated[Real, Field(ge=-_LARGEST, le=_LARGEST)], Annotated[Real, Field(ge=-_LARGEST, le=_LARGEST)]
    ],
    BeforeValidator(_bounds),
]
StepSize = Annotated[float | Literal["auto"], BeforeValidator(_step_size)]
Share = Annotated[float | Literal["auto"], BeforeValidator(_share)]


class Section(BaseModel):
    """A part of a config: unknown keys are mistakes, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)
