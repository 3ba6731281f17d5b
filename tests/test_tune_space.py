"""Spaces, and what is refused before anything starts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import SMALL, kept

from dpsw_ray.base.errors import UserError
from dpsw_ray.tune.config import load_sweep
from dpsw_ray.tune.frontier import plan_frontier
from dpsw_ray.tune.plan import SweepPlan, plan_sweep
from dpsw_ray.tune.space import parse_space


def planned(tmp_path: Path, **sections: Any) -> SweepPlan:
    """A sweep over small digits, through its file."""
    base = dict(override.split("=") for override in SMALL)
    values: dict[str, Any] = {
        "name": "small",
        "base": "digits",
        "set": {},
        "space": {"flow.step_size": {"uniform": [1.0, 6.0]}},
    }
    own = sections.pop("set", {})
    named = sections.get("base", {}) if isinstance(sections.get("base"), dict) else {}
    method = own.get("method", named.get("method", "dpswflow-h"))
    quick = kept([f"{key}={value}" for key, value in base.items()], [f"method={method}"])
    values["set"] = {key: yaml.safe_load(base[key]) for key in (k.partition("=")[0] for k in quick)} | own
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values | sections, sort_keys=False))
    return plan_sweep(*load_sweep(path, []))


def test_draws_stay_inside_and_random_searches_repeat(tmp_path: Path) -> None:
    space = {
        "flow.step_size": {"loguniform": [0.5, 8]},
        "flow.steps": {"randint": [3, 5]},
        "flow.schedule": {"choice": ["constant", "cosine"]},
        "flow.diffusion": {"uniform": [0.0, 0.1], "when": {"flow.schedule": "cosine"}},
    }
    plan = planned(tmp_path, space=space, search={"trials": 200})
    points = [trial.point for trial in plan.trials]
    assert points[0] == {} and len(points) == 200
    assert all(0.5 <= point["flow.step_size"] <= 8 for point in points[1:])
    assert {point["flow.steps"] for point in points[1:]} == {3, 4, 5}
    assert np.median([point["flow.step_size"] for point in points[1:]]) == pytest.approx(2.0, rel=0.35)
    for point in points[1:]:
        assert ("flow.diffusion" in point) == (point["flow.schedule"] == "cosine")
    assert [trial.point for trial in planned(tmp_path, space=space, search={"trials": 200}).trials] == points
    other = planned(tmp_path, space=space, search={"trials": 200, "seed": 1})
    assert [trial.point for trial in other.trials] != points


def test_a_grid_has_every_combination_that_its_conditions_allow(tmp_path: Path) -> None:
    space = {
        "flow.schedule": {"choice": ["constant", "cosine"]},
        "flow.steps": {"grid": [3, 4]},
        "flow.diffusion": {"grid": [0.0, 0.1, 0.2], "when": {"flow.schedule": ["cosine"]}},
    }
    plan = planned(tmp_path, space=space, search={"kind": "grid", "base": False})
    found = [tuple(trial.point.items()) for trial in plan.trials]
    constant = [(("flow.schedule", "constant"), ("flow.steps", n)) for n in (3, 4)]
    cosine = [
        (("flow.schedule", "cosine"), ("flow.steps", n), ("flow.diffusion", d))
        for n, d in itertools.product((3, 4), (0.0, 0.1, 0.2))
    ]
    assert found == constant + cosine


def test_corners_hold_both_ends_of_every_range() -> None:
    space = parse_space(
        {"flow.step_size": {"uniform": [1, 2]}, "flow.steps": {"randint": [3, 9]}}, "sweep.yaml"
    )
    assert [tuple(point.values()) for point in space.corners()] == [(1, 3), (1, 9), (2, 3), (2, 9)]


def test_trials_share_a_release_unless_its_mechanism_differs(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        space={"release.frames": {"grid": [2, 3]}, "flow.steps": {"grid": [3, 4, 5]}},
        search={"kind": "grid"},
        selection={"policy": "split"},
    )
    assert len(plan.trials) == 7 and len(plan.mechanisms) == 2
    assert [trial.group for trial in plan.trials] == [0, 0, 0, 0, 1, 1, 1]  # frames 2 is the base's own


SPACE = {"flow.step_size": {"uniform": [1, 6]}}
FRAMES = {"release.frames": {"choice": [2, 3]}}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"space": {"flow.stepsize": {"uniform": [1, 2]}}}, "space.flow.stepsize is no key of a run config; did you"),
        ({"space": {"flow.step_size": {"normal": [1, 2]}}}, "must have one of choice, grid"),
        ({"space": {"flow.step_size": {"uniform": [2, 1]}}}, "lowest < highest"),
        ({"space": {"flow.step_size": {"loguniform": [0, 1]}}}, "must begin above 0"),
        ({"space": {"flow.steps": {"randint": [1.5, 3]}}}, "whole ends"),
        ({"space": {"flow.schedule": {"choice": ["constant", "linear"]}}}, "flow.schedule must be 'auto'"),
        ({"space": {"flow.step_size": {"uniform": [-1, 6]}}}, "flow.step_size must be a positive number or auto"),
        ({"space": {"flow.steps": {"choice": []}}}, "must be a list"),
        ({"space": {}}, "space is empty"),
        (
            {"space": {"flow.diffusion": {"uniform": [0, 1], "when": {"flow.schedule": "cosine"}}}},
            "flow.schedule must stand above it",
        ),
        ({"space": {"privacy.epsilon": {"choice": [1, 2]}}}, "space.privacy.epsilon is the same for all trials"),
        ({"space": {"data.split_seed": {"choice": [1, 2]}}}, "is the same for all trials"),
        ({"space": FRAMES}, "selection.policy reuse makes one release"),
        ({"space": {**SPACE, "encoder.latent_dim": {"choice": [4, 6]}}}, "reuse makes one release"),
        ({"search": {"kind": "grid"}}, "search.kind grid needs values one by one"),
        (
            {"space": FRAMES, "selection": {"policy": "split"}, "search": {"kind": "optuna"}},
            "must be planned and charged together before the first",
        ),
        (
            {"selection": {"policy": "private_selection"}, "scheduler": {"kind": "asha"}},
            "scheduler.kind must be fifo, found asha",
        ),
        ({"selection": {"policy": "private_selection"}, "search": {"kind": "grid"}}, "search.kind must be random"),
        (
            {"selection": {"policy": "private_selection"}, "set": {"privacy.epsilon": float("inf")}},
            "needs a finite privacy.epsilon",
        ),
        (
            {"space": {"encoder.epochs": {"choice": [1, 2]}},
             "selection": {"policy": "private_selection", "score": "public"}},
            "encoders are trained and kept in the open",
        ),
        (
            {"space": {"release.bins": {"choice": [16, 32]}}, "selection": {"policy": "split"}},
            "space.release.bins changes what a slice is; choose selection.score public",
        ),
        (
            {"space": {"encoder.latent_dim": {"choice": [4, 6]}},
             "selection": {"policy": "split", "score": "public", "measure": "sliced_w2"}},
            "is a distance between latents",
        ),
        (
            {"space": {"encoder.latent_dim": {"choice": [4, 6]}},
             "selection": {"policy": "split", "score": "noisy_query"}},
            "selection.score noisy_query is a distance between latents",
        ),
        (
            {"selection": {"policy": "private_selection", "score": "noisy_query"}},
            "selection.score must be validation_slices or public, found noisy_query",
        ),
        (
            {"set": {"data.public_fraction": 0, "data.classes": [0], "encoder.kind": "identity"},
             "selection": {"score": "public"}},
            "selection.score public compares with public records, and data.public_fraction 0 leaves none; choose "
            "selection.score validation_slices",
        ),
        (
            {"set": {"data.public_fraction": 0, "data.classes": [0], "encoder.kind": "identity"},
             "space": {"release.bins": {"choice": [16, 32]}}, "selection": {"policy": "split"}},
            "space.release.bins changes what a slice is; choose selection.score noisy_query",
        ),
        ({"base": [1]}, "base must be a run's YAML file"),
        ({"set": {"method": "dpswgen"}, "scheduler": {"kind": "asha"}}, "looks at flows while they run"),
        ({"set": {"flow.stepz": 3}}, "did you mean flow.steps"),
        ({"selection": {"polcy": "split"}}, "selection.polcy is an unknown key; did you mean selection.policy"),
        (
            {"base": {"method": "dpswflow", "data": {"source": "digits"}}, "space": FRAMES,
             "set": {"release.law": "haar"}, "selection": {"policy": "split"}},
            "space.release.frames changes what a slice is; choose selection.score public",
        ),
        (
            {"space": {"encoder.seed": {"choice": [1, 2]}},
             "selection": {"policy": "split", "score": "public", "measure": "logreg"}},
            "space.encoder.seed is the same for all trials",
        ),
        (
            {"selection": {"policy": "private_selection", "mean_trials": 8, "eta": -0.9}},
            "with selection.mean_trials 8 and selection.eta -0.9 more than 100,000",
        ),
        ({"space": {"flow.step_size": {"uniform": [-1e308, 1e308]}}}, "uniform must stay within"),
        ({"space": {"flow.steps": {"randint": [1, 10**30]}}}, "randint must stay within"),
        ({"space": {"flow.steps": {"randint": [1, 10**400]}}}, "must be [lowest, highest]"),
        (
            {"space": {"flow.schedule": {"choice": ["constant", "cosine"]},
                       "flow.steps": {"choice": [3, 4], "when": {"flow.schedule": []}}}},
            "must name at least one value",
        ),
        ({"epsilons": []}, "epsilons must have at least 1 values, found 0"),
        ({"epsilons": ["1e400"]}, "epsilons.0 must be a number, found '1e400'"),
        ({"set": {"privacy.epsilon": "1:30"}}, "privacy.epsilon must be a number, found '1:30'"),
        ({"set": {"privacy.epsilon.x": 1}}, "sweep.yaml: set.privacy.epsilon.x: privacy.epsilon is a single value"),
        ({"space": {"flow.step_size": {"uniform": ["1_0", 9]}}}, "must be [lowest, highest], found ['1_0', 9]"),
        ({"space": {"flow.step_size": {"uniform": [1, "1e400"]}}}, "must be [lowest, highest], found [1, '1e400']"),
        ({"space": {"flow.step_size": {"choice": [1, 1e300]}}}, "flow.step_size must be at most 1e+06, found 1e+300"),
        ({"space": {"flow.particles": {"choice": [50, 10**10]}}}, "flow.particles 10,000,000,000 would take at least"),
        (
            {"space": {f"flow.{key}": {"grid": list(range(1, 201))}
                       for key in ("steps", "patience", "subset", "particles", "denoising")},
             "search": {"kind": "grid"}},
            "space: a grid of 320,000,000,000 points, conditions aside, is more than 10,000",
        ),
        ({"search": {"trials": 10**9}}, "search.trials must be at most 10000, found 1000000000"),
        ({"search": {"seed": 2**63}}, "search.seed must be at most 4294967295"),
        ({"trials": {"actors": 10**9}}, "trials.actors must be at most 10000"),
        ({"scheduler": {"every": 10**300}}, "scheduler.every must be"),
        ({"name": ".."}, "name must consist of letters"),
        ({"epsilons": [1, 1]}, "epsilons must be different numbers, found [1.0, 1.0]"),
        ({"base": "nowhere"}, "nowhere does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(sections: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        planned(tmp_path, **sections)
    assert words in str(caught.value)


def test_overrides_of_the_base_may_be_written_as_sections(tmp_path: Path) -> None:
    plan = planned(tmp_path, set={"privacy": {"epsilon": 3}, "release.frames": 5})
    assert plan.base.config.privacy.epsilon == 3 and plan.base.config.privacy.delta == 1e-4
    assert plan.base.config.release.frames == 5


def test_a_combination_that_is_no_run_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"release.bins: 8.*release.smoothing: 2.*release.bins must exceed"):
        planned(
            tmp_path,
            space={"release.bins": {"choice": [8, 32]}, "release.smoothing": {"choice": [0.5, 2]}},
            selection={"policy": "split", "score": "public"},
        )


def test_an_override_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("base: digits\nset:\nspace: {flow.steps: {choice: [3, 4]}}\n")
    sweep, _ = load_sweep(path, ["set.flow.patience=3"])
    assert sweep.set == {"flow.patience": 3}
    with pytest.raises(UserError, match=r"set.flow.steps: the value .* is not valid YAML"):
        load_sweep(path, ["set.flow.steps=[1"])


def test_close_epsilons_of_a_frontier_have_names_of_their_own(tmp_path: Path) -> None:
    planned(tmp_path)
    sweep, where = load_sweep(tmp_path / "sweep.yaml", ["epsilons=[1, 1.0000001]"])
    names = {plan.sweep.name for plan in plan_frontier(sweep, where).values()}
    assert names == {"small-1", "small-1.0000001"}


def test_what_is_given_on_the_command_line_is_blamed_on_it(tmp_path: Path) -> None:
    planned(tmp_path)
    path = tmp_path / "sweep.yaml"
    for override, words in (
        ("search.trials=0", "--set search.trials must be at least 1, found 0."),
        (
            "set.flow.steps={{ x }}",
            "--set set.flow.steps: the value '{{ x }}' is not valid YAML (a key must be text",
        ),
        ("set.", "--set takes key=value"),
    ):
        with pytest.raises(UserError) as caught:
            load_sweep(path, [override])
        assert str(caught.value).startswith(words)


def test_the_shipped_sweeps_are_the_ones_that_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep("nosuch.yaml", [])
    assert str(caught.value) == (
        "Config file nosuch.yaml does not exist; the shipped ones are: digits, fashion_mnist, fresh, frontier."
    )
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_sweep("digits", [])[0].name == "tune_digits"


def test_numbers_of_a_space_are_written_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("base: digits\nspace: {flow.diffusion: {loguniform: [1e-6, 1e-3]}}\n")
    plan = plan_sweep(*load_sweep(path, []))
    assert plan.space.distributions[0].values == (1e-6, 1e-3)
