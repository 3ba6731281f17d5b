"""One input: what lies in its folder, which command reads it, and what may come of it."""

from __future__ import annotations

import fnmatch
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from dpsw_ray.base.files import read_arrow
from fuzzing.doors import Ended, call, complaint
from fuzzing.places import State, lay_hazards, state_of
from fuzzing.pool import Attempt, Verdict

__all__ = ["Control", "Given", "measure_control"]


_ID = re.compile("[0-9a-f]{32}")
"""A random name, of a release for instance."""
_QUICK = ("account", "data", "generate", "ledger", "plan")


@dataclass(frozen=True)
class Control:
    """What comes of a command on a finished run that nobody harmed.

    Attributes:
        out: what it prints; None where that differs from time to time.
        state: of its folder afterwards.
        varying: paths of what differs from time to time.
    """

    out: str | None
    state: State
    varying: tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """A command in a folder with some files.

    Attributes:
        name: by which it is repeated.
        kind: what it has in common with others: a slice has one of each.
        program: of `fuzzing.doors.PROGRAMS`.
        arguments: of the command; paths are relative to the folder.
        files: written before, by path.
        subject: folder that is copied before: a finished run and its home.
        harm: what is done to a file of the subject; returns nothing.
        harmed: that file's path.
        control: file of the unharmed command's `Control`; the results must be the same.
        printed: what is printed must be the same too.
        may_change: patterns of what an accepted command writes over.
        may_add: patterns of what a refused command leaves.
        finite: the run that it makes must hold finite numbers.
        codes: exit codes of an accepted input.
        encoding: of the terminal.
        limit_s: see `fuzzing.pool.Case`.
        lasting: see `fuzzing.pool.Case`.
    """

    name: str
    kind: str
    program: str
    arguments: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...] = ()
    subject: Path | None = None
    harm: Callable[[Path], None] | None = None
    harmed: str = ""
    control: Path | None = None
    printed: bool = True
    may_change: tuple[str, ...] = ()
    may_add: tuple[str, ...] = ()
    finite: str = ""
    codes: tuple[int, ...] = (0,)
    encoding: str = "utf-8"
    limit_s: float = 10.0
    lasting: bool = False

    @property
    def quick(self) -> bool:
        """Whether the command takes less than a second."""
        return self.program == "plan-tune" or self.arguments[0] in _QUICK

    def attempt(self, place: Path) -> Attempt:
        """Lays the folder, runs the command, looks at everything that it did."""
        self.lay(place)
        before = state_of(place)
        ended = call(self.program, self.arguments, place, self.encoding)
        after = state_of(place)
        if ended.code is None:
            return Attempt("traceback", ended.error, ended.cause)
        if ended.code in self.codes:
            return self._accepted(ended, before, after, place)
        if ended.code != 2:
            said = (ended.err or ended.out)[-500:]
            return Attempt("exit", f"exit code {ended.code}: {said}", f"exit code {ended.code}: {said[:80]}")
        if wrong := complaint(ended):
            return Attempt("message", f"{wrong}: {ended.err[:300]!r}", wrong)
        changed = [path for path in _different(before, after) if not _matches(path, self.may_add)]
        if changed:
            return Attempt(
                "changed",
                f"refused ({ended.err.strip()}), but changed: {changed}",
                f"refused, changed {changed[0]}",
            )
        return Attempt("refused", ended.err.strip())

    def lay(self, place: Path) -> None:
        """Puts everything into the folder."""
        if self.subject is not None:
            shutil.copytree(self.subject, place, symlinks=True, dirs_exist_ok=True)
        lay_hazards(place)
        for name, data in self.files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        if self.harm is not None:
            self.harm(place / self.harmed)

    def _accepted(self, ended: Ended, before: State, after: State, place: Path) -> Attempt:
        if self.control is not None:
            return self._compared(_control(self.control), ended, before, after)
        changed = [
            path
            for path in _different(before, after)
            if path in before and not _matches(path, self.may_change)
        ]
        if changed:
            return Attempt("changed", f"accepted, but changed: {changed}", f"accepted, changed {changed[0]}")
        if self.finite and (wrong := _not_finite(place / self.finite)):
            return Attempt("result", wrong, wrong)
        return Attempt("accepted", ended.out[:200])

    def _compared(self, control: Control, ended: Ended, before: State, after: State) -> Attempt:
        known = {*before, self.harmed}  # which may be gone, and is no random name all the same
        expected, seen = _anonymous(control.state, known), _anonymous(after, known)
        varying = {_ID.sub("*", path) for path in control.varying} | set(control.varying)
        wrong = []
        for path in sorted({*expected, *seen}):
            left = path == self.harmed or path.startswith(f"{self.harmed}/")
            as_expected = seen.get(path) == expected.get(path) or (path in varying and path in seen)
            if not as_expected and not (left and seen.get(path) == before.get(path)):
                wrong.append(path)
        verdict: Verdict = (
            "result" if any(path in before or path in expected for path in wrong) else "changed"
        )
        if wrong:
            return Attempt(
                verdict, f"accepted, with other contents of {wrong}", f"{self.harmed}: other {wrong[0]}"
            )
        if self.printed and control.out is not None and ended.out != control.out:
            return Attempt(
                "result", f"accepted, prints {ended.out[:300]!r}", f"{self.harmed}: prints something else"
            )
        return Attempt("accepted", ended.out[:200])


def measure_control(case: Given, place: Path) -> Control:
    """Runs an unharmed command twice, in two folders.

    Raises:
        RuntimeError: it is not accepted: nothing can be compared with it.
    """
    seen: list[tuple[str, State]] = []
    for number in range(2):
        here = place / str(number)
        here.mkdir()
        case.lay(here)
        ended = call(case.program, case.arguments, here)
        if ended.code not in case.codes:
            raise RuntimeError(f"{case.name}: the unharmed command is not accepted: {ended}")
        seen.append((ended.out, state_of(here)))
    (out, state), (again, other) = seen
    return Control(out if out == again else None, state, tuple(_different(state, other)))


@lru_cache(maxsize=64)
def _control(path: Path) -> Control:
    values: dict[str, Any] = json.loads(path.read_text())
    return Control(values["out"], values["state"], tuple(values["varying"]))


def _anonymous(state: State, known: set[str]) -> State:
    """With the random names that were not there before left out."""
    return {path if path in known else _ID.sub("*", path): digest for path, digest in state.items()}


def _different(before: State, after: State) -> list[str]:
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def _not_finite(run: Path) -> str:
    """What of a run's results is no finite number."""
    try:
        latents = read_arrow(run / "particles.arrow").column("latent").combine_chunks().flatten().to_numpy()
        metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        return f"accepted, but its results cannot be read: {type(error).__name__}"
    if not all(map(math.isfinite, latents.tolist())):
        return "accepted, but particles are not finite"
    figures = [metric["value"] for metric in metrics.values()]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in figures):
        return "accepted, but figures are not finite"
    return ""
