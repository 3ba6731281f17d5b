"""Processor time of a process and all that it started: what other work on the machine does not blur."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["family", "processor_s"]


def family(root: int) -> list[int]:
    """A process and its descendants, where /proc tells them; workers of a Ray that it started are among them."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
        except (OSError, ValueError):
            continue
    members, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in members} - members
        grown = bool(more)
        members |= more
    return sorted(members)


def processor_s(root: int) -> float:
    """Seconds of processor time that a process and its descendants have used."""
    ticks = 0
    for pid in family(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
