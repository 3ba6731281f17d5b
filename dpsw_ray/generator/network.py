"""The generator: noise in, latents out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpsw_ray.base.errors import UserError
from dpsw_ray.encoders.base import read_weights, write_weights
from dpsw_ray.flow.particles import RADIUS, confine
from dpsw_ray.generator.threads import one_thread

__all__ = ["Generator", "GeneratorNet"]

_BLOCK = 1024  # rows of sample; fixed, because a kernel's rounding may depend on the batch's shape
_MANIFEST = "generator.json"


class GeneratorNet(nn.Module):
    """Multi-layer perceptron with ReLU, and a batch norm at the widest layer, onto the sphere or into the ball.

    Attributes:
        shape: the constructor's arguments by name.
    """

    def __init__(self, noise_dim: int, hidden: tuple[int, ...], dim: int, classes: int, sphere: bool) -> None:
        """Draws initial weights from torch's global generator.

        Args:
            noise_dim: dimension of the noise.
            hidden: widths of the hidden layers.
            dim: d, of the latents.
            classes: C; above 1 a one-hot label goes in beside the noise.
            sphere: whether the latents live on the sphere (else in the ball).
        """
        super().__init__()
        self.shape: dict[str, Any] = {
            "noise_dim": noise_dim, "hidden": list(hidden), "dim": dim, "classes": classes, "sphere": sphere,
        }  # fmt: skip
        self.noise_dim, self.classes, self.sphere = noise_dim, classes, sphere
        layers: list[nn.Module] = []
        width = noise_dim + (classes if classes > 1 else 0)
        norm_at = hidden.index(max(hidden))
        for index, following in enumerate(hidden):
            layers.append(nn.Linear(width, following))
            if index == norm_at:
                layers.append(nn.BatchNorm1d(following))
            layers.append(nn.ReLU())
            width = following
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Noise [n, noise_dim] and classes [n] (int64) to latents [n, d] of norm at most RADIUS."""
        if self.classes > 1:
            noise = torch.cat([noise, nn.functional.one_hot(labels, self.classes).to(noise.dtype)], dim=1)
        points: Tensor = self.layers(noise)
        if self.sphere:
            return RADIUS * nn.functional.normalize(points, dim=1)
        # Clipping at the ball's surface would leave points beyond it without a gradient that leads inwards.
        return RADIUS * points / torch.sqrt(1.0 + points.square().sum(dim=1, keepdim=True))


class Generator:
    """A trained network, from which any number of latents can be drawn."""

    def __init__(self, net: GeneratorNet) -> None:
        """Takes the network over, in evaluation mode."""
        self._net = net.eval()

    @property
    def classes(self) -> int:
        """C, the classes it was trained on."""
        return self._net.classes

    def sample(
        self, count: int, seed: int, labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.float64]:
        """Draws latents; the first m of n are those that `sample(m, seed)` draws.

        Args:
            count: n.
            seed: public seed of the noise.
            labels: array of size [n], the class of each; only where C = 1 it may be left out.

        Returns:
            Array of size [n, d] on the sphere or in the ball of radius `RADIUS`, on the lattice.

        Raises:
            ValueError: labels that are missing, not one per latent, or no classes of this generator.
        """
        if labels is None and self.classes == 1:
            labels = np.zeros(count, dtype=np.int64)
        if labels is None or labels.shape != (count,):
            raise ValueError(f"a generator of {self.classes} classes needs {count} labels, one per latent")
        if count and (labels.min() < 0 or labels.max() >= self.classes):
            raise ValueError(f"labels must lie in 0 to {self.classes - 1}")
        net, device = self._net, next(self._net.parameters()).device
        rng = np.random.default_rng([seed, 0x6E4])
        latents = np.empty((count, net.shape["dim"]))
        for start in range(0, count, _BLOCK):
            noise = rng.standard_normal((_BLOCK, net.noise_dim), dtype=np.float32)
            block = np.zeros(_BLOCK, dtype=np.int64)
            kept = min(_BLOCK, count - start)
            block[:kept] = labels[start : start + kept]
            with torch.inference_mode(), one_thread():
                out = net(torch.from_numpy(noise).to(device), torch.from_numpy(block).to(device))
            latents[start : start + kept] = out[:kept].double().cpu().numpy()
        return confine(latents, net.sphere)

    def save(self, folder: Path) -> None:
        """Writes the generator into `folder`, the manifest last: a folder without it was never finished."""
        write_weights(folder, _MANIFEST, self._net.shape, self._net.state_dict())

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Generator:
        """Reads what `save` wrote.

        Raises:
            UserError: where the folder is not a whole generator, or its weights are not those of the manifest.
        """
        manifest, weights = read_weights(folder, _MANIFEST)
        try:
            net = GeneratorNet(
                int(manifest["noise_dim"]), tuple(manifest["hidden"]), int(manifest["dim"]),
                int(manifest["classes"]), bool(manifest["sphere"]),
            )  # fmt: skip
            net.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{folder} does not hold a generator of this version ({type(error).__name__})."
            ) from error
        return cls(net.to(device))
