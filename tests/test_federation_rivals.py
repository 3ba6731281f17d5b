"""What the benchmark beside other simulations measures: the same messages, and the same sum, for all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from federated_support import Here, shards_of, small
from federation_rivals import RECORDS, without_noise, work_of
from rivals.work import Work

from dpsw_ray.federated.cohort import Cohort
from dpsw_ray.federated.message import user_message
from dpsw_ray.federated.plan import UserPlan, round_plan
from dpsw_ray.release.exchange import noisy_answer


def test_a_rivals_users_send_our_messages_bit_for_bit_and_the_sum_is_ours(home: Path, tmp_path: Path) -> None:
    users = 30
    config = small(
        home, "data.source=generated", "encoder.kind=identity", "encoder.latent_dim=8", f"population.users={users}",
        f"population.records={RECORDS}", "release.class_conditional=false", "trust=distributed",
        "secagg.precision=12", "privacy.noise_seed=0", "release.bins=24",
    )  # fmt: skip
    parts, _ = shards_of(config, tmp_path)
    plan = round_plan(config, 8, 10, users, Cohort.of(config, users, 0), "r")
    assert isinstance(plan, UserPlan)
    work_of(plan, parts[0].store.latents, users).save(tmp_path)
    work = Work.load(tmp_path)
    messages = [work.message(records) for records in work.latents]
    for records, message in zip(work.latents, messages, strict=True):
        own = user_message(
            records, np.zeros(RECORDS, np.int32), plan.directions[0], plan.grid, plan.table, 1,
            precision=plan.precision,
        )  # fmt: skip
        assert np.array_equal(message, own[0])
        assert np.linalg.norm(message) <= work.bound
    group = Here(parts)
    group.call("prepare", (plan, 0))
    total = noisy_answer(group, plan, noise_seed=0)
    found = without_noise(plan, total)
    assert found.any() and np.array_equal(found, np.sum(messages, axis=0))
    noiseless = dataclasses.replace(plan, share=0.0)
    assert not np.array_equal(without_noise(noiseless, total), found)  # there is noise to be taken off
