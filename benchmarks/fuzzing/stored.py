"""Inputs that stand on the disk: every file of finished runs, harmed in every way, and the commands that read it."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpsw_ray.base.files import write_bytes
from dpsw_ray.config.family import has_key
from dpsw_ray.federated.config import load_federated
from dpsw_ray.methods.registry import RUNS, load_config
from fuzzing.case import Given, measure_control
from fuzzing.doors import call
from fuzzing.harms import harms_of
from fuzzing.keys import FEDERATED, SMALL
from fuzzing.pool import Attempt

__all__ = ["SUBJECTS", "Making", "Measuring", "Subject", "controls", "stored_cases"]

Command = tuple[str, ...]
_AGAIN: Command = ("dpsw", "run", "config.yaml", "--output", "run")
_FRESH: Command = ("dpsw", "run", "config.yaml", "--output", "fresh")
_DRAW: Command = ("dpsw", "generate", "run", "--out", "drawn.parquet", "--num", "50")
_JUDGE: Command = ("dpsw", "evaluate", "run")
_PLAN: Command = ("dpsw", "plan", "config.yaml")
_SHOW: Command = ("dpsw", "data", "show", "config.yaml")
_IMPORT: Command = ("dpsw", "data", "import", "config.yaml", "--processes", "1")
_OWN: Command = (*_IMPORT, "--set", "data.path=own.parquet", "--set", "data.name=own")
"""Reads a source, which may be anything: what comes of it is not compared."""
_USERS: Command = ("dpsw", "federated", "config.yaml", "--output", "run")
_DRAWN_FROM = ("config.yaml", "release/*", "encoder/*", "checkpoints/*")
"""What more samples are drawn from."""
_RECOMPUTED = ("home/datasets/*", "home/encoders/*", "home/baselines*", "fresh", "fresh/*")
"""What a refused command may have made before: what is made anew where it is gone, and a new run's folder."""
_LEDGER: tuple[Command, ...] = (
    ("dpsw", "ledger", "show", "--json"),
    ("dpsw", "ledger", "verify"),
    ("dpsw", "ledger", "verify", "export.json"),
    ("dpsw", "ledger", "export"),
)


@dataclass(frozen=True)
class Subject:
    """A finished run with its home, and who reads what of it.

    Attributes:
        name: of the subject.
        files: written before. `<sources>` is a folder that stays where it is when the subject is copied: a division
            knows its source by the path.
        commands: that make it.
        readers: commands by pattern of the paths that they read.
    """

    name: str
    files: tuple[tuple[str, bytes], ...]
    commands: tuple[Command, ...]
    readers: tuple[tuple[str, tuple[Command, ...]], ...]


def _config(*overrides: str) -> bytes:
    method = RUNS.method(dict(override.split("=", 1) for override in overrides))
    own = [key for key in SMALL if has_key(RUNS.config(method), key.partition("=")[0])]
    return load_config("digits", (*own, *overrides)).to_yaml().encode()


