"""Inputs to options: every option and argument of every command with strange values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dpsw_ray import cli
from fuzzing.case import Given
from fuzzing.places import HAZARDS
from fuzzing.values import OPTION_VALUES

__all__ = ["COMMANDS", "commands", "option_cases"]

_AUDIT = ("audit", "gaussian", "--runs", "20", "--seed", "1")
_COMPARE = (
    *("compare", "config.yaml", "--methods", "dpswflow-h", "--epsilon", "5", "--output", "out"),
    *("--seeds", "1", "--metrics", "sliced_w2"),
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "dpsw run": ("run", "config.yaml", "--output", "out"),
    "dpsw generate": ("generate", "run", "--out", "out.parquet", "--num", "50"),
    "dpsw evaluate": ("evaluate", "run"),
    "dpsw plan": ("plan", "config.yaml"),
    "dpsw compare": _COMPARE,
    "dpsw account": ("account", "config.yaml"),
    "dpsw audit": _AUDIT,
    "dpsw ledger show": ("ledger", "show"),
    "dpsw ledger register": (
        *("ledger", "register", "new", "--relation", "replace_one", "--unit", "record", "--delta", "1e-5"),
    ),
    "dpsw ledger cap": ("ledger", "cap", "digits", "50"),
    "dpsw ledger remove": ("ledger", "remove", "digits"),
    "dpsw ledger export": ("ledger", "export", "--out", "out.json"),
    "dpsw ledger verify": ("ledger", "verify", "export.json"),
    "dpsw data import": ("data", "import", "config.yaml", "--processes", "1"),
    "dpsw data show": ("data", "show", "config.yaml"),
    "dpsw tune": ("tune", "sweep.yaml", "--output", "out"),
    "dpsw federated": ("federated", "federated.yaml", "--output", "out"),
}
"""A valid call of every command, in the folder of the subject."""

_ARGUMENTS = {
    "config.yaml",
    "sweep.yaml",
    "federated.yaml",
    "run",
    "gaussian",
    "new",
    "digits",
    "50",
    "export.json",
}
"""Those of the calls above, which their options do not name."""

_MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "dpsw evaluate": ("run/*",),
    "dpsw ledger register": ("home/ledger.sqlite",),
    "dpsw ledger cap": ("home/ledger.sqlite",),
    "dpsw run": ("home/*",),
    "dpsw compare": ("home/*",),
    "dpsw federated": ("home/*",),
}
_CLUSTER = ("dpsw tune",)
"""Commands that start Ray when nothing is wrong: only their first look at an option is tried, with a wrong config."""


def commands() -> Iterator[tuple[str, Any]]:
    """All commands that the help lists, by their full names."""

    def walk(command: Any, called: str) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield called, command
        else:
            for part, child in inner.items():
                if not child.hidden:  # another name of one that is listed
                    yield from walk(child, f"{called} {part}")

    yield from walk(typer.main.get_command(cli.app), "dpsw")


def option_cases(subject: Path) -> Iterator[Given]:
    """Every option of every command with every value; paths among them with every strange path."""
    for called, command in commands():
        base = COMMANDS[called]  # a KeyError here: a command without a valid call
        for parameter in command.params:
            if not (getattr(parameter, "is_flag", False) or parameter.name == "help"):
                yield from _cases(called, base, parameter, subject)


def _cases(called: str, base: tuple[str, ...], parameter: Any, subject: Path) -> Iterator[Given]:
    values = OPTION_VALUES | {f"path: {name}": text for name, text in HAZARDS.items()}
    values |= {
        f"path: {text}": text for text in ("run", "run/release", "run/config.yaml", "config.yaml", ".", "..")
    }
    for name, text in values.items():
        arguments = _with(base, parameter, text)
        if called in _CLUSTER and parameter.param_type_name != "argument":
            arguments = (arguments[0], "hazards/none.yaml", *arguments[2:])
        yield Given(
            f"option/{called}/{parameter.name}/{name}",
            f"option/{name}",
            "dpsw",
            arguments,
            subject=subject,
            # In the folder of the same run a run goes on, and its figures are written anew.
            may_change=(*_MAY_CHANGE.get(called, ()), *(("run/*",) if text == "run" else ())),
            may_add=("home", "home/datasets*", "home/encoders*"),
            codes=(0, 1) if called in ("dpsw audit", "dpsw compare") else (0,),
            limit_s=20.0,
            lasting=called in ("dpsw audit", "dpsw compare", "dpsw run", "dpsw federated"),
        )


def _with(base: tuple[str, ...], parameter: Any, text: str) -> tuple[str, ...]:
    """The call with one value in place of its own; an argument stands where the command's own does."""
    if parameter.param_type_name == "option":
        flag = parameter.opts[0]
        if flag in base:
            at = base.index(flag)
            return (*base[: at + 1], text, *base[at + 2 :])
        return (*base, flag, text)
    places = [at for at, part in enumerate(base) if part in _ARGUMENTS and not base[at - 1].startswith("--")]
    index = 1 if parameter.name == "epsilon" else 0  # `ledger cap` has two arguments
    if index < len(places):
        return (*base[: places[index]], text, *base[places[index] + 1 :])
    return (*base, text)
