"""Epsilon three ways: closed form, PRV, and PLD; and what happens where they cannot agree."""

from __future__ import annotations

import json
import math
import pickle
import uuid

import accounting
import mpmath
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st
from prv_accountant.privacy_random_variables import PoissonSubsampledGaussianMechanism

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.accountants import (
    Accountant,
    AccountingError,
    EpsilonBounds,
    GaussianAccountant,
    PldAccountant,
    PrvAccountant,
    RdpAccountant,
    account,
    bound,
    pld,
    prv_composition,
    rdp,
    rdp_budget,
    rdp_curve,
)
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.events import (
    DiscreteGaussianEvent,
    DpSgdEvent,
    Event,
    GaussianEvent,
    NoisyCountEvent,
    ParallelEvent,
    SampledGaussianEvent,
    SequentialEvent,
    SkellamEvent,
    SlicedHistogramEvent,
)
from dpsw_ray.privacy.gaussian import gaussian_delta, gaussian_epsilon
from dpsw_ray.privacy.losses import SampledGaussian
from dpsw_ray.privacy.relations import Relation

SAMPLED = SampledGaussianEvent(0.02, 1.0, 1.1, 50)
HAAR_72 = GaussianEvent("72 Haar frames' directions", {"replace_one": 6.0, "zero_out": 3.0}, 3.76)


def _gaussians(*mus: float) -> list[Event]:
    return [GaussianEvent(f"release {i}", {"zero_out": mu}, 1.0) for i, mu in enumerate(mus)]


def _exact_delta(epsilon: float, mu: float) -> float:
    with mpmath.workdps(60):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        return mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)


def _pld_epsilon(events: list[GaussianEvent], relation: Relation, delta: float) -> float:
    """PLD under the pinned convention: noise multiplier s / Delta_relation, ADD_OR_REMOVE_ONE."""
    pld = PLDAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in events:
        pld.compose(GaussianDpEvent(event.noise_std / event.sensitivity[relation]))
    return float(pld.get_epsilon(delta))


def test_haar_frames_at_3_76_cost_7_595_under_replace_one() -> None:
    epsilon = account([HAAR_72], "replace_one", 1e-5).epsilon
    assert epsilon.upper == pytest.approx(7.595, abs=0.01)
    assert account([HAAR_72], "zero_out", 1e-5).epsilon.upper < epsilon.upper / 2


@pytest.mark.parametrize("mu", [1e-6, 1e-3, 0.05, 1.0, 6 / 3.76, 10.0, 39.0, 1e3, 1e6])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-12, 1e-100])
def test_closed_form_bounds_hold_at_sixty_digits(mu: float, delta: float) -> None:
    bounds = gaussian_epsilon(mu, delta)
    assert bounds.lower <= bounds.estimate <= bounds.upper
    assert _exact_delta(bounds.upper, mu) <= delta
    assert bounds.lower == 0 or _exact_delta(bounds.lower, mu) >= delta
    assert bounds.upper - bounds.lower <= (1e-9 if mu >= 1e-3 else 1e-6) * bounds.upper


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 7.6, 50.0])
@pytest.mark.parametrize("mu", [0.01, 1.0, 10.0])
def test_delta_matches_sixty_digits(epsilon: float, mu: float) -> None:
    assert gaussian_delta(epsilon, mu) == pytest.approx(
        float(_exact_delta(epsilon, mu)), rel=1e-10, abs=1e-300
    )


def test_edges_of_the_closed_form() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == EpsilonBounds(0.0, 0.0, 0.0)
    assert gaussian_epsilon(math.inf, 1e-5) == EpsilonBounds(math.inf, math.inf, math.inf)
    assert gaussian_epsilon(0.1, 0.04).upper == 0.0  # delta(0) = erf(0.1 / sqrt 8) = 0.0399
    assert gaussian_epsilon(0.1, 0.0398).lower > 0.0
    assert (gaussian_delta(1.0, 0.0), gaussian_delta(1.0, math.inf)) == (0.0, 1.0)
    for mu in (math.nan, -1.0, 1e200):
        with pytest.raises(AccountingError, match="mu"):
            gaussian_epsilon(mu, 1e-5)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(UserError, match="delta"):
            gaussian_epsilon(1.0, delta)


