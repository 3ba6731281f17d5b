"""Numbers as text: plain decimals only, so that nobody's 017, 1:30 or 1_000 is read by a rule they do not know."""

from __future__ import annotations

import math
import re

__all__ = ["EXAMPLES", "plain_number"]

EXAMPLES = "write plain decimals, such as 1000, 0.5 or 1e-5"

_PLAIN = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})", re.ASCII)
_INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)")


def plain_number(text: str) -> int | float | None:
    """Reads a number, or `.inf`.

    Args:
        text: as it was written.

    Returns:
        The number, exact where it is written without point and exponent; None where the text is no plain decimal, or
        one that float64 can only hold as infinity.
    """
    if _WHOLE.fullmatch(text):
        return int(text)
    if _INFINITY.fullmatch(text):
        return -math.inf if text[0] == "-" else math.inf
    if not _PLAIN.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None
