"""The events of releases of slices: histograms, projections, histograms of secret samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.privacy.events.base import Event
from dpsw_ray.privacy.events.costs import discrete_cost, gaussian_cost, one_loss, sampled_cost
from dpsw_ray.privacy.events.parameters import (
    NoiseKind,
    check_noise,
    check_noise_kind,
    check_positive,
    check_whole,
)
from dpsw_ray.privacy.losses import Cost, SlicedGaussian
from dpsw_ray.privacy.relations import Relation, Unit, check_relation, check_unit

__all__ = ["SampledGaussianEvent", "SlicedGaussianEvent", "SlicedHistogramEvent"]


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
        check_whole(self, "directions", "row_norm_sq")
        check_noise(self)
        check_noise_kind(self)
        check_unit(self.unit)

    def sensitivity_sq(self, relation: Relation) -> int:
        """Squared L2 sensitivity in squared lattice units, exact."""
        changed = 2 if check_relation(relation) == "replace_one" else 1
        return changed * self.directions * self.row_norm_sq

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """A Gaussian mechanism, or a discrete one."""
        if self.noise == "discrete_gaussian":
            return discrete_cost(self.sensitivity_sq(relation), self.noise_std)
        return gaussian_cost(math.sqrt(self.sensitivity_sq(relation)), self.noise_std)


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
        check_whole(self, "directions", "dim")
        check_noise(self)
        check_positive(self, "radius")
        if self.law not in ("haar", "iid"):
            raise UserError(f"{self.label}: law must be haar or iid, found {shown(self.law)}.")
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
            return gaussian_cost(change * math.sqrt(self.directions / self.dim), self.noise_std)
        return one_loss(SlicedGaussian(self.directions, self.dim, change / self.noise_std))


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
        check_whole(self, "steps")
        check_positive(self, "sampling", "sensitivity")
        if self.sampling > 1:
            raise UserError(f"{self.label}: sampling must be a probability, found {shown(self.sampling)}.")
        check_noise(self)
        check_unit(self.unit)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """The sampled Gaussian mechanism, `steps` times."""
        return sampled_cost(self.sampling, self.sensitivity, self.noise_std, self.steps, relation, self.label)
