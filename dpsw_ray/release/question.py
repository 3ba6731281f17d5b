"""A question to the private side: named arrays, and the digest by which both sides know that it is the same one."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError

__all__ = ["NO_QUESTION", "Question", "canonical", "question_digest"]

Question: TypeAlias = Mapping[str, NDArray[Any]]
"""What a mechanism is asked; empty where its plan says everything."""

_KINDS = "biuf"


def canonical(question: Question) -> dict[str, NDArray[Any]]:
    """A question in the one form that is stored, sent and hashed: sorted names, little-endian, C order.

    Raises:
        UserError: an array that is not of numbers of at most 64 bits (longer ones have bytes of no meaning), or holds a
            NaN: two of them would not be the same question.
    """
    arrays = {}
    for name in sorted(question):
        array = np.asarray(question[name], order="C")
        if array.dtype.kind not in _KINDS or array.dtype.itemsize > 8:
            raise UserError(f"The question's {name} must be an array of numbers, found {array.dtype}.")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise UserError(f"The question's {name} holds a value that is not a number (NaN).")
        arrays[name] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return arrays


def question_digest(question: Question) -> str:
    """SHA-256 of a question's canonical bytes, with names, types and shapes."""
    digest = hashlib.sha256()
    for name, array in canonical(question).items():
        for part in (name, array.dtype.str, repr(array.shape)):
            digest.update(struct.pack("<q", len(part.encode())) + part.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


NO_QUESTION = question_digest({})
"""Digest of the empty question."""
