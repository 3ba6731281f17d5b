"""What rounds cost: events that say what happened, noise that stays within the budget, refusals before the start."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from federated_support import small

from dpsw_ray.base.errors import UserError
from dpsw_ray.federated.cohort import Cohort
from dpsw_ray.federated.config import FederatedConfig
from dpsw_ray.federated.plan import UserPlan, UserRowPlan, needed_survivors, round_plan
from dpsw_ray.methods.registry import load_config
from dpsw_ray.privacy.accountants import account
from dpsw_ray.privacy.events import SkellamEvent, SlicedHistogramEvent, event_from_dict
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.slicing.grid import SCALE

USERS = 200


def plan_of(config: FederatedConfig, number: int = 0) -> UserPlan:
    plan = round_plan(config, 4, 3, USERS, Cohort.of(config, USERS, number), "id")
    assert isinstance(plan, UserPlan)
    return plan


@pytest.mark.parametrize("relation", ["replace_one", "zero_out"])
@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_the_users_in_a_central_round_are_protected_as_asked(
    tmp_path: Path, relation: str, epsilon: float
) -> None:
    config = small(tmp_path, f"privacy.relation={relation}", f"privacy.epsilon={epsilon}")
    event = plan_of(config).event
    assert isinstance(event, SlicedHistogramEvent) and event.unit == "user"
    found = account([event], config.privacy.relation, config.privacy.delta)
    assert found.unit == "user"
    assert 0.999 * epsilon <= found.epsilon.upper <= epsilon


def test_at_the_threshold_the_shares_make_just_the_noise_that_is_needed(tmp_path: Path) -> None:
    config = small(tmp_path, "trust=distributed", "secagg.threshold=1", "secagg.corrupted=20")
    plan = plan_of(config)
    event = plan.event
    assert isinstance(event, SkellamEvent) and plan.survivors == USERS
    assert event.variance == pytest.approx((USERS - 21) * plan.share)
    found = account([event], "replace_one", config.privacy.delta)
    assert 0.99 * config.privacy.epsilon <= found.epsilon.upper <= config.privacy.epsilon
    # The total in the released sum has the victim's share and the corrupted users' too.
    assert plan.noise_std**2 == pytest.approx(USERS * plan.share)
    assert event_from_dict(event.to_dict()) == event


def test_the_cost_follows_how_many_survived(tmp_path: Path) -> None:
    costs = {}
    for rate in (0.0, 0.3):
        config = small(tmp_path, "trust=distributed", "secagg.threshold=0.5", f"dropout.rate={rate}")
        plan = plan_of(config)
        assert plan.survivors == Cohort.of(config, USERS, 0).survivors().sum()
        assert plan.event.variance == pytest.approx((plan.survivors - 2) * plan.share)  # type: ignore[attr-defined]
        costs[rate] = account([plan.event], "replace_one", config.privacy.delta).epsilon.upper
    assert costs[0.0] < costs[0.3] < config.privacy.epsilon


def test_a_local_message_is_private_on_its_own(tmp_path: Path) -> None:
    config = small(tmp_path, "trust=local")
    plan = plan_of(config)
    assert isinstance(plan.event, SkellamEvent) and plan.event.variance == plan.share
    assert plan.noise_std == pytest.approx(math.sqrt(USERS * plan.share))
    assert account([plan.event], "replace_one", config.privacy.delta).epsilon.upper <= config.privacy.epsilon
    with pytest.raises(UserError, match="no bounded sensitivity under relation zero_out"):
        account([plan.event], "zero_out", config.privacy.delta)


def test_rows_of_a_user_change_together(tmp_path: Path) -> None:
    stds = {}
    for rows in (1, 4):
        config = small(tmp_path, "trust=local", "method=dpswflow", f"rows={rows}")
        plan = round_plan(config, 4, 3, USERS, Cohort.of(config, USERS, 0), "id")
        assert isinstance(plan, UserRowPlan) and plan.event.unit == "user"
        assert (
            account([plan.event], "replace_one", config.privacy.delta).epsilon.upper <= config.privacy.epsilon
        )
        stds[rows] = plan.noise_std
    assert stds[4] == pytest.approx(2 * stds[1])


def test_fewer_bits_of_precision_keep_the_bounds(tmp_path: Path) -> None:
    fine, coarse = (
        plan_of(small(tmp_path, "trust=distributed", f"secagg.precision={bits}")) for bits in (16, 8)
    )
    assert coarse.form.mass == SCALE >> 8
    assert coarse.form.norm_sq == fine.form.norm_sq >> 16
    assert coarse.noise_std == pytest.approx(fine.noise_std, rel=0.08)
    assert coarse.bits < fine.bits
    assert np.array_equal(coarse.counts(np.array([3, 5])), np.array([3, 5]) << 8)


def test_all_rounds_together_stay_within_the_budget(tmp_path: Path) -> None:
    for keys in (
        ["release.rate=0.2", "privacy.relation=zero_out"],
        ["release.rate=1"],
        ["trust=distributed", "secagg.threshold=1", "release.rate=1"],
    ):
        config = small(tmp_path, "method=dpswflow-r", "release.rounds=5", "privacy.epsilon=3", *keys)
        plans = [plan_of(config, number) for number in range(5)]
        events = [plan.event for plan in plans]
        upper = account(events, config.privacy.relation, config.privacy.delta).epsilon.upper
        assert 0.98 * 3 <= upper <= 3
        assert len({plan.directions.tobytes() for plan in plans}) == 5
        assert len({plan.digest() for plan in plans}) == 5


def test_no_amplification_is_claimed_for_a_cohort_that_is_seen(tmp_path: Path) -> None:
    keys = ("method=dpswflow-r", "release.rounds=3", "trust=distributed", "secagg.threshold=0.2")
    asked, all_ = (plan_of(small(tmp_path, *keys, f"release.rate={rate}")) for rate in (0.3, 1))
    assert asked.cohort.asked().mean() == pytest.approx(0.3, abs=0.15) and asked.rate == 1
    # Everybody who is asked bears a larger share: the least noise is that of a round which asks all.
    assert asked.share > 2 * all_.share
    least = [
        (needed_survivors(small(tmp_path, *keys), int(plan.cohort.asked().sum())) - 2) * plan.share
        for plan in (asked, all_)
    ]
    assert least[0] == pytest.approx(least[1])


def test_a_modulus_that_is_too_small_is_refused_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would wrap around; choose at least"):
        plan_of(small(tmp_path, "trust=distributed", "secagg.bits=20"))
    needed = plan_of(small(tmp_path, "trust=distributed")).bits
    assert plan_of(small(tmp_path, "trust=distributed", f"secagg.bits={needed}")).bits == needed


def test_a_threshold_that_leaves_nobodys_noise_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path, "trust=distributed", "secagg.threshold=0.1", "secagg.corrupted=19")
    with pytest.raises(UserError, match=r"must exceed secagg\.corrupted 19 by two"):
        needed_survivors(config, USERS)


def test_simulated_users_of_the_same_records_have_one_account(tmp_path: Path) -> None:
    keys = [
        "population.seed=7",
        "population.users=50",
        "population.partition=dirichlet",
        "population.alpha=3",
    ]
    assert {small(tmp_path, key).account for key in keys} == {"digits users"}
    table = ("data.source=table", "data.path=t.parquet", "encoder.kind=identity", "population.user=who")
    assert small(tmp_path, *table, "population.partition=natural").account == "t users (who)"
    assert small(tmp_path, *table, "privacy.research=true").simulated


def test_a_population_and_its_records_are_accounts_that_do_not_mix(tmp_path: Path) -> None:
    config, ledger = small(tmp_path), Ledger(tmp_path / "ledger.sqlite")
    event = plan_of(config).event
    ledger.register("records", "replace_one", "record", 1e-5)
    with pytest.raises(UserError, match="registered with unit record"):
        ledger.charge("records", [event], "run")
    ledger.register(config.account, "replace_one", "user", 1e-4)
    ledger.charge(config.account, [event], "run")
    with pytest.raises(UserError, match="unit"):
        ledger.charge(config.account, [SlicedHistogramEvent(8, 100, 5.0)], "run")
    with pytest.raises(UserError, match="same unit"):
        account([event, SlicedHistogramEvent(8, 100, 5.0)], "replace_one", 1e-5)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["trust=local", "privacy.relation=zero_out"],
            "privacy.relation must be replace_one for trust local",
        ),
        (["method=dpswflow"], "trust must be local for method dpswflow"),
        (["privacy.relation=add_remove"], "privacy.relation must be replace_one or zero_out"),
        (["method=dpswflow-r"], "privacy.relation must be zero_out for method dpswflow-r"),
        (["privacy.unit=record"], "privacy.unit must be 'user'"),
        (["trust=distributed", "privacy.noise=discrete_gaussian"], "privacy.noise is for trust central"),
        (["population.partition=natural"], "data.source table or leaf"),
        (["data.source=leaf"], "population.partition must be natural"),
        (["population.userss=3"], "did you mean population.users"),
        (["trust=nobody"], "trust must be 'central', 'distributed' or 'local'"),
        (["population.users=1"], "population.users must be at least 2"),
        (["population.full_weight_at=99999999999"], "population.full_weight_at must be at most"),
        (["population.name=again"], "population.name is an unknown key"),
        (["trust=distributed", "population.malformed=0.1"], "population.malformed is for trust central"),
        (["trust=local", "population.malformed=0.1"], "population.malformed is for trust central"),
        (
            ["release.law=iid"],
            "release.law is a key of methods? dpswflow.*; release of method dpswflow-h has frames, bins",
        ),
        (
            ["release.directions=3"],
            "release.directions is a key of methods? dpswflow.*; release of method dpswflow-h has frames, bins",
        ),
        (
            ["release.sampling=partition"],
            "release.sampling is a key of methods? dpswflow.*; release of method dpswflow-h has frames, bins",
        ),
        (
            ["data.source=table", "data.path=t.parquet", "encoder.kind=identity"],
            "population.partition must be natural for data.source table",
        ),
        (["data.source=generated"], "choose identity"),
    ],
)
def test_what_does_not_fit_together_is_said_in_one_sentence(
    tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        small(tmp_path, *overrides)
    assert "\n" not in str(refused.value)


def test_who_takes_part_is_decided_by_public_seeds_alone(tmp_path: Path) -> None:
    config = small(
        tmp_path,
        "dropout.rate=0.3",
        "stragglers.deadline_s=40",
        "population.malformed=0.1",
        "population.seed=3",
    )
    cohort = Cohort.of(config, 5000, 2)
    again, other = Cohort.of(config, 5000, 2), Cohort.of(config, 5000, 3)
    assert np.array_equal(cohort.survivors(), again.survivors())
    assert not np.array_equal(cohort.survivors(), other.survivors())
    assert np.array_equal(cohort.broken(), other.broken())
    assert cohort.away().mean() == pytest.approx(0.3, abs=0.03)
    late = cohort.late().mean()
    assert late == pytest.approx(0.5 * math.erfc(math.log(40 / 30) / 0.5 / math.sqrt(2)), abs=0.03)
    assert not (cohort.survivors() & (cohort.late() | cohort.away() | cohort.broken())).any()
    assert cohort.duration_s() == 40
    assert np.corrcoef(np.log(cohort.seconds()), np.log(other.seconds()))[0, 1] == pytest.approx(
        0.5, abs=0.05
    )


def test_a_usual_run_does_not_claim_to_protect_users() -> None:
    with pytest.raises(UserError, match=r"privacy\.unit must be record, found user: `dpsw federated`"):
        load_config("digits", ["privacy.unit=user"])


def test_a_delta_beyond_the_tails_of_shared_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"privacy\.delta must be at least 1e-12 under trust distributed, found 1e-13"
    ):
        plan_of(small(tmp_path, "trust=distributed", "privacy.delta=1e-13"))
    assert plan_of(small(tmp_path, "trust=central", "privacy.delta=1e-13")).noise == "gaussian"


def test_low_bits_of_users_noise_are_looked_at_before_the_start(tmp_path: Path) -> None:
    for trust in ("central", "distributed", "local"):
        with pytest.raises(UserError, match="low bits"):
            plan_of(small(tmp_path, f"trust={trust}", "privacy.epsilon=1e-6", "privacy.delta=1e-9"))
