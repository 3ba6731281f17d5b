"""What an event claims: its sensitivity, checked on numbers, and its cost under each relation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.accountants import compose_mu
from dpsw_ray.privacy.events import Event, GaussianEvent, SlicedHistogramEvent, event_from_dict
from dpsw_ray.privacy.relations import (
    RELATIONS,
    Relation,
    check_relation,
    check_unit,
    count_is_public,
    describe,
)

HISTOGRAM = SlicedHistogramEvent(directions=72, row_norm_sq=1234, noise_std=500.0)
ROWS = GaussianEvent("projections", {"replace_one": 6.0, "zero_out": 3.0}, noise_std=3.76)


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
    assert HISTOGRAM.gaussian_mu("zero_out") == math.sqrt(72 * 1234) / 500
    assert HISTOGRAM.gaussian_mu("add_remove") == HISTOGRAM.gaussian_mu("zero_out")
    assert HISTOGRAM.gaussian_mu("replace_one") == math.sqrt(2 * 72 * 1234) / 500


def test_no_noise_is_infinite_mu() -> None:
    assert SlicedHistogramEvent(1, 1, 0.0).gaussian_mu("zero_out") == math.inf
    assert GaussianEvent("g", {"zero_out": 1.0}, 0.0).gaussian_mu("zero_out") == math.inf


def test_an_event_without_meaning_under_the_relation_says_so() -> None:
    with pytest.raises(UserError, match=r"projections.*add_remove.*replace_one, zero_out only"):
        ROWS.gaussian_mu("add_remove")
    with pytest.raises(UserError, match="relation must be one of"):
        HISTOGRAM.gaussian_mu("swap")  # type: ignore[arg-type]


def test_units_do_not_mix() -> None:
    user = SlicedHistogramEvent(72, 1234, 500.0, unit="user")
    with pytest.raises(UserError, match="same unit"):
        compose_mu([HISTOGRAM, user], "replace_one")
    with pytest.raises(UserError, match="found: none"):
        compose_mu([], "replace_one")


@pytest.mark.parametrize("event", [HISTOGRAM, ROWS])
def test_events_round_trip_through_json(event: Event) -> None:
    assert event_from_dict(json.loads(json.dumps(event.to_dict(), allow_nan=False))) == event


def test_numpy_numbers_become_plain_ones() -> None:
    event = SlicedHistogramEvent(np.int64(72), np.int64(1234), np.float64(500.0))  # type: ignore[arg-type]
    assert event == HISTOGRAM
    json.dumps(event.to_dict())


def test_unknown_or_misfitting_events_are_refused() -> None:
    with pytest.raises(UserError, match=r"Unknown privacy event 'laplace'.*gaussian, sliced_histogram"):
        event_from_dict({"kind": "laplace"})
    with pytest.raises(UserError, match="do not fit"):
        event_from_dict({"kind": "gaussian", "scale": 1})


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


def test_relations_know_whether_the_count_is_public() -> None:
    assert [count_is_public(relation) for relation in RELATIONS] == [True, True, False]
    assert "number of users is private" in describe("add_remove", "user")
    with pytest.raises(UserError):
        check_relation("remove")
    with pytest.raises(UserError):
        check_unit("household")