@pytest.mark.parametrize("mus", [(0.3,), (1.0, 1.0, 1.0), (0.2, 0.5, 2.0), (0.1,) * 50 + (3.0,)])
def test_closed_form_prv_and_pld_agree_on_compositions(mus: tuple[float, ...]) -> None:
    events = _gaussians(*mus)
    closed = GaussianAccountant().epsilon(events, relation="zero_out", delta=1e-5)
    prv = PrvAccountant().epsilon(events, relation="zero_out", delta=1e-5)
    assert prv.lower <= closed.lower and closed.upper <= prv.upper
    assert prv.upper - prv.lower <= 0.02 * closed.upper
    pld = _pld_epsilon(events, "zero_out", 1e-5)  # type: ignore[arg-type]
    assert closed.lower <= pld <= closed.upper + 0.01


@pytest.mark.parametrize("relation", ["replace_one", "zero_out"])
def test_pld_convention_is_noise_over_sensitivity_under_add_or_remove_one(relation: Relation) -> None:
    closed = account([HAAR_72], relation, 1e-5).epsilon
    assert _pld_epsilon([HAAR_72], relation, 1e-5) == pytest.approx(closed.estimate, abs=1e-3)


def test_pld_under_replace_one_would_double_the_shift() -> None:
    pld = PLDAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    pld.compose(GaussianDpEvent(3.76 / 6))
    assert pld.get_epsilon(1e-5) == pytest.approx(gaussian_epsilon(2 * 6 / 3.76, 1e-5).estimate, abs=1e-2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 20.0), min_size=1, max_size=6), st.floats(1e-12, 0.1))
def test_composition_is_monotone(mus: list[float], delta: float) -> None:
    whole = GaussianAccountant().epsilon(_gaussians(*mus), relation="zero_out", delta=delta)
    part = GaussianAccountant().epsilon(_gaussians(*mus[:-1], 0.0), relation="zero_out", delta=delta)
    smaller_delta = GaussianAccountant().epsilon(_gaussians(*mus), relation="zero_out", delta=delta / 2)
    assert part.lower <= whole.upper
    assert whole.lower <= smaller_delta.upper


def test_an_account_holds_what_a_report_needs() -> None:
    event = SlicedHistogramEvent(8, 100, 50.0, unit="user")
    values = json.loads(json.dumps(account([event, event], "replace_one", 1e-5).to_dict(), allow_nan=False))
    assert set(values) == {"epsilon", "delta", "relation", "unit", "events", "accountant", "mu", "checks"}
    assert (values["relation"], values["unit"], values["accountant"]) == (
        "replace_one",
        "user",
        "analytic Gaussian",
    )
    assert values["mu"] == pytest.approx(math.sqrt(2) * math.sqrt(1600) / 50)
    assert set(values["epsilon"]) == set(values["checks"]["PRV"]) == {"lower", "estimate", "upper"}
    assert values["events"] == [event.to_dict()] * 2


def test_no_noise_is_an_infinite_account() -> None:
    found = account([SlicedHistogramEvent(8, 100, 0.0)], "replace_one", 1e-5)
    assert found.epsilon.upper == found.epsilon.lower == found.mu == math.inf
    assert str(found.checks["PRV"]).startswith("not available")


@pytest.mark.parametrize(("mu", "delta"), [(1.0, 1e-30), (1e-6, 1e-9), (1e5, 1e-5), (0.1, 0.5)])
def test_a_check_that_cannot_be_done_is_recorded(mu: float, delta: float) -> None:
    found = account(_gaussians(mu), "zero_out", delta)
    assert math.isfinite(found.epsilon.upper)
    assert isinstance(found.checks["PRV"], EpsilonBounds) or found.checks["PRV"].startswith(
        "not available: PRV"
    )


def test_disagreeing_accountants_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prv_composition, "_prv_epsilon", lambda *args: (1.0, 1.1, 1.2))
    with pytest.raises(AccountingError, match=r"disagree: PRV gives epsilon in \[1.0, 1.2\]"):
        account([_fresh(3.76)], "replace_one", 1e-5)


