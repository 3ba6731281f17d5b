"""All methods, a line each, and the configs that name them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpsw_ray.config.family import Family
from dpsw_ray.config.run import RunConfig

if TYPE_CHECKING:  # numpy takes a while, and a command's --help needs none
    from dpsw_ray.methods.method import Method

__all__ = [
    "METHODS",
    "RUNS",
    "begins",
    "decides_release",
    "is_free",
    "load_config",
    "method_named",
    "method_of",
    "swept_keys",
]

METHODS: dict[str, str] = {
    "dpswflow-h": "dpsw_ray.methods.dpswflow_h.method",
    "dpswflow": "dpsw_ray.methods.dpswflow.method",
    "dpswflow-r": "dpsw_ray.methods.dpswflow_r.method",
    "dpswgen": "dpsw_ray.methods.dpswgen.method",
    "gaussian": "dpsw_ray.methods.gaussian.method",
}
"""Name -> the module whose `METHOD` it is; imported when it is asked for."""

_SHARED = ("encoder.", "method", "seed", "privacy.noise")
"""Of what all runs share, what decides a release's numbers."""


def method_named(name: str) -> Method[Any]:
    """The method of this name (`KeyError` where there is none)."""
    found: Method[Any] = importlib.import_module(METHODS[name]).METHOD
    return found


def method_of(config: RunConfig) -> Method[Any]:
    """The method of a run."""
    return method_named(config.method)


RUNS: Family[RunConfig] = Family(METHODS, lambda name: method_named(name).Config)
"""Configs of runs of records, by method."""


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads the config of one run: a YAML file, or the name of a shipped one, with `a.b=c` overrides.

    Keys that only the file's own method has are left out where an override names another method.

    Raises:
        UserError: one sentence per wrong key, with what was found and what would be right.
    """
    return RUNS.load(path, overrides)


def is_free(key: str) -> bool:
    """Whether a key decides what is computed from a release, and nothing of the release."""
    return any(begins(key, method_named(name).free) for name in RUNS.owners(key))


def decides_release(key: str) -> bool:
    """Whether a key decides a release."""
    if begins(key, _SHARED):
        return True
    return key not in RUNS.shared and bool(RUNS.owners(key)) and not is_free(key)


def swept_keys() -> list[str]:
    """What a sweep may vary: what is computed from a release first, then what decides one."""
    own = [key for key in RUNS.all_keys() if key not in RUNS.shared]
    ordered = [*filter(is_free, own), *filter(decides_release, own)]
    names = [
        f"{section}.*" if dot else section for section, dot, _ in (key.partition(".") for key in ordered)
    ]
    return list(dict.fromkeys([*names, *(f"{name}*" if name.endswith(".") else name for name in _SHARED)]))


def begins(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of some names, or lies in a section of them, which end in a dot."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)
