"""Privacy events: what a mechanism did, as parameters, to be counted later under the data set's relation.

An event never stores an epsilon: the same release costs differently under different relations, so cost is
worked out when the relation is known. Every event round-trips through `to_dict` and `event_from_dict`, which
is what the ledger stores.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, SupportsIndex

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.gaussian import AccountingError
from dpsw_ray.privacy.losses import (
    Cost,
    Gaussian,
    Loss,
    SampledGaussian,
    Skellam,
    SlicedGaussian,
    ZeroConcentrated,
)
from dpsw_ray.privacy.relations import Relation, Unit, check_relation, check_unit

__all__ = [
    "DiscreteGaussianEvent",
    "DpPcaEvent",
    "DpSgdEvent",
    "Event",
    "GaussianEvent",
    "NoiseKind",
    "NoisyCountEvent",
    "ParallelEvent",
    "SampledGaussianEvent",
    "SequentialEvent",
    "SkellamEvent",
    "SlicedGaussianEvent",
    "SlicedHistogramEvent",
    "common_unit",
    "compose_costs",
    "event_from_dict",
]

NoiseKind = Literal["gaussian", "discrete_gaussian"]

_MOST_ALTERNATIVES = 64
_SMALLEST, _LARGEST = 1e-30, 1e30
_LARGEST_WHOLE = 2**62


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

    def gaussian_mu(self, relation: Relation) -> float | None:
        """The mu of the Gaussian mechanism that this event is equivalent to (Dong, Roth and Su 2022).

        Returns:
            L2 sensitivity over noise standard deviation; infinity without noise; None where the event is
            no Gaussian mechanism.

        Raises:
            UserError: the event has no meaning under `relation`.
        """
        losses = [loss for cost in self.costs(relation) for loss in cost]
        if not all(isinstance(loss, Gaussian) for loss in losses):
            return None
        return max(
            math.hypot(*(math.sqrt(n) * loss.mu for loss, n in cost.items() if isinstance(loss, Gaussian)))
            for cost in self.costs(relation)
        )

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
        raise UserError(f"Unknown privacy event {kind!r}; this version knows {known}.")
    if "parts" in arguments:
        parts = arguments["parts"]
        if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
            raise UserError(
                f"Privacy event {kind!r}: parts must be a list of sections with a kind, found {_shown(parts)}."
            )
        arguments["parts"] = tuple(event_from_dict(part) for part in parts)
    if not isinstance(arguments.get("label", ""), str):
        raise UserError(f"Privacy event {kind!r}: label must be text, found {_shown(arguments['label'])}.")
    names = {item.name for item in dataclasses.fields(event)}  # type: ignore[arg-type]
    if unknown := sorted(map(str, arguments.keys() - names)):
        raise UserError(
            f"Privacy event {kind!r} has no {', '.join(unknown)}; it takes {', '.join(sorted(names))}."
        )
    try:
        return event(**arguments)
    except (TypeError, AttributeError, ValueError, ArithmeticError):
        raise UserError(
            f"Privacy event {kind!r} has parameters {sorted(arguments)}, which do not fit it."
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
        composed = _worst([before + cost for before, cost in itertools.product(composed, alternatives)])
        if len(composed) > _MOST_ALTERNATIVES:
            raise AccountingError(
                f"Parallel compositions leave more than {_MOST_ALTERNATIVES} combinations of parts that a record may "
                "lie in; state the costs of the parts alike."
            )
    return tuple(composed)


def _worst(alternatives: Sequence[Cost]) -> list[Cost]:
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


@dataclass(frozen=True)
class SlicedHistogramEvent(Event, kind="sliced_histogram"):
    """The release of integer bin tables with noise, one noise draw per cell (DPSWflow-h).

    A unit adds to each of K directions one non-negative integer bin vector of squared L2 norm at most
    `row_norm_sq`, in lattice units. Adding, removing or zeroing one changes the tables by at most
    K * row_norm_sq (squared L2); replacing one, by at most twice that, because the inner product of two
    non-negative vectors is never negative: |a - b|^2 <= |a|^2 + |b|^2. Rounding noisy tables to integers is
    post-processing.

    Args:
        directions: K.
        row_norm_sq: the largest squared L2 norm over the rows of the table of bin vectors, exact.
        noise_std: standard deviation of the noise in lattice units; 0 for none.
        noise: `gaussian`, or `discrete_gaussian` (see `DiscreteGaussianEvent`).
        unit: whose contribution one bin vector per direction is.
    """

    directions: int
    row_norm_sq: int
    noise_std: float
    noise: NoiseKind = "gaussian"
    unit: Unit = "record"
    label: str = "sliced histograms"

    def __post_init__(self) -> None:
        _whole(self, "directions", "row_norm_sq")
        _noise(self)
        if self.noise not in ("gaussian", "discrete_gaussian"):
            raise UserError(
                f"{self.label}: noise must be gaussian or discrete_gaussian, found {self.noise!r}."
            )
        check_unit(self.unit)

    def sensitivity_sq(self, relation: Relation) -> int:
        """Squared L2 sensitivity in squared lattice units, exact."""
        changed = 2 if check_relation(relation) == "replace_one" else 1
        return changed * self.directions * self.row_norm_sq

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism, or a discrete one."""
        if self.noise == "discrete_gaussian":
            return _discrete(self.sensitivity_sq(relation), self.noise_std)
        return _gaussian(math.sqrt(self.sensitivity_sq(relation)), self.noise_std)


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
        _by_relation(self, "sensitivity", float)
        _noise(self)
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism with mu = `sensitivity[relation]` / `noise_std`."""
        return _gaussian(_stated(self.sensitivity, relation, self.label), self.noise_std)


@dataclass(frozen=True)
class DiscreteGaussianEvent(Event, kind="discrete_gaussian"):
    """Integer answers with discrete Gaussian noise on every coordinate: rho = Delta_2^2 / (2 sigma^2).

    Source: Canonne, Kamath and Steinke (2020), the multivariate discrete Gaussian. `noise_std` is the parameter
    sigma, which the standard deviation does not pass.

    Args:
        label: what was released.
        sensitivity_sq: squared L2 sensitivity, whole, under each relation the mechanism has a meaning for.
        noise_std: sigma, in the same units; 0 for none.
        unit: what neighbouring data sets differ in.
    """

    label: str
    sensitivity_sq: Mapping[Relation, int] = field(hash=False)
    noise_std: float
    unit: Unit = "record"

    def __post_init__(self) -> None:
        _by_relation(self, "sensitivity_sq", int)
        _noise(self)
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """Rho-zCDP."""
        return _discrete(_stated(self.sensitivity_sq, relation, self.label), self.noise_std)


@dataclass(frozen=True)
class SkellamEvent(Event, kind="skellam"):
    """Integer sums with Skellam noise, the difference of two Poisson variables, on every coordinate.

    Source: Agarwal, Kairouz and Liu (2021).

    Args:
        label: what was released.
        sensitivity_sq: squared L2 sensitivity, whole, under each relation the mechanism has a meaning for.
        sensitivity_l1: L1 sensitivity, whole, under the same relations.
        variance: of the whole noise on one coordinate; 0 for none.
        unit: what neighbouring data sets differ in.
    """

    label: str
    sensitivity_sq: Mapping[Relation, int] = field(hash=False)
    sensitivity_l1: Mapping[Relation, int] = field(hash=False)
    variance: float
    unit: Unit = "record"

    def __post_init__(self) -> None:
        _by_relation(self, "sensitivity_sq", int)
        _by_relation(self, "sensitivity_l1", int)
        if self.sensitivity_sq.keys() != self.sensitivity_l1.keys():
            raise UserError(
                f"{self.label}: sensitivity_sq and sensitivity_l1 must be given under the same relations."
            )
        for relation, squared in self.sensitivity_sq.items():
            if not squared <= self.sensitivity_l1[relation] ** 2:
                raise UserError(
                    f"{self.label}: sensitivity_l1 under {relation} is {self.sensitivity_l1[relation]}, below the L2 "
                    f"sensitivity, the root of {squared}."
                )
        _noise(self, "variance")
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Skellam mechanism."""
        squared = _stated(self.sensitivity_sq, relation, self.label)
        if squared == 0 or self.variance == 0:
            return _gaussian(math.sqrt(squared), self.variance)
        return _one(Skellam(squared, self.sensitivity_l1[relation], self.variance))


