"""Each sampler has its law, cell by cell; keyed noise is the same however its cells are divided."""

from __future__ import annotations

import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpsw_ray.audit.low_bits import grid_ratio
from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy import noise
from dpsw_ray.privacy.discrete import NoiseTable, discrete_gaussian
from dpsw_ray.privacy.noise import (
    LOW_BITS,
    MAX_CELLS,
    MAX_STD,
    NoiseKey,
    drawn_std,
    lattice_gaussian,
    low_bits,
    mask_stream,
)

KEY = NoiseKey.from_seed(7)
STD = 1e11  # fine enough for rounding not to hide a difference in the last bits
CELLS = 1_000_000
ALPHA = 1e-6
SAMPLE = lattice_gaussian(KEY, STD, 0, CELLS) / STD

DISCRETE_STD = 1.2e6  # the scale of a release: steps of 1 are far below what a test can see
DISCRETE_CELLS = 100_000
DISCRETE_SAMPLE = discrete_gaussian(DISCRETE_STD, DISCRETE_CELLS) / DISCRETE_STD


def discrete_law(std: float) -> tuple[np.ndarray, np.ndarray]:
    """Integers out to 40 standard deviations and their exact probabilities under the discrete Gaussian."""
    values = np.arange(-int(40 * std) - 1, int(40 * std) + 2)
    weights = np.exp(-(values**2) / (2 * std * std))
    return values, weights / weights.sum()


BOTH = pytest.mark.parametrize("sample", [SAMPLE, DISCRETE_SAMPLE], ids=["gaussian", "discrete_gaussian"])
SIGMAS = 6.0  # of a mean: missed by chance with probability 2e-9


@BOTH
def test_noise_is_gaussian(sample: np.ndarray) -> None:
    assert stats.kstest(sample, "norm").pvalue > ALPHA


@BOTH
def test_moments_are_a_gaussian_s(sample: np.ndarray) -> None:
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        spread = np.sqrt(stats.norm.moment(2 * power) - expected**2)
        assert abs((sample**power).mean() - expected) < SIGMAS * spread / np.sqrt(sample.size)


@BOTH
def test_tails_are_there(sample: np.ndarray) -> None:
    for bound in (3.0, 4.0, 4.5):
        for beyond in (sample > bound, sample < -bound):
            assert stats.binomtest(int(beyond.sum()), sample.size, stats.norm.sf(bound)).pvalue > ALPHA


@BOTH
def test_cells_are_independent(sample: np.ndarray) -> None:
    for lag in (1, 2, 3, 4, 5, 64, 65536):
        for transform in (np.asarray, np.square, np.sign):
            values = transform(sample)
            values = (values - values.mean()) / values.std()
            assert abs((values[:-lag] * values[lag:]).mean()) < SIGMAS / np.sqrt(sample.size - lag)


@pytest.mark.parametrize("wrong", [0.5, np.sqrt(0.5), np.sqrt(2.0)])
def test_noise_that_is_halved_or_drawn_twice_is_noticed(wrong: float) -> None:
    """The tests above are sharp: these are the factors of the usual mistakes."""
    assert stats.kstest(DISCRETE_SAMPLE * wrong, "norm").pvalue < 1e-100


@pytest.mark.parametrize("std", [0.4, 0.7, 3.5])
def test_small_discrete_noise_has_its_exact_law(std: float) -> None:
    noise = discrete_gaussian(std, 50_000)
    assert noise.dtype == np.int64
    values, law = discrete_law(std)
    seen = np.array([(noise == value).sum() for value in values])
    assert seen.sum() == noise.size
    rare = law * noise.size < 10  # pooled: chi-square wants counts
    observed = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(law[~rare], law[rare].sum()) * noise.size
    assert stats.chisquare(observed, expected).pvalue > ALPHA


