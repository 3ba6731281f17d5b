"""What other processes do to a ledger; a module of its own, which they can import by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpsw_ray.errors import UserError
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
