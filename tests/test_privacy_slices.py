"""Exact accounting of releases on random directions: bounds on both sides, Monte Carlo between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpsw_ray.privacy.accountants import GaussianAccountant, PrvAccountant, account, bound
from dpsw_ray.privacy.events import GaussianEvent, SlicedGaussianEvent
from dpsw_ray.privacy.gaussian import AccountingError, gaussian_delta
from dpsw_ray.privacy.literature import bernstein_width, clt_width, literature_figures
from dpsw_ray.privacy.losses import SlicedGaussian
from dpsw_ray.privacy.mixture import mixture

IID_70 = SlicedGaussianEvent(70, 8, 3.76, "iid")


def test_seventy_directions_at_3_76_cost_between_7_89_and_7_95() -> None:
    found = account([IID_70], "replace_one", 1e-5)
    assert 7.89 <= found.epsilon.upper <= 7.95
    assert found.epsilon.upper - found.epsilon.lower <= 0.005 * found.epsilon.upper
    assert found.accountant == "analytic Gaussian" and found.mu is None


def test_seventy_two_haar_directions_at_the_same_noise_cost_7_595() -> None:
    assert bound([SlicedGaussianEvent(72, 8, 3.76)], "replace_one", 1e-5).epsilon.upper == pytest.approx(
        7.595, abs=0.01
    )


@pytest.mark.parametrize(
    ("directions", "dim", "noise"), [(70, 8, 3.76), (300, 48, 2.0), (7, 2, 3.0), (1, 3, 1.0), (40, 200, 0.5)]
)
def test_monte_carlo_over_real_directions_agrees(directions: int, dim: int, noise: float) -> None:
    """Uniform unit vectors and the Gaussian's delta given them, at the claimed epsilon: twice the two bounds."""
    event = SlicedGaussianEvent(directions, dim, noise, "iid")
    delta = 1e-3  # large enough for plain Monte Carlo to resolve
    epsilon = GaussianAccountant().epsilon([event], relation="replace_one", delta=delta)
    rng = np.random.default_rng(1)
    deltas: dict[str, list[float]] = {"lower": [], "upper": []}
    for _ in range(4000):
        theta = rng.standard_normal((directions, dim))
        cosines = theta[:, 0] / np.linalg.norm(theta, axis=1)  # against a fixed change of the record
        mu = 2 / noise * float(np.linalg.norm(cosines))
        for side, values in deltas.items():
            values.append(gaussian_delta(getattr(epsilon, side), mu))
    error = 5 * np.std(deltas["upper"]) / math.sqrt(4000)
    assert np.mean(deltas["upper"]) <= delta + error
    assert np.mean(deltas["lower"]) >= delta - error


def test_the_exact_figure_lies_below_bernstein_s_bound_and_above_the_mean_s() -> None:
    bernstein, clt, classical = literature_figures(IID_70, "replace_one", 1e-5)
    exact = bound([IID_70], "replace_one", 1e-5).epsilon.upper
    assert exact < bernstein.epsilon
    assert (
        exact
        > bound(
            [GaussianEvent("mean", {"replace_one": 2 * math.sqrt(70 / 8)}, 3.76)], "replace_one", 1e-5
        ).epsilon.upper
    )
    assert classical.epsilon == pytest.approx(10.0, abs=0.01)  # what 3.76 is published for
    assert "not a guarantee" in clt.remark and "not a guarantee" in classical.remark
    assert "not a guarantee" not in bernstein.remark


def test_bernstein_s_width_is_a_bound_and_the_normal_one_is_not() -> None:
    """2 directions in 64 dimensions: the true tail beyond the CLT's width is many times the delta it claims."""
    rng = np.random.default_rng(0)
    totals = rng.beta(0.5, 31.5, (400_000, 2)).sum(axis=1)
    delta = 1e-3
    beyond_clt = int((totals > clt_width(2, 64, delta)).sum())
    assert beyond_clt / len(totals) > 4 * delta
    assert int((totals > bernstein_width(2, 64, delta)).sum()) <= stats.binom.ppf(
        1 - 1e-6, len(totals), delta
    )


@pytest.mark.parametrize(("directions", "dim"), [(1, 2), (3, 5), (70, 8), (500, 100)])
def test_the_laws_above_and_below_enclose_the_true_one(directions: int, dim: int) -> None:
    law = mixture(0.0, {SlicedGaussian(directions, dim, 1.3): 1}, 1e-12)
    total = np.random.default_rng(2).beta(0.5, (dim - 1) / 2, (100_000, directions)).sum(axis=1) * 1.3**2
    above = np.cumsum(law.weights)
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        low, high = np.quantile(total, stats.binom.ppf([1e-7, 1 - 1e-7], len(total), share) / len(total))
        quantile = law.mu_squared[np.searchsorted(above, share)]
        assert quantile >= low and quantile - law.spread <= high
    assert law.weights.sum() == pytest.approx(1.0, abs=1e-9)
    assert law.weights @ law.mu_squared == pytest.approx(1.69 * directions / dim, rel=2e-3)
    assert law.weights @ law.mu_squared >= 1.69 * directions / dim


def test_one_direction_in_the_plane_is_the_arcsine_law() -> None:
    law = mixture(0.0, {SlicedGaussian(1, 2, 1.0): 1}, 1e-12)
    points = np.array([0.1, 0.3, 0.5, 0.9])
    arcsine = 2 / math.pi * np.arcsin(np.sqrt(points))
    below = [law.weights[law.mu_squared <= x].sum() for x in points]
    above = [law.weights[law.mu_squared - law.spread <= x].sum() for x in points]
    assert np.all(below <= arcsine + 1e-12) and np.all(above >= arcsine - 1e-12)


def test_further_gaussian_releases_shift_the_law() -> None:
    gaussian = GaussianEvent("count", {"replace_one": 1.0}, 2.0)
    closed = GaussianAccountant().epsilon([IID_70, gaussian], relation="replace_one", delta=1e-5)
    prv = PrvAccountant().epsilon([IID_70, gaussian], relation="replace_one", delta=1e-5)
    alone = bound([IID_70], "replace_one", 1e-5).epsilon
    assert prv.lower <= closed.upper and closed.lower <= prv.upper
    assert closed.lower > alone.upper


def test_two_halves_of_the_directions_cost_what_the_whole_costs() -> None:
    halves = [SlicedGaussianEvent(35, 8, 3.76, "iid")] * 2
    whole = bound([IID_70], "replace_one", 1e-5).epsilon
    two = bound(halves, "replace_one", 1e-5).epsilon
    assert two.upper == pytest.approx(whole.upper, rel=1e-9)


def test_a_delta_below_what_the_law_is_known_to_falls_back_to_a_valid_bound() -> None:
    with pytest.raises(AccountingError, match="too coarse"):
        GaussianAccountant().epsilon([IID_70], relation="replace_one", delta=1e-12)
    found = account([IID_70], "replace_one", 1e-12)
    assert found.accountant != "analytic Gaussian" and math.isfinite(found.epsilon.upper)
    assert "too coarse" in str(found.checks["analytic Gaussian"])
    assert found.epsilon.upper > bound([IID_70], "replace_one", 1e-9).epsilon.upper


def test_more_directions_than_can_be_counted_are_refused_and_bounded_otherwise() -> None:
    many = SlicedGaussianEvent(10_000_000, 8, 1e4, "iid")
    with pytest.raises(AccountingError, match="random directions"):
        GaussianAccountant().epsilon([many], relation="zero_out", delta=1e-5)
    assert bound([many], "zero_out", 1e-5).accountant == "RDP"