@pytest.mark.parametrize("std", [0.4, 0.7, 3.5])
def test_the_variance_is_that_of_the_series_which_is_below_the_square_of_sigma(std: float) -> None:
    values, law = discrete_law(std)
    variance = float((values**2 * law).sum())
    assert variance <= std**2 * (1 + 1e-12)  # Canonne, Kamath and Steinke 2020, Corollary 9
    noise = discrete_gaussian(std, 50_000)
    spread = np.sqrt((values**4 * law).sum() - variance**2)
    assert abs((noise**2).mean() - variance) < SIGMAS * spread / np.sqrt(noise.size)


@pytest.mark.parametrize("std", [0.7, 1234567.891, 2.0**58])
def test_the_sigma_that_is_sampled_is_the_one_that_is_charged(std: float) -> None:
    """The sampler's own statement, against the same bound in exact fractions."""
    from opendp.domains import atom_domain, vector_domain
    from opendp.measurements import make_gaussian
    from opendp.metrics import l2_distance

    discrete_gaussian(1.0, 1)
    sampler = make_gaussian(vector_domain(atom_domain(T="i64")), l2_distance(T="f64"), scale=std)
    exact = Fraction(3 * 2**16) ** 2 / (2 * Fraction(std) ** 2)
    stated = Fraction(sampler.map(float(3 * 2**16)))
    assert exact <= stated <= exact * (1 + Fraction(1, 2**48))


def test_the_largest_discrete_noise_fits_its_integers() -> None:
    noise = discrete_gaussian(2.0**58, 20_000) / 2.0**58
    assert stats.kstest(noise, "norm").pvalue > ALPHA
    for std in (-1.0, float("nan"), float("inf"), 2.0**59):
        with pytest.raises(UserError, match="standard deviation"):
            discrete_gaussian(std, 1)


def test_two_drawn_tables_are_unrelated() -> None:
    half = DISCRETE_CELLS // 2
    first, second = DISCRETE_SAMPLE[:half], discrete_gaussian(DISCRETE_STD, half) / DISCRETE_STD
    for transform in (np.asarray, np.square, np.sign):
        assert abs(np.corrcoef(transform(first), transform(second))[0, 1]) < SIGMAS / np.sqrt(half)
    assert stats.kstest((first - second) / np.sqrt(2), "norm").pvalue > ALPHA


