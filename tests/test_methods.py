"""A method is a folder: its keys are its own, and whoever runs, compares or measures asks it and knows no name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from federated_support import run_federated
from federated_support import small as small_users
from support import as_earlier, kept, run_dpsw, small

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress
from dpsw_ray.config.family import Family, has_key
from dpsw_ray.config.run import RunConfig
from dpsw_ray.experiment.grid import Grid, make_grid
from dpsw_ray.federated.config import FEDERATED
from dpsw_ray.methods.registry import METHODS, RUNS, decides_release, is_free, load_config, method_named
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.tune.config import SweepConfig
from dpsw_ray.tune.plan import SweepPlan, plan_sweep

QUIET = Progress(quiet=True)
FAMILIES = [(family, method) for family in (RUNS, FEDERATED) for method in family.methods]
IDS = [f"{family.folder or 'records'} {method}" for family, method in FAMILIES]


def value_of(family: Family[RunConfig], key: str) -> str:
    """The default that an owner of a key has for it: nothing is wrong with the value."""
    section, _, name = key.partition(".")
    field = family.config(family.owners(key)[0]).model_fields[section]
    return json.dumps(field.annotation().model_dump(mode="json")[name] if name else field.default)


def test_the_config_of_a_run_is_its_method_s() -> None:
    for name in METHODS:
        config = load_config("digits", [f"method={name}"])
        assert type(config) is method_named(name).Config and config.method == name == method_named(name).name


@pytest.mark.parametrize(("family", "method"), FAMILIES, ids=IDS)
def test_a_key_of_another_method_is_refused_and_its_owners_are_named(
    family: Family[RunConfig], method: str
) -> None:
    model = family.config(method)
    trust = ["trust=local"] if has_key(model, "trust") else []
    foreign = [key for key in family.all_keys() if not has_key(model, key)]
    assert foreign, "every method lacks something that another has"
    for key in foreign:
        given = f"{key}={value_of(family, key)}"
        with pytest.raises(UserError) as refused:
            family.load("digits", [f"method={method}", *trust, given])
        sentence = str(refused.value)
        assert sentence.startswith(f"--set {key} is a key of method") and sentence.count(". ") == 0
        assert all(name in sentence for name in family.owners(key)) and f"method {method} has " in sentence


def test_a_file_with_keys_of_another_method_is_refused_once_a_section(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("generator: {steps: 3, hidden: [4]}\nrelease: {rate: 0.1, frames: 2}\n")
    with pytest.raises(UserError) as refused:
        load_config(path)
    assert str(refused.value) == (
        f"{path}: generator.steps and generator.hidden are keys of method dpswgen; method dpswflow-h has flow and "
        f"release in its place. release.rate is a key of methods dpswflow-r and dpswgen; release of method "
        "dpswflow-h has frames, bins, smoothing, expected_records, class_conditional."
    )


def test_a_file_that_is_turned_to_another_method_keeps_what_that_one_has() -> None:
    rows = load_config("digits", ["method=dpswflow"])
    assert rows.release.model_dump() == {"frames": 4, "law": "haar", "directions": None}
    generator = load_config("digits", ["method=dpswgen"])
    assert (generator.release.bins, generator.flow.model_dump()["particles"]) == (32, 2000)
    with pytest.raises(
        UserError, match=r"release.bins is a key of methods"
    ):  # which nobody asked for by --set
        load_config("digits", ["method=dpswflow", "release.bins=16"])


def grid(methods: Sequence[str], *overrides: str, own: dict[str, list[str]] | None = None) -> Grid:
    return make_grid("digits", overrides, methods, [1.0], 1, own or {})


def test_trials_of_a_grid_keep_the_keys_that_their_methods_have() -> None:
    made = grid(("dpswflow-h", "dpswflow", "dpswgen"), "release.bins=24", "generator.steps=7", "flow.steps=9")
    tables, rows, generator = (trial.config for trial in made.trials)
    assert tables.release.bins == generator.release.bins == 24 and not hasattr(rows.release, "bins")
    assert tables.flow.steps == rows.flow.steps == 9 and not hasattr(generator.flow, "steps")
    assert generator.generator.steps == 7 and not hasattr(tables, "generator")


def test_a_key_that_no_method_of_a_grid_has_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        grid(("dpswflow-h", "dpswflow"), "generator.steps=7")
    sentence = "--set generator.steps is a key of method dpswgen, and none of dpswflow-h, dpswflow has it."
    assert str(refused.value) == sentence
    with pytest.raises(
        UserError, match=r"Method dpswflow: --set release.bins is a key of methods dpswflow-h"
    ):
        grid(("dpswflow-h", "dpswflow"), own={"dpswflow": ["release.bins=24"]})


def sweep(folder: Path, **values: Any) -> SweepPlan:
    search = {"kind": "grid", "base": False}
    config = SweepConfig.model_validate({"base": "digits", "search": search, "selection": {"policy": "nonprivate",
                                         "score": "public"}} | values)  # fmt: skip
    return plan_sweep(config, "sweep.yaml")


def test_trials_of_a_sweep_over_methods_keep_the_keys_that_their_methods_have(tmp_path: Path) -> None:
    plan = sweep(
        tmp_path,
        set={"release.bins": 24, "generator.hidden": [16], "privacy.relation": "zero_out"},
        space={
            "method": {"grid": ["dpswflow-h", "dpswflow", "dpswgen"]},
            "generator.steps": {"grid": [5, 6], "when": {"method": "dpswgen"}},
        },
    )
    configs = [plan.base.at(trial.point) for trial in plan.trials]
    assert [config.method for config in configs] == ["dpswflow-h", "dpswflow", "dpswgen", "dpswgen"]
    assert [config.generator.steps for config in configs[2:]] == [5, 6]
    assert configs[2].generator.hidden == (16,) and configs[0].release.bins == 24
    assert not hasattr(configs[1].release, "bins") and not hasattr(configs[0], "generator")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"set": {"generator.steps": 5}, "space": {"flow.steps": {"grid": [3, 4]}}},
            "The base run with `set` of sweep.yaml: .*generator.steps is a key of method dpswgen",
        ),
        (
            {"space": {"generator.steps": {"grid": [3, 4]}}},
            "the space holds .*, which is no valid run: generator.steps is a key of method dpswgen",
        ),
        (
            {"space": {"method": {"grid": ["dpswflow-h", "dpswgen"]}, "generator.steps": {"grid": [3, 4]}}},
            "the space holds .*, which is no valid run: generator.steps is a key of method dpswgen",
        ),
    ],
)
def test_a_sweep_with_keys_that_no_trial_has_is_refused(
    values: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        sweep(tmp_path, **values)


def test_methods_say_which_keys_decide_a_release() -> None:
    assert is_free("flow.denoising") and is_free("generator.steps") and not is_free("release.frames")
    assert decides_release("release.rate") and decides_release("encoder.kind") and decides_release("method")
    assert not decides_release("flow.steps") and not decides_release("privacy.epsilon")


@pytest.mark.parametrize(("family", "method"), FAMILIES, ids=IDS)
def test_what_an_earlier_version_wrote_is_read_without_what_decided_nothing(
    family: Family[RunConfig], method: str, tmp_path: Path
) -> None:
    trust = ["trust=local"] if has_key(family.config(method), "trust") else []
    config = family.load("digits", [f"method={method}", *trust])
    (tmp_path / "config.yaml").write_text(as_earlier(config.to_yaml()))
    assert family.load(tmp_path / "config.yaml") == config
    if method != "dpswgen":
        with pytest.raises(UserError, match=r"generator.steps is a key of method dpswgen"):
            family.load(tmp_path / "config.yaml", ["generator.steps=5"])


@pytest.mark.parametrize("users", [False, True])
def test_a_run_of_an_earlier_version_goes_on_with_its_release(users: bool, tmp_path: Path) -> None:
    keys = ("privacy.noise_seed=3", "encoder.kind=identity", "cluster.executor=local")
    home, folder = tmp_path / "home", tmp_path / "run"
    make: Any = run_federated if users else run
    config = small_users(home, *keys) if users else small(f"paths.home={home}", *keys)
    make(config, folder, QUIET)
    released = (folder / "release" / "table.arrow").read_bytes()
    charges = len(Ledger(config.ledger_path).rows())
    (folder / "config.yaml").write_text(as_earlier(config.to_yaml()))
    make(config, folder, QUIET)
    assert (folder / "release" / "table.arrow").read_bytes() == released
    assert len(Ledger(config.ledger_path).rows()) == charges
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert "generator" not in stored and "batch" not in stored["release"]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A method that is in no folder of the package and reads no slices: a file on the path, and a registry line."""
    monkeypatch.setitem(METHODS, "toy", "toy_method")
    return tmp_path


