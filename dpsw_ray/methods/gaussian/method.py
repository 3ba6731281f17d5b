"""Gaussian: noisy moments of every class, and a Gaussian fitted to them; what anything better has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dpsw_ray.methods.gaussian.config import GaussianConfig
from dpsw_ray.methods.gaussian.plan import ClassMomentsPlan
from dpsw_ray.methods.method import Audit, Facts, Held, Method, Tools

if TYPE_CHECKING:
    from dpsw_ray.methods.gaussian.learn import Gaussians
    from dpsw_ray.release.answers import Answers
    from dpsw_ray.release.moments import Moments

__all__ = ["METHOD"]


class Gaussian(Method[GaussianConfig]):
    """See the module."""

    Config = GaussianConfig
    free: ClassVar = ("gaussian.samples",)

    @property
    def released(self) -> type[Answers]:
        """The noisy sums as they are."""
        from dpsw_ray.release.answers import Answers

        return Answers

    def plan(self, config: GaussianConfig, facts: Facts, release_id: str) -> ClassMomentsPlan:
        """Moments of every class, where there are classes."""
        labelled = self.labelled(config) and facts.classes > 0
        return ClassMomentsPlan.make(config.privacy, facts, facts.classes if labelled else 0, release_id)

    def describe(
        self, config: GaussianConfig, plan: ClassMomentsPlan, facts: Facts, known: bool
    ) -> dict[str, Any]:
        """The plan in numbers."""
        return {
            "release": {
                "moments": "first and second, of latents in the unit ball",
                "latent dimension": plan.dim,
                "classes": plan.blocks if known else "not known before the data set is divided",
            },
            "noise": {
                "kind": plan.noise,
                "standard deviation of an entry, in records": plan.noise_std / plan.lattice.longest**2,
            },
        }

    def statement(self, config: GaussianConfig) -> str:
        """What is released."""
        return (
            "First and second moments of the private records' latents, of every class, with noise added to every "
            "entry. The noise is drawn once; samples and figures are computed from the noisy moments."
        )

    def memory(self, config: GaussianConfig, held: Held) -> dict[str, int]:
        """Bytes by what takes them."""
        return {
            f"gaussian.samples {held.count:,}": held.count * (16 * held.dim + 4 * held.record),
            f"encoder.latent_dim {held.dim:,}": 8 * held.classes * held.dim**2,
        }

    def labelled(self, config: GaussianConfig) -> bool:
        """Whether classes are told apart."""
        return config.gaussian.class_conditional

    def told(self, config: GaussianConfig, plan: ClassMomentsPlan) -> dict[str, Any]:
        """What the entries are multiples of, and their noise."""
        return {"dim": plan.dim, "fineness": plan.lattice.fineness, "noise_std": plan.noise_std}

    def read(self, release: Answers, reading: None) -> Sequence[Moments]:
        """The moments of each class."""
        from dpsw_ray.release.moments import Lattice, Moments, MomentsPlan

        told = release.manifest
        block = MomentsPlan("", told["dim"], told["noise_std"], Lattice(told["fineness"]))
        return [Moments.from_plan(block, triangle, {}) for triangle in release.answers]

    def learn(self, config: GaussianConfig, targets: Sequence[Moments], tools: Tools) -> Gaussians:
        """Fits a Gaussian to each."""
        from dpsw_ray.methods.gaussian.learn import Gaussians

        return Gaussians(targets, tools.encoder.sphere)

    def audit(self) -> Audit:
        """Canaries whose moments lie far apart."""
        from dpsw_ray.methods.gaussian.audit import MomentCanaries

        return MomentCanaries()


METHOD = Gaussian()
