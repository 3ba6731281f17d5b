"""Noise indexed by cell, from a keyed cryptographic stream.

Statement: `lattice_gaussian(key, std, start, count)[i]` is N(0, `drawn_std(std)`^2) rounded to the nearest integer,
independent over cells and keys, and a function of (key, std, start + i) only. Whoever draws a part of the
cells, in whatever order and however often, gets the same numbers: a retry leaks nothing new. On sums that are
integers, rounding the noise is rounding the noisy sum, so the Gaussian's accounting holds.

Low bits. A double has a grid: `std` times a double puts one grid point more or less into each integer, in a pattern
that anybody can compute, so that a record shows by the pattern's shift. With grid points u lattice units apart the
chance of an integer changes by the factor 1 +- u at most, u = 2^-52 std between one and two standard deviations, half
or twice that in the octaves beside it. Weighed by their chances the squares have the root 0.74 * 2^-52 std, which is
what one changed cell is worth as a mu: at most `low_bits(std, cells)` for several. A plan is refused where that is more
than `LOW_BITS` of its own mu, and the noise is drawn larger than it is charged by the factor 1 + 2^-12, which pays for
more than it: (1 + 2^-12)^-2 + `LOW_BITS`^2 < 1. Ties are rounded upwards, not to even, which would make even numbers
likelier.

Source: ChaCha20 (RFC 8439) as implemented by `cryptography`; Box and Muller 1958. Uniforms have 64 bits, and 960 where
the first 24 are zeros, so that the tail is as fine as the rest and reaches 36 standard deviations.
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

from dpsw_ray.base.errors import UserError, shown

__all__ = [
    "LOW_BITS",
    "MAX_CELLS",
    "MAX_STD",
    "SAMPLER",
    "NoiseKey",
    "drawn_std",
    "lattice_gaussian",
    "low_bits",
    "mask_stream",
    "poisson_sample",
]

_BLOCK = 64  # bytes of a ChaCha20 block
_CELL = 16  # bytes of a cell: 64 bits for the radius, 64 for the angle
_BLOCKS = 2**32  # the block counter of RFC 8439; what lies beyond differs between libraries, so it is refused
MAX_CELLS = _BLOCKS * _BLOCK // _CELL
_CHUNK = 2**16  # cells drawn at a time, to stay in the processor's cache
MAX_STD = 2.0**40  # all that is drawn has 6 bits after the point, so that adding 1/2 is exact

SAMPLER = 2
"""Of the rules above: no key draws by two samplers, as the difference of the two noises would tell both."""

LOW_BITS = 0.01
"""Of its mu, the most that the low bits of a release's noise may be worth."""

_PAID = 1 + 2.0**-12
_GRID = 0.75 * 2.0**-52
_SMALL = 2**40  # a first word below it leaves steps in the radius that the largest noise would show
_DEEP = 14  # further words of such a uniform


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
        std: standard deviation that is charged, in lattice units; 0 gives zeros.
        start: first cell, not negative.
        count: number of cells.

    Returns:
        Array of size [count].

    Raises:
        UserError: cells beyond `MAX_CELLS`, a std that is negative, not finite or too large for int64.
    """
    if not 0 <= std <= MAX_STD:
        raise UserError(
            f"The noise's standard deviation must lie in [0, 2^40] lattice units, found {shown(std)}."
        )
    if start < 0 or count < 0 or start + count > MAX_CELLS:
        raise UserError(
            f"Noise is drawn for cells 0 to 2^34 of one release, found {count} cells from {start}: "
            "use fewer directions, bins or classes, or several releases."
        )
    noise = np.zeros(count, dtype=np.int64)
    if std == 0:
        return noise
    stream_key = key.derive(b"lattice gaussian %d " % SAMPLER + struct.pack("<d", std))
    for begin in range(0, count, _CHUNK):
        end = min(begin + _CHUNK, count)
        words = _words(stream_key, (start + begin) * _CELL, (end - begin) * _CELL).reshape(-1, 2)
        first = np.ascontiguousarray(words[:, 0])
        uniform = (first.astype(np.float64) + 0.5) * 2.0**-64
        for small in np.flatnonzero(first < np.uint64(_SMALL)):
            uniform[small] = _deep_uniform(stream_key, start + begin + int(small), int(first[small]))
        angle = np.ascontiguousarray(words[:, 1]).astype(np.float64) * (2 * math.pi * 2.0**-64)
        normal = np.sqrt(-2 * np.log(uniform)) * np.cos(angle)
        noise[begin:end] = np.floor(drawn_std(std) * normal + 0.5)
    return noise


def drawn_std(std: float) -> float:
    """Standard deviation of what `lattice_gaussian` draws: a little more than `std`, see the module's statement."""
    return std * _PAID


def low_bits(std: float, cells: int) -> float:
    """What the low bits of Gaussian noise tell of a record that changes so many cells, as the mu of a test.

    Args:
        std: standard deviation, in lattice units.
        cells: at most so many change.
    """
    return _GRID * std * math.sqrt(cells)


def _deep_uniform(key: NoiseKey, cell: int, word: int) -> float:
    """A uniform number whose first 64 bits are `word`, with bits enough for its logarithm at any size."""
    bits = word
    for further in _words(key.derive(b"tail of cell %d" % cell), 0, 8 * _DEEP).tolist():
        bits = bits << 64 | further
    return math.ldexp(float(2 * bits + 1), -64 * (_DEEP + 1) - 1)


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
