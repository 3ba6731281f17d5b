"""Values on the terminal: indented lines for people, JSON for programs."""

from __future__ import annotations

import json
from decimal import ROUND_CEILING
from typing import Any

__all__ = ["show"]


def show(values: dict[str, Any], as_json: bool) -> None:
    """Prints `values`; upper bounds are never rounded down."""
    from dpsw_ray.base.files import to_json

    text = to_json(values)
    print(text if as_json else "\n".join(_lines(json.loads(text))))


def _lines(value: Any, indent: int = 0) -> list[str]:
    lines: list[str] = []
    pad = "  " * (indent + 1)
    for key, item in value.items():
        if rows := _rows(item):
            lines += [f"{'  ' * indent}{key}:", *(pad + line for line in _table(rows))]
        elif isinstance(item, dict) and item:
            lines += [f"{'  ' * indent}{key}:", *_lines(item, indent + 1)]
        elif isinstance(item, list):
            lines += [f"{'  ' * indent}{key}:", *(f"{pad}- {_inline(entry)}" for entry in item)]
        else:
            lines.append(f"{'  ' * indent}{key}: {_cell(key, item)}")
    return lines


def _rows(value: Any) -> list[dict[str, Any]]:
    """A list of sections with the same keys, or sections of numbers by name: what reads best as a table."""
    if isinstance(value, list):
        rows = value
    elif isinstance(value, dict) and len(value) > 1:
        rows = [
            {"": name, **(row if isinstance(row, dict) else {"": f"{name}: {row}"})}
            for name, row in value.items()
        ]
        if not all(
            isinstance(n, int | float)
            for row in value.values()
            if isinstance(row, dict)
            for n in row.values()
        ):
            return []
    else:
        return []
    full = [row.keys() for row in rows if isinstance(row, dict) and len(row) > 1]
    alike = len(full) > 0 and all(keys == full[0] for keys in full)
    return rows if alike and all(isinstance(row, dict) for row in rows) else []


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Columns side by side; a row without numbers keeps its remark."""
    header = max((list(row) for row in rows), key=len)
    cells = [[_cell(key, row[key]) for key in header] if len(row) > 1 else list(row.values()) for row in rows]
    widths = [max(len(line[i]) for line in [header, *cells] if len(line) > 1) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        if len(line) > 1
        else line[0]
        for line in [header, *cells]
    ]


def _cell(key: str, value: Any) -> str:
    """One value; an upper bound is never rounded down."""
    from dpsw_ray.base.rounding import format_number

    if isinstance(value, float) and (key == "upper" or key.startswith("epsilon")):
        return format_number(value, 6, ROUND_CEILING)
    return _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(_inline, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
