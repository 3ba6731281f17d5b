"""User-level audits: one user's whole data replaced, and twins that protect records where users were promised."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from dpsw_ray.audit.attack import Attack
from dpsw_ray.audit.bounds import shared_confidence
from dpsw_ray.audit.result import AuditResult, audit
from dpsw_ray.federated.audit import User, audit_plan, replaced_user
from dpsw_ray.federated.plan import UserPlan
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan

CONFIDENCE = shared_confidence(1 - 1e-6, 20)
RUNS = 8_000


def judged(attack: Attack, honest: Attack) -> AuditResult:
    claimed = dataclasses.replace(attack, events=honest.events, relation=honest.relation)
    return audit(claimed, RUNS, CONFIDENCE, 1e-5, seed=1)


@pytest.mark.parametrize(
    ("trust", "relation"),
    [
        ("central", "replace_one"), ("central", "zero_out"), ("distributed", "replace_one"),
        ("distributed", "zero_out"), ("local", "replace_one"),
    ],
)  # fmt: skip
def test_replacing_all_of_a_users_data_stays_below_the_claim_and_comes_near(
    trust: str, relation: str
) -> None:
    honest = replaced_user(audit_plan(trust, relation, 1.0), relation)  # type: ignore[arg-type]
    found = judged(honest, honest)
    assert not found.refuted
    assert found.mu_lower > 0.5  # of 1: the pair is nearly the worst there is
    assert found.claimed_mu == pytest.approx(1, abs=0.01)
    weak = replaced_user(audit_plan(trust, relation, 0.5), relation)  # type: ignore[arg-type]
    assert judged(weak, honest).refuted  # half the noise is caught


def by_records(users: Sequence[User], plan: UserPlan) -> np.ndarray:
    """The twin: every record bounded as if it were a user, so that a user counts as often as it has records."""
    records = HistogramPlan(
        "twin", plan.directions, plan.grid, plan.table, plan.classes, plan.class_conditional, plan.noise_std
    )
    return bound(((user.latents, user.labels) for user in users), records)


@pytest.mark.parametrize("relation", ["replace_one", "zero_out"])
def test_bounding_records_where_users_were_promised_is_caught(relation: str) -> None:
    plan = audit_plan("central", relation, 1.0)  # type: ignore[arg-type]
    honest = replaced_user(plan, relation)  # type: ignore[arg-type]
    twin = replaced_user(plan, relation, by_records)  # type: ignore[arg-type]
    caught = judged(twin, honest)
    assert caught.refuted and caught.mu_lower > 2 * caught.claimed_mu
    assert not judged(honest, honest).refuted


def test_noise_that_counts_the_users_own_share_is_caught() -> None:
    """The twin: shares sized for all t survivors and c of them telling theirs, none taken into account."""
    plan = audit_plan("distributed", "zero_out", 1.0, users=4)
    honest = replaced_user(plan, "zero_out")
    naive = dataclasses.replace(plan, share=plan.share * 3 / 4)
    assert judged(replaced_user(naive, "zero_out"), honest).mu_lower > judged(honest, honest).mu_lower
    corrupted = dataclasses.replace(plan, share=plan.share / 3)
    assert judged(replaced_user(corrupted, "zero_out"), honest).refuted
