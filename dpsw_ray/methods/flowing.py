"""Particles that flow towards released slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.flow.particles import allocate
from dpsw_ray.flow.points import Points
from dpsw_ray.flow.solver import Watch, flow_steps, solve
from dpsw_ray.methods.film import followed
from dpsw_ray.methods.method import Tools
from dpsw_ray.methods.sections import FlowingConfig
from dpsw_ray.tables.quantiles import Targets

__all__ = ["Flow"]


class Flow:
    """A flow; its particles are its samples."""

    def __init__(self, config: FlowingConfig, targets: Sequence[Targets], tools: Tools) -> None:
        """Takes what the flow is made of; nothing is computed yet.

        Args:
            config: the run.
            targets: CDFs and class shares of every round.
            tools: to flow with.
        """
        self._config, self._targets, self._tools = config, targets, tools

    def sample(self, count: int, seed: int) -> Points:
        """Moves particles from noise to the release.

        Args:
            count: n.
            seed: public, of where they start and of the Wiener noise.
        """
        config, targets, tools = self._config, self._targets, self._tools
        flow = config.flow.model_copy(update={"particles": count})
        cluster, progress = tools.cluster, tools.progress
        with progress.task("Moving particles", flow_steps(flow, len(targets))) as task:

            def step(distance: float) -> None:
                task.advance(1, f"sliced W2 to the release {distance:.4f}")
                cluster.show({"flow_step": task.done, "flow_sliced_w2": distance})

            return solve(
                targets,
                flow,
                sphere=tools.encoder.sphere,
                seed=seed,
                cluster=cluster,
                threads=tools.threads,
                gpu=config.cluster.gpus_per_actor > 0 and flow.kernel != "numba",
                checkpoint=tools.checkpoints / "flow.npz" if tools.checkpoints else None,
                on_step=step,
                watch=self._watch(count),
                follow=followed(tools.encoder) if tools.film else None,
                say=progress.say if config.cluster.executor == "ray" else lambda sentence: None,
            )

    def _watch(self, count: int) -> Watch | None:
        told = self._tools.watch
        if told is None:
            return None
        weights = np.mean([targets.weights for targets in self._targets], axis=0)
        offsets = allocate(weights, count, self._config.flow.class_balance)
        labels = np.repeat(np.arange(len(weights), dtype=np.int32), np.diff(offsets))

        def watch(number: int, particles: NDArray[np.float64]) -> None:
            told(number, particles, labels)

        return watch
