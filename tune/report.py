"""The page of a sweep."""

from __future__ import annotations

from pathlib import Path

from tune.prepare import Prepared
from tune.results import Result

__all__ = ["render_sweep"]


def render_sweep(result: Result, prepared: Prepared, folder: Path) -> str:
    return "todo"
