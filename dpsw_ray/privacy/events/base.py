"""What every privacy event is: parameters that become costs under a relation, and back from JSON."""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dpsw_ray.base.errors import UserError, one_line, shown
from dpsw_ray.privacy.gaussian import AccountingError
from dpsw_ray.privacy.losses import Cost, Gaussian
from dpsw_ray.privacy.relations import Relation, Unit

__all__ = ["Event", "common_unit", "compose_costs", "event_from_dict", "worst_costs"]

_MOST_ALTERNATIVES = 64


class Event(ABC):
    """One use of a mechanism. Subclasses are frozen dataclasses and name their `kind`."""

    kind: ClassVar[str]
    label: str
    unit: Unit
    _registry: ClassVar[dict[str, type[Event]]] = {}

    def __init_subclass__(cls, *, kind: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.kind = kind
        if Event._registry.setdefault(kind, cls) is not cls:
            raise TypeError(f"event kind {kind!r} is taken by {Event._registry[kind].__qualname__}")

    @abstractmethod
    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """What this event costs a pair of neighbours under `relation`.

        Returns:
            The alternatives, one of which holds for any pair: one, except where it depends on the part of the
            data a record lies in.

        Raises:
            UserError: the event has no meaning under `relation`.
        """

    def scaled(self, level: float) -> Event:
        """The same with all its noise `level` times as large, for calibration."""
        changed: dict[str, Any] = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if item.name in ("noise_std", "noise_multiplier"):
                changed[item.name] = level * value
            elif item.name == "variance":
                changed[item.name] = level**2 * value
            elif item.name == "parts":
                changed[item.name] = tuple(part.scaled(level) for part in value)
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON values, `kind` included."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind, **{name: _plain(value) for name, value in values.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [part.to_dict() for part in value]
    return value


def event_from_dict(values: Mapping[str, Any]) -> Event:
    """The inverse of `Event.to_dict`.

    Raises:
        UserError: an unknown kind, or parameters that do not fit the kind.
    """
    arguments = dict(values)
    kind = arguments.pop("kind", None)
    event = Event._registry.get(str(kind))
    if event is None:
        known = ", ".join(sorted(Event._registry))
        raise UserError(f"Unknown privacy event {shown(kind)}; this version knows {known}.")
    if "parts" in arguments:
        parts = arguments["parts"]
        if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
            raise UserError(
                f"Privacy event {kind!r}: parts must be a list of sections with a kind, found {shown(parts)}."
            )
        arguments["parts"] = tuple(event_from_dict(part) for part in parts)
    if not isinstance(arguments.get("label", ""), str):
        raise UserError(f"Privacy event {kind!r}: label must be text, found {shown(arguments['label'])}.")
    names = {item.name for item in dataclasses.fields(event)}  # type: ignore[arg-type]
    if unknown := sorted(map(str, arguments.keys() - names)):
        raise UserError(
            f"Privacy event {kind!r} has no {one_line(', '.join(unknown), 200)}; it takes {', '.join(sorted(names))}."
        )
    try:
        return event(**arguments)
    except (TypeError, AttributeError, ValueError, ArithmeticError):
        raise UserError(
            f"Privacy event {kind!r} has parameters {shown(sorted(arguments))}, which do not fit it."
        ) from None


def common_unit(events: Sequence[Event]) -> Unit:
    """The one unit that all events protect.

    Raises:
        UserError: no events, or events of different units, which do not compose.
    """
    units = {event.unit for event in events}
    if len(units) != 1:
        found = ", ".join(f"{event.label} ({event.unit})" for event in events) or "none"
        raise UserError(f"Privacy events compose only where all protect the same unit, found: {found}.")
    return units.pop()


def compose_costs(parts: Sequence[Sequence[Cost]]) -> tuple[Cost, ...]:
    """One alternative of each part, added up, in all combinations.

    Raises:
        AccountingError: more combinations than can be counted.
    """
    composed: list[Cost] = [Counter()]
    for alternatives in parts:
        composed = worst_costs([before + cost for before, cost in itertools.product(composed, alternatives)])
        if len(composed) > _MOST_ALTERNATIVES:
            raise AccountingError(
                f"Parallel compositions leave more than {_MOST_ALTERNATIVES} combinations of parts that a record may "
                "lie in; state the costs of the parts alike."
            )
    return tuple(composed)


def worst_costs(alternatives: Sequence[Cost]) -> list[Cost]:
    """Without repetitions, and of purely Gaussian alternatives the one with the largest mu only."""
    different: list[Cost] = []
    gaussian: tuple[float, Cost] | None = None
    for cost in alternatives:
        if all(isinstance(loss, Gaussian) for loss in cost):
            mu_squared = sum(n * loss.mu**2 for loss, n in cost.items() if isinstance(loss, Gaussian))
            if gaussian is None or mu_squared > gaussian[0]:
                gaussian = (mu_squared, cost)
        elif cost not in different:
            different.append(cost)
    return different + ([gaussian[1]] if gaussian is not None else [])
