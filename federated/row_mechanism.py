"""Noisy rows of users' devices (DPSWflow): PRIVATE; the Statement is `dpsw_ray.federated.plan`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.data.records import NULL
from dpsw_ray.federated.mechanism import USERS, HeldUsers
from dpsw_ray.federated.plan import UserRowPlan
from dpsw_ray.federated.store import UserStore
from dpsw_ray.methods.dpswflow.mechanism import noisy_histograms
from dpsw_ray.release.question import Question
from dpsw_ray.slicing.directions import LATTICE

__all__ = ["message", "padded_rows"]


def message(
    held: HeldUsers, question: Question, number: int, state: None, plan: UserRowPlan
) -> tuple[NDArray[np.int64], None]:
    """See `private.answering.Mechanism`; there is no `noise`, it is on the rows."""
    assert held.choices is not None, "rows draw their noise from a key"
    first, last = held.first, held.last
    present, c = plan.cohort.survivors(), plan.rows
    before = int(present[:first].sum())

    def batches() -> Iterator[tuple[NDArray[np.float64], NDArray[np.int32]]]:
        rng = np.random.default_rng([plan.cohort.seed, 0x20E5])
        places = rng.random(held.users)  # public: which of its records a user sends
        for begin in range(first, last, USERS):
            users = np.flatnonzero(present[begin : min(begin + USERS, last)]) + begin
            yield padded_rows(held.store, users, places[users], c), np.zeros(len(users) * c, np.int32)

    total = noisy_histograms(batches(), plan, 0, before * c, int(present.sum()) * c, held.choices)
    return total, None


def padded_rows(
    store: UserStore, users: NDArray[np.int64], places: NDArray[np.float64], c: int
) -> NDArray[np.float64]:
    """Exactly c rows of every user: records spread over its own, over again where it has few, zero without any."""
    starts = store.offsets[users]
    counts = (store.offsets[users + 1] - starts)[:, None]
    some_of, steps, begin = np.maximum(counts, 1), np.arange(c), places[:, None]
    spread = np.floor((steps + begin) / c * counts)
    again = (steps + np.floor(begin * some_of)) % some_of
    picked = np.where(counts >= c, spread, again).astype(np.int64)
    picked = np.minimum(picked, some_of - 1) + starts[:, None]
    rows = np.zeros((len(users) * c, store.latents.shape[1]))
    some = np.repeat(counts[:, 0] > 0, c)
    flat = picked.ravel()[some]
    good = store.labels[flat] != NULL
    rows[np.flatnonzero(some)[good]] = store.latents[flat[good]] * LATTICE
    return rows
