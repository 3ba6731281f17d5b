"""What a whole sweep costs: composition, private selection, and an audit of sweeps that charge too little."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant as published
from scipy import stats
from scipy.special import ndtri
from test_tune_space import planned

from dpsw_ray.audit.attack import Attack, Randomness, Scores
from dpsw_ray.audit.bounds import shared_confidence
from dpsw_ray.audit.result import AuditResult, audit
from dpsw_ray.base.errors import UserError
from dpsw_ray.methods.dpswflow_h.mechanism import bound as sums
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.pipeline.plan import make_plan
from dpsw_ray.privacy.accountants import account, bound, compose_mu, rdp_curve
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.events import (
    Event,
    GaussianEvent,
    PrivateSelectionEvent,
    SampledGaussianEvent,
    event_from_dict,
)
from dpsw_ray.privacy.gaussian import gaussian_epsilon
from dpsw_ray.privacy.selection import MOST_TRIALS, TrialsLaw
from dpsw_ray.tune.policy import selection_event, selection_trial_mu, split_epsilon, within_mu
from dpsw_ray.tune.prepare import costs

CONFIDENCE = shared_confidence(1 - 1e-6, 4)
RELATION, DELTA = "replace_one", 1e-5


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 8.0])
@pytest.mark.parametrize("releases", [1, 3, 30])
def test_releases_of_a_split_together_cost_the_target(releases: int, epsilon: float, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        set={"privacy.epsilon": epsilon, "privacy.delta": DELTA},
        space={"seed": {"grid": list(range(1, releases + 1))}},
        search={"kind": "grid", "base": False},
        selection={"policy": "split"},
    )
    assert len(plan.mechanisms) == releases

    def events(each: float) -> list[Event]:
        configs = [plan.config(mechanism, each) for mechanism in plan.mechanisms]
        return [make_plan(config, 6, 10, 1000, "plan").event for config in configs]

    each = split_epsilon(events, RELATION, epsilon, DELTA)
    together = account(events(each), RELATION, DELTA)
    assert 0.9999 * epsilon <= together.epsilon.upper <= epsilon
    # By the closed form: mu of each, squared and added, is mu^2 of the target.
    target = calibrate_gaussian_mu(epsilon, DELTA)
    for event in events(each):
        assert compose_mu([event], RELATION) == pytest.approx(target / math.sqrt(releases), rel=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_query_leaves_the_rest_of_the_budget_to_the_releases(share: float, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        set={"privacy.epsilon": 1.0, "privacy.delta": DELTA},
        space={"seed": {"grid": [1, 2, 3]}},
        search={"kind": "grid", "base": False},
        selection={"policy": "split", "score": "noisy_query", "query_share": share},
    )
    each, configs, events = costs(plan, lambda config: make_plan(config, 6, 10, 1000, "plan").event)
    assert len(configs) == len(events) == 4 and configs[-1].seed not in {
        config.seed for config in configs[:3]
    }
    assert 0.9999 <= account(events, RELATION, DELTA).epsilon.upper <= 1.0
    target = calibrate_gaussian_mu(1.0, DELTA)
    assert compose_mu(events[-1:], RELATION) == pytest.approx(target * math.sqrt(share), rel=1e-5)
    assert each == pytest.approx(gaussian_epsilon(target * math.sqrt((1 - share) / 3), DELTA).upper, rel=1e-4)


def test_a_split_of_sampled_releases_is_found_without_a_closed_form() -> None:
    def events(each: float) -> list[Event]:
        return [SampledGaussianEvent(0.1, 1.0, 1 / each, steps=5)] * 4

    each = split_epsilon(events, "zero_out", 1.0, DELTA)
    assert 0.999 <= bound(events(each), "zero_out", DELTA).epsilon.upper <= 1.0


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("mean", [1.5, 10.0, 300.0])
def test_the_number_of_trials_follows_its_law(eta: float, mean: float) -> None:
    law = TrialsLaw.with_mean(eta, mean)
    assert law.mean == pytest.approx(mean, rel=1e-9)
    assert law.gamma == pytest.approx(published._gamma_truncated_negative_binomial(eta, mean), rel=1e-8)
    many = law.probabilities(50_000)
    assert sum(many) == pytest.approx(1, abs=1e-9)
    assert sum(n * p for n, p in enumerate(many, 1)) == pytest.approx(mean, rel=1e-6)
    drawn = Counter(law.draw() for _ in range(3_000))
    for trials in (1, 2, 3):
        law_of_count = stats.binom(3_000, many[trials - 1])
        assert law_of_count.cdf(drawn[trials]) > 1e-9 and law_of_count.sf(drawn[trials] - 1) > 1e-9


@pytest.mark.parametrize(("eta", "mean"), [(-0.9, 8.0), (-0.5, 1000.0), (-0.99, 1e6), (100.0, 1e6)])
def test_a_law_that_would_have_to_be_cut_is_not_drawn(eta: float, mean: float) -> None:
    law = TrialsLaw.with_mean(eta, mean)
    with pytest.raises(UserError, match="may be more than 100,000"):
        law.draw()


@pytest.mark.parametrize(("eta", "gamma"), [(-0.5, 1e-4), (0.0, 5e-5), (1.0, 5e-5), (3.0, 2e-4)])
def test_the_tail_of_the_law_is_bounded_from_above(eta: float, gamma: float) -> None:
    law = TrialsLaw(eta, gamma)
    rest = sum(law.probabilities(600_000)[MOST_TRIALS:])
    assert rest * (1 - 1e-6) <= law.tail <= 1.5 * rest


def test_pure_privacy_costs_what_the_paper_says() -> None:
    """A trial of pure epsilon: 2 epsilon for the logarithmic law, 3 for the geometric one (Papernot and Steinke)."""
    for eta, times in ((0.0, 2.0), (1.0, 3.0)):
        law = TrialsLaw.with_mean(eta, 10.0)
        trial = GaussianEvent("trial", {RELATION: 1.0}, 1.0)
        event = PrivateSelectionEvent((trial,), law.eta, law.gamma)
        (cost,) = event.costs(RELATION)
        (selected,) = cost
        flat = dataclasses.replace(selected, trial=((_Pure(0.3), 1),))
        assert float(flat.rdp(np.array([1e7]))[0]) == pytest.approx(times * 0.3, rel=1e-3)


@dataclasses.dataclass(frozen=True)
class _Pure:
    """A loss that is bounded by epsilon at every order."""

    epsilon: float

    def rdp(self, orders: np.ndarray) -> np.ndarray:
        return np.full_like(orders, self.epsilon)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("mean", [2.0, 10.0, 100.0])
@pytest.mark.parametrize("mu", [0.1, 0.5, 2.0])
def test_private_selection_costs_what_a_published_implementation_gives(
    eta: float, mean: float, mu: float
) -> None:
    law = TrialsLaw.with_mean(eta, mean)
    event = PrivateSelectionEvent((GaussianEvent("trial", {RELATION: mu}, 1.0),), law.eta, law.gamma)
    orders = np.array([8.0, 16.0, 32.0, 64.0, 256.0])
    dense = np.concatenate([orders, np.geomspace(1.01, 1e6, 3_000)])
    theirs = published._compute_rdp_repeat_and_select(dense, dense * mu**2 / 2, law.mean, eta)[: len(orders)]
    ours = rdp_curve([event], RELATION, orders)
    # Theirs also takes a bound of a larger order where that is smaller; ours never may be below the formula.
    above = np.concatenate([orders, np.geomspace(8, 1e5, 200)])
    monotone = [rdp_curve([event], RELATION, above[above >= order]).min() for order in orders]
    assert monotone == pytest.approx(theirs, rel=2e-3)
    assert (ours >= np.asarray(theirs) * (1 - 2e-3)).all()


def test_a_private_selection_is_calibrated_to_its_target_and_round_trips(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        set={"privacy.delta": DELTA},
        selection={"policy": "private_selection", "mean_trials": 6, "eta": 1},
    )
    mu = selection_trial_mu(plan.sweep, RELATION, 2.0, DELTA)
    event = selection_event(plan.sweep, RELATION, mu)
    spent = account([event], RELATION, DELTA)
    assert 1.99 <= spent.epsilon.upper <= 2.0 and spent.accountant == "RDP"
    assert event_from_dict(event.to_dict()) == event
    single = compose_mu([GaussianEvent("trial", {RELATION: mu}, 1.0)], RELATION)
    assert single is not None and single < calibrate_gaussian_mu(2.0, DELTA)
    config = plan.config({}, 2.0)

    def planned_event(epsilon: float) -> Event:
        privacy = config.privacy.model_copy(update={"epsilon": epsilon})
        return make_plan(config.model_copy(update={"privacy": privacy}), 6, 10, 1000, "plan").event

    epsilon = within_mu(planned_event, RELATION, mu, DELTA)
    found = compose_mu([planned_event(epsilon)], RELATION)
    assert found is not None and mu * (1 - 1e-6) < found <= mu


def test_selection_without_noise_costs_everything_and_bad_laws_are_refused() -> None:
    bare = PrivateSelectionEvent((GaussianEvent("trial", {RELATION: 1.0}, 0.0),), 0.0, 0.1)
    assert account([bare], RELATION, DELTA).epsilon.upper == math.inf
    for eta, gamma in ((-1.0, 0.1), (0.0, 0.0), (0.0, 1.0), (math.nan, 0.5)):
        with pytest.raises(UserError, match="random number of trials"):
            PrivateSelectionEvent((GaussianEvent("trial", {RELATION: 1.0}, 1.0),), eta, gamma)


def best_of(trials: int, event: Event, noise_std: float) -> Attack:
    """A sweep that makes so many releases of a count and shows the largest; charged as `event`."""

    def scores(runs: int, source: Randomness) -> Scores:
        shown = source.rng.normal(0, noise_std, (2, runs, trials))
        shown[1] += 1.0
        best = shown.max(axis=2)
        return best[0], best[1]

    return Attack("sweep", (event,), "zero_out", scores)


def judged(attack: Attack) -> AuditResult:
    return audit(attack, 40_000, CONFIDENCE, DELTA, seed=3)


def test_a_sweep_that_shows_its_best_of_many_but_charges_for_one_is_caught() -> None:
    """All releases decide what is shown: twenty of mu 0.5 are worth more than one."""
    one = GaussianEvent("release", {"zero_out": 1.0}, 2.0)

    def all_shown(runs: int, source: Randomness) -> Scores:
        drawn = source.rng.normal(0, 2.0, (2, runs, 20))
        drawn[1] += 1.0
        return drawn[0].mean(axis=1), drawn[1].mean(axis=1)

    cheating = Attack("sweep", (one,), "zero_out", all_shown)
    assert judged(cheating).refuted
    honest = dataclasses.replace(cheating, events=(one,) * 20)
    assert not judged(honest).refuted
    assert judged(best_of(20, one, 2.0)).refuted, "the best alone gives it away, too"
    assert not judged(best_of(1, one, 2.0)).refuted


def test_a_secret_number_of_trials_keeps_its_claim_and_a_fixed_one_charged_as_one_does_not() -> None:
    law = TrialsLaw.with_mean(1.0, 5.0)
    trial = GaussianEvent("release", {"zero_out": 1.0}, 1.0)
    event = PrivateSelectionEvent((trial,), law.eta, law.gamma)

    def scores(runs: int, source: Randomness) -> Scores:
        counts = source.rng.geometric(law.gamma, (2, runs))
        # The largest of T normals has the law of a uniform's T-th root.
        best = ndtri(source.rng.random((2, runs)) ** (1 / counts))
        return best[0], best[1] + 1.0

    assert not judged(Attack("selection", (event,), "zero_out", scores)).refuted
    assert judged(Attack("selection", (trial,), "zero_out", scores)).refuted


def test_a_real_sweep_of_histograms_charged_as_one_release_is_caught(tmp_path: Path) -> None:
    """The plans of a split, each drawn; whoever sees the best's direction statistics sees all that chose it."""
    plan = planned(
        tmp_path,
        set={"privacy.epsilon": 1.0, "privacy.delta": DELTA, "privacy.relation": "zero_out",
             "release.class_conditional": False},
        space={"seed": {"grid": list(range(1, 17))}},
        search={"kind": "grid", "base": False},
        selection={"policy": "split"},
    )  # fmt: skip
    plans = [make_plan(plan.config(m, 1.0), 6, 0, 100, "plan") for m in plan.mechanisms]
    record = np.zeros((1, 6))
    record[0, 0] = 1 - 1e-6
    label = np.zeros(1, np.int32)
    signals = []
    for release in plans:
        assert isinstance(release, HistogramPlan)
        signals.append(sums([(record, label)], release).astype(np.float64).ravel() / release.noise_std)

    def scores(runs: int, source: Randomness) -> Scores:
        null, alternative = np.zeros(runs), np.zeros(runs)
        for signal in signals:  # the likelihood ratio of each release, all of which the chooser looked at
            length = float(signal @ signal) ** 0.5
            null += length * source.rng.standard_normal(runs)
            alternative += length * source.rng.standard_normal(runs) + length**2
        return null, alternative

    charged_once = Attack("sweep", (plans[0].event,), "zero_out", scores)
    assert judged(charged_once).refuted
    assert not judged(dataclasses.replace(charged_once, events=tuple(p.event for p in plans))).refuted
