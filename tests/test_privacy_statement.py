from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from dpsw_ray.base.files import to_json
from dpsw_ray.privacy.accountants import account, bound
from dpsw_ray.privacy.curves import trade_off
from dpsw_ray.privacy.events import (
    DpPcaEvent,
    DpSgdEvent,
    Event,
    GaussianEvent,
    ParallelEvent,
    SkellamEvent,
    SlicedGaussianEvent,
    SlicedHistogramEvent,
)
from dpsw_ray.privacy.relations import RELATIONS, Relation
from dpsw_ray.privacy.statement import RunFacts, attacker, state

HISTOGRAM = SlicedHistogramEvent(72, 1234, 1000.0)
DISCRETE = dataclasses.replace(HISTOGRAM, noise="discrete_gaussian")
SLICES = SlicedGaussianEvent(70, 8, 3.76, law="iid")
FACTS = RunFacts(
    "digits", reproducible_noise=False, research=False, ledger="digits", total_epsilon=2.7100001, charges=3
)


def counted(*events: Event, relation: Relation = "replace_one", delta: float = 1e-5) -> dict[str, Any]:
    """An account as it is read back from `privacy.json`."""
    read: dict[str, Any] = json.loads(to_json(account(events, relation, delta).to_dict()))
    return read


def words(*sentences: tuple[str, ...]) -> str:
    return " ".join(itertools.chain(*sentences))


@pytest.mark.parametrize(
    ("relation", "said"),
    [
        (
            "replace_one",
            "replaced by any other record that is in neither the public nor the test part, its class",
        ),
        ("zero_out", "replaced by an empty one"),
        ("add_remove", "added to the private part or removed from it"),
    ],
)
def test_the_relation_says_what_a_neighbour_is(relation: Relation, said: str) -> None:
    protects = words(state(counted(HISTOGRAM, relation=relation), FACTS).protects)
    assert said in protects and f"({relation})" in protects and "private part of digits" in protects
    assert ("how many records there are is protected" in protects) is (relation == "add_remove")
    assert ("how many records there are is public" in protects) is (relation != "add_remove")


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
def test_skellam_noise_lets_an_attacker_do_no_less_than_gaussian_noise(mu: float) -> None:
    gaussian = attacker(counted(GaussianEvent("g", {"replace_one": mu}, 1.0)))
    squared = 10**12
    noise = SkellamEvent("s", {"replace_one": squared}, {"replace_one": 10**7}, squared / mu**2, 1000)
    skellam = attacker(counted(noise))
    assert gaussian.advantage <= skellam.advantage < gaussian.advantage + 1e-3
    assert gaussian.power <= skellam.power < gaussian.power + 2e-3
    said = words(state(counted(noise), FACTS).promise)
    assert f"at most {math.ceil(skellam.power * 1000) / 10:g} %" in said


def test_the_unit_is_named_everywhere() -> None:
    told = state(counted(SlicedHistogramEvent(72, 1234, 1000.0, unit="user")), FACTS)
    text = words(told.protects, told.not_covered)
    assert (
        "Each user" in text and "Several users" in text and "{unit}" not in text and "one record" not in text
    )


@pytest.mark.parametrize("events", [(HISTOGRAM,), (DISCRETE,), (SLICES,)])
def test_the_promise_is_the_upper_bound_rounded_up(events: tuple[Event, ...]) -> None:
    privacy = counted(*events)
    (said,) = (s for s in state(privacy, FACTS).promise if s.startswith("Epsilon is at most"))
    epsilon, factor = float(said.split()[4]), float(said.split(" at most ")[2].split()[0].replace(",", ""))
    assert 0 <= epsilon - privacy["epsilon"]["upper"] < 1e-3
    assert 0 <= factor / math.exp(privacy["epsilon"]["upper"]) - 1 < 1e-3
    assert "at delta = 1e-05" in said


def test_a_factor_that_nobody_can_read_is_not_written_out() -> None:
    promise = words(state(counted(dataclasses.replace(HISTOGRAM, noise_std=60.0)), FACTS).promise)
    assert "at most e^epsilon times" in promise


