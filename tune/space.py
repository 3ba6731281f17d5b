"""Spaces: a distribution for each swept key of the run config, some of them only under a condition.

    flow.schedule: {choice: [constant, cosine]}
    flow.step_size: {loguniform: [1, 16]}
    flow.steps: {randint: [50, 300]}                       # both ends included
    flow.diffusion: {loguniform: [1.0e-6, 1.0e-3], when: {flow.schedule: cosine}}

Where a condition does not hold, the key keeps the base run's value.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsw_ray.base.errors import UserError, named, shown
from dpsw_ray.base.numerals import plain_number
from dpsw_ray.methods.registry import RUNS

__all__ = ["MOST_CORNERS", "MOST_POINTS", "Distribution", "Point", "Space", "parse_space"]

Point = dict[str, Any]
"""Values by key of the run config; a key whose condition does not hold is missing."""

MOST_CORNERS = 4_096
MOST_POINTS = 10_000
"""Of a sweep: every one of them is checked before the first is tried."""

_LARGEST = 2.0**53
"""Up to which whole numbers are told apart."""

KINDS = ("choice", "grid", "uniform", "loguniform", "randint")


@dataclass(frozen=True)
class Distribution:
    """Of one key.

    Attributes:
        key: of the run config.
        kind: of `KINDS`; a grid is enumerated by a grid search and drawn like a choice by the others.
        values: the values of a choice or a grid; of the others lowest and highest.
        when: other key -> the values under which this one is in use.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]]

    @property
    def listed(self) -> bool:
        """Whether its values are written one by one."""
        return self.kind in ("choice", "grid")

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        if self.listed:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(rng.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return float(rng.uniform(low, high))
        return float(math.exp(rng.uniform(math.log(low), math.log(high))))

    def active(self, point: Mapping[str, Any]) -> bool:
        """Whether the condition holds; a key that is not in use itself meets none."""
        return all(key in point and point[key] in allowed for key, allowed in self.when.items())


@dataclass(frozen=True)
class Space:
    """The distributions, conditions after what they depend on."""

    distributions: tuple[Distribution, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """All swept keys."""
        return tuple(distribution.key for distribution in self.distributions)

    def build(self, choose: Callable[[Distribution], Any]) -> Point:
        """A point, by asking for a value of each distribution that is in use."""
        point: Point = {}
        for distribution in self.distributions:
            if distribution.active(point):
                point[distribution.key] = choose(distribution)
        return point

    def draw(self, rng: np.random.Generator) -> Point:
        """A random point."""
        return self.build(lambda distribution: distribution.draw(rng))

    def grid(self) -> list[Point]:
        """All points.

        Raises:
            UserError: a range, which has no end of them, or more than `MOST_POINTS`.
        """
        for distribution in self.distributions:
            if not distribution.listed:
                raise UserError(
                    f"space.{distribution.key}: search.kind grid needs values one by one, found {distribution.kind}; "
                    "give a grid: [..], or choose search.kind random."
                )
        points = list(itertools.islice(self._products({}, 0), MOST_POINTS + 1))
        if len(points) > MOST_POINTS:
            whole = math.prod(len(distribution.values) for distribution in self.distributions)
            raise UserError(
                f"space: a grid of {whole:,} points, conditions aside, is more than {MOST_POINTS:,}: give fewer "
                "values, or choose search.kind random."
            )
        return points

    def corners(self, seed: int = 0) -> list[Point]:
        """Points at the ends of all ranges, in all combinations; of very many, a random part that has every value."""
        count = math.prod(len(distribution.values) for distribution in self.distributions)
        if count <= MOST_CORNERS:
            return list(self._products({}, 0))
        rng = np.random.default_rng([seed, 0xC0])
        points = [
            self.build(lambda d: d.values[int(rng.integers(len(d.values)))]) for _ in range(MOST_CORNERS)
        ]
        longest = max(len(distribution.values) for distribution in self.distributions)
        points += [self.build(lambda d: d.values[n % len(d.values)]) for n in range(longest)]  # noqa: B023
        return points

    def _products(self, point: Point, number: int) -> Iterator[Point]:
        if number == len(self.distributions):
            yield dict(point)
            return
        distribution = self.distributions[number]
        if not distribution.active(point):
            yield from self._products(point, number + 1)
            return
        for value in distribution.values:
            yield from self._products({**point, distribution.key: value}, number + 1)


def parse_space(values: Mapping[str, Mapping[str, Any]], where: str) -> Space:
    """Reads a space.

    Args:
        values: key -> distribution.
        where: the file, for messages.

    Raises:
        UserError: an unknown key or distribution, values that are none, a condition on what comes later.
    """
    found: dict[str, Distribution] = {}
    for key, spec in values.items():
        _check_key(key, where)
        found[key] = _distribution(key, spec, found, f"{where}: space.{key}")
    return Space(tuple(found.values()))


def _check_key(key: str, where: str) -> None:
    known = RUNS.all_keys()
    if key in known:
        return
    close = difflib.get_close_matches(key[:80], known, n=1)
    near = [name for name in known if name.endswith(f".{key.rpartition('.')[2]}")]
    hint = f"did you mean {close[0]}" if close else f"did you mean {near[0]}" if near else "write section.key"
    raise UserError(f"{where}: space.{named(key)} is no key of a run config; {hint}.")


def _distribution(
    key: str, spec: Mapping[str, Any], before: Mapping[str, Distribution], where: str
) -> Distribution:
    kinds = [name for name in spec if name != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise UserError(
            f"{where} must have one of {', '.join(KINDS)}, found {named(', '.join(kinds)) or 'none'}."
        )
    kind, values = kinds[0], spec[kinds[0]]
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UserError(f"{where}.{kind} must be a list, such as [a, b], found {shown(values)}.")
    if kind in ("choice", "grid"):
        if len({json.dumps(value, default=str) for value in values}) < len(values):
            raise UserError(f"{where}.{kind} names a value twice: {shown(values)}.")
        parsed = tuple(values)
    else:
        parsed = _range(kind, values, where)
    return Distribution(key, kind, parsed, _conditions(spec.get("when"), before, where))


def _range(kind: str, values: Sequence[Any], where: str) -> tuple[Any, Any]:
    try:
        low, high = map(_number, values)
    except (ValueError, OverflowError):
        raise UserError(f"{where}.{kind} must be [lowest, highest], found {shown(values)}.") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"{where}.{kind} must be [lowest, highest] with lowest < highest, found {shown(values)}."
        )
    if max(abs(low), abs(high)) > _LARGEST:
        raise UserError(f"{where}.{kind} must stay within {_LARGEST:g}, found {shown(values)}.")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{where}.loguniform must begin above 0, found {low:g}.")
    if kind == "randint":
        if low % 1 or high % 1:
            raise UserError(f"{where}.randint must have whole ends, found {shown(values)}.")
        return int(low), int(high)
    return low, high


def _number(value: Any) -> float:
    found = plain_number(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError
    return float(found)


def _conditions(when: Any, before: Mapping[str, Distribution], where: str) -> dict[str, tuple[Any, ...]]:
    if when is None:
        return {}
    if not isinstance(when, dict) or not when:
        raise UserError(f"{where}.when must be a section `other.key: value`, found {shown(when)}.")
    found: dict[str, tuple[Any, ...]] = {}
    for key, allowed in when.items():
        other = before.get(key)
        if other is None or not other.listed:
            raise UserError(
                f"{where}.when: {named(key)} must stand above it in the space, as a choice or a grid."
            )
        wanted = tuple(allowed) if isinstance(allowed, list) else (allowed,)
        if not wanted:
            raise UserError(f"{where}.when: {named(key)} must name at least one value, found [].")
        if missing := [value for value in wanted if value not in other.values]:
            raise UserError(
                f"{where}.when: {named(key)} is never {shown(missing[0])}; it is one of {shown(other.values)}."
            )
        found[key] = wanted
    return found
