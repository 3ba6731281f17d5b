"""Gaussians that were fitted to noisy moments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.flow.particles import allocate, confine
from dpsw_ray.flow.points import Points
from dpsw_ray.release.moments import Moments

__all__ = ["Gaussians"]


class Gaussians:
    """A Gaussian of each class, with the class's noisy share."""

    def __init__(self, moments: Sequence[Moments], sphere: bool) -> None:
        """Fits them.

        Args:
            moments: of each class.
            sphere: whether latents lie on the unit sphere, or anywhere in the ball.
        """
        self._moments, self._sphere = moments, sphere

    def sample(self, count: int, seed: int) -> Points:
        """Draws latents, in the classes' noisy shares.

        Args:
            count: n.
            seed: public.
        """
        records = np.array([moments.records for moments in self._moments])
        offsets = allocate(records / records.sum(), count, "released")
        labels = np.repeat(np.arange(len(records), dtype=np.int32), np.diff(offsets))
        latents = np.concatenate(
            [
                _fitted(moments, np.random.default_rng([seed, block]), size)
                for block, (moments, size) in enumerate(zip(self._moments, np.diff(offsets), strict=True))
            ]
        )
        return Points(confine(latents, self._sphere), labels, stopped="drawn from fitted Gaussians")


def _fitted(moments: Moments, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Samples [count, d]; noise may leave a mean outside the ball, and no covariance: what is nearest is taken."""
    mean = moments.mean(moments.records)
    mean /= max(float(np.linalg.norm(mean)), 1.0)
    values, axes = np.linalg.eigh(moments.second(moments.records) - np.outer(mean, mean))
    scale = np.sqrt(np.clip(values, 0.0, 1.0))
    return np.asarray(mean + (rng.standard_normal((count, len(mean))) * scale) @ axes.T)
