"""Curves: delta against epsilon, and the smallest errors that are promised of any attack."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dpsw_ray.privacy.accountants import bound
from dpsw_ray.privacy.curves import delta_curve, trade_off
from dpsw_ray.privacy.events import (
    DiscreteGaussianEvent,
    Event,
    GaussianEvent,
    NoisyCountEvent,
    SampledGaussianEvent,
    SkellamEvent,
    SlicedGaussianEvent,
)
from dpsw_ray.privacy.gaussian import gaussian_delta

RATES = np.array([0.0, 1e-4, 0.01, 0.1, 0.5, 0.9, 1.0])
EVENTS: list[Event] = [
    NoisyCountEvent(1.0),
    SlicedGaussianEvent(70, 8, 3.76, "iid"),
    SampledGaussianEvent(0.1, 1.0, 1.0, 20),
    DiscreteGaussianEvent("d", {"zero_out": 9}, 3.0),
    SkellamEvent("near a Gaussian", {"zero_out": 10**10}, {"zero_out": 10**6}, 1e10, 1000),
    SkellamEvent("cells unknown", {"zero_out": 10**10}, {"zero_out": 10**6}, 1e10),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_delta_falls_from_one_at_most_and_agrees_with_epsilon(event: Event) -> None:
    epsilons = np.linspace(0, 8, 17)
    deltas = delta_curve([event], "zero_out", epsilons)
    assert np.all(np.diff(deltas) <= 1e-9) and np.all((deltas >= 0) & (deltas <= 1))
    at = float(deltas[8])
    assert bound([event], "zero_out", at).epsilon.upper == pytest.approx(epsilons[8], rel=0.02)


def test_the_gaussian_curve_is_the_closed_form() -> None:
    epsilons = np.array([0.0, 0.5, 2.0])
    expected = [gaussian_delta(float(e), 2.0) for e in epsilons]
    found = delta_curve([NoisyCountEvent(0.5)], "zero_out", epsilons)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_no_noise_promises_nothing() -> None:
    assert np.all(delta_curve([NoisyCountEvent(0.0)], "zero_out", np.array([0.0, 50.0])) == 1)
    assert np.all(trade_off([NoisyCountEvent(0.0)], "zero_out", RATES[1:]) == 0)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_the_trade_off_is_decreasing_and_below_guessing(event: Event) -> None:
    errors = trade_off([event], "zero_out", RATES)
    assert np.all(np.diff(errors) <= 1e-12) and np.all(errors <= 1 - RATES + 1e-12) and errors[-1] == 0


def test_the_gaussian_trade_off_is_that_of_two_normal_laws() -> None:
    errors = trade_off([NoisyCountEvent(0.5)], "zero_out", RATES)
    assert errors == pytest.approx(stats.norm.cdf(stats.norm.isf(RATES) - 2.0))


def test_lines_from_the_curve_stay_below_the_exact_trade_off() -> None:
    """A mechanism that is Gaussian, counted as if it were not known to be: valid, and close."""
    exact = trade_off([GaussianEvent("g", {"zero_out": 1.5}, 1.0)], "zero_out", RATES)
    tiny = SlicedGaussianEvent(1, 2, 1e4, "iid")  # next to nothing, but no Gaussian mechanism
    lines = trade_off([GaussianEvent("g", {"zero_out": 1.5}, 1.0), tiny], "zero_out", RATES)
    assert np.all(lines <= exact + 1e-6) and lines == pytest.approx(exact, abs=2e-3)


def test_the_sampled_trade_off_holds_for_the_best_attack_on_one_step() -> None:
    """Likelihood-ratio tests of the pair itself, in both orders, by quadrature."""
    q, mu = 0.3, 2.0
    x = np.linspace(-10, 12, 200_001)
    without = stats.norm.pdf(x)
    sampled = (1 - q) * without + q * stats.norm.pdf(x, mu)
    step = x[1] - x[0]
    for null, other in ((without, sampled), (sampled, without)):
        order = np.argsort(-other / null)
        false_positive = np.cumsum(null[order]) * step
        false_negative = 1 - np.cumsum(other[order]) * step
        promised = trade_off([SampledGaussianEvent(q, mu, 1.0)], "add_remove", false_positive[::2000])
        assert np.all(promised <= false_negative[::2000] + 1e-4)


def test_the_trade_off_keeps_tiny_rates() -> None:
    rates = np.array([1e-30, 1e-17, 1e-15])
    errors = trade_off([NoisyCountEvent(0.1)], "zero_out", rates)
    assert errors == pytest.approx(stats.norm.cdf(stats.norm.isf(rates) - 10.0), rel=1e-9)
