"""A training's state on disk: weights, optimiser and the distances so far."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dpsw_ray.config import GeneratorConfig
from dpsw_ray.files import atomic_path
from dpsw_ray.generator.network import GeneratorNet
from dpsw_ray.release.quantiles import Targets

__all__ = ["Checkpoint", "identity"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is saved to and resumed from.

    Attributes:
        path: the file.
        identity: hash of everything that decides the training's path; a file with another one is not used.
    """

    path: Path
    identity: str

    def save(self, net: GeneratorNet, optimiser: torch.optim.Adam, distances: list[float]) -> None:
        """Writes the state after `len(distances)` steps; a step's noise follows from its number."""
        state = {
            "identity": self.identity,
            "net": net.state_dict(),
            "optimiser": optimiser.state_dict(),
            "distances": distances,
        }
        with atomic_path(self.path) as aside:
            torch.save(state, aside)

    def restore(self, net: GeneratorNet, optimiser: torch.optim.Adam) -> list[float]:
        """Puts a saved state into the network and its optimiser.

        Returns:
            The distance at each step already taken; empty where there is no state to use.
        """
        if not self.path.exists():
            return []
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["identity"] != self.identity:
                return []
            distances = [float(distance) for distance in state["distances"]]
        except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError):
            return []  # a damaged checkpoint costs time, nothing else
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        return distances


def identity(rounds: Sequence[Targets], config: GeneratorConfig, sphere: bool, seed: int, device: str) -> str:
    """Hash of everything that decides the weights."""
    kind = torch.device(device).type  # kernels of another kind round differently
    h = hashlib.sha256(repr((config.model_dump(), sphere, seed, kind)).encode())
    for targets in rounds:
        grid = targets.slices.grid
        h.update(repr((grid.bins, grid.smoothing, targets.slices.cdf.shape)).encode())
        for array in (targets.slices.directions, targets.slices.cdf, targets.weights):
            h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()
