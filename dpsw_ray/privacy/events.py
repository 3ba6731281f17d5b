"""Privacy events: what a mechanism did, as parameters, to be counted later under the data set's relation.

An event never stores an epsilon: the same release costs differently under different relations, so cost is
worked out when the relation is known. Every event round-trips through `to_dict` and `event_from_dict`, which
is what the ledger stores.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsIndex

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.relations import Relation, Unit, check_relation, check_unit

__all__ = ["Event", "GaussianEvent", "SlicedHistogramEvent", "event_from_dict"]


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
    def gaussian_mu(self, relation: Relation) -> float | None:
        """The mu of the Gaussian mechanism that this event is equivalent to (Dong, Roth and Su 2022).

        Returns:
            L2 sensitivity over noise standard deviation; infinity without noise; None where the event is
            no Gaussian mechanism.

        Raises:
            UserError: the event has no meaning under `relation`.
        """

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON values, `kind` included."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind, **{k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}}


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
        raise UserError(f"Unknown privacy event {kind!r}; this version knows {known}.")
    try:
        return event(**arguments)
    except TypeError:
        raise UserError(
            f"Privacy event {kind!r} has parameters {sorted(arguments)}, which do not fit it."
        ) from None


@dataclass(frozen=True)
class SlicedHistogramEvent(Event, kind="sliced_histogram"):
    """The release of integer bin tables with Gaussian noise, one noise draw per cell.

    A unit adds to each of K directions one non-negative integer bin vector of squared L2 norm at most
    `row_norm_sq`, in lattice units. Adding, removing or zeroing one changes the tables by at most
    K * row_norm_sq (squared L2); replacing one, by at most twice that, because the inner product of two
    non-negative vectors is never negative: |a - b|^2 <= |a|^2 + |b|^2. Rounding the noisy table to
    integers is post-processing.

    Args:
        directions: K.
        row_norm_sq: the largest squared L2 norm over the rows of the table of bin vectors, exact.
        noise_std: standard deviation of the noise in lattice units; 0 for none.
        unit: whose contribution one bin vector per direction is.
    """

    directions: int
    row_norm_sq: int
    noise_std: float
    unit: Unit = "record"
    label: str = "sliced histograms"

    def __post_init__(self) -> None:
        for name in ("directions", "row_norm_sq"):
            value = getattr(self, name)
            if not isinstance(value, SupportsIndex) or (whole := operator.index(value)) < 1:
                raise UserError(f"{self.label}: {name} must be a positive whole number, found {value!r}.")
            object.__setattr__(self, name, whole)  # exact and JSON, whatever integer type came in
        object.__setattr__(self, "noise_std", _checked_std(self.noise_std, self.label))
        check_unit(self.unit)

    def sensitivity_sq(self, relation: Relation) -> int:
        """Squared L2 sensitivity in squared lattice units, exact."""
        changed = 2 if check_relation(relation) == "replace_one" else 1
        return changed * self.directions * self.row_norm_sq

    def gaussian_mu(self, relation: Relation) -> float:
        """sqrt(`sensitivity_sq`) / `noise_std`; infinity without noise."""
        return _ratio(math.sqrt(self.sensitivity_sq(relation)), self.noise_std)


@dataclass(frozen=True)
class GaussianEvent(Event, kind="gaussian"):
    """A plain Gaussian mechanism whose L2 sensitivity is stated by relation.

    Args:
        label: what was released, for reports.
        sensitivity: L2 sensitivity under each relation the mechanism has a meaning for.
        noise_std: standard deviation of the noise, in the same units; 0 for none.
        unit: what neighbouring data sets differ in.
    """

    label: str
    sensitivity: Mapping[Relation, float] = field(hash=False)
    noise_std: float
    unit: Unit = "record"

    def __post_init__(self) -> None:
        values = {check_relation(relation): float(value) for relation, value in self.sensitivity.items()}
        object.__setattr__(self, "sensitivity", values)  # a copy: the caller's mapping may change
        for relation, value in values.items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(
                    f"{self.label}: the sensitivity under {relation} must be finite, found {value!r}."
                )
        object.__setattr__(self, "noise_std", _checked_std(self.noise_std, self.label))
        check_unit(self.unit)

    def gaussian_mu(self, relation: Relation) -> float:
        """`sensitivity[relation] / noise_std`; infinity without noise."""
        if check_relation(relation) not in self.sensitivity:
            known = ", ".join(self.sensitivity) or "none"
            raise UserError(
                f"{self.label}: this release has no bounded sensitivity under relation {relation}; it is "
                f"private under {known} only."
            )
        return _ratio(self.sensitivity[relation], self.noise_std)


def _checked_std(noise_std: float, label: str) -> float:
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise UserError(f"{label}: noise_std must be finite and not negative, found {noise_std!r}.")
    return float(noise_std)


def _ratio(sensitivity: float, noise_std: float) -> float:
    if sensitivity == 0:
        return 0.0
    return sensitivity / noise_std if noise_std > 0 else math.inf
