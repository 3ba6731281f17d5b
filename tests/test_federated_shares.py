"""Skellam noise: its law, totals against shares, and the modulus that holds it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare, ks_2samp
from scipy.stats import skellam as law

from dpsw_ray.federated.shares import centred, modulus_bits, share_variance, skellam, wrap_probability
from dpsw_ray.privacy.noise import NoiseKey

KEY = NoiseKey.from_seed(3)


@pytest.mark.parametrize("variance", [0.5, 7.0, 60.0, 4e3])
def test_the_law_is_skellams(variance: float) -> None:
    drawn = skellam(KEY, variance, 200_000)
    reach = max(2, round(3 * math.sqrt(variance)))
    width = max(1, reach // 10)
    edges = np.arange(-reach, reach + width, width)
    ends = law.cdf(edges, variance / 2, variance / 2)
    expected = np.diff(np.concatenate([[0.0], ends, [1.0]])) * len(drawn)
    seen = np.bincount(np.searchsorted(edges, drawn), minlength=len(edges) + 1)
    # searchsorted (left) puts x into the cell (edge before, edge]: the cells of the distribution function.
    assert chisquare(seen, expected).pvalue > 1e-4


@pytest.mark.parametrize("variance", [2e5, 1e10, 1e15])
def test_large_variances_keep_their_moments(variance: float) -> None:
    drawn = skellam(KEY, variance, 200_000) / math.sqrt(variance)
    assert abs(drawn.mean()) < 5 / math.sqrt(len(drawn))
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / len(drawn))
    assert abs((drawn**4).mean() - 3) < 0.15
    assert abs(np.mean(np.abs(drawn) > 2) - 0.0455) < 0.003


def test_the_total_drawn_at_once_has_the_law_of_the_users_shares_together() -> None:
    users, share, cells = 25, 90.0, 4000
    one_by_one = sum(skellam(KEY.derive(b"user %d" % user), share, cells) for user in range(users))
    at_once = skellam(KEY.derive(b"total"), users * share, cells)
    assert ks_2samp(one_by_one, at_once).pvalue > 1e-3
    assert ks_2samp(one_by_one, 1.15 * at_once).pvalue < 1e-3  # the test can tell a wrong variance


def test_the_same_key_gives_the_same_noise_and_another_variance_another_stream() -> None:
    assert np.array_equal(skellam(KEY, 1e6, 50), skellam(KEY, 1e6, 50))
    assert not np.array_equal(skellam(KEY, 1e6, 50), skellam(KEY.derive(b"x"), 1e6, 50))
    ratio = skellam(KEY, 4e12, 50) / skellam(KEY, 1e12, 50)
    assert not np.allclose(ratio, 2, rtol=0.01)
    assert not skellam(KEY, 0.0, 5).any()


def test_shares_of_the_threshold_less_one_and_the_corrupted_make_the_variance() -> None:
    for threshold, corrupted in ((2, 0), (100, 0), (100, 30)):
        share = share_variance(81.0, threshold, corrupted)
        assert (threshold - 1 - corrupted) * share == pytest.approx(81.0)


def test_sums_come_back_out_of_the_modulus() -> None:
    users, precision, variance = 50, 12, 1e7
    bits = modulus_bits(users, precision, variance, 1000)
    rng = np.random.default_rng(0)
    sums = rng.integers(0, users << precision, 1000) + skellam(KEY, variance, 1000)
    assert np.array_equal(centred(sums % (1 << bits), bits, users, precision), sums)
    assert np.array_equal(centred(sums + 3 * (1 << bits), bits, users, precision), sums)


def test_the_bound_on_wrapping_around_holds_and_is_small_where_it_should() -> None:
    users, precision, variance, bits = 4, 4, 400.0, 8
    bound = wrap_probability(bits, users, precision, variance, 1)
    room = 2 ** (bits - 1) - users * 2 ** (precision - 1)
    true = 2 * law.sf(room, variance / 2, variance / 2)
    assert true <= bound < 1e-3
    assert wrap_probability(6, users, precision, variance, 1) == 1.0
    assert wrap_probability(modulus_bits(1000, 16, 1e12, 10**6), 1000, 16, 1e12, 10**6) <= 2.0**-40


def test_even_numbers_are_no_likelier_at_the_largest_noise_of_a_plan() -> None:
    numbers = skellam(KEY, 2.0**72, 1_000_000)
    assert binomtest(int((numbers & 1).sum()), numbers.size).pvalue > 1e-6
