"""What an event claims: its sensitivity, checked on numbers, and its cost under each relation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.accountants import compose_mu
from dpsw_ray.privacy.events import (
    DiscreteGaussianEvent,
    DpPcaEvent,
    DpSgdEvent,
    Event,
    GaussianEvent,
    NoisyCountEvent,
    ParallelEvent,
    SampledGaussianEvent,
    SequentialEvent,
    SkellamEvent,
    SlicedGaussianEvent,
    SlicedHistogramEvent,
    event_from_dict,
)
from dpsw_ray.privacy.losses import Gaussian, SampledGaussian, SlicedGaussian
from dpsw_ray.privacy.relations import (
    RELATIONS,
    Relation,
    check_relation,
    check_unit,
    count_is_public,
)

HISTOGRAM = SlicedHistogramEvent(directions=72, row_norm_sq=1234, noise_std=500.0)
ROWS = GaussianEvent("projections", {"replace_one": 6.0, "zero_out": 3.0}, noise_std=3.76)
BOTH: Mapping[Relation, int] = {"zero_out": 9, "add_remove": 9}
EVERY_KIND: list[Event] = [
    SlicedHistogramEvent(8, 100, 50.0, "discrete_gaussian", "user"),
    SlicedGaussianEvent(70, 8, 3.76, "iid"),
    SlicedGaussianEvent(72, 8, 3.76),
    SampledGaussianEvent(0.01, 2.0, 3.0, 100),
    DpSgdEvent(0.01, 1.1, 1000),
    DiscreteGaussianEvent("counts", BOTH, 5.0),
    SkellamEvent("sums", BOTH, {"zero_out": 4, "add_remove": 4}, 50.0),
    DpPcaEvent(2.0, 3.0),
    NoisyCountEvent(10.0, "user"),
    SequentialEvent((NoisyCountEvent(10.0), DpPcaEvent(2.0)), 3),
    ParallelEvent((NoisyCountEvent(10.0), SequentialEvent((DpPcaEvent(2.0),))), "by_value"),
]


def _bin_table(rng: np.random.Generator, rows: int, bins: int, total: int = 4096) -> np.ndarray:
    """Random integer bin vectors, from one-hot to flat, all summing to `total`: size [rows, bins]."""
    weights = rng.dirichlet(np.full(bins, rng.choice([0.05, 0.5, 5.0])), size=rows)
    table = rng.multinomial(total, weights)
    table[0] = 0
    table[0, 0] = total // 2
    return table


@pytest.mark.parametrize("relation", RELATIONS)
def test_no_pair_of_neighbours_differs_by_more_than_the_claimed_sensitivity(relation: Relation) -> None:
    rng = np.random.default_rng(1)
    directions, bins, classes = 6, 12, 3
    for _ in range(20):
        table = _bin_table(rng, 16, bins)
        norm_sq = int((table**2).sum(axis=1).max())
        claimed = SlicedHistogramEvent(directions, norm_sq, 1.0).sensitivity_sq(relation)
        for _ in range(200):
            change = np.zeros((directions, classes, bins), dtype=np.int64)
            change[np.arange(directions), rng.integers(classes)] += table[rng.integers(16, size=directions)]
            if relation == "replace_one":
                change[np.arange(directions), rng.integers(classes)] -= table[
                    rng.integers(16, size=directions)
                ]
            assert (change**2).sum() <= claimed


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_claimed_sensitivity_is_reached_by_a_worst_case_pair(relation: Relation) -> None:
    total, directions = 64, 5
    change = np.zeros((directions, 4), dtype=np.int64)
    change[:, 0] = total
    if relation == "replace_one":
        change[:, 1] = -total
    assert SlicedHistogramEvent(directions, total**2, 1.0).sensitivity_sq(relation) == (change**2).sum()


def test_histogram_mu_is_root_sensitivity_over_noise() -> None:
    assert compose_mu([HISTOGRAM], "zero_out") == math.sqrt(72 * 1234) / 500
    assert compose_mu([HISTOGRAM], "add_remove") == compose_mu([HISTOGRAM], "zero_out")
    assert compose_mu([HISTOGRAM], "replace_one") == math.sqrt(2 * 72 * 1234) / 500


def test_no_noise_is_infinite_mu() -> None:
    assert compose_mu([SlicedHistogramEvent(1, 1, 0.0)], "zero_out") == math.inf
    assert compose_mu([GaussianEvent("g", {"zero_out": 1.0}, 0.0)], "zero_out") == math.inf


def test_an_event_without_meaning_under_the_relation_says_so() -> None:
    with pytest.raises(UserError, match=r"projections.*add_remove.*replace_one, zero_out only"):
        compose_mu([ROWS], "add_remove")
    with pytest.raises(UserError, match="relation must be one of"):
        compose_mu([HISTOGRAM], "swap")  # type: ignore[arg-type]


def test_units_do_not_mix() -> None:
    user = SlicedHistogramEvent(72, 1234, 500.0, unit="user")
    with pytest.raises(UserError, match="same unit"):
        compose_mu([HISTOGRAM, user], "replace_one")
    with pytest.raises(UserError, match="found: none"):
        compose_mu([], "replace_one")


@pytest.mark.parametrize("event", [HISTOGRAM, ROWS, *EVERY_KIND], ids=lambda event: event.kind)
def test_events_round_trip_through_json(event: Event) -> None:
    assert event_from_dict(json.loads(json.dumps(event.to_dict(), allow_nan=False))) == event


def test_numpy_numbers_become_plain_ones() -> None:
    event = SlicedHistogramEvent(np.int64(72), np.int64(1234), np.float64(500.0))  # type: ignore[arg-type]
    assert event == HISTOGRAM
    json.dumps(event.to_dict())


def test_unknown_or_misfitting_events_are_refused() -> None:
    with pytest.raises(UserError, match=r"Unknown privacy event 'laplace'.*gaussian, sliced_histogram"):
        event_from_dict({"kind": "laplace"})
    with pytest.raises(
        UserError, match=r"'gaussian' has no scale; it takes label, noise_std, sensitivity, unit"
    ):
        event_from_dict({"kind": "gaussian", "scale": 1})
    with pytest.raises(UserError, match="do not fit"):
        event_from_dict({"kind": "gaussian"})


@pytest.mark.parametrize(
    ("directions", "norm_sq", "std", "found"),
    [
        (0, 1, 1.0, "directions"),
        (1, 1.5, 1.0, "row_norm_sq"),
        (1, 1, -1.0, "noise_std"),
        (1, 1, math.nan, "nan"),
    ],
)
def test_parameters_out_of_range_are_refused(directions: int, norm_sq: int, std: float, found: str) -> None:
    with pytest.raises(UserError, match=found):
        SlicedHistogramEvent(directions, norm_sq, std)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "k" * 5000},
        {"kind": ["gaussian"] * 5000},
        {"kind": "gaussian", "sensitivity": "s" * 5000, "noise_std": 1.0},
        {"kind": "gaussian", "sensitivity": 10**4999, "noise_std": 1.0},
        {"kind": "gaussian", "sensitivity": {"r" * 5000: 1.0}, "noise_std": 1.0},
        {"kind": "gaussian", "s" * 5000: 1.0},
    ],
)
def test_what_is_found_is_told_in_short(values: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        event_from_dict(values)
    assert len(str(caught.value)) < 500


def test_relations_know_whether_the_count_is_public() -> None:
    assert [count_is_public(relation) for relation in RELATIONS] == [True, True, False]
    with pytest.raises(UserError):
        check_relation("remove")
    with pytest.raises(UserError):
        check_unit("household")


def test_haar_frames_cost_a_gaussian_and_iid_directions_a_law_over_gaussians() -> None:
    assert compose_mu([SlicedGaussianEvent(72, 8, 3.76)], "replace_one") == pytest.approx(6 / 3.76)
    assert compose_mu([SlicedGaussianEvent(72, 8, 3.76, radius=2.0)], "zero_out") == pytest.approx(6 / 3.76)
    (cost,) = SlicedGaussianEvent(70, 8, 3.76, "iid").costs("replace_one")
    assert cost == {SlicedGaussian(70, 8, 2 / 3.76): 1}


def test_rows_have_no_meaning_where_the_count_is_private() -> None:
    with pytest.raises(UserError, match="number shows; relation add_remove"):
        SlicedGaussianEvent(72, 8, 3.76).costs("add_remove")
    with pytest.raises(UserError, match=r"multiple of dim 8 directions, found 70; use 72"):
        SlicedGaussianEvent(70, 8, 3.76)
    with pytest.raises(UserError, match="unit must be record"):
        SlicedGaussianEvent(72, 8, 3.76, unit="user")


@pytest.mark.parametrize("event", [SampledGaussianEvent(0.1, 1.0, 1.0), DpSgdEvent(0.1, 1.0, 10)])
def test_sampling_is_not_credited_to_a_replaced_record(event: Event) -> None:
    with pytest.raises(UserError, match="not for a replaced one"):
        event.costs("replace_one")
    assert all(isinstance(loss, SampledGaussian) for loss in event.costs("zero_out")[0])


def test_sampling_everybody_is_no_sampling() -> None:
    assert compose_mu([SampledGaussianEvent(1.0, 3.0, 2.0, 4)], "add_remove") == pytest.approx(3.0)


@pytest.mark.parametrize(("relation", "changed"), [("zero_out", 1.0), ("replace_one", math.sqrt(2))])
def test_dp_pca_changes_by_at_most_the_frobenius_norm(relation: Relation, changed: float) -> None:
    """Random and orthogonal records: none passes the bound, the orthogonal pair reaches it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 2, 5))
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    x[0] = np.eye(5)[:2]
    after = 0.0 if relation == "zero_out" else 1.0
    change = np.einsum("ni,nj->nij", x[:, 0], x[:, 0]) - after * np.einsum("ni,nj->nij", x[:, 1], x[:, 1])
    norms = np.linalg.norm(change, axis=(1, 2))
    assert norms.max() <= changed + 1e-12 and norms[0] == pytest.approx(changed)
    assert compose_mu([DpPcaEvent(4.0, radius=2.0)], relation) == pytest.approx(changed * 4.0 / 4.0)


