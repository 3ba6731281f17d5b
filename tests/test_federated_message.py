"""One user's message, its bounds, and sums of many: exact whatever the division."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from federated_support import population
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsw_ray.federated.kernel import _FEW, ABSENT, DECOY, PRESENT, add_users
from dpsw_ray.federated.message import tampered, user_message
from dpsw_ray.release.form import Form
from dpsw_ray.slicing.directions import haar_frames
from dpsw_ray.slicing.grid import SCALE, BinGrid

CLASSES = 4


def form_of(grid: BinGrid, directions: np.ndarray, precision: int = 16) -> Form:
    shift = 16 - precision
    return Form((CLASSES, len(directions), grid.bins), grid.row_norm_sq >> 2 * shift, SCALE >> shift, axis=1)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    smoothing=st.sampled_from([0.0, 0.7, 1.0, 1.5, 2.5]),
    dim=st.sampled_from([3, 8, 9]),
    full=st.sampled_from([1, 7]),
    precision=st.sampled_from([16, 9, 4]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 5),
)
def test_the_sum_is_that_of_the_messages_bit_for_bit(
    counts: list[int], smoothing: float, dim: int, full: int, precision: int, threads: int, seed: int
) -> None:
    latents, lattice, labels, offsets = population(counts, dim, seed=seed)
    grid, directions = BinGrid(32, smoothing), haar_frames(39 // dim, dim, seed)
    rng = np.random.default_rng(seed)
    roles = rng.choice([ABSENT, PRESENT, DECOY], len(counts)).astype(np.uint8)
    out = np.zeros((CLASSES, len(directions), 32), np.int64)
    over = add_users(
        lattice, labels, offsets, roles, directions, grid, grid.table, out, full_weight_at=full,
        precision=precision, largest_norm_sq=form_of(grid, directions, precision).norm_sq, threads=threads,
    )  # fmt: skip
    expected = np.zeros_like(out)
    for user in np.flatnonzero(roles == PRESENT):
        rows = slice(offsets[user], offsets[user + 1])
        message = user_message(
            latents[rows], labels[rows], directions, grid, grid.table, CLASSES,
            full_weight_at=full, precision=precision,
        )  # fmt: skip
        assert form_of(grid, directions, precision).refusal(message) is None
        expected += message
    assert not over.any()
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("precision", [16, 4])
def test_single_precision_rounds_the_average_of_few_records_down_right(precision: int) -> None:
    step, half = 1 << (16 - precision), np.float32(0.5)
    for records in range(1, _FEW + 1):
        sums = np.arange(records * SCALE + 1, dtype=np.int32)
        found = ((sums.astype(np.float32) + half) * np.float32(1.0 / (records * step))).astype(np.int32)
        assert np.array_equal(found, sums // (records * step))


def test_more_users_than_32_bits_add_up() -> None:
    users = 40_000
    lattice, labels = np.zeros((users, 3), np.int32), np.zeros(users, np.int32)  # all on one spot
    grid, directions = BinGrid(8, 0.0), haar_frames(1, 3, 0)
    out = np.zeros((1, 3, 8), np.int64)
    add_users(
        lattice, labels, np.arange(users + 1), np.ones(users, np.uint8), directions, grid, grid.table, out,
        largest_norm_sq=grid.row_norm_sq,
    )  # fmt: skip
    assert np.array_equal(out.max(axis=2), np.full((1, 3), users * SCALE))
    assert np.array_equal(out.sum(axis=2), np.full((1, 3), users * SCALE))


def test_a_user_with_very_many_records_weighs_as_much_as_one_with_a_single_record() -> None:
    counts = [70_000, 1, 0]
    latents, lattice, labels, offsets = population(counts)
    labels[:] = 0
    grid, directions = BinGrid(16, 1.0), haar_frames(2, 3, 0)
    messages = [
        user_message(latents[a:b], labels[a:b], directions, grid, grid.table, CLASSES)
        for a, b in itertools.pairwise(offsets)
    ]
    many, one, none = (message.sum(axis=(0, 2)) for message in messages)
    assert (one == SCALE).all() and (none == 0).all()
    assert (many <= SCALE).all() and (many > SCALE - grid.bins).all()
    out = np.zeros((CLASSES, len(directions), 16), np.int64)
    add_users(
        lattice, labels, offsets, np.ones(3, np.uint8), directions, grid, grid.table, out,
        largest_norm_sq=grid.row_norm_sq,
    )  # fmt: skip
    assert np.array_equal(out, sum(messages))


def test_a_user_below_full_weight_weighs_less_and_nobody_more() -> None:
    latents, _, labels, _offsets = population([3, 30])
    labels[:] = 1
    grid, directions = BinGrid(16, 0.0), haar_frames(1, 3, 0)
    few, many = (
        user_message(latents[a:b], labels[a:b], directions, grid, grid.table, CLASSES, full_weight_at=12)
        for a, b in ((0, 3), (3, 33))
    )
    assert np.allclose(few.sum(axis=(0, 2)), SCALE / 4, atol=16)
    assert (many.sum(axis=(0, 2)) <= SCALE).all()


def test_the_kernel_names_users_whose_message_passes_the_bound() -> None:
    _, lattice, labels, offsets = population([1, 50, 1])
    labels[:] = 0
    grid, directions = BinGrid(32, 0.0), haar_frames(1, 3, 0)
    out = np.zeros((CLASSES, 3, 32), np.int64)
    over = add_users(
        lattice, labels, offsets, np.ones(3, np.uint8), directions, grid, grid.table, out,
        largest_norm_sq=SCALE**2 - 1,
    )  # fmt: skip
    assert over[0] and over[2] and not over[1]  # an average over many spots is shorter


@pytest.mark.parametrize(
    ("how", "reason"),
    [(0, "too large"), (1, "negative"), (2, "not finite"), (3, "shape"), (4, "too large"),
     (5, "not whole numbers")],
)  # fmt: skip
def test_a_malformed_message_is_refused(how: int, reason: str) -> None:
    latents, _, labels, _ = population([9])
    grid, directions = BinGrid(16, 1.0), haar_frames(2, 3, 0)
    message = user_message(latents, labels, directions, grid, grid.table, CLASSES)
    form = form_of(grid, directions)
    assert form.refusal(message) is None and form.refusal(np.zeros_like(message)) is None
    assert form.refusal(tampered(form, how)) == reason  # a function of the form alone: of no user's records


def test_a_message_within_its_mass_but_above_its_norm_is_refused() -> None:
    grid, directions = BinGrid(16, 1.0), haar_frames(1, 3, 0)
    spike = np.zeros((CLASSES, 3, 16), np.int64)
    spike[0, 1, 5] = SCALE
    assert form_of(grid, directions).refusal(spike) == "too large"
    assert form_of(BinGrid(16, 0.0), directions).refusal(spike) is None
    assert form_of(grid, directions).refusal("no array") == "shape"
    assert form_of(grid, directions).refusal(np.full(spike.shape, np.inf)) == "not finite"
    assert form_of(grid, directions).refusal(np.full(spike.shape, 2**63, np.uint64)) == "too large"
