"""In which processes a release was computed: what its statement says of who could see private sums meanwhile."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

__all__ = ["PROCESS", "place", "weakest"]

PROCESS = secrets.token_hex(16)
"""This process: another one that imports this module has another."""

_PLACES = ("workers", "worker", "driver")  # from the most divided on


def place(processes: Sequence[str]) -> str:
    """Where shards live that gave these processes: with the `driver`, in one `worker`, or in several `workers`."""
    if PROCESS in processes:
        return "driver"
    return "workers" if len(set(processes)) > 1 else "worker"


def weakest(places: Iterable[object]) -> str:
    """Of several places the one where a single process could see most; `unknown` if one of them is."""
    found = list(places)
    if not found or any(each not in _PLACES for each in found):
        return "unknown"
    return max((str(each) for each in found), key=_PLACES.index)
