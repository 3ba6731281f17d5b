"""Secure aggregation, user by user: double masks modulo 2^b, with dropouts and recovery (Bonawitz et al. 2017).

Every user adds to its message a mask of its own and, for every other user, a mask that the two agreed on and that the
other subtracts. The seeds are shared among all users, any `threshold` of whom can put one together. When the server
knows whose messages came, it asks the users still there for the shares of the own masks of those, and for the
shares of the keys of the users that went away, whose pairwise masks nobody cancels. Nobody gives both of one user: with
both, a message that came late could be read.

This is the protocol that the simulation at scale stands for. There the masks are left out, because they cancel: the
tests hold its sums against these, on small groups, bit for bit.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.noise import NoiseKey, mask_stream

__all__ = ["Aborted", "Client", "Server", "combine", "split"]

Share = tuple[int, int]
"""A point of the polynomial whose value at zero is the secret."""

_PRIME = 2**521 - 1


class Aborted(UserError):
    """Too few users are left: nothing was unmasked."""


def split(secret: bytes, threshold: int, holders: Sequence[int]) -> dict[int, Share]:
    """Shares of 32 bytes, any `threshold` of which give them back and fewer of which say nothing (Shamir 1979)."""
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    shares = {}
    for holder in holders:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * (holder + 1) + coefficient) % _PRIME
        shares[holder] = (holder + 1, value)
    return shares


def combine(shares: Sequence[Share]) -> bytes:
    """The secret, from as many shares as the threshold asks for."""
    total = 0
    for place, value in shares:
        above = below = 1
        for other, _ in shares:
            if other != place:
                above = above * -other % _PRIME
                below = below * (place - other) % _PRIME
        total += value * above * pow(below, -1, _PRIME)
    return (total % _PRIME).to_bytes(66, "big")[-32:]


def _agreed(secret: X25519PrivateKey, public: bytes, own: bytes, context: bytes) -> NoiseKey:
    low, high = sorted((own, public))
    shared = secret.exchange(X25519PublicKey.from_public_bytes(public))
    key = HKDF(hashes.SHA256(), 32, salt=low + high, info=b"dpsw_ray user mask\0" + context).derive(shared)
    return NoiseKey(key)


@dataclass(frozen=True)
class _Held:
    """What a user keeps for another one."""

    own_mask: Share
    key: Share


class Client:
    """One user in one round.

    Attributes:
        public: the public half of its key.
    """

    def __init__(self, number: int, bits: int, threshold: int, context: bytes) -> None:
        self.number, self._bits, self._threshold, self._context = number, bits, threshold, context
        self._secret = X25519PrivateKey.generate()
        self._seed = secrets.token_bytes(32)
        self.public = self._secret.public_key().public_bytes_raw()
        self._held: dict[int, _Held] = {}
        self._answered = False

    def deal(self, users: Sequence[int]) -> dict[int, tuple[Share, Share]]:
        """Shares of its own mask's seed and of its key, one pair for each user (encrypted, on a real network)."""
        seeds = split(self._seed, self._threshold, users)
        keys = split(self._secret.private_bytes_raw(), self._threshold, users)
        return {user: (seeds[user], keys[user]) for user in users}

    def keep(self, dealer: int, shares: tuple[Share, Share]) -> None:
        """Takes another user's shares into keeping."""
        self._held[dealer] = _Held(*shares)

    def message(self, values: NDArray[np.int64], publics: Mapping[int, bytes]) -> NDArray[np.uint64]:
        """The masked message.

        Args:
            values: array of any size: the user's integers, its share of the noise included.
            publics: every user's public key, its own included.
        """
        total = values.ravel().view(np.uint64) + mask_stream(NoiseKey(self._seed), values.size)
        for peer, public in publics.items():
            if peer != self.number:
                stream = mask_stream(_agreed(self._secret, public, self.public, self._context), values.size)
                total = total + stream if self.number < peer else total - stream
        return np.asarray(total & np.uint64((1 << self._bits) - 1)).reshape(values.shape)

    def unmask(
        self, survivors: Sequence[int], gone: Sequence[int]
    ) -> tuple[dict[int, Share], dict[int, Share]]:
        """Shares of the survivors' own masks and of the missing users' keys; answers once.

        Raises:
            Aborted: fewer survivors than the threshold.
            RuntimeError: asked twice, or for both secrets of one user.
        """
        if self._answered or set(survivors) & set(gone):
            raise RuntimeError("a user gives away one of two secrets of each user, once")
        if len(set(survivors)) < self._threshold:
            raise Aborted(_too_few(len(set(survivors)), self._threshold))
        self._answered = True
        return (
            {user: self._held[user].own_mask for user in survivors},
            {user: self._held[user].key for user in gone},
        )


class Server:
    """Adds up what came, and takes the masks away with the help of those who are still there."""

    def __init__(self, bits: int, threshold: int, context: bytes, publics: Mapping[int, bytes]) -> None:
        self._bits, self._threshold, self._context = bits, threshold, context
        self._publics = dict(publics)
        self._messages: dict[int, NDArray[np.uint64]] = {}

    def receive(self, user: int, message: NDArray[np.uint64]) -> None:
        """Takes a message in."""
        self._messages[user] = message

    def total(self, clients: Mapping[int, Client]) -> NDArray[np.int64]:
        """The sum of the messages that came, modulo 2^b.

        Args:
            clients: the users that are still there to help; those whose message came, or some of them.

        Raises:
            Aborted: too few messages came, or too few users are left to unmask them.
        """
        survivors = sorted(self._messages)
        gone = sorted(self._publics.keys() - self._messages.keys())
        if len(survivors) < self._threshold or len(clients) < self._threshold:
            raise Aborted(_too_few(min(len(survivors), len(clients)), self._threshold))
        answers = [client.unmask(survivors, gone) for client in clients.values()][: self._threshold]
        shape = next(iter(self._messages.values())).shape
        total = np.zeros(shape, np.uint64).ravel()
        for user in survivors:
            total += self._messages[user].ravel()
            seed = combine([own[user] for own, _ in answers])
            total -= mask_stream(NoiseKey(seed), total.size)
        for user in gone:
            secret = X25519PrivateKey.from_private_bytes(combine([keys[user] for _, keys in answers]))
            for peer in survivors:
                key = _agreed(secret, self._publics[peer], self._publics[user], self._context)
                stream = mask_stream(key, total.size)
                total = total + stream if user < peer else total - stream
        return np.asarray(total & np.uint64((1 << self._bits) - 1)).view(np.int64).reshape(shape)


def _too_few(left: int, threshold: int) -> str:
    return (
        f"{left} users are left in the round, fewer than the threshold of {threshold}: nothing was unmasked."
    )