def test_a_forked_process_draws_noise_of_its_own() -> None:
    """A generator whose state is copied with the process would give both the same noise."""
    code = """
import os
from dpsw_ray.privacy.discrete import discrete_gaussian
discrete_gaussian(1e12, 100)
child = os.fork()
line = " ".join(map(str, discrete_gaussian(1e12, 100)))
os.write(1, (line + chr(10)).encode())  # whole, whatever the other process writes
if child:
    os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = (set(line.split()) for line in done.stdout.splitlines())
    assert len(first) == len(second) == 100 and not first & second


def test_without_a_std_the_discrete_sampler_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opendp.measurements.make_gaussian", None)
    assert not discrete_gaussian(0.0, 1000).any()
    with pytest.raises(TypeError):
        discrete_gaussian(1.0, 1)


def test_a_drawn_table_keeps_its_cells_and_hides_them() -> None:
    table = NoiseTable.draw((5.0, 1000))
    assert np.array_equal(NoiseTable(table.secret).cells(), table.cells())
    assert table.cells().dtype == np.int64 and abs(table.cells().std() - 5) < 1
    assert np.array_equal(pickle.loads(pickle.dumps(table)).cells(), table.cells())
    assert repr(table) == "NoiseTable()"
    with pytest.raises(ValueError, match="8 bytes per cell"):
        NoiseTable(b"123")


def test_small_noise_is_a_rounded_gaussian() -> None:
    noise = lattice_gaussian(KEY, 1.5, 0, CELLS)
    assert noise.dtype == np.int64
    edges = np.arange(-4, 5) + 0.5
    observed = np.histogram(noise, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
    expected = np.diff(np.concatenate([[0.0], stats.norm.cdf(edges / 1.5), [1.0]])) * CELLS
    assert stats.chisquare(observed, expected).pvalue > ALPHA


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=6), st.integers(0, 2**20))
def test_any_partition_of_the_cells_gives_the_same_numbers(sizes: list[int], start: int) -> None:
    whole = lattice_gaussian(KEY, STD, start, sum(sizes))
    begins = start + np.cumsum([0, *sizes[:-1]])
    parts = [lattice_gaussian(KEY, STD, int(begin), size) for begin, size in zip(begins, sizes, strict=True)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_keys_labels_and_scales_give_unrelated_noise() -> None:
    keys = [KEY, NoiseKey.from_seed(8), KEY.derive(b"a"), KEY.derive(b"b"), NoiseKey.generate()]
    samples = [lattice_gaussian(key, STD, 0, 100_000) / STD for key in keys]
    samples.append(lattice_gaussian(KEY, 2 * STD, 0, 100_000) / (2 * STD))
    samples.append(lattice_gaussian(KEY, STD, 100_000, 100_000) / STD)
    for transform in (np.asarray, np.square, np.sign):
        correlation = np.corrcoef(transform(samples)) - np.eye(len(samples))
        assert np.abs(correlation).max() < SIGMAS / np.sqrt(100_000)


def test_seeded_noise_is_reproducible_and_marked() -> None:
    again = NoiseKey.from_seed(7)
    assert again.reproducible and again.derive(b"x").reproducible
    assert np.array_equal(lattice_gaussian(again, 5.0, 3, 10), lattice_gaussian(KEY, 5.0, 3, 10))
    assert lattice_gaussian(KEY, 1000.0, 0, 4).tolist() == [2140, 258, -22, -1848]
    fresh = NoiseKey.generate()
    assert not fresh.reproducible and fresh.secret != NoiseKey.generate().secret


def test_a_key_survives_pickling_and_hides_itself() -> None:
    key = NoiseKey.generate()
    assert pickle.loads(pickle.dumps(key)).secret == key.secret
    assert key.secret.hex() not in repr(key) and str(key.secret) not in repr(key)
    assert repr(key) == "NoiseKey(reproducible=False)"


def test_the_counter_is_little_endian_in_the_first_four_bytes() -> None:
    zeros = bytes(32)
    stream = Cipher(algorithms.ChaCha20(zeros, bytes(16)), mode=None).encryptor().update(bytes(128))
    assert stream[:8].hex() == "76b8e0ada0f13d90"  # RFC 8439, appendix A.1, test vector 1
    second = Cipher(algorithms.ChaCha20(zeros, b"\x01" + bytes(15)), mode=None).encryptor().update(bytes(64))
    assert second == stream[64:]


def test_the_last_cells_of_a_stream_work_and_those_beyond_are_refused() -> None:
    last = lattice_gaussian(KEY, STD, MAX_CELLS - 6, 6)
    assert np.array_equal(last[5:], lattice_gaussian(KEY, STD, MAX_CELLS - 1, 1))
    assert lattice_gaussian(KEY, STD, MAX_CELLS, 0).size == 0
    for start, count in ((MAX_CELLS - 1, 2), (-1, 1), (0, -1)):
        with pytest.raises(UserError, match="cells"):
            lattice_gaussian(KEY, 1.0, start, count)


def test_zero_std_is_no_noise_and_absurd_ones_are_refused() -> None:
    assert not lattice_gaussian(KEY, 0.0, 5, 1000).any()
    for std in (-1.0, float("nan"), float("inf"), 1e30):
        with pytest.raises(UserError, match="standard deviation"):
            lattice_gaussian(KEY, std, 0, 1)


@pytest.mark.parametrize("std", [2.0**20, 1.5 * 2.0**38, MAX_STD])
def test_even_numbers_are_no_likelier_however_large_the_noise(std: float) -> None:
    odd = int((lattice_gaussian(KEY, std, 0, 4_000_000) & 1).sum())
    assert stats.binomtest(odd, 4_000_000).pvalue > ALPHA


def test_ties_are_rounded_upwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of doubles that end in a half, as many go to even numbers as to odd ones."""
    monkeypatch.setattr(noise, "MAX_STD", 2.0**53)
    drawn = lattice_gaussian(KEY, 1.25 * 2.0**49, 0, 4_000_000)
    assert abs((drawn & 1).mean() - 0.5) < 0.001  # to even it is 0.04 from a half


