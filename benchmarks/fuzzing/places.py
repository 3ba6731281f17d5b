"""Folders that cases run in: strange files to point at, and what a command changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import stat
from pathlib import Path
from typing import Any

__all__ = ["HAZARDS", "State", "lay_hazards", "state_of"]

State = dict[str, str]
"""What lies in a folder: kind and digest by path."""

HAZARDS = {
    "folder": "hazards/folder",
    "full folder": "hazards",
    "file": "hazards/file",
    "inside a file": "hazards/file/x",
    "FIFO": "hazards/fifo",
    "socket": "hazards/none/socket",
    "loop": "hazards/loop",
    "inside a loop": "hazards/loop/x",
    "dangling": "hazards/dangling",
    "/dev/zero": "hazards/zero",
    "/dev/full": "hazards/full",
    "not UTF-8": "hazards/a\udcff",
    "too long": "x" * 5000,
    "too deep": "x/" * 3000,
    "no such user": "~nosuchuser/x",
    "question mark": "hazards/a?b#c%20",
    "line break": "hazards/a\nb",
    "the ledger": "home/ledger.sqlite",
    "the home": "home",
}
"""Paths by name, from the folder that a case runs in."""

_RANDOM = re.compile(r"[0-9a-f]{64}|[0-9a-f]{32}|\d{4}-\d\d-\d\dT[\d:.+]+")
_TIMES = {"seconds", "time", "timings", "created", "started", "at"}


def lay_hazards(place: Path) -> None:
    """Makes what `HAZARDS` points at."""
    folder = place / "hazards"
    (folder / "folder").mkdir(parents=True)
    (folder / "file").write_text("precious\n")
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / os.fsdecode(b"a\xff")).write_text("precious\n")
    for name, minor in (("zero", 5), ("full", 7)):
        lay_device(folder / name, minor)


def lay_device(path: Path, minor: int) -> None:
    """A device of our own, as root could replace the system's; whoever cannot make one cannot replace one either."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        os.close(os.open(path, os.O_RDONLY))  # some file systems have none
    except PermissionError:
        path.unlink(missing_ok=True)
        if os.geteuid() == 0:
            return
        path.symlink_to({5: "/dev/zero", 7: "/dev/full"}[minor])


def state_of(folder: Path) -> State:
    """What lies in a folder; nothing is opened that could block."""
    found: State = {}
    stack = [folder]
    while stack:
        for entry in os.scandir(stack.pop()):
            name = os.path.relpath(entry.path, folder)
            if entry.is_symlink():
                found[name] = f"link to {Path(entry.path).readlink()}"
            elif entry.is_dir():
                found[name] = "folder"
                stack.append(Path(entry.path))
            elif entry.is_file():
                found[name] = _digest(Path(entry.path))
            else:
                found[name] = f"special {stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode):o}"
    return found


def _digest(path: Path) -> str:
    """Of what a file says, times and durations aside."""
    if path.suffix == ".sqlite":
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            return _hash(_dump(path))
    data = path.read_bytes()
    if path.suffix == ".json" and len(data) < 1 << 20:
        with contextlib.suppress(ValueError, RecursionError):
            return _hash(json.dumps(_timeless(json.loads(data)), sort_keys=True).encode())
    return _hash(data)


def _dump(path: Path) -> bytes:
    """What is in a ledger, its random names, hashes and times aside."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
        return _RANDOM.sub("#", "\n".join(db.iterdump())).encode()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]