def test_a_method_without_slices_runs_and_is_drawn_from_measured_and_compared(toy: Path) -> None:
    keys = ["method=toy", "toy.points=70", "encoder.epochs=3", "cluster.executor=local",
            "tracking.enabled=false", f"paths.home={toy / 'home'}", f"paths.ledger={toy / 'ledger.sqlite'}",
            "privacy.research=true", "evaluation.directions=16"]  # fmt: skip
    sets = [part for key in keys for part in ("--set", key)]
    code, out, error = run_dpsw("plan", "digits", *sets, "--json")
    assert code == 0 and json.loads(out)["release"] == {"numbers": 16}, error
    research = [*sets, "--set", "evaluation.research=true"]
    code, _, error = run_dpsw("run", "digits", *research, "--output", toy / "run", "--quiet")
    assert code == 0, error
    report = (toy / "run" / "report.html").read_text()
    assert "Toys, with noise." in report and "Slices" not in report and "Convergence" not in report
    assert (toy / "run" / "research" / "metrics.json").exists()
    assert not (toy / "run" / "research" / "slices.png").exists()
    code, _, error = run_dpsw("generate", toy / "run", "--num", "9", "--out", toy / "more.csv")
    assert code == 0 and len((toy / "more.csv").read_text().splitlines()) == 10, error
    code, out, error = run_dpsw("evaluate", toy / "run", "--set", "evaluation.directions=8")
    assert code == 0 and "sliced W2 to test latents" in out, error
    code, out, error = run_dpsw("audit", "digits", *sets, "--canaries", "40", "--runs", "40", "--json")
    (found,) = json.loads(out)["audits"]
    assert code == 0 and 0 < found["mu"]["lower"] <= found["mu"]["claimed"], (dict(found, events=0), error)
    shared = [part for key in kept(keys[1:], keys) if "research" not in key for part in ("--set", key)]
    code, _, error = run_dpsw(
        "compare", "digits", "--methods", "toy,dpswflow-h", "--epsilon", "5", "--seeds", "1", *shared,
        "--set", "flow.steps=3", "--metrics", "sliced_w2", "--output", toy / "compare", "--quiet",
    )  # fmt: skip
    table = (toy / "compare" / "table.md").read_text()
    assert code == 0 and "toy" in table and "dpswflow-h" in table, error
    with pytest.raises(UserError, match=r"toy.points is a key of method toy; method dpswflow-h has flow and"):
        load_config("digits", ["toy.points=3"])


def test_a_method_without_slices_is_swept(toy: Path, ray_session: None) -> None:
    keys = {"method": "toy", "encoder.epochs": 3, "tracking.enabled": False, "paths.home": str(toy / "home"),
            "paths.ledger": str(toy / "ledger.sqlite"), "evaluation.enabled": False}  # fmt: skip
    values = {"name": "toys", "base": "digits", "set": keys, "search": {"kind": "grid"}, "trials": {"at_once": 1},
              "space": {"toy.points": {"grid": [40, 60]}}}  # fmt: skip
    path = toy / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    code, _, error = run_dpsw("tune", path, "--output", toy / "sweep", "--quiet")
    assert code == 2 and "withholds released slices, and method toy releases none; choose" in error
    path.write_text(yaml.safe_dump(values | {"selection": {"score": "public"}}))
    code, _, error = run_dpsw("tune", path, "--output", toy / "sweep", "--quiet")
    told = [path.read_text() for path in (toy / "sweep" / "trials").rglob("trial.json")]
    assert code == 0, (error, told)
    assert [row.kind for row in Ledger(toy / "ledger.sqlite").rows()].count("charge") == 1
    assert (toy / "sweep" / "best" / "report.html").exists()
