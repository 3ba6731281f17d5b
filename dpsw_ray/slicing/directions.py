"""Directions, and the lattice on which every projection is exact.

A float32 (or blocked float64) matrix product rounds differently for every blocking, and a few records in a
million then change bins: the sums would depend on the sharding. Latents and directions are therefore rounded
to multiples of 2^-26 before they are multiplied. With norms of at most one, every product is a multiple of
2^-52 and every partial sum stays below 2, so float64 holds each of them exactly and the result is the same in
any order, on any device.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["LATTICE", "haar_frames", "iid_directions", "round_to_lattice", "spread_frames"]

_CANDIDATES = 64  # for each frame
_MOST_COSINES = 1 << 27  # that choosing among candidates may cost; fewer candidates keep within it

LATTICE = 2.0**-26
"""Spacing of the lattice that latents, directions and particles live on."""


def round_to_lattice(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounds to multiples of 2^-26 (ties to even); exact for magnitudes up to 2^26."""
    return np.asarray(np.rint(values / LATTICE) * LATTICE)


def haar_frames(frames: int, dim: int, seed: int) -> NDArray[np.float64]:
    """Draws `frames` independent Haar-distributed orthonormal bases of R^dim.

    For every u, the squared projections on one frame sum to ||u||^2, whatever the frame: the sensitivity of
    what is computed from them does not depend on the seed, which may therefore be public.

    Args:
        frames: number m of frames.
        dim: dimension d of the latents.
        seed: public seed.

    Returns:
        Array of size [m * d, d], one unit direction a row, rounded to the lattice.

    Source: Mezzadri (2007), "How to generate random matrices from the classical compact groups": QR of a
    Gaussian matrix, with the signs of R's diagonal moved into Q.
    """
    rng = np.random.default_rng([seed, 0xD1EC])
    q, r = np.linalg.qr(rng.standard_normal((frames, dim, dim)))
    signs = np.sign(np.diagonal(r, axis1=1, axis2=2))
    return round_to_lattice((q * signs[:, None, :]).transpose(0, 2, 1).reshape(frames * dim, dim))


def spread_frames(frames: int, dim: int, seed: int) -> NDArray[np.float64]:
    """Haar frames of which each is chosen, among many, to lie apart from those before it.

    Directions that nearly repeat each other tell little more than one of them. They are orthonormal frames like any
    others, so the sensitivity is that of `haar_frames`. Chosen and not optimised: which frame is the best does not
    depend on rounding errors.

    Args:
        frames: number m of frames.
        dim: dimension d of the latents.
        seed: public seed.

    Returns:
        Array of size [m * d, d], one unit direction a row, rounded to the lattice.
    """
    pairs = max(dim * dim * frames * (frames - 1) // 2, 1)
    candidates = max(1, min(_CANDIDATES, _MOST_COSINES // pairs))
    drawn = haar_frames(frames * candidates, dim, seed).reshape(frames, candidates, dim, dim)
    chosen = np.empty((frames * dim, dim))
    for i, candidate in enumerate(drawn):
        cosines = candidate @ chosen[: i * dim].T
        nearness = np.square(np.square(np.square(cosines))).sum(axis=(1, 2))
        chosen[i * dim : (i + 1) * dim] = candidate[int(np.argmin(nearness))]
    return chosen


def iid_directions(count: int, dim: int, entropy: str) -> NDArray[np.float64]:
    """Draws independent uniform unit vectors from a secret-until-published string of entropy.

    Who can choose a record knowing the directions can make them count for more than their number over d; the
    string must therefore be drawn from operating-system entropy after the data are fixed.

    Args:
        count: number of directions.
        dim: dimension d of the latents.
        entropy: the string, for instance a random release id.

    Returns:
        Array of size [count, d], one unit direction a row, rounded to the lattice.
    """
    seed = int.from_bytes(hashlib.sha256(entropy.encode()).digest(), "little")
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    return round_to_lattice(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
