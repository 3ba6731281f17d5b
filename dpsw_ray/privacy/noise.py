"""Noise indexed by cell, from a keyed cryptographic stream.

Statement: `lattice_gaussian(key, std, start, count)[i]` is N(0, std^2) rounded to the nearest integer,
independent over cells and keys, and a function of (key, std, start + i) only. Whoever draws a part of the
cells, in whatever order and however often, gets the same numbers: a retry leaks nothing new. On sums that are
integers, rounding the noise is rounding the noisy sum, so the Gaussian's accounting holds.

Source: ChaCha20 (RFC 8439) as implemented by `cryptography`; Box and Muller 1958 with 64-bit uniforms, so
that the tail reaches 9.5 standard deviations.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import struct
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from dpsw_ray.errors import UserError

__all__ = ["MAX_CELLS", "MAX_STD", "NoiseKey", "lattice_gaussian", "mask_stream", "poisson_sample"]

_BLOCK = 64  # bytes of a ChaCha20 block
_CELL = 16  # bytes of a cell: 64 bits for the radius, 64 for the angle
_BLOCKS = 2**32  # the block counter of RFC 8439; what lies beyond differs between libraries, so it is refused
MAX_CELLS = _BLOCKS * _BLOCK // _CELL
_CHUNK = 2**16  # cells drawn at a time, to stay in the processor's cache
MAX_STD = 2.0**58  # 9.5 standard deviations still fit an int64, with room for the sums


@dataclass(frozen=True, eq=False)
class NoiseKey:
    """32 secret bytes that noise is derived from; they never show in `repr`.

    Args:
        secret: the bytes.
        reproducible: the key came from a seed, so whatever it protects must not be published.
    """

    secret: bytes = field(repr=False)
    reproducible: bool = False

    def __post_init__(self) -> None:
        if len(self.secret) != 32:
            raise ValueError(f"a noise key has 32 bytes, found {len(self.secret)}")

    @classmethod
    def generate(cls) -> NoiseKey:
        """A fresh key from the operating system's entropy."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_seed(cls, seed: int) -> NoiseKey:
        """The key of a public `noise_seed`: for tests and papers, never for a release to be published."""
        digest = hashlib.blake2b(str(int(seed)).encode(), digest_size=32, person=b"dpsw noise seed")
        return cls(digest.digest(), reproducible=True)

    def derive(self, label: bytes) -> NoiseKey:
        """A key of its own for `label`: a release id, a digest of its parameters, a purpose."""
        digest = hashlib.blake2b(label, key=self.secret, digest_size=32, person=b"dpsw derive")
        return NoiseKey(digest.digest(), self.reproducible)


def lattice_gaussian(key: NoiseKey, std: float, start: int, count: int) -> NDArray[np.int64]:
    """Gaussian noise rounded to integers, for the cells `start` to `start + count`.

    `std` is bound into the stream's key: noise of two scales is never one noise scaled, whose ratio
    would give away both.

    Args:
        key: of this release and nothing else.
        std: standard deviation in lattice units; 0 gives zeros.
        start: first cell, not negative.
        count: number of cells.

    Returns:
        Array of size [count].

    Raises:
        UserError: cells beyond `MAX_CELLS`, a std that is negative, not finite or too large for int64.
    """
    if not 0 <= std <= MAX_STD:
        raise UserError(f"The noise's standard deviation must lie in [0, 2^58] lattice units, found {std!r}.")
    if start < 0 or count < 0 or start + count > MAX_CELLS:
        raise UserError(
            f"Noise is drawn for cells 0 to 2^34 of one release, found {count} cells from {start}: "
            "use fewer directions, bins or classes, or several releases."
        )
    noise = np.zeros(count, dtype=np.int64)
    if std == 0:
        return noise
    stream_key = key.derive(b"lattice gaussian" + struct.pack("<d", std))
    for begin in range(0, count, _CHUNK):
        end = min(begin + _CHUNK, count)
        words = _words(stream_key, (start + begin) * _CELL, (end - begin) * _CELL).reshape(-1, 2)
        uniform = (np.ascontiguousarray(words[:, 0]).astype(np.float64) + 0.5) * 2.0**-64
        angle = np.ascontiguousarray(words[:, 1]).astype(np.float64) * (2 * math.pi * 2.0**-64)
        noise[begin:end] = np.rint(std * (np.sqrt(-2 * np.log(uniform)) * np.cos(angle)))
    return noise


def mask_stream(key: NoiseKey, count: int) -> NDArray[np.uint64]:
    """Uniform words for the masks of secure aggregation, to be added and subtracted modulo 2^64.

    Independent of any noise drawn from the same key.

    Args:
        key: shared by the two parties whose masks cancel.
        count: number of words.

    Returns:
        Array of size [count].

    Raises:
        UserError: more words than one stream has.
    """
    if not 0 <= count <= _BLOCKS * _BLOCK // 8:
        raise UserError(f"A mask has at most 2^35 words, found {count}.")
    return _words(key.derive(b"aggregation mask"), 0, count * 8).astype(np.uint64)


def poisson_sample(key: NoiseKey, rate: float, start: int, count: int) -> NDArray[np.bool_]:
    """Which of the units `start` to `start + count` are in a sample: each with probability `rate`, independently.

    A secret, as what amplification by sampling rests on: never store, log or time it.

    Args:
        key: of this sample and nothing else.
        rate: in (0, 1]; taken to multiples of 2^-64, rounded down.
        start: first unit, not negative.
        count: number of units.

    Returns:
        Array of size [count].
    """
    if rate >= 1:
        return np.ones(count, dtype=bool)
    words = _words(key.derive(b"poisson sample"), 8 * start, 8 * count)
    return np.asarray(words < np.uint64(int(rate * 2.0**64)))


def _words(key: NoiseKey, offset: int, size: int) -> NDArray[np.uint64]:
    """Bytes `offset` to `offset + size` of the keystream as little-endian words: array of size [size / 8]."""
    block, skip = divmod(offset, _BLOCK)
    # `cryptography` takes the 32-bit little-endian counter and the 96-bit nonce as one value. The nonce may
    # be constant because every key is derived for exactly one stream.
    initial = struct.pack("<I", block) + bytes(12) if size else bytes(16)
    stream = (
        Cipher(algorithms.ChaCha20(key.secret, initial), mode=None).encryptor().update(bytes(skip + size))
    )
    return np.frombuffer(stream, dtype="<u8", offset=skip)
