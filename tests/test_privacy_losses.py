"""Renyi bounds of the elementary losses, against integrals and sixty digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant as ReferenceRdp
from scipy import integrate, stats

from dpsw_ray.privacy.losses import (
    Gaussian,
    SampledGaussian,
    Skellam,
    SlicedGaussian,
    ZeroConcentrated,
    between_whole_orders,
)

ORDERS = np.array([1.1, 1.5, 2.0, 2.7, 3.0, 8.0, 31.4, 64.0])


def _integral(mu: float, q: float, order: float, *, added: bool) -> float:
    """Renyi divergence of the sampled Gaussian pair by quadrature."""
    grid = np.linspace(-30, 30 + order * mu, 400_001)
    without = stats.norm.logpdf(grid)
    with_ = np.logaddexp(math.log1p(-q) + without, math.log(q) + stats.norm.logpdf(grid, mu))
    p, r = (without, with_) if added else (with_, without)
    return math.log(integrate.trapezoid(np.exp(order * p + (1 - order) * r), grid)) / (order - 1)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("q", [0.01, 0.2])
def test_the_sampled_bound_holds_in_both_orders_and_is_exact_at_whole_ones(mu: float, q: float) -> None:
    for order in (1.5, 2.0, 3.5, 6.0):
        bound = SampledGaussian(mu, q).rdp(np.array([order]))[0]
        removed, added = _integral(mu, q, order, added=False), _integral(mu, q, order, added=True)
        assert bound >= removed * (1 - 1e-6) and bound >= added * (1 - 1e-6)
        if order.is_integer() or order < 2:
            assert bound == pytest.approx(removed, rel=1e-5)


@pytest.mark.parametrize(("mu", "q"), [(0.01, 1e-4), (0.3, 0.01), (3.0, 0.9), (20.0, 0.01), (300.0, 0.5)])
def test_the_sampled_bound_is_exact_below_order_two(mu: float, q: float) -> None:
    """Where losses are large and delta small it is these orders that count; the chord would be flat there."""
    orders = np.array([1.012, 1.1, 1.5, 1.99])
    below, two = SampledGaussian(mu, q).rdp(orders), SampledGaussian(mu, q).rdp(np.array([2.0]))[0]
    assert np.all(np.diff(below) >= -1e-12) and below[-1] <= two * (1 + 1e-9)
    for order, bound in zip(orders, below, strict=True):
        with mpmath.workdps(40):
            weight = [mpmath.mpf(1 - q), mpmath.mpf(q)]

            def moment(
                x: mpmath.mpf, order: float = float(order), weight: list[mpmath.mpf] = weight
            ) -> mpmath.mpf:
                ratio = weight[0] + weight[1] * mpmath.exp(mu * x - mpmath.mpf(mu) ** 2 / 2)
                return mpmath.npdf(x) * ratio ** mpmath.mpf(order)

            cuts = [-40, -5, 0, 5, *(order * mu + z for z in (-10, 0, 10, 40))]
            exact = float(mpmath.log(mpmath.quad(moment, sorted(cuts), maxdegree=10)) / (order - 1))
        assert bound >= exact * (1 - 1e-12)
        assert bound == pytest.approx(exact, rel=1e-6, abs=2e-13 / (order - 1)) or bound == pytest.approx(two)


@pytest.mark.parametrize("q", [1e-3, 0.05, 0.5])
def test_the_sampled_bound_is_the_other_library_s(q: float) -> None:
    reference = ReferenceRdp(ORDERS)
    reference.compose(PoissonSampledDpEvent(q, GaussianDpEvent(1.3)))
    ours = SampledGaussian(1 / 1.3, q).rdp(ORDERS)
    # Between whole orders the library gives up at some, and is too high by its own rounding below order 2.
    known = np.isfinite(reference.rdp) & (ORDERS >= 2)
    assert np.all(ours[known] >= reference.rdp[known] * (1 - 1e-9))
    whole = ORDERS.round() == ORDERS
    assert ours[whole] == pytest.approx(reference.rdp[whole], rel=1e-6)


@pytest.mark.parametrize(("directions", "dim", "mu"), [(70, 8, 0.53), (5, 2, 2.0), (1000, 512, 0.1)])
def test_the_sliced_bound_is_the_mean_over_the_law_of_the_directions(
    directions: int, dim: int, mu: float
) -> None:
    rates = [mpmath.mpf(float(a)) * (float(a) - 1) * mu**2 / 2 for a in ORDERS]
    with mpmath.workdps(60):
        exact = [
            directions / (float(a) - 1) * mpmath.log(mpmath.hyp1f1(0.5, mpmath.mpf(dim) / 2, z))
            for a, z in zip(ORDERS, rates, strict=True)
        ]
    bound = SlicedGaussian(directions, dim, mu).rdp(ORDERS)
    assert np.all(bound >= np.array(exact, float) * (1 - 1e-12))
    inside = np.array(rates, float) < 690
    assert bound[inside] == pytest.approx(np.array(exact, float)[inside], rel=1e-8)
    assert bound == pytest.approx(np.array(exact, float), rel=0.01)


def test_the_sliced_bound_lies_between_its_mean_and_one_direction_carrying_all() -> None:
    sliced = SlicedGaussian(70, 8, 2.0).rdp(ORDERS)
    assert np.all(sliced >= Gaussian(2.0 * math.sqrt(70 / 8)).rdp(ORDERS))
    assert np.all(sliced <= Gaussian(2.0 * math.sqrt(70)).rdp(ORDERS) * (1 + 1e-12))


def test_two_directions_in_the_plane_have_the_arcsine_law() -> None:
    """d = 2: the squared cosine is Beta(1/2, 1/2), whose moment generating function is e^(z/2) I_0(z/2)."""
    loss = SlicedGaussian(1, 2, 1.5)
    z = ORDERS * (ORDERS - 1) * 1.5**2 / 2
    expected = [float(x / 2 + mpmath.log(mpmath.besseli(0, x / 2))) for x in z[z < 690]]
    assert (loss.rdp(ORDERS) * (ORDERS - 1))[z < 690] == pytest.approx(np.array(expected), rel=1e-9)


def test_huge_arguments_stay_finite() -> None:
    assert np.isfinite(SlicedGaussian(70, 8, 1e4).rdp(np.array([2.0, 64.0]))).all()
    assert np.isfinite(SampledGaussian(3.0, 0.1).rdp(np.array([65536.0]))).all()


def test_skellam_tends_to_the_gaussian_from_above() -> None:
    whole = np.array([2.0, 8.0, 64.0])
    for variance in (1e3, 1e5, 1e7):
        skellam = Skellam(100, 40, variance).rdp(whole)
        assert np.all(skellam > Gaussian(10 / math.sqrt(variance)).rdp(whole))
    assert skellam == pytest.approx(Gaussian(10 / math.sqrt(variance)).rdp(whole), rel=1e-3)


@pytest.mark.parametrize(("sensitivity", "variance"), [(1, 2.0), (3, 10.0), (5, 200.0)])
def test_the_skellam_bound_holds_for_the_exact_law(sensitivity: int, variance: float) -> None:
    """One coordinate: the Renyi divergence of the two shifted laws, summed."""
    x = np.arange(-3000, 3001)
    p = stats.skellam.logpmf(x, variance / 2, variance / 2)
    q = stats.skellam.logpmf(x - sensitivity, variance / 2, variance / 2)
    seen = np.isfinite(p) & np.isfinite(q) & (p > -600) & (q > -600)
    for order in (2, 4, 16):
        exact = math.log(np.exp(order * p[seen] + (1 - order) * q[seen]).sum()) / (order - 1)
        bound = Skellam(sensitivity**2, sensitivity, variance).rdp(np.array([float(order)]))[0]
        assert exact <= bound * (1 + 1e-9)


def test_zero_concentrated_is_linear_in_the_order() -> None:
    assert ZeroConcentrated(0.3).rdp(ORDERS) == pytest.approx(0.3 * ORDERS)


def test_the_chord_bounds_a_convex_curve() -> None:
    """Gaussian losses are known at every order: theirs through whole orders only may not lie below."""
    chord = between_whole_orders(ORDERS, lambda order: order * 0.7)
    assert np.all(chord >= 0.7 * ORDERS - 1e-12)
    whole = ORDERS.round() == ORDERS
    assert chord[whole] == pytest.approx(0.7 * ORDERS[whole])


@pytest.mark.parametrize(
    ("mu", "q", "order"), [(1.0, 1e-7, 2), (1.0, 1e-9, 2), (0.5, 1e-6, 12), (3.0, 0.9, 40)]
)
def test_the_sampled_bound_does_not_drown_in_rounding(mu: float, q: float, order: int) -> None:
    with mpmath.workdps(60):
        moment = mpmath.fsum(
            mpmath.binomial(order, k) * mpmath.mpf(q) ** k * (1 - mpmath.mpf(q)) ** (order - k)
            * mpmath.exp(mpmath.mpf(k * (k - 1)) * mpmath.mpf(mu) ** 2 / 2)
            for k in range(order + 1)
        )  # fmt: skip
        exact = float(mpmath.log(moment) / (order - 1))
    bound = SampledGaussian(mu, q).rdp(np.array([float(order)]))[0]
    assert exact <= bound <= exact * (1 + 1e-8)
