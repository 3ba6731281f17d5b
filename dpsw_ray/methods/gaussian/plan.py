"""What is released: noisy moments of every class."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Self

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import PrivacyConfig
from dpsw_ray.methods.method import Facts
from dpsw_ray.privacy.accountants import compose_mu
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu, calibrate_noise
from dpsw_ray.privacy.discrete import MAX_DRAWN
from dpsw_ray.privacy.events import DpPcaEvent
from dpsw_ray.release.moments import Lattice, MomentsPlan, triangle

__all__ = ["ClassMomentsPlan"]

_LABEL = "moments of every class"


@dataclass(frozen=True)
class ClassMomentsPlan(MomentsPlan):
    """Moments of each class; a record is in one.

    Attributes:
        classes: length of the class list; 0 where classes are not told apart.
    """

    classes: int = 0

    @property
    def blocks(self) -> int:
        """How many Gaussians there are going to be."""
        return max(self.classes, 1)

    @classmethod
    def make(cls, p: PrivacyConfig, facts: Facts, classes: int, release_id: str) -> Self:
        """Calibrates the noise to the run's epsilon, what stands beside it included.

        Raises:
            UserError: there is no such noise.
        """
        if p.noise == "gaussian":
            lattice = _lattice(p, facts)
        else:
            lattice = Lattice() if max(classes, 1) * triangle(facts.dim) <= MAX_DRAWN else None
        if lattice is None:
            raise UserError(
                f"privacy.epsilon {p.epsilon:g} needs more noise on the moments of {facts.dim} dimensions in "
                f"{max(classes, 1)} classes than privacy.noise {p.noise} can draw: choose a larger epsilon, or a "
                "smaller encoder.latent_dim."
            )
        longest = float(lattice.longest)
        std = calibrate_noise(
            lambda level: [*facts.beside, DpPcaEvent(level, longest, label=_LABEL, noise=p.noise)],
            p.relation, p.epsilon, p.delta,
        )  # fmt: skip
        return cls(release_id, facts.dim, std, lattice, p.noise, classes=classes)

    @property
    def event(self) -> DpPcaEvent:
        """What the release costs: that of the moments of one class, as a record is in one."""
        return dataclasses.replace(super().event, label=_LABEL)

    @property
    def mechanism(self) -> str:
        """The module beside this one."""
        return "dpsw_ray.methods.gaussian.mechanism"

    @property
    def cells(self) -> tuple[int, ...]:
        """Shape of the answer: a triangle for each class."""
        return (self.blocks, *super().cells)

    @property
    def stretches(self) -> tuple[tuple[float, int], ...]:
        """The diagonals of all classes, and what is beside them."""
        on, beside = super().stretches
        return (on[0], self.blocks * on[1]), (beside[0], self.blocks * beside[1])

    def digest(self) -> str:
        """Hash of everything that decides the numbers apart from the data and the noise secret."""
        return hashlib.sha256(f"{type(self).__name__} {self.classes} {super().digest()}".encode()).hexdigest()


def _lattice(p: PrivacyConfig, facts: Facts) -> Lattice | None:
    """The finest on which the noise can be drawn; None where there is none."""
    before = compose_mu(facts.beside, p.relation) if facts.beside else 0.0
    assert before is not None, "with this noise a private encoder is a Gaussian mechanism too"
    mu_sq = calibrate_gaussian_mu(p.epsilon, p.delta) ** 2 - before**2
    apart = math.sqrt(2.0) if p.relation == "replace_one" else 1.0
    changed = 2 * triangle(facts.dim)  # a record leaves one class and comes to another
    return Lattice.fitting(math.sqrt(mu_sq), apart, changed) if mu_sq > 0 else None