def test_a_sequence_adds_up_and_repeats() -> None:
    sequence = SequentialEvent((NoisyCountEvent(2.0), NoisyCountEvent(4.0)), 3)
    assert compose_mu([sequence], "zero_out") == pytest.approx(math.sqrt(3 * (0.25 + 0.0625)))
    assert sequence.unit == "record"


def test_fixed_parts_cost_the_worst_of_them() -> None:
    parts = ParallelEvent((NoisyCountEvent(2.0), NoisyCountEvent(4.0)))
    assert compose_mu([parts], "replace_one") == 0.5


def test_a_record_that_changes_its_part_pays_in_both() -> None:
    parts = ParallelEvent((NoisyCountEvent(2.0), NoisyCountEvent(4.0), NoisyCountEvent(8.0)), "by_value")
    assert compose_mu([parts], "add_remove") == 0.5
    assert compose_mu([parts], "replace_one") == pytest.approx(math.hypot(0.5, 0.25))


def test_parts_whose_size_shows_cannot_be_left() -> None:
    rows = ParallelEvent((SlicedGaussianEvent(8, 8, 1.0), SlicedGaussianEvent(8, 8, 1.0)), "by_value")
    for relation in ("replace_one", "zero_out"):
        with pytest.raises(UserError, match="number shows"):
            rows.costs(relation)
    fixed = ParallelEvent((SlicedGaussianEvent(8, 8, 1.0), SlicedGaussianEvent(8, 8, 1.0)))
    assert compose_mu([fixed], "replace_one") == 2.0


