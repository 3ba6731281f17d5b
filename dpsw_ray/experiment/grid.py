"""A grid of trials: every method at every epsilon with every seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpsw_ray.base.errors import UserError, named, shown
from dpsw_ray.config.fields import MOST_SEED
from dpsw_ray.config.file import read_values
from dpsw_ray.config.run import RunConfig
from dpsw_ray.experiment.trial import Trial, trial_config
from dpsw_ray.methods.registry import METHODS, RUNS
from dpsw_ray.pipeline.memory import check_memory

__all__ = ["Grid", "make_grid", "parse_methods", "parse_own"]

_CHOSEN = {"method": "--methods", "privacy.epsilon": "--epsilon"}
"""Keys that the grid sets, and the options that say to what."""

_MOST_TRIALS = 10_000

_SHARED = ("name", "seed", "data", "evaluation", "cluster", "tracking", "paths", "privacy.research")
"""Keys and sections that no method may have for itself: its figures would not compare."""


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        config: that all trials go back to.
        methods: in the order asked for.
        epsilons: in increasing order; infinity is without noise.
        seeds: one trial each.
        own: method -> overrides of its own, `key=value`.
        trials: seed by seed, so that a whole comparison with few seeds stands early.
    """

    config: RunConfig
    methods: tuple[str, ...]
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    own: Mapping[str, Sequence[str]]
    trials: tuple[Trial, ...]


def parse_methods(text: str) -> tuple[str, ...]:
    """Methods of a comma-separated list.

    Raises:
        UserError: some name is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or (text,):
        if name not in METHODS:
            raise UserError(f"--methods takes some of {', '.join(METHODS)}, found {shown(name)}.")
    return names


def parse_own(options: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """`METHOD:KEY=VALUE` options as overrides by method.

    Raises:
        UserError: an option has another form, or a key that all methods share.
    """
    own: dict[str, tuple[str, ...]] = {}
    for option in options:
        method, colon, override = option.partition(":")
        if not colon or method not in METHODS or "=" not in override:
            raise UserError(
                f"--for takes METHOD:KEY=VALUE with a method of {', '.join(METHODS)}, such as "
                f"{next(iter(METHODS))}:release.frames=9, found {shown(option)}."
            )
        key = _key(override)
        for shared in (*_CHOSEN, *_SHARED):
            if f"{key}.".startswith(f"{shared}."):
                instead = (
                    f"use {_CHOSEN[shared]}" if shared in _CHOSEN else "give it to all of them with --set"
                )
                raise UserError(
                    f"--for {named(option)}: {named(key)} is the same for all methods; {instead}."
                )
        own[method] = (*own.get(method, ()), override)
    return own


def make_grid(
    config: str | Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    epsilons: Sequence[float],
    seeds: int,
    own: Mapping[str, Sequence[str]],
) -> Grid:
    """Builds and checks the config of every trial.

    A trial keeps those of the file's keys, and of the overrides for all trials, that its method has.

    Args:
        config: a YAML file, or the name of a shipped one.
        overrides: for all trials, `key=value`.
        methods: of `methods.registry.METHODS`.
        epsilons: positive, perhaps infinite; in any order.
        seeds: how many; they count up from the config's.
        own: method -> overrides for it alone.

    Raises:
        UserError: an epsilon is not positive, there are more than `_MOST_TRIALS`, an override for all trials is of no
            method among them, or a config is wrong; one of a method is named.
    """
    epsilons = sorted(set(epsilons))
    if epsilons[0] <= 0:
        raise UserError(f"--epsilon takes positive numbers or inf, such as 0.2,1,5, found {epsilons[0]:g}.")
    if (count := len(methods) * len(epsilons) * seeds) > _MOST_TRIALS:
        raise UserError(
            f"--methods, --epsilon and --seeds make {count:,} trials, and a comparison has at most {_MOST_TRIALS:,}: "
            "give fewer."
        )
    for override in overrides:
        if instead := _CHOSEN.get(_key(override)):
            raise UserError(f"--set {named(override)}: the grid sets {_key(override)}; use {instead}.")
    if idle := [method for method in own if method not in methods]:
        raise UserError(f"--for {idle[0]}:{own[idle[0]][0]}: {idle[0]} is not among --methods.")
    RUNS.check_shared(map(_key, overrides), methods, "--set")
    base = _config(config, overrides, methods)
    for key, first in (("seed", base.seed), ("privacy.noise_seed", base.privacy.noise_seed or 0)):
        if first + seeds - 1 > MOST_SEED:
            raise UserError(
                f"--seeds {seeds} counts up from {key} {first} beyond {MOST_SEED}, the largest seed."
            )
    numbers = tuple(range(base.seed, base.seed + seeds))
    trials = [
        _trial(config, overrides, own.get(method, ()), base, methods, method, epsilon, seed)
        for seed in numbers
        for epsilon in epsilons
        for method in methods
    ]
    return Grid(base, tuple(methods), tuple(epsilons), numbers, own, tuple(trials))


def _trial(
    path: str | Path,
    overrides: Sequence[str],
    own: Sequence[str],
    base: RunConfig,
    methods: Sequence[str],
    method: str,
    epsilon: float,
    seed: int,
) -> Trial:
    chosen = (f"method={method}", f"privacy.epsilon={'.inf' if math.isinf(epsilon) else repr(epsilon)}")
    try:
        config = _config(path, (*overrides, *own, *chosen), methods, own)
    except UserError as error:
        raise UserError(f"Method {method}: {error}") from None
    short = f"{epsilon:g}"
    level = (short if float(short) == epsilon else repr(epsilon)).replace("+", "")
    name = f"{method}-{level}-{seed}"
    check_memory(config)
    config = trial_config(config, f"{base.name}-{name}")
    noise_seed = config.privacy.noise_seed
    if noise_seed is not None:  # reproducible, but not the same noise for every seed
        privacy = config.privacy.model_copy(update={"noise_seed": noise_seed + seed - base.seed})
        config = config.model_copy(update={"privacy": privacy})
    return Trial(name, {"method": method, "epsilon": epsilon}, seed, config.model_copy(update={"seed": seed}))


def _config(
    path: str | Path, overrides: Sequence[str], methods: Sequence[str], own: Sequence[str] = ()
) -> RunConfig:
    """A config whose keys may be of any of the grid's methods, but for its `own`."""
    values, where, overridden = read_values(path, overrides)
    base = (*methods, RUNS.method(read_values(path)[0]))
    return RUNS.make(values, where, overridden, base=base, chosen=map(_key, own))


def _key(override: str) -> str:
    return ".".join(part.strip() for part in override.partition("=")[0].split("."))
