"""Discrete Gaussian noise: integers sampled exactly, for releases that must stand on a finite computer.

Statement: `discrete_gaussian(std, count)` draws independent integers with P(x) proportional to
exp(-x^2 / (2 std^2)), `std` being the rational number that the float is. No step of it rounds, so the bound
rho = sensitivity^2 / (2 std^2) of zero-concentrated privacy holds for the program, not for an idealised one.

Source: Canonne, Kamath and Steinke 2020, Theorem 14 and Algorithm 3, as implemented by `opendp` on a cryptographic
generator that the operating system seeds. That sampler takes no key: noise that a retry must repeat is kept as the
table that was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError, shown

__all__ = ["MAX_DISCRETE_STD", "MAX_DRAWN", "NoiseTable", "discrete_gaussian"]

MAX_DISCRETE_STD = 2.0**58
"""Largest sigma: `opendp` saturates at the ends of int64, which are 32 standard deviations away from here."""

MAX_DRAWN = 2**24
"""Cells of the largest table that is worth drawing: some minutes of sampling, 128 MiB."""

_CHUNK = 2**16  # cells sampled at a time: `opendp` hands them over as Python integers


@dataclass(frozen=True, eq=False)
class NoiseTable:
    """Noise that was drawn once and cannot be drawn again; it never shows in `repr`.

    Args:
        secret: the cells, little-endian int64.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) % 8:
            raise ValueError(f"a noise table has 8 bytes per cell, found {len(self.secret)} bytes")

    @classmethod
    def draw(cls, *stretches: tuple[float, int]) -> NoiseTable:
        """A fresh table as `discrete_gaussian` draws it: sigma and number of cells of each stretch, in their order."""
        drawn = [discrete_gaussian(std, count) for std, count in stretches]
        return cls(np.concatenate(drawn).astype("<i8").tobytes())

    def cells(self) -> NDArray[np.int64]:
        """The noise: array of size [count]."""
        return np.frombuffer(self.secret, dtype="<i8").astype(np.int64)


def discrete_gaussian(std: float, count: int) -> NDArray[np.int64]:
    """Exact discrete Gaussian noise, fresh on every call.

    Args:
        std: the parameter sigma, in lattice units; 0 gives zeros.
        count: number of cells.

    Returns:
        Array of size [count].

    Raises:
        UserError: a std that is negative, not finite or too large for int64.
    """
    if not 0 <= std <= MAX_DISCRETE_STD:
        raise UserError(
            f"The noise's standard deviation must lie in [0, 2^58] lattice units, found {shown(std)}."
        )
    noise = np.zeros(count, dtype=np.int64)
    if std == 0:
        return noise
    from opendp.domains import atom_domain, vector_domain  # a quarter of a second, needed by few
    from opendp.measurements import make_gaussian
    from opendp.metrics import l2_distance
    from opendp.mod import enable_features

    enable_features("contrib")  # opendp wants all of its mechanisms but a few opted into by this name
    sampler = make_gaussian(vector_domain(atom_domain(T="i64")), l2_distance(T="f64"), scale=std)
    for begin in range(0, count, _CHUNK):
        end = min(begin + _CHUNK, count)
        noise[begin:end] = sampler([0] * (end - begin))
    return noise
