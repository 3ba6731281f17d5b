"""Calibrated noise never costs more than the target, and hardly less."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.accountants import account
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu, calibrate_histogram_noise
from dpsw_ray.privacy.events import SlicedHistogramEvent
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
    mu = SlicedHistogramEvent(directions, row_norm_sq, std).gaussian_mu(relation)
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
