"""What users' devices send, and the noise of a round: PRIVATE; the Statement is `dpsw_ray.federated.plan`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.federated.kernel import ABSENT, DECOY, PRESENT, add_users
from dpsw_ray.federated.plan import UserPlan
from dpsw_ray.federated.shares import skellam
from dpsw_ray.federated.store import UserStore
from dpsw_ray.methods.dpswflow_h import mechanism as histograms
from dpsw_ray.methods.dpswflow_h.mechanism import cell_blocks
from dpsw_ray.privacy.noise import NoiseKey, poisson_sample
from dpsw_ray.private.noise import NoiseSecret
from dpsw_ray.release.question import Question

__all__ = ["USERS", "HeldUsers", "message", "noise", "sums"]

USERS = 4096
"""At a time: what bounds the memory that is touched."""


@dataclass(frozen=True)
class HeldUsers:
    """A chunk of users: PRIVATE.

    Attributes:
        store: of all users' latents.
        first: the first of them.
        last: one past the last of them.
        users: in the population.
        threads: that may be used.
        choices: key of what is chosen in secret in this round; None where the plan's noise is a drawn table.
    """

    store: UserStore = field(repr=False)
    first: int
    last: int
    users: int
    threads: int = 1
    choices: NoiseKey | None = None


def message(
    held: HeldUsers, question: Question, number: int, state: None, plan: UserPlan
) -> tuple[NDArray[np.int64], None]:
    """See `private.answering.Mechanism`."""
    return sums(held, plan)[None], None


def noise(secret: NoiseSecret, plan: UserPlan, number: int = 0) -> NDArray[np.int64]:
    """The round's noise: the server's, or all survivors' shares at once, as Skellam numbers add up to Skellam numbers.

    Returns:
        Array of size [C, K, bins].
    """
    if plan.trust == "central":
        return histograms.noise(secret, plan)
    assert isinstance(secret, NoiseKey), "shares of noise come from a key"
    key, cells = secret.derive(plan.digest().encode()), plan.cells[1:]
    return skellam(key, plan.survivors * plan.share, int(np.prod(cells))).reshape(cells)


def sums(held: HeldUsers, plan: UserPlan) -> NDArray[np.int64]:
    """The exact sum of these users' messages: PRIVATE, array of size [C, K, bins].

    Raises:
        RuntimeError: a message passed its bound, which the arithmetic excludes.
    """
    store = held.store
    present = plan.cohort.survivors()
    total = np.zeros(plan.cells[1:], dtype=np.int64)
    for begin in range(held.first, held.last, USERS):
        end = min(begin + USERS, held.last)
        roles = np.where(present[begin:end], PRESENT, ABSENT).astype(np.uint8)
        if plan.rate < 1:
            assert held.choices is not None, "samples come from a key"
            key = held.choices.derive(plan.digest().encode()).derive(b"sample")
            member = poisson_sample(key, plan.rate, begin, end - begin)
            roles = np.where(member | (roles == ABSENT), roles, DECOY).astype(np.uint8)
        rows = slice(int(store.offsets[begin]), int(store.offsets[end]))
        over = add_users(
            store.latents[rows], cell_blocks(store.labels[rows], plan),
            store.offsets[begin : end + 1] - rows.start, roles, plan.directions[0], plan.grid, plan.table,
            total, full_weight_at=plan.full_weight_at, precision=plan.precision,
            largest_norm_sq=plan.form.norm_sq, threads=held.threads,
        )  # fmt: skip
        if over.any():
            raise RuntimeError("a message passed its bound")
    return total
