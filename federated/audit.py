"""Attacks on the federated release: all of one user's data replaced, with the best score there is.

The product's own code makes the messages, adds them up and draws the noise; what is claimed is the accountants' answer
to the plan's event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.audit.attack import Attack, Randomness, Scores
from dpsw_ray.federated.cohort import Cohort
from dpsw_ray.federated.config import Trust
from dpsw_ray.federated.kernel import PRESENT, add_users
from dpsw_ray.federated.plan import UserPlan
from dpsw_ray.federated.shares import modulus_bits, share_variance, skellam
from dpsw_ray.methods.dpswflow_h.mechanism import noise
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.private.latents import bounded
from dpsw_ray.slicing.directions import LATTICE, haar_frames
from dpsw_ray.slicing.grid import BinGrid

__all__ = ["Summing", "User", "audit_plan", "replaced_user"]


@dataclass(frozen=True)
class User:
    """One user's data: latents [n, d] and labels [n]."""

    latents: NDArray[np.float64]
    labels: NDArray[np.int32]


Summing = Callable[[Sequence[User], UserPlan], NDArray[np.int64]]
"""From all users' data to the exact sum of their messages."""


def audit_plan(trust: Trust, relation: Relation, level: float, users: int = 12) -> UserPlan:
    """A small round of two classes, so that runs are cheap; the noise is `level` times the sensitivity.

    Under `distributed` the population is just the threshold, so that the noise is as little as it may be.
    """
    grid, directions = BinGrid(8, 0.5), haar_frames(2, 2, seed=0)
    replaced = 2 if relation == "replace_one" else 1
    std = level * math.sqrt(replaced * len(directions) * grid.row_norm_sq)
    plan = UserPlan(
        "audit", directions[None], grid, grid.table, 2, True, std, "gaussian", "user",
        Cohort(users, 0, 0), trust, users,
    )  # fmt: skip
    if trust == "central":
        return plan
    share = share_variance(std**2, users, 0) if trust == "distributed" else std**2
    bits = modulus_bits(users, 16, users * share, math.prod(plan.cells))
    return replace(plan, noise="skellam", share=share, noise_std=math.sqrt(users * share), bits=bits)


def replaced_user(plan: UserPlan, relation: Relation, summing: Summing | None = None) -> Attack:
    """The round, with and without all of one user's data, or with quite other data.

    Pair: forty records on one spot, and forty of another class on another spot, or none. Score: matched filter on the
    released counts, the likelihood ratio of Gaussian noise, and nearly that of Skellam noise. The noise that counts is
    what the accountant counts: under `distributed` that of the others, under `local` that of the one message.

    Args:
        plan: of the round, from `audit_plan`.
        relation: of the pair.
        summing: how messages become a sum; by default the product's way.
    """
    add = summing or _sums
    rng = np.random.default_rng(0)
    others = [_user(rng.standard_normal(2), 5, int(i % 2)) for i in range(plan.survivors - 1)]
    if plan.trust == "local":
        others = []
    target, other = _user(np.array([1.0, 0.3]), 40, 0), _user(np.array([-0.2, -1.0]), 40, 1)
    empty = User(np.zeros((0, 2)), np.zeros(0, np.int32))
    first = add([*others, target], plan).ravel()
    second = add([*others, other if relation == "replace_one" else empty], plan).ravel()
    matched = (second - first).astype(np.float64)

    def scores(runs: int, source: Randomness) -> Scores:
        null, alternative = np.empty(runs), np.empty(runs)
        for run in range(runs):
            drawn = drawn_noise(source.key.derive(b"run %d" % run))
            null[run], alternative[run] = matched @ (first + drawn), matched @ (second + drawn)
        return null, alternative

    def drawn_noise(key: NoiseKey) -> NDArray[np.int64]:
        if plan.trust == "central":
            return noise(key, plan).ravel()
        devices = plan.survivors - 1 if plan.trust == "distributed" else 1
        return skellam(key, devices * plan.share, matched.size)

    return Attack(f"user, {plan.trust}", (plan.event,), relation, scores)


def _user(direction: NDArray[np.float64], records: int, label: int) -> User:
    points = np.tile(direction / np.linalg.norm(direction) * 0.9, (records, 1))
    latents, labels = bounded(points, np.full(records, label, np.int32))
    return User(latents, labels)


def _sums(users: Sequence[User], plan: UserPlan) -> NDArray[np.int64]:
    total = np.zeros(plan.cells[1:], dtype=np.int64)
    latents = np.concatenate([user.latents for user in users])
    add_users(
        np.rint(latents / LATTICE).astype(np.int32),
        np.concatenate([user.labels for user in users]),
        np.concatenate([[0], np.cumsum([len(user.labels) for user in users])]).astype(np.int64),
        np.full(len(users), PRESENT, np.uint8), plan.directions[0], plan.grid, plan.table, total,
        precision=plan.precision, largest_norm_sq=plan.form.norm_sq,
    )  # fmt: skip
    return total