@dataclass(frozen=True)
class SlicedGaussianEvent(Event, kind="sliced_gaussian"):
    """Projections of every record with noise, Y = X Theta^T + V, released once (DPSWflow).

    Replacing a record changes one row of X by at most 2 R, zeroing it by at most R. Under `haar` the directions are
    K / d orthonormal frames, any seed may be public, and the change of a row has length sqrt(K / d) times that,
    exactly. Under `iid` they are drawn from operating-system entropy after the data are fixed, and published:
    given them the mechanism is Gaussian with the squared length K / d replaced by a sum of K Beta variables
    (`dpsw_ray.privacy.losses.SlicedGaussian`). Rows show how many records there are: no `add_remove`.

    Args:
        directions: K.
        dim: d, of the latents; K must be a multiple of it under `haar`.
        noise_std: standard deviation of the noise on each projection; 0 for none.
        law: `haar` or `iid`.
        radius: R, that no latent is longer than.
        unit: `record`; a user's rows are not bounded here.
    """

    directions: int
    dim: int
    noise_std: float
    law: Literal["haar", "iid"] = "haar"
    radius: float = 1.0
    unit: Unit = "record"
    label: str = "sliced projections"

    def __post_init__(self) -> None:
        _whole(self, "directions", "dim")
        _noise(self)
        _positive(self, "radius")
        if self.law not in ("haar", "iid"):
            raise UserError(f"{self.label}: law must be haar or iid, found {self.law!r}.")
        if self.law == "haar" and self.directions % self.dim:
            raise UserError(
                f"{self.label}: Haar frames have a multiple of dim {self.dim} directions, found {self.directions}; "
                f"use {-(-self.directions // self.dim) * self.dim}."
            )
        if check_unit(self.unit) != "record":
            raise UserError(f"{self.label}: unit must be record, since a user may have any number of rows.")

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism, or one given random directions."""
        if check_relation(relation) == "add_remove":
            raise UserError(
                f"{self.label}: one row is released for each record, so their number shows; relation add_remove, which "
                "protects it, has no meaning for them: use replace_one, zero_out, or sliced histograms."
            )
        change = self.radius * (2 if relation == "replace_one" else 1)
        if self.law == "haar" or self.dim == 1 or self.noise_std == 0:
            return _gaussian(change * math.sqrt(self.directions / self.dim), self.noise_std)
        return _one(SlicedGaussian(self.directions, self.dim, change / self.noise_std))


@dataclass(frozen=True)
class SampledGaussianEvent(Event, kind="sampled_gaussian"):
    """Sums over Poisson samples with Gaussian noise: each unit is in each step's sum with probability q, in secret.

    With one record more or less the pair is (1 - q) N(0, s^2) + q N(Delta, s^2) against N(0, s^2), in either
    order (Mironov, Talwar and Zhang 2019; Zhu, Dong and Wang 2022). A replaced record is in the sample under
    both data sets, for which this amplification is not proved: `zero_out` and `add_remove` only. With a mask that
    is public, stored or logged there is no amplification, and this event must not be used.

    Args:
        sampling: q, a public constant, 0 < q <= 1.
        sensitivity: L2 norm that one unit's contribution to a sum cannot pass.
        noise_std: standard deviation of the noise on each sum, in the same units; 0 for none.
        steps: sums released, each with a sample and noise of its own.
        unit: what is sampled, and protected.
    """

    sampling: float
    sensitivity: float
    noise_std: float
    steps: int = 1
    unit: Unit = "record"
    label: str = "sums over secret samples"

    def __post_init__(self) -> None:
        _whole(self, "steps")
        _positive(self, "sampling", "sensitivity")
        if self.sampling > 1:
            raise UserError(f"{self.label}: sampling must be a probability, found {self.sampling!r}.")
        _noise(self)
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """The sampled Gaussian mechanism, `steps` times."""
        return _sampled(self.sampling, self.sensitivity, self.noise_std, self.steps, relation, self.label)


@dataclass(frozen=True)
class DpSgdEvent(Event, kind="dp_sgd"):
    """Training by noisy sums of clipped gradients over Poisson samples (Abadi et al. 2016).

    Args:
        sampling: q, a public constant: expected batch over a public number.
        noise_multiplier: noise standard deviation over the clipping norm; 0 for none.
        steps: optimiser steps.
        unit: what is sampled, clipped and protected.
    """

    sampling: float
    noise_multiplier: float
    steps: int
    unit: Unit = "record"
    label: str = "DP-SGD"

    def __post_init__(self) -> None:
        _whole(self, "steps")
        _positive(self, "sampling")
        if self.sampling > 1:
            raise UserError(f"{self.label}: sampling must be a probability, found {self.sampling!r}.")
        _noise(self, "noise_multiplier")
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """The sampled Gaussian mechanism, `steps` times."""
        return _sampled(self.sampling, 1.0, self.noise_multiplier, self.steps, relation, self.label)


@dataclass(frozen=True)
class DpPcaEvent(Event, kind="dp_pca"):
    """The sum of x x^T with symmetric Gaussian noise (Dwork, Talwar, Thakurta and Zhang 2014).

    The upper triangle is released, its off-diagonal entries times sqrt(2), so that Euclidean distance is the Frobenius
    norm: |x x^T|_F = |x|^2 <= R^2 for one record more, and at most sqrt(2) R^2 for one replaced, because the
    inner product of two such matrices is never negative. Centring takes a public or a charged mean.

    Args:
        noise_std: standard deviation of the noise on each released entry; 0 for none.
        radius: R, that no record is longer than.
        unit: whose contribution x x^T is.
    """

    noise_std: float
    radius: float = 1.0
    unit: Unit = "record"
    label: str = "DP-PCA"

    def __post_init__(self) -> None:
        _noise(self)
        _positive(self, "radius")
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism."""
        changed = math.sqrt(2) if check_relation(relation) == "replace_one" else 1.0
        return _gaussian(changed * self.radius**2, self.noise_std)


