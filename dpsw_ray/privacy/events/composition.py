"""Events made of events: one after the other, or on disjoint parts of the data."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.privacy.events.base import Event, common_unit, compose_costs, worst_costs
from dpsw_ray.privacy.events.parameters import check_whole
from dpsw_ray.privacy.losses import Cost
from dpsw_ray.privacy.relations import Relation, Unit, check_relation

__all__ = ["ParallelEvent", "SequentialEvent", "check_parts"]


@dataclass(frozen=True)
class SequentialEvent(Event, kind="sequential"):
    """Several events on the same data, one after the other, the whole a number of times.

    Args:
        parts: at least one, all of one unit.
        times: how often.
    """

    parts: tuple[Event, ...]
    times: int = 1
    label: str = "sequence"

    def __post_init__(self) -> None:
        check_parts(self)
        check_whole(self, "times")

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """The parts' unit."""
        return common_unit(self.parts)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """The parts' losses added up. Disjoint parts may be drawn anew each time: alternatives combine freely."""
        once = compose_costs([part.costs(relation) for part in self.parts])
        if len(once) == 1:
            return (Counter({loss: n * self.times for loss, n in once[0].items()}),)
        return compose_costs([once] * self.times)


@dataclass(frozen=True)
class ParallelEvent(Event, kind="parallel"):
    """Events on disjoint parts of the data, each part the input of one event only (McSherry 2009).

    Args:
        parts: at least one, all of one unit.
        assignment: `fixed`: a unit's part is public or follows from its place, so that neighbours differ inside one
            part. `by_value`: it follows from the record itself, so that a replaced record may leave one part and
            enter another: one record less here and one more there.
    """

    parts: tuple[Event, ...]
    assignment: Literal["fixed", "by_value"] = "fixed"
    label: str = "disjoint parts"

    def __post_init__(self) -> None:
        check_parts(self)
        if self.assignment not in ("fixed", "by_value"):
            raise UserError(
                f"{self.label}: assignment must be fixed or by_value, found {shown(self.assignment)}."
            )

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """The parts' unit."""
        return common_unit(self.parts)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """The costs of each part; for records that leave a part, as one record less there.

        A zeroed record is in no part either, so with `by_value` its part has one record less.
        """
        by_value = self.assignment == "by_value"
        within = "add_remove" if by_value and check_relation(relation) == "zero_out" else relation
        alternatives = [cost for part in self.parts for cost in part.costs(within)]
        if by_value and relation == "replace_one":
            moved = [part.costs("add_remove") for part in self.parts]
            for left, entered in itertools.combinations(moved, 2):
                alternatives += [a + b for a, b in itertools.product(left, entered)]
        return tuple(worst_costs(alternatives))


def check_parts(event: Event) -> None:
    """Makes an event's `parts` a tuple; raises a UserError where they are no events, or of several units."""
    parts = tuple(getattr(event, "parts", ()))
    if not parts or not all(isinstance(part, Event) for part in parts):
        raise UserError(f"{event.label}: parts must be a list of at least one privacy event.")
    object.__setattr__(event, "parts", parts)
    common_unit(parts)
