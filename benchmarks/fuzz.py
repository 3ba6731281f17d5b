"""Strange keys, options and stored files against every command: no traceback, no hang, no file that is not its own.

    python benchmarks/fuzz.py                                  # all of it
    python benchmarks/fuzz.py --part run --part account        # some of it
    python benchmarks/fuzz.py --only 'run/flow.particles/'     # whatever has that in its name, told in full
    python benchmarks/fuzz.py --quick                          # one of each kind, as the tests do
    python benchmarks/fuzz.py --share 0.02                     # a random share, by --seed

An input is right when it is refused with one sentence and exit code 2, nothing changed, or accepted. A stored file that
was harmed must be refused, or the command must leave the very files and figures that it leaves with an unharmed one.
Prints how many inputs were tried and what came of them, and what was found, by cause, each with a name that repeats it.
Exit code 1 where anything was found. Every input is tried in a folder of its own, in processes whose memory and files
are bounded, and which are replaced when they crash or hang.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzzing.case import Given
from fuzzing.keys import account_keys, federated_keys, flow_keys, run_keys, sweep_keys
from fuzzing.options import option_cases
from fuzzing.pool import FOUND, VERDICTS, Case, Outcome, Pool
from fuzzing.stored import SUBJECTS, Making, controls, stored_cases
from harness import finish, parser, show

PARTS = ("run", "sweep", "account", "option", "flow", "federated", *(f"stored/{s.name}" for s in SUBJECTS))
"""What can be chosen with `--part`."""

SLOW = 2
"""Inputs of a quick look at a part whose commands take seconds."""


@dataclass(frozen=True)
class Choice:
    """Which inputs are tried.

    Attributes:
        parts: of `PARTS`.
        only: inputs with this in their name.
        share: of them, at random.
        quick: of the quick commands one input of each kind, of the others a few.
        seed: of what is chosen at random, and of random harms.
    """

    parts: Sequence[str] = PARTS
    only: str = ""
    share: float = 1.0
    quick: bool = False
    seed: int = 0

    def of(self, part: str, scratch: Path) -> list[Given]:
        """The chosen inputs of a part, whose subject is made already."""
        draw = random.Random(f"{self.seed} {part}")
        inputs = [case for case in cases(part, scratch, self.seed) if self.only in case.name]
        if self.share < 1:
            inputs = [case for case in inputs if draw.random() < self.share]
        if not self.quick:
            return inputs
        draw.shuffle(inputs)
        one_each = {case.kind: case for case in inputs if case.quick}
        return [*one_each.values(), *[case for case in inputs if not case.quick][:SLOW]]


@dataclass
class Tried:
    """What came of a part."""

    outcomes: list[Outcome]
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        """By verdict."""
        return Counter(outcome.verdict for outcome in self.outcomes)


def cases(part: str, scratch: Path, seed: int) -> Iterator[Given]:
    """All inputs of one part."""
    digits = scratch / "subjects" / "digits"
    if part.startswith("stored/"):
        subject = next(subject for subject in SUBJECTS if part == f"stored/{subject.name}")
        return stored_cases(subject, scratch, seed)
    if part in ("option", "flow", "federated"):
        return {"option": option_cases, "flow": flow_keys, "federated": federated_keys}[part](digits)
    return {"run": run_keys, "sweep": sweep_keys, "account": account_keys}[part]()


def fuzz(choice: Choice, scratch: Path, processes: int, tell: Callable[[Outcome], None]) -> dict[str, Tried]:
    """Tries what was chosen.

    Args:
        choice: of the inputs.
        scratch: an empty folder.
        processes: at a time.
        tell: called with every outcome as it comes.

    Returns:
        What came of each part, the subjects' making included as a part of its own.
    """
    made, tried = Tried([], 0.0), dict[str, Tried]()
    with Pool(scratch, processes) as pool:

        def run(cases: Iterable[Case], kept: Tried) -> None:
            start = time.monotonic()
            for outcome in pool.run(cases):
                kept.outcomes.append(outcome)
                tell(outcome)
            kept.seconds += time.monotonic() - start

        for part in choice.parts:
            name = part.removeprefix("stored/") if part.startswith("stored/") else "digits"
            folder = scratch / "subjects" / name
            if part not in ("run", "sweep", "account") and not folder.exists():
                run([Making(subject, folder) for subject in SUBJECTS if subject.name == name], made)
            inputs = choice.of(part, scratch)
            measured = dict.fromkeys(case.control for case in inputs if case.control is not None)
            run([case for case in controls(scratch) if case.given.control in measured], made)
            tried[part] = Tried([], 0.0)
            run(inputs, tried[part])
    return {"subjects and controls": made, **tried} if made.outcomes else tried


def causes(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """What was found, by verdict and cause, the most frequent first."""
    found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.verdict in FOUND:
            found[outcome.verdict, outcome.cause].append(outcome)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def told(found: Mapping[tuple[str, str], Sequence[Outcome]]) -> str:
    """Causes with one input of each."""
    lines = []
    for (verdict, cause), members in found.items():
        lines += ["", f"{len(members)} x {verdict}: {cause}", f"  --only {members[0].name!r}"]
        lines += [f"    {line[:300]}" for line in members[0].detail.splitlines()[-12:]]
    return "\n".join(lines)


def _row(part: str, counts: Counter[str], seconds: float) -> list[str]:
    return [
        part,
        str(counts.total()),
        *(str(counts[verdict] or "") for verdict in VERDICTS),
        f"{seconds:.0f}",
    ]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--part", action="append", choices=PARTS, help="one of them; default: all")
    options.add_argument("--only", default="", metavar="NAME", help="inputs with this in their name")
    options.add_argument("--share", type=float, default=1.0, help="of the inputs, at random")
    options.add_argument("--seed", type=int, default=0, help="of that choice, and of random harms")
    options.add_argument("--processes", type=int, default=2, help="at a time")
    arguments = options.parse_args()
    named = [part for part in PARTS if arguments.only.startswith(part)]
    choice = Choice(
        arguments.part or named or PARTS, arguments.only, arguments.share, arguments.quick, arguments.seed
    )

    def tell(outcome: Outcome) -> None:
        if arguments.only or outcome.verdict in FOUND:
            print(
                f"{outcome.name}: {outcome.verdict} after {outcome.seconds:.2g} s: {outcome.cause}",
                flush=True,
            )
        if arguments.only:
            print(outcome.detail)

    with tempfile.TemporaryDirectory(prefix="dpsw-fuzz-") as folder:
        tried = fuzz(choice, Path(folder), arguments.processes, tell)
    found = causes(outcome for one in tried.values() for outcome in one.outcomes)
    print(told(found))
    rows = [_row(part, one.counts, one.seconds) for part, one in tried.items()]
    total = sum((one.counts for one in tried.values()), Counter[str]())
    rows.append(_row("all", total, sum(one.seconds for one in tried.values())))
    show("What came of strange inputs", ["", "tried", *VERDICTS, "s"], rows)
    print("\n".join(f"{name}: {means}" for name, means in VERDICTS.items()))
    figures = {part: {"counts": one.counts, "seconds": one.seconds} for part, one in tried.items()}
    causing = [
        {"verdict": v, "cause": c, "inputs": [one.name for one in members], "detail": members[0].detail}
        for (v, c), members in found.items()
    ]
    finish(arguments, {"parts": figures, "found": causing})
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