@pytest.mark.parametrize("mu", [0.05, 0.268, 1.0, 3.0])
def test_the_attacker_s_bounds_are_reached_by_the_best_attack_on_a_gaussian(mu: float) -> None:
    found = attacker(counted(GaussianEvent("g", {"replace_one": mu}, 1.0)))
    thresholds = np.linspace(-10, 10, 20_001)
    detected, alarms = norm.sf(thresholds - mu), norm.sf(thresholds)
    assert found.advantage == pytest.approx((detected - alarms).max(), abs=1e-6)
    assert found.power == pytest.approx(norm.sf(norm.isf(0.01) - mu))
    assert found.correct == (1 + found.advantage) / 2


@pytest.mark.parametrize(
    ("events", "relation"),
    [
        ((DISCRETE,), "add_remove"),
        ((SLICES,), "zero_out"),
        ((DpSgdEvent(0.05, 1.0, 20), HISTOGRAM), "zero_out"),
    ],
)
def test_without_mu_no_attack_that_the_trade_off_allows_passes_the_attacker_s_bounds(
    events: tuple[Event, ...], relation: Relation
) -> None:
    found = attacker(counted(*events, relation=relation))
    rates = np.linspace(0, 1, 201)
    detected = 1 - trade_off(events, relation, rates)
    assert found.power == pytest.approx(detected[2])
    assert (detected - rates).max() <= found.advantage + 1e-9 < 1
    assert found.advantage - (detected - rates).max() < 0.02


def test_random_directions_give_an_attacker_about_what_as_many_frames_do() -> None:
    known = attacker(counted(SlicedGaussianEvent(72, 8, 3.76)))
    drawn = attacker(counted(SlicedGaussianEvent(72, 8, 3.76, law="iid")))
    assert known.power == pytest.approx(drawn.power, rel=0.1)


@pytest.mark.parametrize("events", [(HISTOGRAM,), (DISCRETE,), (SLICES,)])
def test_an_attacker_s_rates_are_said_rounded_up(events: tuple[Event, ...]) -> None:
    privacy = counted(*events)
    *_, power, correct = state(privacy, FACTS).promise
    for said, rate in ((power, attacker(privacy).power), (correct, attacker(privacy).correct)):
        assert 0 <= float(said.split(" at most ")[1].split(" %")[0]) / 100 - rate <= 1e-3


def test_two_records_cost_what_twice_the_sensitivity_costs() -> None:
    (said,) = (s for s in state(counted(HISTOGRAM), FACTS).not_covered if s.startswith("Groups"))
    pair = bound([dataclasses.replace(HISTOGRAM, row_norm_sq=4 * 1234)], "replace_one", 1e-5).epsilon.upper
    assert 0 <= float(said.rstrip(".").split()[-1]) - pair < 1e-3
    (said,) = (s for s in state(counted(DISCRETE), FACTS).not_covered if s.startswith("Groups"))
    assert "g times as large" in said


def test_what_else_was_charged_is_named_and_rounded_up() -> None:
    told = words(state(counted(HISTOGRAM), FACTS).not_covered)
    assert "at most 2.7101 over 3 charges to digits" in told
    once = dataclasses.replace(FACTS, charges=1)
    assert "over 1 charge to digits" in words(state(counted(HISTOGRAM), once).not_covered)


def test_the_total_is_of_a_day() -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    told = words(state(counted(HISTOGRAM), dataclasses.replace(FACTS, date="2024-02-29")).not_covered)
    assert "3 charges to digits as of 2024-02-29." in told
    made = datetime.date.fromisoformat(RunFacts("d", False, False, "d", 1.0, 1).date)
    assert datetime.timedelta(0) <= made - today <= datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("event", "public", "said"),
    [
        (HISTOGRAM, 1, "1 public record are not protected. An encoder that is trained learns from public records only"),
        (HISTOGRAM, 0, "0 public records are not protected. No encoder was trained;"),
        (DpPcaEvent(1e11, 102_400.0), 0, "0 public records are not protected. The encoder was computed from noisy"),
    ],
)  # fmt: skip
def test_who_is_not_protected_is_counted_and_the_encoder_s_records_are_named(
    event: Event, public: int, said: str
) -> None:
    facts = dataclasses.replace(FACTS, public_records=public, test_records=5000)
    first, *_ = state(counted(event), facts).not_covered
    assert first.startswith("5,000 test records and ") and said in first
    unknown, *_ = state(counted(event), FACTS).not_covered
    assert unknown.startswith("Public and test records. ") and "was trained on" not in unknown


