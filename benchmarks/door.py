"""What a question costs beyond computing its answer: two actors, a million numbers, summed messages and parts' own.

    python benchmarks/door.py --json door.json

The answer itself is cheap here, so that what is left is the door: hashes, files, masks, the trip through
Ray, storing the reply. The noise is computing; it is drawn once in this process beside it.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from harness import finish, paired, parser, show
from numpy.typing import NDArray

from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.privacy.events import Event, GaussianEvent
from dpsw_ray.privacy.noise import NoiseKey, lattice_gaussian
from dpsw_ray.private.answering import Answering
from dpsw_ray.private.noise import NoiseSecret
from dpsw_ray.private.said import State
from dpsw_ray.release.exchange import Exchange
from dpsw_ray.release.form import Form
from dpsw_ray.release.question import Question

NUMBERS = 1_000_000
STD = 1e6


@dataclass(frozen=True)
class Numbers:
    """Many questions of many numbers."""

    release_id: str
    numbers: int
    parts: int | None
    questions: int = 10_000
    noise_std: float = STD
    noise: str = "gaussian"
    noise_on: Literal["sum", "messages"] = "sum"
    mechanism: str = "door"

    @property
    def form(self) -> Form:
        """Ones and zeros."""
        return Form((self.numbers,), self.numbers, self.numbers)

    @property
    def cells(self) -> tuple[int, ...]:
        """Of all questions."""
        return (self.questions, self.numbers)

    @property
    def stretches(self) -> tuple[tuple[float, int], ...]:
        """One."""
        return ((self.noise_std, math.prod(self.cells)),)

    @property
    def event(self) -> Event:
        """Never charged."""
        return GaussianEvent("benchmark", {"replace_one": 1.0}, self.noise_std)

    def shape(self, number: int) -> tuple[int, ...]:
        """Of an answer."""
        return (self.numbers,)

    def digest(self) -> str:
        """Of the plan."""
        return hashlib.sha256(repr((self.numbers, self.parts)).encode()).hexdigest()


def message(
    held: int, question: Question, number: int, state: State | None, plan: Numbers
) -> tuple[NDArray[np.int64], State | None]:
    """Ones for one chunk, zeros for the others."""
    return np.full(plan.numbers, int(held == 0)), {"turn": np.array(number)}


def noise(secret: NoiseSecret, plan: Numbers, number: int) -> NDArray[np.int64]:
    """As every mechanism draws it."""
    assert isinstance(secret, NoiseKey)
    return lattice_gaussian(secret, plan.noise_std, 0, plan.numbers)


class Holders(Answering):
    """Workers that hold nothing."""

    def held(self, plan: Any, chunk: int, chunks: int, choices: NoiseKey | None) -> int:
        """Its number."""
        return chunk

    def fingerprint(self) -> str:
        """Of nothing."""
        return ""


def measure(folder: Path, numbers: int, parts: int | None, asked: int, rounds: int) -> dict[str, Any]:
    """Seconds of a question and of its noise alone."""
    plan = Numbers("benchmark", numbers, parts)
    with open_cluster(ClusterConfig(actors=2)) as cluster:
        shared = {
            "size": 2,
            "private_dir": folder / "private",
            "receipts_dir": folder / "receipts",
            "threads": 1,
        }
        group = cluster.spawn(Holders, [{"rank": rank, **shared} for rank in range(2)])
        (folder / "private").mkdir(parents=True)
        group.call("prepare", (plan,))
        exchange = Exchange(group, plan, folder / "run")
        question = {"positions": np.zeros(asked)} if asked else None
        key = NoiseKey.generate()
        seconds = paired(
            {"ask": lambda: exchange.ask(question), "noise": lambda: lattice_gaussian(key, STD, 0, numbers)},
            rounds,
        )
    ask, drawn = (float(np.median(seconds[side])) for side in ("ask", "noise"))
    return {
        "numbers": numbers,
        "parts": parts,
        "asked": asked,
        "ask_s": ask,
        "noise_s": drawn,
        "door_s": ask - drawn,
    }


def main() -> None:
    """Runs it."""
    options = parser(__doc__ or "").parse_args()
    numbers, rounds = (100_000, 5) if options.quick else (NUMBERS, 15)
    rows = []
    for parts, asked in ((None, 0), (None, numbers), (2, 0), (2, numbers)):
        with tempfile.TemporaryDirectory(prefix="dpsw-door-") as folder:
            rows.append(measure(Path(folder), numbers, parts, asked, rounds))
    show(
        f"A question of {numbers:,} numbers on two actors",
        ["messages", "numbers asked with", "ask, ms", "noise alone, ms", "door, ms"],
        [
            [
                "summed" if row["parts"] is None else f"of {row['parts']} parts, remembered",
                f"{row['asked']:,}",
                *(f"{row[name] * 1000:.0f}" for name in ("ask_s", "noise_s", "door_s")),
            ]
            for row in rows
        ],
    )
    finish(options, {"rows": rows})


if __name__ == "__main__":
    main()
