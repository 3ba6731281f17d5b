"""The command lines in this process, with a terminal's encoding, and whether they end as they promise to."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dpsw_ray import cli
from dpsw_ray.tune.config import load_sweep
from dpsw_ray.tune.frontier import plan_frontier
from dpsw_ray.tune.plan import plan_sweep

__all__ = ["PROGRAMS", "Ended", "call", "complaint"]

LONGEST = 1000
"""Characters of a message that a person still reads."""


@dataclass(frozen=True)
class Ended:
    """How a command line ended.

    Attributes:
        code: exit code; None where an exception came through.
        out: standard output.
        err: standard error.
        error: type, message and innermost frames of the exception.
        cause: type and the innermost place of ours: what to group by.
    """

    code: int | None
    out: str
    err: str
    error: str = ""
    cause: str = ""


def _plan_tune() -> None:
    """What `dpsw tune` checks before it connects to a cluster."""
    path, *rest = sys.argv[1:]
    sweep, where = load_sweep(path, [value for name, value in zip(rest[::2], rest[1::2], strict=True)])
    _ = plan_frontier(sweep, where) if sweep.epsilons else plan_sweep(sweep, where)


PROGRAMS: dict[str, Callable[[], None]] = {
    "dpsw": cli.main,
    "plan-tune": lambda: cli.guarded(_plan_tune),
}
"""By name; `plan-tune` is the part of `dpsw tune` that needs no cluster."""


def call(program: str, arguments: tuple[str, ...], place: Path, encoding: str = "utf-8") -> Ended:
    """Runs a command line in the folder `place`, which is its home too."""
    out = io.TextIOWrapper(io.BytesIO(), encoding, newline="", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace", newline="", write_through=True)
    error = cause = ""
    code: int | None = 0
    with (
        _moved(place),
        _arguments((program, *arguments)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            PROGRAMS[program]()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as raised:  # whatever it is, a person sees a traceback
            code, error, cause = None, _told(raised), _cause(raised)
    said, told = (_read(stream) for stream in (out, err))
    return Ended(code, said, told, error, cause)


def complaint(ended: Ended) -> str:
    """What is wrong with the message of a refusal; empty where nothing is."""
    text = ended.err
    if not (text.startswith("Error: ") and text.endswith("\n")):
        return "the message does not begin with `Error: `, or its line does not end"
    line = text[:-1]
    if "\n" in line:
        return "the message has several lines"
    if not line.isprintable():
        strange = next(c for c in line if not c.isprintable())
        return f"the message holds the unprintable {strange!a}"
    if len(line) > LONGEST:
        return f"the message is longer than {LONGEST:,} characters"
    if not line.endswith((".", "!", "?")):
        return "the message is no sentence: it does not end with a full stop"
    return ""


@contextlib.contextmanager
def _moved(place: Path) -> Iterator[None]:
    before, environment = Path.cwd(), dict(os.environ)
    os.chdir(place)
    os.environ |= {"HOME": str(place), "DPSW_HOME": str(place / "home")}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(before)


@contextlib.contextmanager
def _arguments(argv: tuple[str, ...]) -> Iterator[None]:
    before = sys.argv
    sys.argv = list(argv)
    try:
        yield
    finally:
        sys.argv = before


def _read(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _told(raised: BaseException) -> str:
    with contextlib.suppress(Exception):
        lines = traceback.format_exception(raised, limit=-4)
        return "".join(lines)[-2000:]
    return type(raised).__name__


def _cause(raised: BaseException) -> str:
    """Where an exception came from: the innermost frame of ours, and the type."""
    ours = Path(cli.__file__).parent
    frames = traceback.extract_tb(raised.__traceback__)
    found = [frame for frame in frames if Path(frame.filename).is_relative_to(ours)]
    place = found[-1] if found else frames[-1]
    where = re.sub(r"^.*/(?=dpsw_ray/)", "", place.filename)
    return f"{type(raised).__name__} in {where}:{place.lineno} {place.name}"
