"""Calibrated noise never costs more than the target, and hardly less."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.accountants import AccountingError, account, bound, compose_mu
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu, calibrate_histogram_noise, calibrate_noise
from dpsw_ray.privacy.events import (
    DpPcaEvent,
    DpSgdEvent,
    Event,
    NoisyCountEvent,
    ParallelEvent,
    SlicedGaussianEvent,
    SlicedHistogramEvent,
)
from dpsw_ray.privacy.gaussian import gaussian_epsilon
from dpsw_ray.privacy.relations import RELATIONS, Relation


@settings(max_examples=60, deadline=None)
@given(
    directions=st.integers(1, 4096),
    row_norm_sq=st.integers(1, 2**60),
    relation=st.sampled_from(RELATIONS),
    epsilon=st.floats(0.01, 100.0),
    delta=st.floats(1e-12, 1e-2),
)
def test_calibrated_noise_never_exceeds_the_target_and_is_within_half_a_percent(
    directions: int, row_norm_sq: int, relation: Relation, epsilon: float, delta: float
) -> None:
    std = calibrate_histogram_noise(directions, row_norm_sq, relation, epsilon, delta)
    mu = compose_mu([SlicedHistogramEvent(directions, row_norm_sq, std)], relation)
    upper = gaussian_epsilon(mu, delta).upper
    assert 0.995 * epsilon <= upper <= epsilon


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 1e6), st.floats(1e-100, 0.3))
def test_calibrated_mu_never_exceeds_the_target(epsilon: float, delta: float) -> None:
    mu = calibrate_gaussian_mu(epsilon, delta)
    assert gaussian_epsilon(mu, delta).upper <= epsilon
    assert gaussian_epsilon(mu * 1.001, delta).upper > epsilon


@pytest.mark.parametrize(("epsilon", "noise"), [(10, 3.00), (5, 5.35), (1, 22.4)])
def test_haar_noise_for_nine_frames_is_as_in_the_design(epsilon: float, noise: float) -> None:
    assert 2 * math.sqrt(9) / calibrate_gaussian_mu(epsilon, 1e-5) == pytest.approx(noise, rel=2e-3)


def test_the_run_s_own_account_confirms_the_calibration() -> None:
    std = calibrate_histogram_noise(128, 70_000, "replace_one", 1.0, 1e-5)
    found = account([SlicedHistogramEvent(128, 70_000, std)], "replace_one", 1e-5)
    assert 0.995 <= found.epsilon.upper <= 1.0


def test_replace_one_needs_root_two_more_noise() -> None:
    one, two = (calibrate_histogram_noise(8, 50, r, 1.0, 1e-5) for r in ("zero_out", "replace_one"))
    assert two / one == pytest.approx(math.sqrt(2))


def test_infinite_epsilon_asks_for_no_noise() -> None:
    assert calibrate_gaussian_mu(math.inf, 1e-5) == math.inf
    assert calibrate_histogram_noise(8, 50, "zero_out", math.inf, 1e-5) == 0.0


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (math.nan, 1e-5), (1.0, 0.0), (1.0, 1.0)]
)
def test_impossible_targets_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(UserError):
        calibrate_histogram_noise(8, 50, "zero_out", epsilon, delta)


LISTS: dict[str, tuple[Relation, Callable[[float], list[Event]]]] = {
    "iid slices": ("replace_one", lambda s: [SlicedGaussianEvent(70, 8, s, "iid")]),
    "iid slices beside a fixed count": (
        "zero_out",
        lambda s: [SlicedGaussianEvent(30, 8, s, "iid"), NoisyCountEvent(10.0)],
    ),
    "a fixed count beside a release": (
        "replace_one",
        lambda s: [SlicedHistogramEvent(72, 100, 100 * s), NoisyCountEvent(10.0)],
    ),
    "disjoint parts": (
        "add_remove",
        lambda s: [ParallelEvent((NoisyCountEvent(s), DpPcaEvent(0.5 * s)), "by_value")],
    ),
    "DP-SGD": ("add_remove", lambda s: [DpSgdEvent(0.01, s, 200)]),
}


@pytest.mark.parametrize(
    ("name", "epsilon"), [(name, e) for name in LISTS for e in (0.5, 5.0) if (name, e) != ("DP-SGD", 0.5)]
)
def test_every_list_is_calibrated_to_within_half_a_percent_below_its_target(
    name: str, epsilon: float
) -> None:
    relation, events = LISTS[name]
    level = calibrate_noise(events, relation, epsilon, 1e-5)
    found = bound(events(level), relation, 1e-5)
    assert found.accountant in ("analytic Gaussian", "PRV")
    assert 0.995 * epsilon <= found.epsilon.upper <= epsilon
    assert bound(events(0.98 * level), relation, 1e-5).epsilon.upper > 0.999 * epsilon


def test_the_literature_s_noise_for_epsilon_10_is_more_than_is_needed() -> None:
    iid = calibrate_noise(lambda s: [SlicedGaussianEvent(70, 8, s, "iid")], "replace_one", 10.0, 1e-5)
    haar = calibrate_noise(lambda s: [SlicedGaussianEvent(72, 8, s)], "replace_one", 10.0, 1e-5)
    assert (iid, haar) == (pytest.approx(3.12, abs=0.02), pytest.approx(3.00, abs=0.01))


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 10.0])
def test_discrete_noise_is_calibrated_by_renyi_and_costs_a_little_more(epsilon: float) -> None:
    discrete = calibrate_histogram_noise(72, 10_000, "replace_one", epsilon, 1e-5, "discrete_gaussian")
    event = SlicedHistogramEvent(72, 10_000, discrete, "discrete_gaussian")
    upper = bound([event], "replace_one", 1e-5).epsilon.upper
    assert 0.995 * epsilon <= upper <= epsilon
    gaussian = calibrate_histogram_noise(72, 10_000, "replace_one", epsilon, 1e-5)
    assert gaussian < discrete < 1.15 * gaussian


def test_what_does_not_depend_on_the_noise_can_be_too_much() -> None:
    def events(level: float) -> list[Event]:
        return [NoisyCountEvent(0.5), NoisyCountEvent(level)]

    with pytest.raises(AccountingError, match=r"No noise brings epsilon down to 1: .* costs 9\.\d+ already"):
        calibrate_noise(events, "zero_out", 1.0, 1e-5)
    with pytest.raises(AccountingError, match="nothing to calibrate"):
        calibrate_noise(lambda level: [NoisyCountEvent(10.0)], "zero_out", 1.0, 1e-5)


def test_an_infinite_target_takes_no_noise() -> None:
    assert calibrate_noise(LISTS["iid slices"][1], "replace_one", math.inf, 1e-5) == 0.0