@dataclass(frozen=True)
class NoisyCountEvent(Event, kind="noisy_count"):
    """How many units satisfy a predicate, with Gaussian noise: a score to select by, or a private N.

    One unit changes the count by at most 1 under every relation.

    Args:
        noise_std: standard deviation of the noise; 0 for none.
        unit: what is counted.
    """

    noise_std: float
    unit: Unit = "record"
    label: str = "noisy count"

    def __post_init__(self) -> None:
        _noise(self)
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism of sensitivity 1."""
        check_relation(relation)
        return _gaussian(1.0, self.noise_std)


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
        _parts(self)
        _whole(self, "times")

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
        _parts(self)
        if self.assignment not in ("fixed", "by_value"):
            raise UserError(f"{self.label}: assignment must be fixed or by_value, found {self.assignment!r}.")

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
        return tuple(_worst(alternatives))


def _one(loss: Loss, times: int = 1) -> tuple[Cost, ...]:
    return (Counter({loss: times}),)


def _gaussian(sensitivity: float, noise_std: float) -> tuple[Cost, ...]:
    if sensitivity == 0:
        return _one(Gaussian(0.0))
    return _one(Gaussian(sensitivity / noise_std if noise_std > 0 else math.inf))


def _discrete(sensitivity_sq: int, noise_std: float) -> tuple[Cost, ...]:
    if sensitivity_sq == 0 or noise_std == 0:
        return _gaussian(math.sqrt(sensitivity_sq), noise_std)
    return _one(ZeroConcentrated(sensitivity_sq / (2 * noise_std**2) * (1 + 2.0**-50)))


def _sampled(
    sampling: float, sensitivity: float, noise_std: float, steps: int, relation: Relation, label: str
) -> tuple[Cost, ...]:
    if check_relation(relation) == "replace_one":
        raise UserError(
            f"{label}: amplification by sampling is proved for one record more or less, not for a replaced one; it "
            "composes under zero_out and add_remove only."
        )
    if noise_std == 0 or sampling == 1:
        (cost,) = _gaussian(sensitivity, noise_std)
        return (Counter(dict.fromkeys(cost, steps)),)
    return _one(SampledGaussian(sensitivity / noise_std, sampling), steps)


def _stated(by_relation: Mapping[Relation, Any], relation: Relation, label: str) -> Any:
    if check_relation(relation) not in by_relation:
        known = ", ".join(by_relation) or "none"
        raise UserError(
            f"{label}: this release has no bounded sensitivity under relation {relation}; it is private under "
            f"{known} only."
        )
    return by_relation[relation]


def _whole(event: Event, *names: str) -> None:
    for name in names:
        value = getattr(event, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, SupportsIndex)
            or not 1 <= operator.index(value) <= _LARGEST_WHOLE
        ):
            raise UserError(f"{event.label}: {name} must be a positive whole number, found {_shown(value)}.")
        object.__setattr__(
            event, name, operator.index(value)
        )  # exact and JSON, whatever integer type came in


def _positive(event: Event, *names: str) -> None:
    for name in names:
        object.__setattr__(event, name, value := _number(event, name, getattr(event, name)))
        if value == 0:
            raise UserError(f"{event.label}: {name} must be positive, found {value!r}.")


def _noise(event: Event, name: str = "noise_std") -> None:
    object.__setattr__(event, name, _number(event, name, getattr(event, name)))


def _by_relation(event: Event, name: str, kind: type[int] | type[float]) -> None:
    """Checks and copies a mapping by relation: the caller's may change."""
    given = getattr(event, name)
    if not isinstance(given, Mapping):
        raise UserError(f"{event.label}: {name} must give a number for each relation, found {given!r}.")
    values = {}
    for relation, value in given.items():
        _number(event, f"{name} under {check_relation(relation)}", value)
        if kind(value) != value:
            raise UserError(f"{event.label}: {name} under {relation} must be whole, found {_shown(value)}.")
        values[relation] = kind(value)
    object.__setattr__(event, name, _Frozen(values))


class _Frozen(dict[Any, Any]):
    """A mapping that stays as it is: accounts are remembered by their events."""

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("the parameters of a privacy event do not change")

    __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = __setitem__  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def _parts(event: Event) -> None:
    parts = tuple(getattr(event, "parts", ()))
    if not parts or not all(isinstance(part, Event) for part in parts):
        raise UserError(f"{event.label}: parts must be a list of at least one privacy event.")
    object.__setattr__(event, "parts", parts)
    common_unit(parts)


def _number(event: Event, name: str, value: Any) -> float:
    """A number that squares and quotients of it stay finite for."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not (plain and (value == 0 or _SMALLEST <= value <= _LARGEST)):
        raise UserError(
            f"{event.label}: {name} must be 0 or lie between {_SMALLEST:g} and {_LARGEST:g}, found {_shown(value)}."
        )
    return float(value)


def _shown(value: Any) -> str:
    text = (
        repr(value)
        if not isinstance(value, int) or abs(value) < 10**30
        else f"a number of {len(str(value))} digits"
    )
    return text if len(text) <= 80 else f"{text[:77]}…"