@pytest.mark.parametrize("found", [(math.nan, 1.0, 2.0), (3.0, 2.0, 1.0), (7.0, 7.5, math.inf)])
def test_a_prv_result_that_bounds_nothing_is_not_a_check(
    monkeypatch: pytest.MonkeyPatch, found: tuple[float, float, float]
) -> None:
    monkeypatch.setattr(prv_composition, "_prv_epsilon", lambda *args: found)
    checks = account([_fresh(3.77)], "replace_one", 1e-5).checks
    assert "bounds nothing" in str(checks["PRV"]) and isinstance(checks["PLD"], EpsilonBounds)


def _fresh(noise: float) -> Event:
    """Accounts are remembered: an event of a test's own."""
    return GaussianEvent(f"patched {uuid.uuid4()}", {"replace_one": 6.0}, noise)


def test_without_prv_the_figure_is_pld_s_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    intact = bound([SAMPLED], "add_remove", 1e-5)
    monkeypatch.setattr(prv_composition, "_prv_epsilon", lambda *args: (0.0, math.nan, math.nan))
    fallen = bound([SAMPLED], "add_remove", 1e-5)
    assert (intact.accountant, fallen.accountant) == ("PRV", "PLD")
    assert "bounds nothing" in fallen.failed["PRV"]
    assert fallen.epsilon.upper == pytest.approx(intact.epsilon.upper, rel=0.01)


def test_without_prv_and_pld_the_figure_is_renyi_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prv_composition, "_prv_epsilon", lambda *args: (0.0, math.nan, math.nan))
    monkeypatch.setattr(pld, "_LARGEST_GRID", 10)
    fallen = bound([SAMPLED], "add_remove", 1e-5)
    assert fallen.accountant == "RDP" and set(fallen.failed) == {"PRV", "PLD"}
    assert fallen.epsilon.upper >= bound([SAMPLED], "add_remove", 1e-5).epsilon.lower


def test_without_any_accountant_the_run_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prv_composition, "_prv_epsilon", lambda *args: (0.0, math.nan, math.nan))
    monkeypatch.setattr(pld, "_LARGEST_GRID", 10)
    monkeypatch.setattr(rdp.RdpAccountant, "cost_epsilon", _nothing)
    for count in (bound, account):
        with pytest.raises(AccountingError, match="nothing may be released"):
            count([SampledGaussianEvent(0.02, 1.0, 1.1, 50, label="own")], "add_remove", 1e-5)


def _nothing(*args: object) -> EpsilonBounds:
    raise AccountingError("RDP has no finite bound at any order.")


@pytest.mark.parametrize(
    "events",
    [[SAMPLED], [SAMPLED, GaussianEvent("g", {"add_remove": 1.0}, 2.0)], [DpSgdEvent(0.05, 1.0, 100)]],
)
def test_prv_and_pld_agree_on_sampled_mechanisms(events: list[Event]) -> None:
    prv_, pld_ = (
        accountant.epsilon(events, relation="add_remove", delta=1e-5)
        for accountant in (PrvAccountant(), PldAccountant())
    )
    assert prv_.lower <= pld_.upper and pld_.lower <= prv_.upper
    assert prv_.upper == pytest.approx(pld_.upper, rel=0.01)
    assert prv_.upper - prv_.lower <= 0.01 * prv_.upper


@pytest.mark.parametrize(("rate", "std", "steps"), [(0.1, 0.4, 200), (0.5, 0.3, 10), (0.1, 0.3, 100)])
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_accountants_agree_where_losses_are_large(rate: float, std: float, steps: int, delta: float) -> None:
    events = [SampledGaussianEvent(rate, 1.0, std, steps)]
    rdp_, pld_, prv_ = (
        accountant.epsilon(events, relation="zero_out", delta=delta)
        for accountant in (RdpAccountant(), PldAccountant(), PrvAccountant())
    )
    assert prv_.lower <= pld_.upper and pld_.lower <= prv_.upper
    assert prv_.upper == pytest.approx(pld_.upper, rel=0.01)
    assert pld_.upper <= rdp_.upper <= 1.12 * pld_.upper


