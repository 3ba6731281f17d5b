"""Who counts as a neighbour: relations between data sets, and the unit that is protected."""

from __future__ import annotations

from typing import Literal, get_args

from dpsw_ray.base.errors import UserError, shown

__all__ = [
    "RELATIONS",
    "UNITS",
    "Relation",
    "Unit",
    "check_relation",
    "check_unit",
    "count_is_public",
]

Relation = Literal["replace_one", "zero_out", "add_remove"]
Unit = Literal["record", "user"]

RELATIONS: tuple[Relation, ...] = get_args(Relation)
UNITS: tuple[Unit, ...] = get_args(Unit)


def check_relation(relation: str) -> Relation:
    """Returns `relation` where it is one of the three.

    Raises:
        UserError: it is none of them.
    """
    for known in RELATIONS:
        if relation == known:
            return known
    raise UserError(f"relation must be one of {', '.join(RELATIONS)}, found {shown(relation)}.")


def check_unit(unit: str) -> Unit:
    """Returns `unit` where it is `record` or `user`.

    Raises:
        UserError: it is neither.
    """
    for known in UNITS:
        if unit == known:
            return known
    raise UserError(f"unit must be one of {', '.join(UNITS)}, found {shown(unit)}.")


def count_is_public(relation: Relation) -> bool:
    """True where neighbouring data sets have the same size, so that the number of units may be shown."""
    return check_relation(relation) != "add_remove"
