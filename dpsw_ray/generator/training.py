"""DPSWgen: a generator trained on the smoothed sliced-Wasserstein distance to what was released.

Rakotomamonjy and Ralaivola (2021), "Differentially Private Sliced Wasserstein Distance". There each step queries
the records; here the rounds are released before, each step reads one of them, and training is post-processing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpsw_ray.base.errors import UserError
from dpsw_ray.encoders.autoencoder import seeded
from dpsw_ray.generator.checkpoint import Checkpoint, identity
from dpsw_ray.generator.config import GeneratorConfig
from dpsw_ray.generator.network import Generator, GeneratorNet
from dpsw_ray.generator.rounds import Round, Rounds
from dpsw_ray.generator.threads import one_thread
from dpsw_ray.tables.quantiles import Targets

__all__ = ["generator_steps", "train_generator"]

_STEPS = 2_000
_CHECKPOINT_EVERY = 250


def generator_steps(config: GeneratorConfig, rounds: int) -> int:
    """How many steps a training on so many rounds takes."""
    return max(_STEPS, rounds) if config.steps is None else config.steps


def train_generator(
    rounds: Sequence[Targets],
    config: GeneratorConfig,
    *,
    sphere: bool,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    on_step: Callable[[float], None] = lambda distance: None,
) -> Generator:
    """Trains a generator with Adam; step t compares a batch with round t modulo their number.

    On a CPU the weights are a function of the arguments alone, resumed or not, for one version of torch and one
    kind of processor.

    Args:
        rounds: CDFs along the directions of each round, with the same latents and classes; read by number.
        config: network, steps, batch and learning rate.
        sphere: whether the latents live on the unit sphere (else in the ball).
        seed: public seed of the initial weights and of all noise.
        device: where to train; the generator stays there.
        checkpoint: a file to resume from and to save to.
        on_step: called with the smoothed sliced W2 distance of each step's batch, the steps of a checkpoint
            included.

    Raises:
        UserError: the batch is too small for the classes, or the training diverged.
    """
    dim, classes = rounds[0].slices.directions.shape[1], len(rounds[0].weights)
    if config.batch_size < 2 * classes:
        raise UserError(
            f"generator.batch_size must be at least {2 * classes}, two points for each of the {classes} classes, "
            f"found {config.batch_size}."
        )
    with seeded(seed, device):
        net = GeneratorNet(config.noise_dim, config.hidden, dim, classes, sphere).to(device)
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    distances: list[float] = []
    saved = None
    if checkpoint is not None:
        saved = Checkpoint(checkpoint, identity(rounds, config, sphere, seed, device))
        distances = saved.restore(net, optimiser)
        for distance in distances:
            on_step(distance)
    prepared = Rounds(rounds, config.batch_size, device)
    net.train()
    with one_thread():
        for step in range(len(distances), generator_steps(config, len(rounds))):
            rng = np.random.default_rng([seed, 0x6E3, step])
            current = prepared[step % len(prepared)]
            points = net(_normal((config.batch_size, config.noise_dim), rng, device), current.labels)
            loss = _squared_distance(points, current, rng)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            distance = math.sqrt(loss.item())
            if not math.isfinite(distance):
                raise UserError(
                    f"The generator's training diverged at step {step + 1}; lower generator.learning_rate, "
                    f"found {config.learning_rate:g}."
                )
            distances.append(distance)
            if saved is not None and (step + 1) % _CHECKPOINT_EVERY == 0:
                saved.save(net, optimiser, distances)
            on_step(distance)
    if saved is not None:
        saved.save(net, optimiser, distances)
    return Generator(net)


def _squared_distance(points: Tensor, current: Round, rng: np.random.Generator) -> Tensor:
    """Mean over the directions and the batch of the squared gap between order statistics and quantiles."""
    projections = current.directions @ points.T  # [K, batch]
    noise = _normal(tuple(projections.shape), rng, points.device)
    smoothed = projections + current.spread * noise
    ordered = [
        smoothed[:, first:last].sort(dim=1).values for first, last in itertools.pairwise(current.offsets)
    ]
    return (torch.cat(ordered, dim=1) - current.quantiles).square().mean()


def _normal(shape: tuple[int, ...], rng: np.random.Generator, device: str | torch.device) -> Tensor:
    """Standard normal noise, the same on every device."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)