def test_what_is_drawn_exceeds_what_is_charged_by_more_than_its_low_bits_are_worth() -> None:
    """In quadrature: (charged / drawn)^2 mu^2 + (LOW_BITS mu)^2 < mu^2."""
    for std in (1.0, 1e6, 2.0**40):
        assert (std / drawn_std(std)) ** 2 + LOW_BITS**2 < 1
    sample = lattice_gaussian(KEY, STD, 0, CELLS) / drawn_std(STD)
    assert abs((sample**2).mean() - 1) < SIGMAS * np.sqrt(2 / CELLS)


def test_the_bound_on_low_bits_is_above_what_the_grid_of_doubles_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best test there is, of the exact number of doubles that lead to each integer."""
    monkeypatch.setattr(noise, "MAX_STD", 2.0**50)
    std = next(
        near
        for near in (3 * 2.0**45 / drawn_std(1.0) * (1 + step * 2.0**-53) for step in (0, 1, -1))
        if drawn_std(near) == 3 * 2.0**45
    )
    drawn = lattice_gaussian(KEY, std, 0, CELLS)
    ratios = [grid_ratio(shown[:, None], 1, std) for shown in (drawn, drawn + 1)]
    told = (ratios[1].mean() - ratios[0].mean()) / ratios[0].std()
    assert told == pytest.approx(ratios[0].std(), rel=0.3)  # as for any pair of near normal laws
    assert 0.6 * low_bits(std, 1) < ratios[0].std() <= low_bits(std, 1)


def test_the_tail_does_not_end_where_64_bits_do() -> None:
    """Uniforms that are too small for their bits get more of them, from the cell's own stream."""
    key = NoiseKey.generate()
    smallest = noise._deep_uniform(key, 3, 0)
    assert 0 < smallest < 2.0**-64
    assert smallest == noise._deep_uniform(key, 3, 0) != noise._deep_uniform(key, 4, 0)
    for word in (1, 5, 2047, 2**40 - 1):
        assert word * 2.0**-64 <= noise._deep_uniform(key, 3, word) <= (word + 1) * 2.0**-64
    drawn = [noise._deep_uniform(key, cell, 0) * 2.0**64 for cell in range(3000)]
    assert stats.kstest(drawn, "uniform").pvalue > ALPHA


def test_a_cell_with_a_tiny_uniform_takes_its_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    words = noise._words

    def first_is_zero(key: NoiseKey, offset: int, size: int) -> np.ndarray:
        drawn = words(key, offset, size).copy()
        if size == 10 * 16:  # the cells; the tail is another stream
            drawn[:2] = 0
        return drawn

    plain = lattice_gaussian(KEY, STD, 0, 10)
    monkeypatch.setattr(noise, "_words", first_is_zero)
    changed = lattice_gaussian(KEY, STD, 0, 10)
    assert changed[0] > 9.4 * STD  # the angle is 0
    assert np.array_equal(changed[1:], plain[1:])


def test_masks_are_uniform_cancel_and_are_not_the_noise_stream() -> None:
    mask = mask_stream(KEY, 100_000)
    assert mask.dtype == np.uint64
    assert stats.kstest(mask / 2.0**64, "uniform").pvalue > ALPHA
    bits = np.unpackbits(mask.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 6 * 0.5 / np.sqrt(100_000)
    sums = np.arange(100_000, dtype=np.int64) - 50_000
    assert np.array_equal((sums.view(np.uint64) + mask - mask_stream(KEY, 100_000)).view(np.int64), sums)
    assert np.array_equal(mask[:10], mask_stream(KEY, 10))
    assert not np.isin(mask[:1000], mask_stream(KEY.derive(b"other"), 1000)).any()
    with pytest.raises(UserError):
        mask_stream(KEY, 2**36)
