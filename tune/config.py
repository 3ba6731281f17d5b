"""A sweep as pydantic models: a base run, a space around it, who searches, and how the choice is paid for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.config.fields import Epsilon, Real, Section, Seed, Text, Whole
from dpsw_ray.config.file import explain_mistakes, parse_override, put_value, read_values
from dpsw_ray.config.run import LONGEST_NAME, NAME, RunConfig
from dpsw_ray.methods.registry import RUNS
from dpsw_ray.pipeline.memory import check_memory
from dpsw_ray.tune.space import MOST_POINTS

__all__ = [
    "Base",
    "SchedulerConfig",
    "SearchConfig",
    "SelectionConfig",
    "SweepConfig",
    "TrialsConfig",
    "load_sweep",
]


class SearchConfig(Section):
    """Which configurations are tried."""

    kind: Literal["random", "grid", "optuna"] = "random"
    trials: Whole = Field(
        32, ge=1, le=MOST_POINTS, description="random, optuna: how many; a grid has as many as it has"
    )
    seed: Seed = Field(0, description="public: of the search")
    base: bool = Field(True, description="the base run is one of the trials, the first")


class SchedulerConfig(Section):
    """Which trials are stopped before their flow has ended."""

    kind: Literal["fifo", "asha", "median"] = "fifo"
    every: Whole = Field(20, ge=1, le=10**7, description="flow steps between two looks at the score")
    grace: Whole = Field(20, ge=1, le=10**7, description="flow steps that every trial gets")
    reduction: Real = Field(
        3.0, gt=1.0, le=1e6, description="asha: the best one in so many goes on at each rung"
    )


class SelectionConfig(Section):
    """By what the best trial is chosen, and how the choice is paid for."""

    policy: Literal["reuse", "split", "private_selection", "nonprivate"] = "reuse"
    score: Literal["validation_slices", "noisy_query", "public"] = "validation_slices"
    withheld: Real = Field(
        0.25,
        gt=0.0,
        lt=1.0,
        description="validation_slices: share of the released directions kept from the flow",
    )
    query_share: Real = Field(
        0.1,
        gt=0.0,
        lt=1.0,
        description="noisy_query: share of the budget (of mu squared) that the query takes",
    )
    query_frames: Whole = Field(
        8, ge=1, le=10_000, description="noisy_query: frames of directions of its own"
    )
    measure: Literal["sliced_w2", "fid", "intended", "logreg"] = Field(
        "fid", description="public: what is measured against public records"
    )
    mean_trials: Real = Field(8.0, gt=1.0, le=1e6, description="private_selection: mean number of trials")
    eta: Real = Field(0.0, gt=-1.0, le=100.0, description="private_selection: shape of their number's law")


class TrialsConfig(Section):
    """What a trial gets to work with."""

    at_once: Whole | None = Field(
        None, ge=1, le=10_000, description="default: as many as the cluster has room for"
    )
    actors: Whole = Field(
        1, ge=1, le=10_000, description="workers of each trial; one works in the trial's own process"
    )
    cpus: Real = Field(1.0, gt=0.0, le=4096.0, description="of each worker")
    gpus: Real = Field(0.0, ge=0.0, le=1024.0, description="of each worker; a fraction shares a GPU")


class SweepConfig(Section):
    """One sweep, whole."""

    name: Text = Field("tune", pattern=NAME, max_length=LONGEST_NAME)
    base: str | dict[str, Any] = Field(
        "digits", description="a run's YAML file, the name of a shipped one, or the run"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="overrides of the base, key: value")
    space: dict[str, dict[str, Any]] = Field(default_factory=dict, description="key: distribution")
    search: SearchConfig = Field(default_factory=SearchConfig)
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig)
    selection: SelectionConfig = Field(default_factory=SelectionConfig)
    trials: TrialsConfig = Field(default_factory=TrialsConfig)
    epsilons: list[Epsilon] | None = Field(
        None, min_length=1, max_length=1000, description="one sweep for each: quality against epsilon"
    )

    @field_validator("base", mode="before")
    @classmethod
    def _run(cls, base: Any) -> Any:
        if not isinstance(base, str | dict):
            raise ValueError(
                "must be a run's YAML file, the name of a shipped run, or a section with a run's keys"
            )
        return base

    @field_validator("epsilons")
    @classmethod
    def _different(cls, epsilons: list[float] | None) -> list[float] | None:
        if epsilons is not None and len(set(epsilons)) < len(epsilons):
            raise ValueError(f"must be different numbers, found {shown(epsilons)}")
        return epsilons and sorted(epsilons)

    def to_yaml(self) -> str:
        """The resolved sweep as YAML that `load_sweep` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class Base:
    """The run that all trials go back to: a trial keeps those of its keys that the trial's method has.

    Attributes:
        config: of the run.
    """

    def __init__(self, sweep: SweepConfig, where: str, epsilon: float | None = None) -> None:
        """Reads and checks the base run.

        Args:
            sweep: whose base.
            where: the sweep's file, for messages.
            epsilon: in place of the base's.

        Raises:
            UserError: no such file, or a wrong key.
        """
        self._where = where
        if isinstance(sweep.base, str):
            values, source, _ = read_values(Path(sweep.base))
        else:
            values, source = _copied(sweep.base), f"{where}: base"
        own, overrides = RUNS.method(values), dict(_flat(sweep.set))
        for key, value in overrides.items():
            put_value(values, key, value, f"{where}: set.{key}")
        if epsilon is not None:
            put_value(values, "privacy.epsilon", epsilon, where)
        self._values = values
        swept = {RUNS.method(values), *_swept_methods(sweep)}
        self._methods = (own, *swept)
        idle = [key for key in overrides if not swept & set(RUNS.owners(key))]
        try:
            self.config = RUNS.make(_copied(values), source, base=self._methods, chosen=idle)
        except UserError as error:
            within = f" with `set` of {where}" if sweep.set else ""
            raise UserError(f"The base run{within}: {error}") from None

    def at(self, point: Mapping[str, Any]) -> RunConfig:
        """The run with some keys changed.

        Raises:
            UserError: naming the keys, where such a run is not valid.
        """
        values = _copied(self._values)
        for key, value in point.items():
            put_value(values, key, value, f"{self._where}: space.{key}")
        try:
            config = RUNS.make(values, "", base=self._methods, chosen=point)
            check_memory(config)
        except UserError as error:
            keys = ", ".join(f"{key}: {shown(value)}" for key, value in point.items())
            raise UserError(
                f"{self._where}: the space holds {{{keys}}}, which is no valid run: {str(error).removeprefix(': ')}"
            ) from None
        return config


