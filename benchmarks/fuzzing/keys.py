"""Inputs to configs: every key with strange values, by file and by `--set`, and files of strange structure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpsw_ray.federated.config import load_federated
from dpsw_ray.methods.registry import load_config
from dpsw_ray.privacy.events import (
    DiscreteGaussianEvent,
    DpPcaEvent,
    DpSgdEvent,
    Event,
    GaussianEvent,
    NoisyCountEvent,
    ParallelEvent,
    SampledGaussianEvent,
    SequentialEvent,
    SkellamEvent,
    SlicedGaussianEvent,
    SlicedHistogramEvent,
)
from dpsw_ray.tune.config import SweepConfig
from fuzzing.case import Given
from fuzzing.places import HAZARDS
from fuzzing.values import NUMBERS, STRUCTURES, YAML_VALUES, leaves, replaced

__all__ = ["FEDERATED", "SMALL", "account_keys", "federated_keys", "flow_keys", "run_keys", "sweep_keys"]

SMALL = (
    "cluster.executor=local",
    "cluster.actors=1",
    "encoder.epochs=3",
    "release.frames=2",
    "release.bins=16",
    "release.smoothing=1",
    "flow.particles=60",
    "flow.steps=6",
    "tracking.enabled=false",
    "evaluation.enabled=false",
    "evaluation.directions=32",
    "evaluation.images=200",
    "evaluation.train=200",
)
"""A run on the digits that takes a second."""

FEDERATED = (*SMALL, "population.users=40")

Path_ = tuple[str | int, ...]

_RUN_LEAVES = ("home/datasets/*", "home/datasets", "home/encoders/*", "home/encoders", "home")
"""What a refused run may leave: what was divided or trained, none of it charged."""


def run_keys() -> Iterator[Given]:
    """`dpsw plan` over all keys of a run, the keys that a generator has for itself, and strange files."""
    config = load_config("digits", SMALL)
    plan = ("plan", "config.yaml")
    yield from _keys("run", "dpsw", plan, config.model_dump(mode="json"))
    generator = load_config("digits", ["method=dpswgen"])
    yield from _keys(
        "generator", "dpsw", plan, generator.model_dump(mode="json", include={"method", "generator"})
    )
    yield from _structures("run", "dpsw", plan)


def sweep_keys() -> Iterator[Given]:
    """What `dpsw tune` checks before it starts, over all keys of a sweep."""
    values = SweepConfig(
        base="digits",
        set={override.partition("=")[0]: _plain(override.partition("=")[2]) for override in SMALL},
        space={
            "flow.step_size": {"loguniform": [1.0, 12.0]},
            "flow.diffusion": {"uniform": [0.0, 1.0]},
            "flow.patience": {"grid": [10, 20]},
            "flow.schedule": {"choice": ["constant", "cosine"]},
        },
        epsilons=[1.0, 2.0],
    ).model_dump(mode="json")
    values["search"]["kind"], values["search"]["trials"] = "random", 4
    yield from _keys("sweep", "plan-tune", ("config.yaml",), values)
    yield from _structures("sweep", "plan-tune", ("config.yaml",))


def account_keys() -> Iterator[Given]:
    """`dpsw account` over all keys of all kinds of events."""
    one: Event = GaussianEvent("one", {"zero_out": 1.0}, 2.0)
    events: list[Event] = [
        one,
        DiscreteGaussianEvent("two", {"zero_out": 4}, 3.0),
        SkellamEvent("three", {"zero_out": 4}, {"zero_out": 2}, 9.0, 10),
        DpSgdEvent(0.01, 1.5, 10),
        DpPcaEvent(2.0),
        NoisyCountEvent(2.0),
        SlicedHistogramEvent(12, 1234, 500.0),
        SlicedGaussianEvent(16, 8, 6.0, "haar"),
        SampledGaussianEvent(sampling=0.01, sensitivity=1.0, noise_std=2.0),
        SequentialEvent((one,), 2),
        ParallelEvent((one, one)),
    ]
    for event in events:
        values = {"relation": "zero_out", "delta": 1e-5, "events": [event.to_dict()]}
        name = f"account/{event.kind}"
        yield from _keys(name, "dpsw", ("account", "config.yaml"), values, by_set=False)
    yield from _structures("account", "dpsw", ("account", "config.yaml"))


def flow_keys(subject: Path) -> Iterator[Given]:
    """`dpsw run` to the end with every key that takes a number: what is not refused must give finite results."""
    values = load_config("digits", SMALL).model_dump(mode="json")
    yield from _whole("flow", ("run", "config.yaml"), values, _single(values), subject)


def federated_keys(subject: Path) -> Iterator[Given]:
    """`dpsw federated` to the end, with the keys that a plain run does not have or has with another meaning."""
    run, plain = load_federated("digits", FEDERATED), type(load_config("digits")).model_fields
    values = run.model_dump(mode="json")
    own = [
        name
        for name, field in type(run).model_fields.items()
        if name not in plain or field.annotation != plain[name].annotation
    ]
    paths = [path for path in _single(values) if path[0] in own]
    yield from _whole("federated", ("federated", "config.yaml"), values, paths, subject)


def _keys(
    name: str, program: str, command: tuple[str, ...], values: dict[str, Any], by_set: bool = True
) -> Iterator[Given]:
    """Every entry of a config with every value, written into the file and given with `--set`."""
    for path in leaves(values):
        for called, raw in (YAML_VALUES | _paths(values, path)).items():
            what = f"{name}/{'.'.join(map(str, path))}"
            kind = f"{name.partition('/')[0]}/{called}"
            text = replaced(values, path, raw).encode()
            yield Given(f"{what}/{called}", kind, program, command, (("config.yaml", text),))
            if by_set and len(path) <= 2 and not any(isinstance(part, int) for part in path):
                yield Given(
                    f"{what}/{called}/set",
                    f"{kind}/set",
                    program,
                    (*command, "--set", f"{'.'.join(map(str, path))}={raw}"),
                    (("config.yaml", json.dumps(values).encode()),),
                )


def _structures(name: str, program: str, command: tuple[str, ...]) -> Iterator[Given]:
    for called, data in STRUCTURES.items():
        what = f"{name}/structure/{called}"
        yield Given(what, what, program, command, (("config.yaml", data),))
    for called, path in HAZARDS.items():
        other = tuple(path if part == "config.yaml" else part for part in command)
        what = f"{name}/file/{called}"
        yield Given(what, what, program, other)


def _whole(
    name: str, command: tuple[str, ...], values: dict[str, Any], paths: list[Path_], subject: Path
) -> Iterator[Given]:
    for path in paths:
        for called, raw in NUMBERS.items():
            yield Given(
                f"{name}/{'.'.join(map(str, path))}/{called}",
                f"{name}/{called}",
                "dpsw",
                (*command, "--output", "fresh"),
                (("config.yaml", replaced(values, path, raw).encode()),),
                subject=subject,
                may_change=("home/*",),
                may_add=_RUN_LEAVES,
                finite="fresh",
                limit_s=20.0,
                lasting=True,
            )


def _single(values: dict[str, Any]) -> list[Path_]:
    """Paths of single values."""
    return [path for path in leaves(values) if not isinstance(_at(values, path), dict | list)]


def _at(values: Any, path: Path_) -> Any:
    for part in path:
        values = values[part]
    return values


def _paths(values: dict[str, Any], path: Path_) -> dict[str, str]:
    """For what may be a path: strange ones, as YAML in quotes."""
    if not isinstance(_at(values, path), str | None):
        return {}
    return {f"path: {name}": json.dumps(text) for name, text in HAZARDS.items() if text.isascii()}


def _plain(text: str) -> Any:
    return json.loads(text) if text[0].isdigit() or text in ("true", "false") else text
