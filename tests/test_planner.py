from __future__ import annotations

import math
import subprocess
import sys

import pytest

from dpsw_ray.base.errors import UserError
from dpsw_ray.methods.registry import load_config
from dpsw_ray.pipeline.plan import describe_plan, make_plan
from dpsw_ray.tables.planner import FRAMES, GRIDS, choose, noise_per_record, predict

EPSILONS = (0.1, 0.2, 1.0, 5.0, 10.0, math.inf)


def chosen(epsilon: float = 1.0, records: int = 10_000, **given: float):  # type: ignore[no-untyped-def]
    return choose(
        records=records, classes=10, dim=8, relation="replace_one", epsilon=epsilon, delta=1e-5, **given
    )  # type: ignore[arg-type]


def test_noise_per_record_follows_relation_budget_and_records() -> None:
    twice = noise_per_record("replace_one", 1.0, 1e-5, 1_000)
    assert twice == pytest.approx(math.sqrt(2) * noise_per_record("zero_out", 1.0, 1e-5, 1_000))
    assert noise_per_record("zero_out", 1.0, 1e-5, 4_000) == pytest.approx(twice / math.sqrt(2) / 4)
    assert noise_per_record("replace_one", math.inf, 1e-5, 1_000) > 0


def test_more_budget_or_more_records_never_make_the_prediction_worse_or_the_plan_coarser() -> None:
    for records in (1_000, 10_000, 100_000):
        choices = [chosen(epsilon, records) for epsilon in EPSILONS]
        assert [c.distance for c in choices] == sorted((c.distance for c in choices), reverse=True)
        assert [c.frames for c in choices] == sorted(c.frames for c in choices)
    assert chosen(1.0, 1_000).distance > chosen(1.0, 100_000).distance


def test_the_choice_is_the_best_of_the_candidates() -> None:
    choice = chosen()
    nu = noise_per_record("replace_one", 1.0, 1e-5, 1_000)
    assert choice.distance == min(predict(nu, 1_000, 8, m, grid.sigma) for m in FRAMES for grid in GRIDS)


@pytest.mark.parametrize("dim", [2, 8, 48, 784])
def test_every_term_of_the_model_goes_the_right_way_in_every_dimension(dim: int) -> None:
    for noise in (1e-7, 1e-3, 0.05, 10.0):
        for sigma in (0.02, 0.125):
            distances = [predict(noise, 1_000, dim, m, sigma) for m in FRAMES]
            assert distances == sorted(distances, reverse=True)  # more frames see more of what there is
            assert all(0 < d < 1.5 for d in distances)  # no particle is farther than the ball is wide
        assert predict(2 * noise, 1_000, dim, 8, 0.1) > predict(noise, 1_000, dim, 8, 0.1)
        assert predict(noise, 1_000, dim, 8, 0.1) > predict(noise, 2_000, dim, 8, 0.1)


def test_much_noise_asks_for_wide_smoothing_and_little_for_narrow() -> None:
    assert chosen(0.1, 1_000).grid.sigma > chosen(math.inf, 100_000).grid.sigma
    sigmas = [chosen(epsilon, 10_000).grid.sigma for epsilon in EPSILONS]
    assert sigmas == sorted(sigmas, reverse=True)


def test_latents_of_many_dimensions_get_fewer_frames() -> None:
    for dim, most in ((8, 32), (48, 16), (784, 8)):
        choice = choose(records=10**6, classes=10, dim=dim, relation="replace_one", epsilon=10.0, delta=1e-5)
        assert choice.frames <= most
    kept = choose(records=100, classes=1, dim=784, relation="replace_one", epsilon=1.0, delta=1e-5, frames=20)
    assert kept.frames == 20


def test_what_is_given_is_kept() -> None:
    assert chosen(frames=3).frames == 3
    assert chosen(bins=100).grid.bins == 100
    assert chosen(smoothing=0.5).grid.smoothing == 0.5
    assert chosen(bins=9).grid.bins == 9  # no room for the candidates' smoothing
    assert chosen(smoothing=20.0).grid.smoothing == 20.0  # no room in the candidates' bins


def test_auto_in_a_config_is_the_planners_choice_and_never_changes_the_cost() -> None:
    auto = load_config("digits", [f"release.{key}=auto" for key in ("frames", "bins", "smoothing")])
    plan = make_plan(auto, 6, 10, 1_093, "r")
    choice = choose(
        records=1_093, classes=10, dim=6, relation="replace_one", epsilon=10.0, delta=auto.privacy.delta
    )
    assert plan.directions.shape[1] == choice.frames * 6
    assert plan.grid == choice.grid
    again = make_plan(auto, 6, 10, 1_093, "r")
    assert again.digest() == plan.digest()  # a resumed run finds its own release
    assert make_plan(auto, 6, 10, 1_000_000, "r").digest() != plan.digest()


def test_a_guess_stands_in_for_a_protected_number_of_records() -> None:
    keys = [
        "release.frames=auto",
        "release.bins=auto",
        "release.smoothing=auto",
        "privacy.relation=add_remove",
    ]
    few = make_plan(load_config("digits", [*keys, "release.expected_records=300"]), 6, 10, None, "r")
    many = make_plan(load_config("digits", [*keys, "release.expected_records=300000"]), 6, 10, None, "r")
    assert few.grid.sigma > many.grid.sigma


def test_noisy_projections_take_auto_for_their_defaults() -> None:
    auto = load_config("digits", ["method=dpswflow", "release.frames=auto"])
    plain = load_config("digits", ["method=dpswflow", "release.frames=16"])
    assert make_plan(auto, 6, 10, 1_093, "r").digest() == make_plan(plain, 6, 10, 1_093, "r").digest()


def test_histograms_of_samples_take_auto_for_their_defaults() -> None:
    sampled = [
        "method=dpswflow-r",
        "release.sampling=poisson",
        "release.rounds=2",
        "privacy.relation=zero_out",
    ]
    shape = {"frames": 16, "bins": 32, "smoothing": 1}
    auto = load_config("digits", [*sampled, *(f"release.{key}=auto" for key in shape)])
    plain = load_config("digits", [*sampled, *(f"release.{key}={value}" for key, value in shape.items())])
    assert make_plan(auto, 6, 10, None, "r").digest() == make_plan(plain, 6, 10, None, "r").digest()


@pytest.mark.parametrize(
    ("key", "value"), [("frames", "many"), ("frames", "0"), ("bins", "1"), ("smoothing", "-1")]
)
def test_neither_a_number_nor_auto_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"release.{key}"):
        load_config("digits", [f"release.{key}={value}"])


def test_the_plan_shows_the_choice_and_the_predicted_distance(tmp_path) -> None:  # type: ignore[no-untyped-def]
    keys = [f"paths.home={tmp_path}", f"paths.ledger={tmp_path / 'ledger.sqlite'}", "release.frames=auto"]
    shown = describe_plan(load_config("digits", keys))["release"]
    assert "between particles and private latents" in shown["predicted sliced W2"]
    assert "assumed: release.expected_records" in shown["chosen"]
    fixed = describe_plan(load_config("digits", keys[:2]))["release"]
    assert "chosen" not in fixed and "predicted sliced W2" in fixed


def test_planning_does_not_wait_for_torch() -> None:
    code = (
        "import sys, dpsw_ray.pipeline.plan; from dpsw_ray.methods.registry import METHODS, method_named\n"
        "for name in METHODS: method_named(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
