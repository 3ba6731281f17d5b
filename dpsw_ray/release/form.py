"""The form of one holder's message: what its bound is proved for, and what is refused on the integers that are sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsw_ray.privacy.relations import Relation, check_relation

__all__ = ["Form"]


@dataclass(frozen=True)
class Form:
    """What a message must look like, whatever is asked.

    Attributes:
        shape: of the array.
        norm_sq: largest squared L2 norm, in squared lattice units.
        mass: largest L1 norm.
        axis: both hold for each index of this axis by itself; None: for the whole message.
        signed: whether cells may be negative.

    Raises:
        ValueError: norms whose sums pass 64 bits, so that nobody could hold a message to them.
    """

    shape: tuple[int, ...]
    norm_sq: int
    mass: int
    axis: int | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        if self._longest * self.mass >= 2**63:
            raise ValueError("sums of squares within these norms pass 64 bits")

    @property
    def _longest(self) -> int:
        """Largest value of a cell; times the mass it bounds a sum of squares."""
        return min(math.isqrt(self.norm_sq), self.mass)

    @property
    def rows(self) -> int:
        """How many rows the norms bound."""
        return 1 if self.axis is None else self.shape[self.axis]

    def sensitivity_sq(self, relation: Relation, *, grouped: bool = False) -> int:
        """Squared L2 sensitivity of a sum of such messages, in squared lattice units.

        A replaced message changes it by the difference of two: ||a - b||^2 is at most ||a||^2 + ||b||^2 where no cell
        is negative, and four times the larger one otherwise.

        Args:
            relation: between neighbouring data sets.
            grouped: a message is that of a part with many units, which answers anything within the form: whatever
                becomes of one of them, the message is replaced.
        """
        replaced = check_relation(relation) == "replace_one" or grouped
        return ((4 if self.signed else 2) if replaced else 1) * self.rows * self.norm_sq

    def refusal(self, message: Any) -> str | None:
        """Why a message is refused, or None for one in the right form."""
        if not isinstance(message, np.ndarray) or message.shape != self.shape:
            return "shape"
        if message.dtype.kind == "f" and not np.isfinite(message).all():
            return "not finite"
        if message.dtype.kind not in "iu":
            return "not whole numbers"
        if not self.signed and message.dtype.kind == "i" and (message < 0).any():
            return "negative"
        # Before any product: what follows then fits 64 bits.
        most = self._longest
        if (message > most).any() or (message.dtype.kind == "i" and (message < -most).any()):
            return "too large"
        whole = np.abs(message.astype(np.int64))
        others = None if self.axis is None else tuple(i for i in range(whole.ndim) if i != self.axis)
        if (whole.sum(axis=others) > self.mass).any() or ((whole**2).sum(axis=others) > self.norm_sq).any():
            return "too large"
        return None
