"""Skellam noise counted as nearly Gaussian: the comparison holds for the exact law, and so does the epsilon."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ive, log_ndtr, ndtr, ndtri
from scipy.stats import skellam

from dpsw_ray.privacy.accountants import RdpAccountant, account, bound
from dpsw_ray.privacy.curves import delta_curve, trade_off
from dpsw_ray.privacy.events import GaussianEvent, SequentialEvent, SkellamEvent
from dpsw_ray.privacy.gaussian import gaussian_delta, gaussian_epsilon
from dpsw_ray.privacy.near_gaussian import likeness


@pytest.mark.parametrize("variance", [100.0, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("reach", [4.0, 6.0, 9.0])
def test_the_two_laws_are_as_close_as_stated(variance: float, reach: float) -> None:
    eta, tau = likeness(variance, reach)
    far, std = reach * np.sqrt(variance), np.sqrt(variance)
    k = np.arange(0, int(far) + 1)
    exact = np.log(ive(k, variance))
    # Between two points right of the middle, by the upper tail, which keeps its digits.
    upper, lower = log_ndtr(-(k - 0.5) / std), log_ndtr(-(k + 0.5) / std)
    rounded = upper + np.log1p(-np.exp(lower - upper))
    difference = np.abs(exact - rounded)
    assert difference.max() <= eta + 1e-9
    assert difference.max() >= (eta - 4 * tau) / 30 - 1e-9  # and not much closer
    assert 2 * skellam.sf(far, variance / 2, variance / 2) <= tau
    assert 2 * ndtr(-far / std) <= tau


def event(variance: float, cells: int | None, sensitivity: int = 100) -> SkellamEvent:
    by_relation = {"zero_out": sensitivity**2}
    return SkellamEvent("sums", by_relation, {"zero_out": sensitivity}, variance, cells)  # type: ignore[arg-type]


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_the_epsilon_holds_for_the_exact_law_in_one_cell(mu: float) -> None:
    sensitivity, delta = 1000, 1e-5
    variance = (sensitivity / mu) ** 2
    found = bound([event(variance, 1, sensitivity)], "zero_out", delta)
    assert found.accountant == "analytic Gaussian"
    reach = int(14 * np.sqrt(variance))
    k = np.arange(-reach, reach + 1)
    law = ive(np.abs(k), variance)
    moved = ive(np.abs(k - sensitivity), variance)
    true = np.maximum(moved - np.exp(found.epsilon.upper) * law, 0).sum()
    assert 0.9 * delta < true <= delta


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_the_curve_holds_for_the_exact_law_in_one_cell_and_is_close(mu: float) -> None:
    sensitivity, epsilons = 1000, np.array([0.0, 1e-4, 0.5, 1.0, 3.0, 8.0])
    variance = (sensitivity / mu) ** 2
    k = np.arange(-int(20 * np.sqrt(variance)), int(20 * np.sqrt(variance)) + 1)
    law, moved = ive(np.abs(k), variance), ive(np.abs(k - sensitivity), variance)
    found = delta_curve([event(variance, 1, sensitivity)], "zero_out", epsilons)
    true = np.array([np.maximum(moved - np.exp(epsilon) * law, 0).sum() for epsilon in epsilons])
    assert (found >= true - 1e-13).all()
    assert (found[:4] <= true[:4] + 0.02).all()


def test_the_curve_counts_the_skellam_noise_and_the_gaussian_noise_beside_it() -> None:
    released = [event((2e5) ** 2, 40_000, 100_000)] * 3
    mixed = [*released, GaussianEvent("x", {"zero_out": 1.0}, 2.0)]
    epsilons, rates = np.array([0.0, 0.5, 2.0, 5.0]), np.array([1e-3, 0.1, 0.5])
    for events, mu in ((released, np.sqrt(3 / 4)), (mixed, 1.0)):
        gaussian = np.array([gaussian_delta(float(epsilon), float(mu)) for epsilon in epsilons])
        found = delta_curve(events, "zero_out", epsilons)
        assert (found >= gaussian).all() and found == pytest.approx(gaussian, rel=0.02)
        claimed = bound(events, "zero_out", 1e-6).epsilon.upper
        assert delta_curve(events, "zero_out", np.array([claimed]))[0] == pytest.approx(1e-6, rel=0.01)
        promised = trade_off(events, "zero_out", rates)
        exact = ndtr(-ndtri(rates) - mu)
        assert (promised <= exact).all() and promised == pytest.approx(exact, abs=2e-3)


def test_many_cells_and_rounds_cost_a_little_more_than_gaussian_noise_and_less_than_renyi_says() -> None:
    released = [event((2e5) ** 2, 40_000, 100_000)] * 3
    mixed = [*released, GaussianEvent("x", {"zero_out": 1.0}, 2.0)]
    for events, mu_sq in ((released, 3 / 4), (mixed, 3 / 4 + 1 / 4)):
        found = account(events, "zero_out", 1e-6)
        gaussian = gaussian_epsilon(np.sqrt(mu_sq), 1e-6).upper
        renyi = RdpAccountant().epsilon(events, relation="zero_out", delta=1e-6).upper
        assert gaussian < found.epsilon.upper < gaussian * 1.001 < renyi
        assert found.accountant == "analytic Gaussian" and found.mu is None
    again = bound([SequentialEvent((released[0],), 3)], "zero_out", 1e-6)
    assert again.epsilon == bound(released, "zero_out", 1e-6).epsilon


@pytest.mark.parametrize(("variance", "cells"), [(1e4, None), (1e4, 10_000), (50.0, 1)])
def test_where_it_says_nothing_renyis_bound_counts(variance: float, cells: int | None) -> None:
    found = bound([event(variance, cells)], "zero_out", 1e-5)
    renyi = RdpAccountant().epsilon([event(variance, None)], relation="zero_out", delta=1e-5)
    assert found.accountant == "RDP" and found.epsilon == renyi
