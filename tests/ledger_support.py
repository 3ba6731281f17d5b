"""What other processes do to a ledger; a module of its own, which they can import by its name."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.ledger import Ledger


def charge_many(path: Path, worker: int, charges: Sequence[Sequence[Event]], cap: float | None) -> list[str]:
    """Charge one account again and again; the ids of the charges that went through."""
    done = []
    ledger = Ledger(path)
    ledger.register("shared", "replace_one", "record", 1e-5, cap=cap)
    for turn, events in enumerate(charges):
        try:
            done.append(ledger.charge("shared", events, f"worker-{worker}", str(turn)))
        except UserError as error:
            assert "Nothing was charged" in str(error)
    return done


def tamper(path: Path, *statements: str) -> None:
    """Change the file as somebody who may write to it would: the triggers are away meanwhile, and back afterwards."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        dropped = [f"DROP TRIGGER {name}" for name, _ in triggers]
        for statement in (*dropped, *statements, *(sql for _, sql in triggers)):
            connection.execute(statement)
