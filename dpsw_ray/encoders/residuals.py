"""What a decoder leaves out, kept of some public records and lent to what is decoded near them.

A decoder gives the mean of all records that a latent may stand for: too smooth to be one of them, and a model trained
on such means meets detail in real records that it has never seen. So a decoded record borrows, from a public record
whose latent is near, the difference between that record and its reconstruction. From which of the nearest follows from
the latent's bits, and from nothing else: decoding stays a function of the latent, the same wherever it happens and
whatever is decoded beside it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["Residuals"]

NEAREST = 10  # public records to borrow from: one alone would lend its detail to all that is decoded near it
_SAME = 1e-6  # a distance of a latent from itself, to rounding
_APART = 3.0  # added to a distance between latents of two classes: more than any within the unit ball


class Residuals:
    """Differences between public records and their reconstructions, by latent and class."""

    def __init__(self, latents: Tensor, labels: Tensor, values: Tensor) -> None:
        """Takes them as they are.

        Args:
            latents: array of size [m, d].
            labels: classes [m], -1 without.
            values: the differences [m, *shape] in the net's units; kept in half precision.
        """
        self.latents, self.labels, self.values = latents.float(), labels, values.half()

    def lent(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """What latents [n, d] borrow: array of size [n, *shape], float64.

        Args:
            latents: float32; each decides by its bits.
            labels: borrow within these classes [n] while they have any; default: from all.
        """
        distances = torch.cdist(latents, self.latents, compute_mode="donot_use_mm_for_euclid_dist")
        # Nobody borrows from itself: a kept record would come back as it was, and the encoder's ceiling be too high.
        distances[distances < _SAME] = 2 * _APART
        if labels is not None:
            distances = distances + _APART * (labels[:, None] != self.labels)
        nearest = distances.topk(min(NEAREST, len(self.labels)), largest=False).indices
        drawn = [_draw(latent.tobytes()) % nearest.shape[1] for latent in latents.cpu().numpy()]
        rows = nearest[torch.arange(len(drawn)), torch.tensor(drawn, device=nearest.device)]
        return self.values[rows].double()

    def tensors(self) -> dict[str, Tensor]:
        """What the constructor takes, by name."""
        return {"latents": self.latents, "labels": self.labels, "values": self.values}


def _draw(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"dpsw residual").digest(), "little")
