"""Noise is Gaussian, independent, bound to its key, and the same however its cells are divided."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.noise import MAX_CELLS, NoiseKey, lattice_gaussian, mask_stream

KEY = NoiseKey.from_seed(7)
STD = 1e12  # fine enough for rounding not to hide a difference in the last bits
CELLS = 1_000_000
ALPHA = 1e-6
SAMPLE = lattice_gaussian(KEY, STD, 0, CELLS) / STD


def test_noise_is_gaussian() -> None:
    assert stats.kstest(SAMPLE, "norm").pvalue > ALPHA


def test_moments_are_a_gaussian_s() -> None:
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        values = SAMPLE**power
        assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(CELLS)


def test_tails_are_there() -> None:
    for bound in (3.0, 4.0, 4.5):
        beyond = int((np.abs(SAMPLE) > bound).sum())
        assert stats.binomtest(beyond, CELLS, 2 * stats.norm.sf(bound)).pvalue > ALPHA


def test_cells_are_independent() -> None:
    for lag in (1, 2, 3, 4, 5, 64, 65536):
        for transform in (np.asarray, np.square, np.sign):
            values = transform(SAMPLE)
            values = (values - values.mean()) / values.std()
            assert abs((values[:-lag] * values[lag:]).mean()) < 5 / np.sqrt(CELLS - lag)


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
    correlation = np.corrcoef(samples) - np.eye(len(samples))
    assert np.abs(correlation).max() < 6 / np.sqrt(100_000)


def test_seeded_noise_is_reproducible_and_marked() -> None:
    again = NoiseKey.from_seed(7)
    assert again.reproducible and again.derive(b"x").reproducible
    assert np.array_equal(lattice_gaussian(again, 5.0, 3, 10), lattice_gaussian(KEY, 5.0, 3, 10))
    assert lattice_gaussian(KEY, 1000.0, 0, 4).tolist() == [1003, 269, 242, -413]
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
