"""DPSWgen: the releases of DPSWflow-r, and a generator that is trained on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from dpsw_ray.methods.dpswflow_r.method import RoundsMethod
from dpsw_ray.methods.dpswgen.config import DpswgenConfig
from dpsw_ray.methods.method import Held, Learnt, ShownSlices, Tools

if TYPE_CHECKING:  # torch takes seconds, and `dpsw plan` needs none
    from dpsw_ray.evaluation.report import ReportSection
    from dpsw_ray.methods.dpswgen.learn import TrainedGenerator
    from dpsw_ray.tables.quantiles import Targets
    from dpsw_ray.tables.release import Release

__all__ = ["METHOD"]


class Dpswgen(RoundsMethod[DpswgenConfig]):
    """See the module."""

    Config = DpswgenConfig
    free: ClassVar = ("flow.", "generator.")

    def memory(self, config: DpswgenConfig, held: Held) -> dict[str, int]:
        """Bytes by what takes them: a generator beside the release."""
        generator = config.generator
        hidden = (generator.noise_dim, *generator.hidden, held.dim)
        weights = sum(a * b for a, b in itertools.pairwise(hidden))
        return {
            **super().memory(config, held),
            # Weights, their gradients and Adam's two moments, in 32 bits; activations.
            f"generator.hidden {list(generator.hidden)}": 16 * weights,
            f"generator.batch_size {generator.batch_size:,}": 4 * generator.batch_size * max(hidden),
        }

    def steps(self, config: DpswgenConfig, release: Release) -> int:
        """How many steps a training takes."""
        from dpsw_ray.generator.training import generator_steps

        return generator_steps(config.generator, release.rounds)

    def learn(self, config: DpswgenConfig, targets: Sequence[Targets], tools: Tools) -> TrainedGenerator:
        """Trains the generator."""
        from dpsw_ray.methods.dpswgen.learn import TrainedGenerator

        return TrainedGenerator(config, targets, tools)

    def film(self, learnt: Learnt) -> ReportSection:
        """Why there is none."""
        from dpsw_ray.evaluation.report import ReportSection
        from dpsw_ray.methods.film import TITLE

        return ReportSection(TITLE, f"There is none: {self.name} trains a generator, no particle moves.")

    def shown_slices(self, learnt: Learnt) -> ShownSlices:
        """The first directions, with what was drawn."""
        from dpsw_ray.methods.shown import shown_slices

        return shown_slices(learnt, None)


METHOD = Dpswgen()
