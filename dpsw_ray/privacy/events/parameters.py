"""Checks of events' parameters: what would break the arithmetic, or the proof, is refused when it is stated."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal, Protocol, SupportsIndex, get_args

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.privacy.relations import Relation, check_relation

__all__ = [
    "NoiseKind",
    "check_by_relation",
    "check_noise",
    "check_noise_kind",
    "check_positive",
    "check_whole",
    "stated",
]

NoiseKind = Literal["gaussian", "discrete_gaussian"]

_SMALLEST, _LARGEST = 1e-30, 1e30
_LARGEST_WHOLE = 2**62


class _Labelled(Protocol):
    @property
    def label(self) -> str: ...


def check_whole(event: _Labelled, *names: str) -> None:
    """Makes parameters positive whole numbers, exact and JSON whatever integer type came in."""
    for name in names:
        value = getattr(event, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, SupportsIndex)
            or not 1 <= operator.index(value) <= _LARGEST_WHOLE
        ):
            raise UserError(f"{event.label}: {name} must be a positive whole number, found {shown(value)}.")
        object.__setattr__(
            event, name, operator.index(value)
        )  # exact and JSON, whatever integer type came in


def check_positive(event: _Labelled, *names: str) -> None:
    """Makes parameters positive numbers that arithmetic holds."""
    for name in names:
        object.__setattr__(event, name, value := checked_number(event, name, getattr(event, name)))
        if value == 0:
            raise UserError(f"{event.label}: {name} must be positive, found {shown(value)}.")


def check_noise(event: _Labelled, name: str = "noise_std") -> None:
    """Makes a noise level a number that arithmetic holds, 0 for none."""
    object.__setattr__(event, name, checked_number(event, name, getattr(event, name)))


def check_noise_kind(event: _Labelled) -> None:
    """Refuses noise that is sampled in a way nobody knows."""
    kind = getattr(event, "noise")  # noqa: B009 (of the events that say how)
    if kind not in get_args(NoiseKind):
        raise UserError(f"{event.label}: noise must be gaussian or discrete_gaussian, found {shown(kind)}.")


def check_by_relation(event: _Labelled, name: str, kind: type[int] | type[float]) -> None:
    """Checks and copies a mapping by relation: the caller's may change."""
    given = getattr(event, name)
    if not isinstance(given, Mapping):
        raise UserError(f"{event.label}: {name} must give a number for each relation, found {shown(given)}.")
    values = {}
    for relation, value in given.items():
        checked_number(event, f"{name} under {check_relation(relation)}", value)
        if kind(value) != value:
            raise UserError(f"{event.label}: {name} under {relation} must be whole, found {shown(value)}.")
        values[relation] = kind(value)
    object.__setattr__(event, name, _Frozen(values))


class _Frozen(dict[Any, Any]):
    """A mapping that stays as it is: accounts are remembered by their events."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("the parameters of a privacy event do not change")

    __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = __setitem__  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def checked_number(event: _Labelled, name: str, value: Any) -> float:
    """A number that squares and quotients of it stay finite for."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not (plain and (value == 0 or _SMALLEST <= value <= _LARGEST)):
        raise UserError(
            f"{event.label}: {name} must be 0 or lie between {_SMALLEST:g} and {_LARGEST:g}, found {shown(value)}."
        )
    return float(value)


def stated(by_relation: Mapping[Relation, Any], relation: Relation, label: str) -> Any:
    """The event's parameter under a relation; refused where the event has no meaning."""
    if check_relation(relation) not in by_relation:
        known = ", ".join(by_relation) or "none"
        raise UserError(
            f"{label}: this release has no bounded sensitivity under relation {relation}; it is private under "
            f"{known} only."
        )
    return by_relation[relation]
