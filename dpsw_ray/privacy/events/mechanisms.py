"""The events of general mechanisms: noisy vectors, integer sums, training, PCA, counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.privacy.events.base import Event
from dpsw_ray.privacy.events.costs import discrete_cost, gaussian_cost, one_loss, sampled_cost
from dpsw_ray.privacy.events.parameters import (
    NoiseKind,
    check_by_relation,
    check_noise,
    check_noise_kind,
    check_positive,
    check_whole,
    stated,
)
from dpsw_ray.privacy.losses import Cost, Skellam
from dpsw_ray.privacy.relations import Relation, Unit, check_relation, check_unit

__all__ = [
    "DiscreteGaussianEvent",
    "DpPcaEvent",
    "DpSgdEvent",
    "GaussianEvent",
    "NoisyCountEvent",
    "SkellamEvent",
]


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
        check_by_relation(self, "sensitivity", float)
        check_noise(self)
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism with mu = `sensitivity[relation]` / `noise_std`."""
        return gaussian_cost(stated(self.sensitivity, relation, self.label), self.noise_std)


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
        check_by_relation(self, "sensitivity_sq", int)
        check_noise(self)
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """Rho-zCDP."""
        return discrete_cost(stated(self.sensitivity_sq, relation, self.label), self.noise_std)


@dataclass(frozen=True)
class SkellamEvent(Event, kind="skellam"):
    """Integer sums with Skellam noise, the difference of two Poisson variables, on every coordinate.

    Source: Agarwal, Kairouz and Liu (2021).

    Args:
        label: what was released.
        sensitivity_sq: squared L2 sensitivity, whole, under each relation the mechanism has a meaning for.
        sensitivity_l1: L1 sensitivity, whole, under the same relations.
        variance: of the whole noise on one coordinate; 0 for none.
        cells: coordinates; with them the noise is compared with a Gaussian's (`dpsw_ray.privacy.near_gaussian`).
        unit: what neighbouring data sets differ in.
    """

    label: str
    sensitivity_sq: Mapping[Relation, int] = field(hash=False)
    sensitivity_l1: Mapping[Relation, int] = field(hash=False)
    variance: float
    cells: int | None = None
    unit: Unit = "record"

    def __post_init__(self) -> None:
        check_by_relation(self, "sensitivity_sq", int)
        check_by_relation(self, "sensitivity_l1", int)
        if self.cells is not None:
            check_whole(self, "cells")
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
        check_noise(self, "variance")
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Skellam mechanism."""
        squared = stated(self.sensitivity_sq, relation, self.label)
        if squared == 0 or self.variance == 0:
            return gaussian_cost(math.sqrt(squared), self.variance)
        return one_loss(Skellam(squared, self.sensitivity_l1[relation], self.variance, self.cells or 0))


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
        check_whole(self, "steps")
        check_positive(self, "sampling")
        if self.sampling > 1:
            raise UserError(f"{self.label}: sampling must be a probability, found {shown(self.sampling)}.")
        check_noise(self, "noise_multiplier")
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """The sampled Gaussian mechanism, `steps` times."""
        return sampled_cost(self.sampling, 1.0, self.noise_multiplier, self.steps, relation, self.label)


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
        noise: `gaussian`, or `discrete_gaussian` on integers, of sigma `noise_std` on the diagonal and at least
            `noise_std` / sqrt(2) on the entries beside it as they are (see `DiscreteGaussianEvent`).
    """

    noise_std: float
    radius: float = 1.0
    unit: Unit = "record"
    label: str = "DP-PCA"
    noise: NoiseKind = "gaussian"

    def __post_init__(self) -> None:
        check_noise(self)
        check_positive(self, "radius")
        check_noise_kind(self)
        if self.noise == "discrete_gaussian" and self.radius != int(self.radius):
            raise UserError(
                f"{self.label}: radius must be whole for discrete noise, found {shown(self.radius)}."
            )
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism, or a discrete one."""
        if self.noise == "discrete_gaussian":
            times = 2 if check_relation(relation) == "replace_one" else 1
            return discrete_cost(times * int(self.radius) ** 4, self.noise_std)
        changed = math.sqrt(2) if check_relation(relation) == "replace_one" else 1.0
        return gaussian_cost(changed * self.radius**2, self.noise_std)


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
        check_noise(self)
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism of sensitivity 1."""
        check_relation(relation)
        return gaussian_cost(1.0, self.noise_std)
