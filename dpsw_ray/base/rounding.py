"""Numbers for people: few digits, bounds rounded to the safe side."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Context
from typing import Any

__all__ = ["format_number"]


def format_number(value: Any, digits: int = 4, rounding: str = ROUND_HALF_EVEN) -> str:
    """Formats a number to some significant digits, bounds rounded to the safe side; other things as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        if value.removeprefix("-") != "inf":
            return value
        value = float(value)
    if value is None or value != value:
        return "–"
    if not isinstance(value, int | float):
        return (
            ", ".join(format_number(item) for item in value)
            if isinstance(value, list | tuple)
            else str(value)
        )
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int):
        return f"{value:,}"
    rounded = float(Context(prec=digits, rounding=rounding).create_decimal(repr(value)))
    return (
        f"{rounded:,.{digits}g}"
        if 1e-4 <= abs(rounded) < 10**digits or not rounded
        else _big_or_small(rounded, digits)
    )


def _big_or_small(value: float, digits: int) -> str:
    return f"{value:,.0f}" if 1.0 <= abs(value) < 1e9 else f"{value:.{digits}g}"
