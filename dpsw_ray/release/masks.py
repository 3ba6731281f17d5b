"""Masks modulo 2^64 that cancel in the sum: whoever adds the messages up learns the sum and nothing else.

The pairwise masks of secure aggregation (Bonawitz et al. 2017): each pair of shards agrees on a key by X25519,
expands it into a stream of 64-bit words, and one adds what the other subtracts. The public keys pass through the
driver; the shared keys exist in the two shards only. This holds against a driver that is curious but follows
the protocol, which is this package's own code: one that hands out public keys of its own making could read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from dpsw_ray.privacy.noise import NoiseKey, mask_stream

__all__ = ["MaskingKey", "unmask"]


class MaskingKey:
    """One shard's key pair for one round; it masks one message and is spent."""

    def __init__(self) -> None:
        """Draws the pair from operating-system entropy."""
        self._secret: X25519PrivateKey | None = X25519PrivateKey.generate()
        self.public: bytes = self._secret.public_key().public_bytes_raw()

    def mask(
        self, message: NDArray[np.int64], rank: int, public_keys: Sequence[bytes], context: bytes
    ) -> NDArray[np.uint64]:
        """Adds this shard's masks to its message.

        Args:
            message: array of any size, int64, taken modulo 2^64.
            rank: this shard's place in `public_keys`.
            public_keys: every shard's public key, in rank order, this one's included.
            context: what the round is about; shards that disagree on it get masks that do not cancel.

        Returns:
            Array of the message's size, uint64. Uniform on its own when there is more than one shard.

        Raises:
            RuntimeError: the key was used before, or the list does not hold this shard's key at its rank
                or holds a key twice.
        """
        if self._secret is None:
            raise RuntimeError("a masking key masks one message only")
        if public_keys[rank] != self.public or len(set(public_keys)) != len(public_keys):
            raise RuntimeError("the list of public keys is not this round's")
        secret, self._secret = self._secret, None
        total = message.ravel().view(np.uint64).copy()
        for peer, public in enumerate(public_keys):
            if peer == rank:
                continue
            shared = secret.exchange(X25519PublicKey.from_public_bytes(public))
            low, high = sorted((self.public, public))
            key = HKDF(hashes.SHA256(), 32, salt=low + high, info=b"dpsw_ray mask\0" + context).derive(shared)
            stream = mask_stream(NoiseKey(key), total.size)
            if rank < peer:
                total += stream
            else:
                total -= stream
        return total.reshape(message.shape)


def unmask(messages: Sequence[NDArray[np.uint64]]) -> NDArray[np.int64]:
    """Adds the shards' messages modulo 2^64: the masks cancel, the sum (noise included) remains."""
    total = np.zeros_like(messages[0])
    for message in messages:
        total += message
    return total.view(np.int64)