def _table() -> bytes:
    """A table of 400 records: three columns that hang together, and two classes."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    values = rng.standard_normal((400, 3)) + labels[:, None]
    columns = {name: pa.array(values[:, i]) for i, name in enumerate("abc")}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({**columns, "kind": pa.array(np.array(["no", "yes"])[labels])}), sink)
    return bytes(sink.getvalue())


_TABLE = (
    "data.path=<sources>/table.parquet",
    "data.label=kind",
    "data.classes=['no', 'yes']",
    "data.bounds={a: [-5, 6], b: [-5, 6], c: [-5, 6]}",
    "privacy.delta=1e-5",
    "privacy.epsilon=5",
    "privacy.noise_seed=1",
)


def _table_config(*overrides: str) -> bytes:
    return load_config("table", (*SMALL, *_TABLE, *overrides)).to_yaml().encode()


_OTHER = _config("seed=1", "privacy.epsilon=2", "name=other")
SUBJECTS = (
    Subject(
        "digits",
        (
            ("config.yaml", _config()),
            ("other.yaml", _OTHER),
            ("federated.yaml", load_federated("digits", FEDERATED).to_yaml().encode()),
            (
                "sweep.yaml",
                b"base: config.yaml\nspace: {flow.patience: {grid: [5, 10]}}\nsearch: {kind: grid}\n",
            ),
        ),
        (
            _AGAIN,
            ("dpsw", "run", "other.yaml", "--output", "other"),
            ("dpsw", "ledger", "export", "--out", "export.json"),
        ),
        (
            *((f"run/{name}", (_AGAIN, _DRAW, _JUDGE)) for name in _DRAWN_FROM),
            ("run/*", (_AGAIN, _JUDGE)),
            ("home/datasets/*/private/*", (_AGAIN, (*_FRESH, "--set", "privacy.noise_seed=1"), _IMPORT)),
            ("home/datasets/*", (_AGAIN, _JUDGE, _PLAN, _SHOW, _IMPORT)),
            ("home/encoders/*", ((*_FRESH, "--set", "privacy.noise_seed=1"),)),
            ("home/ledger.sqlite", (_AGAIN, _PLAN, (*_FRESH, "--set", "privacy.noise_seed=1"), *_LEDGER)),
            ("export.json", (_LEDGER[2],)),
        ),
    ),
    Subject(
        "table",
        (("config.yaml", _table_config()), ("<sources>/table.parquet", _table()), ("own.parquet", _table())),
        (_AGAIN,),
        (
            *((f"run/{name}", (_AGAIN, _DRAW)) for name in _DRAWN_FROM),
            ("run/*", (_AGAIN, _JUDGE)),
            ("home/datasets/*", (_AGAIN, _FRESH, _JUDGE, _SHOW)),
            ("own.parquet", (_OWN,)),
        ),
    ),
    Subject(
        "private",
        (
            (
                "config.yaml",
                _table_config("data.public_fraction=0", "encoder.kind=dp_pca", "encoder.latent_dim=2"),
            ),
            ("<sources>/table.parquet", _table()),
        ),
        (_AGAIN,),
        (("run/*", (_AGAIN, _DRAW)), ("home/datasets/*", (_AGAIN, _FRESH))),
    ),
    Subject(
        "generator",
        (("config.yaml", _config("method=dpswgen", "generator.steps=20", "generator.hidden=[16]")),),
        (_AGAIN,),
        (("run/checkpoints/*", (_AGAIN, _DRAW)),),
    ),
    Subject(
        "federated",
        (("config.yaml", load_federated("digits", (*FEDERATED, "privacy.noise_seed=1")).to_yaml().encode()),),
        (_USERS,),
        (
            ("run/*", (_USERS, _DRAW)),
            ("home/datasets/*", (("dpsw", "federated", "config.yaml", "--output", "fresh"),)),
        ),
    ),
)


@dataclass(frozen=True)
class Making:
    """Makes a subject, once, as a case: for its time limit, and the process of its own."""

    subject: Subject
    folder: Path
    limit_s: float = 120.0
    lasting: bool = False

    @property
    def name(self) -> str:
        """Of the subject."""
        return f"making {self.subject.name}"

    def attempt(self, place: Path) -> Attempt:
        """Runs its commands and keeps the folder."""
        sources = str(self.folder.parents[1] / "sources")
        for name, data in self.subject.files:
            write_bytes(
                place / name.replace("<sources>", sources), data.replace(b"<sources>", sources.encode())
            )
        for program, *arguments in self.subject.commands:
            ended = call(program, tuple(arguments), place)
            if ended.code != 0:
                return Attempt("result", f"{program} {arguments}: {ended}", "a subject cannot be made")
        shutil.copytree(place, self.folder, symlinks=True)
        return Attempt("accepted")


@dataclass(frozen=True)
class Measuring:
    """Measures the control of a command, as a case."""

    given: Given
    limit_s: float = 120.0
    lasting: bool = False

    @property
    def name(self) -> str:
        """Of the command."""
        return f"control of {self.given.name}"

    def attempt(self, place: Path) -> Attempt:
        """Runs the unharmed command twice and writes what came of it."""
        control = measure_control(self.given, place)
        assert self.given.control is not None
        self.given.control.parent.mkdir(parents=True, exist_ok=True)
        self.given.control.write_text(json.dumps(dataclasses.asdict(control)))
        return Attempt("accepted", f"differs from time to time: {control.varying}")


def controls(scratch: Path) -> list[Measuring]:
    """The measuring of every command that reads a subject."""
    return [case for subject in SUBJECTS for case in _measurings(subject, scratch).values()]


def _measurings(subject: Subject, scratch: Path) -> dict[Command, Measuring]:
    readers = dict.fromkeys(command for _, commands in subject.readers for command in commands)
    return {
        command: Measuring(
            Given(
                f"{subject.name}: {' '.join(command)}",
                "control",
                command[0],
                command[1:],
                subject=scratch / "subjects" / subject.name,
                control=scratch / "controls" / f"{subject.name}-{number}.json",
            )
        )
        for number, command in enumerate(readers)
    }


def stored_cases(subject: Subject, scratch: Path, seed: int) -> Iterator[Given]:
    """Every file of a subject with every harm, before every command that reads it."""
    folder, commands = scratch / "subjects" / subject.name, _measurings(subject, scratch)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        readers = next((found for pattern, found in subject.readers if fnmatch.fnmatch(name, pattern)), ())
        if not readers:
            continue
        twin = folder / "other" / name.removeprefix("run/")
        others = {"the other run's": twin} if twin.is_file() else {}
        shown = f"{subject.name}/{re.sub('(?<=/)[0-9a-f]{16}(?=/)', '*', name)}"  # of a path that differs
        for called, harm in harms_of(path, shown, seed, others):
            for command in readers:
                given = commands[command].given
                yield dataclasses.replace(
                    given,
                    name=f"stored/{shown}/{called}/{' '.join(command)}",
                    kind=f"stored/{path.suffix}/{called.rpartition(' is ')[2].split(' ')[0]}",
                    harm=harm,
                    harmed=name,
                    # A run's config is its owner's to edit: what it says by then is done.
                    control=None if command == _OWN or name == "run/config.yaml" else given.control,
                    printed=called != "gone",  # what is not there yet may be told so
                    may_change=("home/*", "run/*") if name == "run/config.yaml" else ("home/*",),
                    may_add=_RECOMPUTED,
                    limit_s=20.0,
                )
