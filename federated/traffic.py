"""Bytes on the wire, as they would be packed: what a user sends and gets in a round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dpsw_ray.federated.plan import RoundPlan

__all__ = ["LITERATURE", "RoundTraffic", "encoder_bytes", "round_traffic"]

LITERATURE = {"Fed-GS-WGAN": 1.5e5, "FedAvg-GAN": 3.9e7}
"""Bytes per exchange that the literature reports."""

_PLAN = 512  # seeds, grid, bounds, threshold: a user makes the directions itself
_PUBLIC_KEYS = 2 * 32  # one for masks, one for sealing shares
_SHARES = 2 * (66 + 28)  # two Shamir shares over 521 bits, sealed with nonce and tag
_ANSWER = 66  # one share of every neighbour, to unmask


@dataclass(frozen=True)
class RoundTraffic:
    """Bytes per user in one round.

    Attributes:
        message: the packed message.
        up: the message, and keys and shares of secure aggregation.
        down: the plan, and keys and shares of others.
    """

    message: int
    up: int
    down: int


def round_traffic(plan: RoundPlan, neighbours: int, asked: int) -> RoundTraffic:
    """What one user sends and gets.

    Args:
        plan: of the round.
        neighbours: users with whom each shares masks (Bell et al. 2020: a few dozen to a hundred suffice).
        asked: users in the round.
    """
    message = math.ceil(plan.message_bits / 8)
    if plan.modulus_bits is None:
        return RoundTraffic(message, message, _PLAN)
    others = min(neighbours, max(asked - 1, 0))
    return RoundTraffic(
        message,
        message + _PUBLIC_KEYS + others * (_SHARES + _ANSWER),
        _PLAN + others * (_PUBLIC_KEYS + _SHARES),
    )


def encoder_bytes(folder: Path) -> int:
    """What a device loads once to encode its records."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
