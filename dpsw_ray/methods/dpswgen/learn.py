"""A generator that was trained on released slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dpsw_ray.flow.particles import allocate
from dpsw_ray.flow.points import Points
from dpsw_ray.generator.training import generator_steps, train_generator
from dpsw_ray.methods.dpswgen.config import DpswgenConfig
from dpsw_ray.methods.method import Tools
from dpsw_ray.tables.quantiles import Targets

__all__ = ["TrainedGenerator"]


class TrainedGenerator:
    """A generator, trained when it is made."""

    def __init__(self, config: DpswgenConfig, targets: Sequence[Targets], tools: Tools) -> None:
        """Trains, or goes on with what is in the checkpoints.

        Args:
            config: the run.
            targets: CDFs and class shares of every round.
            tools: to train with.
        """
        self._config, self._targets = config, targets
        self._distances: list[float] = []
        self._steps = generator_steps(config.generator, len(targets))

        def report(distance: float) -> None:
            self._distances.append(distance)
            task.advance(1, f"sliced W2 to the release {distance:.4f}")

        with tools.progress.task("Training the generator on the release", self._steps) as task:
            self._generator = train_generator(
                targets,
                config.generator,
                sphere=tools.encoder.sphere,
                seed=config.seed,
                device="cuda" if torch.cuda.is_available() else "cpu",
                checkpoint=tools.checkpoints / "generator.npz" if tools.checkpoints else None,
                on_step=report,
            )

    def sample(self, count: int, seed: int) -> Points:
        """Latents of public noise, in the classes' released shares, or as many of each.

        Args:
            count: n.
            seed: public, of the noise.
        """
        weights = np.mean([targets.weights for targets in self._targets], axis=0)
        offsets = allocate(weights, count, self._config.flow.class_balance)
        labels = np.repeat(np.arange(len(weights), dtype=np.int32), np.diff(offsets))
        latents = self._generator.sample(count, seed, labels)
        return Points(latents, labels, self._distances, f"the generator took {self._steps} steps")