def test_the_mean_loss_of_a_sample_is_exact_wherever_its_law_begins() -> None:
    """The grid is shifted to the mean: 0.0018 too much of it was 0.36 of epsilon after 200 steps."""
    for mu, q, added in ((2.5, 0.1, False), (2.5, 0.1, True), (0.1, 0.01, False), (1 / 0.3, 0.5, True)):
        variable = prv_composition._Sampled(SampledGaussian(mu, q), added=added)
        x = np.linspace(-20, mu + 20, 2_000_001)
        null, other = np.exp(-(x**2) / 2), np.exp(-((x - mu) ** 2) / 2)
        loss = np.log1p(q * np.expm1(mu * x - mu**2 / 2))
        law = null if added else (1 - q) * null + q * other
        exact = np.trapezoid((-loss if added else loss) * law, x) / math.sqrt(2 * math.pi)
        assert variable.mean() == pytest.approx(exact, rel=1e-9)
        domain = prv_composition.Domain.create_aligned(-60.0, 60.0, 1e-3)
        truncated = prv_composition._Truncated(variable, domain.t_min(), domain.t_max())
        masses = truncated.probability(domain.ts() - 5e-4, domain.ts() + 5e-4)
        assert float(domain.ts() @ masses) == pytest.approx(exact, abs=5e-4)


@pytest.mark.parametrize("added", [False, True])
def test_prv_knows_the_loss_in_both_orders(added: bool) -> None:
    """For one step at a large delta adding and removing differ; the library's own variable has one order only."""
    loss = SampledGaussian(1.5, 0.3)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(400_000)
    if not added:
        x += 1.5 * (rng.random(400_000) < 0.3)
    observed = np.log(0.7 + 0.3 * np.exp(1.5 * x - 1.125)) * (-1 if added else 1)
    variable, t = prv_composition._Sampled(loss, added=added), np.linspace(-4, 4, 41)
    share = (observed[:, None] <= t).mean(axis=0)
    assert np.abs(variable.cdf(t) - share).max() < 5 / math.sqrt(400_000)
    assert variable.probability(t[:-1], t[1:]) == pytest.approx(np.diff(variable.cdf(t)), abs=1e-14)
    end = -math.log(0.7) if added else math.log(0.7)  # no loss lies beyond
    assert variable.cdf(np.array([end + 1e-9 if added else end - 1e-9]))[0] == float(added)
    assert np.isfinite(variable.cdf(np.array([-2000.0, 2000.0]))).all()


def test_prv_s_sampled_loss_is_the_library_s() -> None:
    t = np.linspace(-3, 6, 200)
    ours = prv_composition._Sampled(SampledGaussian(0.8, 0.05), added=False).cdf(t)
    assert ours == pytest.approx(
        np.asarray(PoissonSubsampledGaussianMechanism(0.05, 1.25).cdf(t), float), abs=1e-13
    )


def test_lists_with_discrete_noise_are_counted_by_renyi() -> None:
    events: list[Event] = [
        DiscreteGaussianEvent("d", {"zero_out": 9}, 6.0),
        SkellamEvent("s", {"zero_out": 9}, {"zero_out": 4}, 50.0),
        NoisyCountEvent(4.0),
    ]
    found = account(events, "zero_out", 1e-5)
    assert found.accountant == "RDP" and found.mu is None and found.epsilon.lower == 0.0
    assert "does not know" in str(found.checks["PRV"]) and "does not know" in str(found.checks["PLD"])
    gaussian = bound([GaussianEvent("g", {"zero_out": 3.0}, 6.0), NoisyCountEvent(4.0)], "zero_out", 1e-5)
    assert found.epsilon.upper > gaussian.epsilon.upper


def test_a_discrete_gaussian_of_epsilon_5_costs_about_5_4_by_renyi() -> None:
    std = 1000 / calibrate_gaussian_mu(5.0, 1e-5)
    found = bound([DiscreteGaussianEvent("d", {"zero_out": 10**6}, std)], "zero_out", 1e-5)
    assert found.epsilon.upper == pytest.approx(5.4, abs=0.05)


@pytest.mark.parametrize(("mu", "delta"), [(0.05, 1e-5), (1.0, 1e-9), (39.0, 1e-5)])
def test_renyi_s_bound_is_above_the_closed_form_and_not_far(mu: float, delta: float) -> None:
    upper = RdpAccountant().epsilon(_gaussians(mu), relation="zero_out", delta=delta).upper
    exact = gaussian_epsilon(mu, delta).upper
    assert exact <= upper <= 1.2 * exact


@pytest.mark.parametrize(("epsilon", "order"), [(30.0, 1.5), (5.0, 4.0), (0.5, 64.0)])
def test_a_renyi_budget_converts_back_to_its_epsilon(epsilon: float, order: float) -> None:
    budget = rdp_budget(epsilon, 1e-5, order)
    assert compute_epsilon([order], [budget], 1e-5)[0] == pytest.approx(epsilon)
    assert rdp_budget(0.5, 1e-5, 2.0) < 0


