"""Types of the values in a config, read as people write them, and what all sections share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dpsw_ray.config_file import shown

__all__ = ["Number", "Real", "Section", "Share", "StepSize", "Text", "Whole", "or_auto"]


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-5` (no dot) as text; people write it all the time, so take it as the number it is."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, found {shown(value)}")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _text(value: Any) -> Any:
    """A name or a class label may look like a whole number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def or_auto(least: float, most: float, whole: bool) -> Callable[[Any], Any]:
    """Reads a number within bounds, or `auto`: a union would name each of its parts in a message."""

    def read(value: Any) -> Any:
        if value == "auto":
            return value
        value = _number(value)
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or (whole and value != int(value)):
            raise ValueError(f"must be a {'whole ' if whole else ''}number or auto, found {shown(value)}")
        if value < least:
            raise ValueError(f"must be at least {least:g}, found {shown(value)}")
        if value > most:
            raise ValueError(f"must be at most {most:g}, found {shown(value)}")
        return int(value) if whole else float(value)

    return read


def _step_size(value: Any) -> Any:
    value = _number(value)
    if value != "auto" and not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"must be a positive number or auto, found {shown(value)}")
    return value


def _share(value: Any) -> Any:
    value = _number(value)
    if value != "auto" and not (isinstance(value, int | float) and 0 < value < 1):
        raise ValueError(f"must be a number between 0 and 1, or auto, found {shown(value)}")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Real = Annotated[Number, Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(_text)]
StepSize = Annotated[float | Literal["auto"], BeforeValidator(_step_size)]
Share = Annotated[float | Literal["auto"], BeforeValidator(_share)]


class Section(BaseModel):
    """A part of a config: unknown keys are mistakes, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)