def test_only_noise_in_floating_point_leaves_a_gap() -> None:
    def gap(*events: Event) -> bool:
        return "Finite arithmetic" in words(state(counted(*events), FACTS).not_covered)

    assert gap(HISTOGRAM) and gap(DISCRETE, HISTOGRAM) and gap(ParallelEvent((DISCRETE, SLICES)))
    assert not gap(DISCRETE) and not gap(ParallelEvent((DISCRETE, DISCRETE)))


@pytest.mark.parametrize(
    "part", ["Public and test records", "Side channels", "research/", "class list", "Groups"]
)
@pytest.mark.parametrize("relation", RELATIONS)
def test_what_is_never_covered_is_always_said(part: str, relation: Relation) -> None:
    assert part in words(state(counted(HISTOGRAM, relation=relation), FACTS).not_covered)


def test_the_accountant_is_named_with_what_the_others_gave() -> None:
    privacy = counted(HISTOGRAM)
    first, *others = state(privacy, FACTS).counted_by
    assert first.startswith("The figure is from the accountant analytic Gaussian: epsilon between ")
    assert [other.split(",")[0] for other in others] == ["PRV", "PLD", "RDP"]
    for name, said in zip(("PRV", "PLD"), others, strict=False):
        lower, upper = (float(word) for word in said.rstrip(".").split(" between ")[1].split(" and "))
        assert lower <= privacy["checks"][name]["lower"] and upper >= privacy["checks"][name]["upper"]
    assert "epsilon at most" in others[2]


def test_discrete_noise_is_counted_by_renyi_bounds() -> None:
    first, *others = state(counted(DISCRETE), FACTS).counted_by
    assert first.startswith("The figure is from the accountant RDP: epsilon at most ")
    assert all("does not know all of these mechanisms" in other for other in others) and len(others) == 3


def test_a_fallback_is_said() -> None:
    # 7,000,000 steps at a tiny delta are more than the PRV accountant's grid holds.
    privacy = counted(DpSgdEvent(0.3, 0.7, 7_000_000), relation="zero_out", delta=1e-9)
    assert privacy["checks"]["PRV"].startswith("not available")
    told = state(privacy, FACTS).counted_by
    assert told[0].startswith(f"The figure is from the accountant {privacy['accountant']}")
    (said,) = (s for s in told if s.startswith("PRV"))
    assert "gave no figure, so the next one's bound is used" in said and privacy["checks"]["PRV"] in said


@pytest.mark.parametrize(
    ("fact", "said"), [("reproducible_noise", "privacy.noise_seed"), ("research", "research account")]
)
def test_a_run_that_must_not_be_published_promises_nothing(fact: str, said: str) -> None:
    first, *_ = state(counted(HISTOGRAM), dataclasses.replace(FACTS, **{fact: True})).promise
    assert first.startswith("Nothing is promised for this run") and said in first
    assert "Nothing is promised" not in words(state(counted(HISTOGRAM), FACTS).promise)


def test_without_noise_nobody_is_protected() -> None:
    privacy = counted(dataclasses.replace(HISTOGRAM, noise_std=0.0))
    assert privacy["epsilon"]["upper"] == "inf"
    told = state(privacy, FACTS)
    assert (
        told.protects[0].startswith("Nobody") and told.promise[0].startswith("Nothing") and not told.against
    )


def test_a_statement_is_lists_of_sentences() -> None:
    told = state(counted(HISTOGRAM), FACTS).to_dict()
    assert json.loads(json.dumps(told)) == told
    assert list(told) == ["protects", "against", "promise", "not_covered", "counted_by"]
    for sentences in told.values():
        assert sentences and all(sentence.endswith(".") for sentence in sentences)