def test_renyi_bounds_add_up_over_events() -> None:
    orders = np.array([1.5, 2.0, 16.0])
    both = rdp_curve([SAMPLED, NoisyCountEvent(3.0)], "add_remove", orders)
    parts = [rdp_curve([event], "add_remove", orders) for event in (SAMPLED, NoisyCountEvent(3.0))]
    assert both == pytest.approx(parts[0] + parts[1], rel=1e-9)
    assert np.all(np.isinf(rdp_curve([NoisyCountEvent(0.0)], "add_remove", orders)))


def test_the_worst_of_disjoint_parts_counts() -> None:
    parts = ParallelEvent((SAMPLED, NoisyCountEvent(2.0)))
    worst = max(bound([event], "zero_out", 1e-5).epsilon.upper for event in parts.parts)
    assert bound([parts], "zero_out", 1e-5).epsilon.upper == pytest.approx(worst, rel=0.01)


def test_too_many_alternatives_are_refused() -> None:
    parts = [
        ParallelEvent((SampledGaussianEvent(0.01 * i, 1.0, 1.0), SampledGaussianEvent(0.2, 1.0, float(i))))
        for i in range(1, 9)
    ]
    with pytest.raises(AccountingError, match="more than 64 combinations"):
        bound(parts, "zero_out", 1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_random_lists_agree_meet_their_target_and_are_monotone(seed: int) -> None:
    """A slice of what `benchmarks/accounting.py --lists 1000` examines."""
    _, found = accounting.examine(np.random.default_rng([0, seed]))
    assert found.faults == ()


@pytest.mark.parametrize("accountant", [PrvAccountant(), PldAccountant()])
def test_transforms_are_not_trusted_below_what_they_resolve(accountant: Accountant) -> None:
    """3,000 steps at delta 3e-14: rounding in the transforms once put PLD's upper bound below the truth."""
    event = DpSgdEvent(0.5, 50.0, 3000)
    with pytest.raises(AccountingError, match=r"too coarse for delta 3e-14, below 1e-10"):
        accountant.epsilon([event], relation="add_remove", delta=3e-14)
    found = account([event], "add_remove", 3e-14)
    assert found.accountant == "RDP" and found.epsilon.upper > 4.2


@pytest.mark.parametrize(("mu", "times"), [(0.03, 1000), (0.01, 10_000)])
def test_prv_and_pld_enclose_the_closed_form_at_the_smallest_delta_they_take(mu: float, times: int) -> None:
    events = [SequentialEvent((GaussianEvent("g", {"zero_out": mu}, 1.0),), times)]
    closed = gaussian_epsilon(mu * math.sqrt(times), 1e-10)
    for accountant in (PrvAccountant(), PldAccountant()):
        found = accountant.epsilon(events, relation="zero_out", delta=1e-10)
        assert found.lower <= closed.upper and closed.lower <= found.upper


def test_an_account_is_not_remembered_for_changed_parameters() -> None:
    event = GaussianEvent("g", {"add_remove": 1.0}, 1.0)
    with pytest.raises(TypeError, match="do not change"):
        event.sensitivity["add_remove"] = 10.0  # type: ignore[index]
    assert pickle.loads(pickle.dumps(event)) == event


def test_parts_drawn_anew_each_time_may_be_hit_differently() -> None:
    parts = ParallelEvent((GaussianEvent("A", {"add_remove": 2.0}, 1.0), DpSgdEvent(0.001, 0.2, 1)))
    twice = bound([SequentialEvent((parts,), 2)], "add_remove", 1e-5).epsilon
    apart = bound([parts, parts], "add_remove", 1e-5).epsilon
    assert twice.upper >= apart.lower


def test_arithmetic_beyond_floating_point_is_an_accounting_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*args: object) -> EpsilonBounds:
        raise OverflowError("math range error")

    monkeypatch.setattr(rdp.RdpAccountant, "cost_epsilon", overflow)
    with pytest.raises(AccountingError, match="RDP failed: OverflowError"):
        RdpAccountant().epsilon(_gaussians(1.0), relation="zero_out", delta=1e-5)