def load_sweep(path: str | Path, overrides: list[str]) -> tuple[SweepConfig, str]:
    """Reads a sweep's YAML file and applies `a.b=c` overrides; `set.` is for keys of the base run.

    Returns:
        The sweep and what to call its file in a message.

    Raises:
        UserError: one sentence per wrong key.
    """
    ours = [override for override in overrides if not override.startswith("set.")]
    values, where, overridden = read_values(path, ours, "tune")
    for override in (override for override in overrides if override.startswith("set.")):
        key, value = parse_override(override)
        if values.get("set") is None:
            values["set"] = {}
        base = values["set"]
        if not isinstance(base, dict):
            raise UserError(f"{where}: set must be a section with keys of its own, found {shown(base)}.")
        base[key.removeprefix("set.")] = value
        overridden.append(key)
    for key in [key for key, value in values.items() if value is None]:
        del values[key]
    try:
        return SweepConfig.model_validate(values), where
    except ValidationError as error:
        raise UserError(explain_mistakes(error, where, overridden, SweepConfig)) from None


def _swept_methods(sweep: SweepConfig) -> list[str]:
    listed = [values for values in sweep.space.get("method", {}).values() if isinstance(values, list)]
    return [str(value) for values in listed for value in values]


def _flat(overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Overrides by `section.key`, whether they were written so or as a section of keys."""
    for key, value in overrides.items():
        if "." not in str(key) and isinstance(value, dict):
            yield from ((f"{key}.{name}", item) for name, item in value.items())
        else:
            yield str(key), value


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value
