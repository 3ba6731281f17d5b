"""Audits: lower bounds that hold, are sharp, and stay under the claims of every mechanism."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, norm

from dpsw_ray.audit.attack import Randomness
from dpsw_ray.audit.bounds import (
    CONFIDENCE,
    Claim,
    epsilon_lower,
    lower_bound,
    shared_confidence,
)
from dpsw_ray.audit.mechanisms import MECHANISMS
from dpsw_ray.audit.plots import audit_figure
from dpsw_ray.audit.result import audit
from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.events import GaussianEvent, NoisyCountEvent, SampledGaussianEvent
from dpsw_ray.privacy.gaussian import gaussian_epsilon
from dpsw_ray.privacy.relations import Relation

PAIRS = [(name, relation) for name, mechanism in MECHANISMS.items() for relation in mechanism.relations]
LOW_BITS = ("gaussian_parity", "gaussian_grid", "dp_pca_parity", "discrete_parity")
EACH = shared_confidence(1 - 1e-6, len(PAIRS))


def claim(mu: float) -> Claim:
    return Claim((NoisyCountEvent(1 / mu),), "replace_one")


def gaussian_scores(mu: float, runs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(runs), mu + rng.standard_normal(runs)


def test_a_bound_exceeds_the_truth_as_seldom_as_its_confidence_says() -> None:
    trials, confidence = 600, 0.9
    bounds = [lower_bound(*gaussian_scores(1.0, 400, i), claim(1.0), confidence) for i in range(trials)]
    assert sum(bound.refuted for bound in bounds) <= binom.isf(1e-6, trials, 1 - confidence)
    assert np.mean([bound.mu for bound in bounds]) > 0.6  # and is not won by proving nothing


def test_the_rates_bounds_are_those_of_clopper_and_pearson() -> None:
    found = lower_bound(*gaussian_scores(1.0, 1000, 0), claim(1.0), 0.99)
    (fpr_upper, fnr_upper), (fpr_lower, _) = found.curve.upper, found.curve.lower
    for i in (0, 100, 250, len(fpr_upper) - 1):
        errors = int(found.curve.false_positives[i])
        if errors < 500:
            assert binom.cdf(errors, 500, fpr_upper[i]) == pytest.approx(0.005, rel=1e-6)
        else:
            assert fpr_upper[i] == 1
        if errors > 0:
            assert binom.sf(errors - 1, 500, fpr_lower[i]) == pytest.approx(0.005, rel=1e-6)
    assert found.fpr_upper in fpr_upper and found.fnr_upper in fnr_upper


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_thousand_runs_tell_sqrt_2_at_epsilon_1(seed: int) -> None:
    promised = claim(0.268)
    honest = lower_bound(*gaussian_scores(0.268, 100_000, seed), promised, CONFIDENCE)
    broken = lower_bound(*gaussian_scores(0.268 * math.sqrt(2), 100_000, seed), promised, CONFIDENCE)
    assert not honest.refuted and honest.mu > 0.2
    assert broken.refuted and broken.mu > 0.31
    assert broken.mu < 0.268 * math.sqrt(2)


def test_worlds_that_are_the_same_prove_nothing() -> None:
    scores = np.zeros(100)
    found = lower_bound(scores, scores, claim(0.5), CONFIDENCE)
    assert found.mu == 0 and not found.refuted
    assert epsilon_lower(found.fpr_upper, found.fnr_upper, 1e-5) == 0


def test_a_promise_of_another_form_is_held_against_its_own_trade_off() -> None:
    """The exact attack on a sampled sum touches the promise and does not pass it; more sampling does."""
    event = SampledGaussianEvent(0.2, 1.0, 0.5)
    promised = Claim((event,), "zero_out")
    assert promised.mu is None
    rng = np.random.default_rng(0)

    def scores(sampling: float) -> tuple[np.ndarray, np.ndarray]:
        noise = rng.normal(0, 0.5, (2, 50_000))
        return noise[0], noise[1] + (rng.random(50_000) < sampling)

    honest, broken = (lower_bound(*scores(q), promised, 1 - 1e-6) for q in (0.2, 0.3))
    assert not honest.refuted and honest.mu > 0.8 * honest.claimed_mu
    assert broken.refuted
    fpr = np.array([0.01, 0.1, 0.5])
    assert promised.mu_at(fpr) == pytest.approx(-norm.ppf(fpr) - norm.ppf(promised.trade_off(fpr)))


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("group", [1, 5])
def test_epsilon_from_rates_stays_under_the_truth(mu: float, group: int) -> None:
    """With the exact rates of the best attack on a group; at the right rate it is the truth."""
    delta = 1e-5
    truth = gaussian_epsilon(mu, delta)
    thresholds = np.linspace(-2, 6, 400) + group * mu
    found = [epsilon_lower(norm.sf(t), norm.cdf(t - group * mu), delta, group) for t in thresholds]
    assert max(found) <= truth.upper * (1 + 1e-9)
    assert max(found) > (0.98 if group == 1 else 0.15) * truth.lower


def test_epsilon_from_no_errors_at_all_is_finite_and_large() -> None:
    assert 10 < epsilon_lower(1e-6, 1e-6, 1e-9) < 20
    assert epsilon_lower(0.5, 0.5, 1e-5) == 0


def test_audits_made_together_share_the_doubt() -> None:
    assert shared_confidence(0.99, 1) == pytest.approx(0.99)
    assert shared_confidence(0.99, 10) == pytest.approx(0.999)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(UserError, match="at least 20 runs of each world, found 3"):
        lower_bound(np.zeros(3), np.zeros(3), claim(1.0), CONFIDENCE)
    with pytest.raises(ValueError, match="numbers"):
        lower_bound(np.full(30, np.nan), np.zeros(30), claim(1.0), CONFIDENCE)
    with pytest.raises(ValueError, match="as many"):
        lower_bound(np.zeros(30), np.zeros(31), claim(1.0), CONFIDENCE)


@pytest.mark.parametrize("name", LOW_BITS)
@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_low_bits_tell_nothing_at_the_largest_noise_of_a_plan(name: str, epsilon: float) -> None:
    mechanism = MECHANISMS[name]
    result = audit(mechanism.calibrated("replace_one", epsilon, 1e-5), 150, EACH, 1e-5, seed=0)
    assert not result.refuted


@pytest.mark.parametrize(("name", "relation"), [pair for pair in PAIRS if pair[0] not in LOW_BITS])
def test_every_mechanism_keeps_its_claim_and_the_attack_comes_near(name: str, relation: Relation) -> None:
    mechanism = MECHANISMS[name]
    runs = {"sliced_histogram_discrete": 800}.get(name, 8000)
    result = audit(mechanism.attack(relation, 0.7), runs, EACH, 1e-5, seed=0)
    assert not result.refuted
    exact = name not in (
        "skellam",
        "discrete_gaussian",
        "sliced_histogram_discrete",
    )  # Renyi bounds are wider
    assert result.mu_lower > (0.6 if exact else 0.1) * result.claimed_mu
    assert result.epsilon_lower < result.epsilon


@pytest.mark.parametrize("name", ["gaussian", "dp_sgd", "sliced_histogram"])
def test_a_seed_repeats_an_audit_and_none_does_not(name: str) -> None:
    attack = MECHANISMS[name].attack(MECHANISMS[name].relations[0], 1.0)

    def scores(seed: int | None) -> np.ndarray:
        return attack.scores(50, Randomness.make(seed, name))[1]

    assert np.array_equal(scores(1), scores(1))
    assert not np.isin(scores(1), scores(2)).any()
    assert not np.isin(scores(None), scores(None)).any()


def test_a_result_says_what_was_claimed_and_what_was_found() -> None:
    attack = MECHANISMS["gaussian"].attack("zero_out", 2.0)
    values: dict[str, Any] = audit(attack, 1000, 0.999, 1e-5, seed=0).to_dict()
    assert values["mu"]["claimed"] == pytest.approx(0.5)
    assert values["epsilon"]["claimed"] == pytest.approx(gaussian_epsilon(0.5, 1e-5).upper)
    assert values["relation"] == "zero_out" and values["runs"] == 1000 and not values["refuted"]
    assert "threshold" not in values
    assert isinstance(attack.events[0], GaussianEvent)


@pytest.mark.parametrize("count", [1, 5])
def test_attacks_are_drawn_against_their_promises(count: int) -> None:
    names = ["gaussian", "noisy_count", "dp_pca", "sequential", "parallel"][:count]
    picture = audit_figure([audit(MECHANISMS[n].attack("zero_out", 2.0), 500, 0.99, 1e-5, 0) for n in names])
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
