"""The particles' state: where they start, how they are divided among classes, where they may live."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.slicing.directions import round_to_lattice

__all__ = ["LOST", "RADIUS", "allocate", "confine", "initial", "random_latents"]

LOST = "Particles have left the range of numbers: choose a smaller flow.step_size or flow.diffusion."

RADIUS = 1.0 - 1e-6
"""Radius of the particles' ball or sphere: the one every private latent was projected into."""


def allocate(weights: NDArray[np.float64], particles: int, balance: str) -> NDArray[np.int64]:
    """Divides particles among classes by largest remainder.

    Args:
        weights: array of size [C], the released class shares.
        particles: n, to be divided.
        balance: `released` follows the shares; `equal` gives every class with a share the same number.

    Returns:
        Offsets, array of size [C + 1]: class c owns the particles offsets[c] to offsets[c + 1].
    """
    share = np.where(weights > 0, 1.0, 0.0) if balance == "equal" else weights
    exact = share / share.sum() * particles
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: particles - counts.sum()]] += 1
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def initial(particles: int, dim: int, sphere: bool, seed: int) -> NDArray[np.float64]:
    """Draws the starting particles: uniform on the sphere or in the ball.

    Returns:
        Array of size [particles, dim] on the lattice.
    """
    return confine(random_latents(particles, dim, sphere, np.random.default_rng([seed, 0x1417])), sphere)


def random_latents(count: int, dim: int, sphere: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniform points on the unit sphere or in the unit ball: array of size [count, dim]."""
    points = rng.standard_normal((count, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    if not sphere:
        points *= rng.random((count, 1)) ** (1.0 / dim)
    return points


def confine(particles: NDArray[np.float64], sphere: bool) -> NDArray[np.float64]:
    """Projects particles onto the sphere (or into the ball) of radius `RADIUS`, and onto the lattice.

    A particle at the centre has no nearest point on the sphere and goes to its first pole.

    Raises:
        UserError: a particle is no longer anywhere.
    """
    norms = np.linalg.norm(particles, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise UserError(LOST)
    if sphere:
        centre = norms[:, 0] < 1e-12
        particles = np.where(centre[:, None], np.eye(1, particles.shape[1]), particles)
        return round_to_lattice(particles * (RADIUS / np.where(centre[:, None], 1.0, norms)))
    return round_to_lattice(particles * np.minimum(1.0, RADIUS / np.maximum(norms, RADIUS)))
