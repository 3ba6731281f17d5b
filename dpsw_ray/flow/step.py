"""One step of the flow: a pure function of (particles, displacements, step number, seed), for any block of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.particles import LOST, RADIUS, confine
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.slicing.drift import DRIFT_UNIT

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Course", "Step", "flow_steps"]

_STEPS = 300
_FULL_STEPS = 10  # of the inverse schedule: how long it takes the step size to halve
_NOISE_ROWS = 4096  # particles that share a generator of the Wiener noise
_ROWS = 4096  # particles moved at a time: what is between two operations stays small


def flow_steps(config: FlowConfig, rounds: int) -> int:
    """How many steps a flow towards so many rounds takes at most."""
    return max(_STEPS, rounds) if config.steps is None else config.steps


@dataclass(frozen=True)
class Step:
    """X <- X - h drift(X) + sqrt(2 lambda h) Z, projected to where the latents live.

    Z is indexed by the particle's number among all, so that it does not depend on how particles are divided.

    Attributes:
        number: of the step, from 0.
        scale: what a sum of displacements in DRIFT_UNIT is multiplied by: h over the number of directions.
        spread: sqrt(2 lambda h).
        sphere: whether the latents live on the unit sphere (else in the ball).
        seed: public seed of the Wiener noise.
        offset: number of the block's first particle among all.
    """

    number: int
    scale: float
    spread: float
    sphere: bool
    seed: int
    offset: int = 0

    def __call__(
        self, particles: NDArray[np.float64], total: NDArray[np.int64], first: int = 0
    ) -> NDArray[np.float64]:
        """Moves particles of the block, from the `first` on.

        Args:
            particles: array of size [m, d].
            total: array of size [m, d], the sum of their displacements in DRIFT_UNIT.
            first: number of the first of them in the block.

        Returns:
            Array of size [m, d] on the lattice.
        """
        moved = np.empty_like(particles)
        for s in range(0, len(particles), _ROWS):
            rows = slice(s, s + _ROWS)
            at = particles[rows] + self.scale * total[rows]
            if self.spread:
                at += self.spread * self._wiener(first + s, *at.shape)
            moved[rows] = confine(at, self.sphere)
        return moved

    def on_device(self, particles: Tensor, total: Tensor, first: int = 0) -> Tensor:
        """The same in Torch operations: a norm may be rounded in another way, and a particle end 2^-26 away."""
        import torch

        moved = particles + self.scale * total.double()  # an integer times a number is float32 here
        if self.spread:
            wiener = self._wiener(first, *moved.shape)
            moved = moved + torch.from_numpy(self.spread * wiener).to(moved.device)
        norms = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        if not bool(torch.isfinite(norms).all()):
            raise UserError(LOST)
        if not self.sphere:
            return torch.round(moved * (RADIUS / norms.clamp_min(RADIUS)).clamp_max(1.0) / LATTICE) * LATTICE
        centre = norms < 1e-12
        pole = torch.zeros_like(moved[:1])
        pole[0, 0] = 1.0
        moved = torch.where(centre, pole, moved) * (RADIUS / torch.where(centre, 1.0, norms))
        return torch.round(moved / LATTICE) * LATTICE

    def _wiener(self, first: int, rows: int, dim: int) -> NDArray[np.float64]:
        """Z of the block's particles from `first` on: array of size [rows, dim]."""
        start = self.offset + first
        chunks = []
        for chunk in range(start // _NOISE_ROWS, -(-(start + rows) // _NOISE_ROWS)):
            rng = np.random.default_rng([self.seed, 0x5DE, self.number, chunk])
            begin = chunk * _NOISE_ROWS
            drawn = rng.standard_normal((min(_NOISE_ROWS, start + rows - begin), dim))
            chunks.append(drawn[max(0, start - begin) :])
        return np.concatenate(chunks)


@dataclass(frozen=True)
class Course:
    """What every step of one flow is, before any is taken.

    Attributes:
        config: steps, step size, schedule, diffusion.
        directions: number K of a round's directions.
        dim: dimension d of the latents.
        rounds: number of rounds.
        sphere: whether the latents live on the unit sphere.
        seed: public.
    """

    config: FlowConfig
    directions: int
    dim: int
    rounds: int
    sphere: bool
    seed: int

    @property
    def steps(self) -> int:
        """How many there are at most."""
        return flow_steps(self.config, self.rounds)

    @property
    def used(self) -> int:
        """Directions used in each step."""
        return min(self.config.subset or self.directions, self.directions)

    @property
    def comparable(self) -> bool:
        """Whether the distances of two steps compare: only those to the same slices can stop falling."""
        return self.rounds == 1 and self.used == self.directions

    def round(self, step: int) -> int:
        """The round that the step moves towards."""
        return step % self.rounds

    def chosen(self, step: int) -> NDArray[np.int64] | None:
        """Numbers of the directions that the step uses, in ascending order; None for all."""
        if self.used == self.directions:
            return None
        rng = np.random.default_rng([self.seed, 0x5B5E, step])
        return np.asarray(np.sort(rng.permutation(self.directions)[: self.used]))

    def step(self, number: int, offset: int = 0) -> Step:
        """The step, for a block whose first particle is number `offset` among all."""
        full = float(self.dim) if self.config.step_size == "auto" else float(self.config.step_size)
        h = full * self._schedule(number)
        spread = math.sqrt(2 * self.config.diffusion * h)
        return Step(number, h * DRIFT_UNIT / self.used, spread, self.sphere, self.seed, offset)

    def _schedule(self, step: int) -> float:
        """The step size at `step` as a share of the full one.

        Steps that fall like 1 / t end at the mean of what noisy rounds ask for (Robbins and Monro 1951).
        """
        schedule = self.config.schedule
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        if schedule == "inverse" or (schedule == "auto" and self.rounds > 1):
            return _FULL_STEPS / (_FULL_STEPS + step)
        return 1.0