def test_parts_of_different_kinds_remain_alternatives() -> None:
    parts = ParallelEvent((NoisyCountEvent(2.0), NoisyCountEvent(1.0), SampledGaussianEvent(0.1, 1.0, 1.0)))
    assert {frozenset(cost) for cost in parts.costs("zero_out")} == {
        frozenset({Gaussian(1.0)}),
        frozenset({SampledGaussian(1.0, 0.1)}),
    }
    assert compose_mu([parts], "zero_out") is None


def test_parts_of_different_units_do_not_mix() -> None:
    for kind in (SequentialEvent, ParallelEvent):
        with pytest.raises(UserError, match="same unit"):
            kind((NoisyCountEvent(1.0), NoisyCountEvent(1.0, "user")))
        with pytest.raises(UserError, match="at least one"):
            kind(())


@pytest.mark.parametrize("event", EVERY_KIND, ids=lambda event: event.kind)
def test_scaled_noise_is_larger_noise_and_nothing_else(event: Event) -> None:
    assert event.scaled(2.0).scaled(0.5) == event
    assert event.scaled(1.0) == event and event.scaled(2.0) != event
    before, after = (e.costs("zero_out")[0] for e in (event, event.scaled(2.0)))
    orders = np.array([2.0, 8.0])
    for loss, doubled in zip(before, after, strict=True):
        assert np.all(doubled.rdp(orders) < loss.rdp(orders))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SampledGaussianEvent(1.5, 1.0, 1.0), "sampling must be a probability"),
        (lambda: SampledGaussianEvent(0.0, 1.0, 1.0), "sampling must be positive"),
        (lambda: DpSgdEvent(0.1, math.inf, 10), "noise_multiplier must be 0 or lie between"),
        (lambda: DpSgdEvent(0.1, 1.0, 0), "steps must be a positive whole number"),
        (lambda: SlicedGaussianEvent(8, 8, 1.0, "uniform"), "law must be haar or iid"),
        (lambda: SlicedHistogramEvent(8, 8, 1.0, "laplace"), "noise must be gaussian or discrete_gaussian"),
        (lambda: DiscreteGaussianEvent("d", {"zero_out": 1.5}, 1.0), "must be whole, found 1.5"),
        (lambda: SkellamEvent("s", {"zero_out": 9}, {"zero_out": 2}, 1.0), "below the L2 sensitivity"),
        (lambda: SkellamEvent("s", {"zero_out": 9}, {"add_remove": 9}, 1.0), "same relations"),
        (lambda: DpPcaEvent("much"), "noise_std must be 0 or lie between"),
        (lambda: DpPcaEvent(1.0, radius=0.0), "radius must be positive"),
        (lambda: ParallelEvent((NoisyCountEvent(1.0),), "random"), "assignment must be fixed or by_value"),
        (lambda: GaussianEvent("g", 3.0, 1.0), "a number for each relation, found 3.0"),
    ],
)
def test_each_parameter_out_of_range_is_named(make: Callable[[], Event], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize("value", [1e-200, 1e200, 10**400, float("nan")])
def test_numbers_that_no_arithmetic_holds_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"must be 0 or lie between 1e-30 and 1e\+30"):
        NoisyCountEvent(value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"kind": "sequential", "parts": [{"kind": "noisy_count", "noise_std": 1}, 5]},
            "parts must be a list",
        ),
        ({"kind": "noisy_count", "noise_std": 1, 1: 2}, "has no 1"),
        ({"kind": "noisy_count", "noise_std": 1, "label": [1, 2]}, "label must be text"),
        (
            {"kind": "dp_sgd", "sampling": 0.1, "noise_multiplier": 1, "steps": 10**400},
            "a whole number of more than 30 digits",
        ),
    ],
)
def test_events_from_files_are_checked(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        event_from_dict(values)
