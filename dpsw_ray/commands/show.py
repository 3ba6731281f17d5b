"""Values on the terminal: indented lines for people, JSON for programs."""

from __future__ import annotations

import json
from decimal import ROUND_CEILING
from typing import Any

__all__ = ["show"]


def show(values: dict[str, Any], as_json: bool) -> None:
    """Prints `values`; upper bounds are never rounded down."""
    from dpsw_ray.files import to_json

    text = to_json(values)
    print(text if as_json else "\n".join(_lines(json.loads(text))))


def _lines(value: Any, indent: int = 0) -> list[str]:
    from dpsw_ray.evaluation.report import format_number

    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{'  ' * indent}{key}:", *_lines(item, indent + 1)]
        elif isinstance(item, list):
            lines += [
                f"{'  ' * indent}{key}:",
                *(f"{'  ' * (indent + 1)}- {_inline(entry)}" for entry in item),
            ]
        else:
            # An upper bound is never rounded down.
            bound = isinstance(item, float) and (key == "upper" or key.startswith("epsilon"))
            shown = format_number(item, 6, ROUND_CEILING) if bound else _inline(item)
            lines.append(f"{'  ' * indent}{key}: {shown}")
    return lines


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
