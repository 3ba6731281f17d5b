"""A training's state on disk: weights, optimiser and the distances so far."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dpsw_ray.base.files import DamagedFile, check_replaceable, read_arrays, write_arrays
from dpsw_ray.generator.config import GeneratorConfig
from dpsw_ray.generator.network import GeneratorNet
from dpsw_ray.tables.quantiles import Targets

__all__ = ["Checkpoint", "identity"]

_LOGGER = logging.getLogger(__name__)


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
        buffer = io.BytesIO()
        torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict()}, buffer)
        state = {
            "identity": np.array(self.identity),
            "distances": np.array(distances),
            "state": np.frombuffer(buffer.getbuffer(), np.uint8),
        }
        write_arrays(self.path, state)

    def restore(self, net: GeneratorNet, optimiser: torch.optim.Adam) -> list[float]:
        """Puts a saved state into the network and its optimiser.

        Returns:
            The distance at each step already taken; empty where there is no state to use.
        """
        if not os.path.lexists(self.path):
            return []
        check_replaceable(self.path)
        try:
            stored = read_arrays(self.path)
            if str(stored["identity"]) != self.identity:
                return []
            weights, distances = stored["state"].tobytes(), stored["distances"]
            if not np.isfinite(distances).all():
                raise DamagedFile.of(self.path, "holds numbers that are not finite")
        except (DamagedFile, OSError, KeyError, TypeError):
            _LOGGER.warning(
                "%s is damaged or cannot be read: the training starts anew, which charges nothing.", self.path
            )
            return []
        state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        taken: list[float] = distances.tolist()
        return taken


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
