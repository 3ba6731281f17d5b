"""`dpsw audit`: its table, its exit codes, its mistakes, and the scratch home that pipelines are attacked in."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpsw_ray.audit import pipeline
from dpsw_ray.audit.mechanisms import MECHANISMS, Mechanism
from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import DataConfig
from dpsw_ray.data import import_dataset, open_dataset
from dpsw_ray.data.records import Part
from dpsw_ray.methods.registry import load_config
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.private.records import open_private_records
from dpsw_ray.private.worlds import plant

SMALL = (
    *("--set", "encoder.epochs=2", "--set", "release.frames=2", "--set", "release.bins=16"),
    *("--set", "release.smoothing=1", "--runs", "20"),
)
Dpsw = Callable[..., tuple[int, str, str]]


def test_a_mechanism_is_audited_the_same_twice_with_a_seed(dpsw: Dpsw) -> None:
    command = ("audit", "gaussian", "--runs", "2000", "--seed", "1", "--relation", "zero_out", "--json")
    code, out, err = dpsw(*command)
    assert code == 0 and err == ""
    (found,) = json.loads(out)["audits"]
    assert found["epsilon"]["claimed"] == pytest.approx(1.0, rel=1e-6)
    assert found["mu"]["lower"] <= found["mu"]["claimed"] and found["relation"] == "zero_out"
    (again,) = json.loads(dpsw(*command)[1])["audits"]
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_all_mechanisms_share_the_confidence(dpsw: Dpsw, tmp_path: Path) -> None:
    picture = tmp_path / "all.png"
    code, out, _ = dpsw("audit", "all", "--runs", "100", "--relation", "replace_one", "--plot", picture)
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    table = out[out.index("claimed mu") :]
    for name, mechanism in MECHANISMS.items():
        assert (f"\n{name} " in table) == ("replace_one" in mechanism.relations)
    assert "FALSE" not in out and table.count("stands") == sum(
        "replace_one" in mechanism.relations for mechanism in MECHANISMS.values()
    )


def test_a_false_claim_ends_with_1_and_says_so(dpsw: Dpsw, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_the_noise(relation: Relation, level: float) -> object:
        honest, halved = (MECHANISMS["gaussian"].attack(relation, noise) for noise in (level, level / 2))
        return dataclasses.replace(halved, events=honest.events)

    broken = Mechanism(("replace_one",), half_the_noise)  # type: ignore[arg-type]
    monkeypatch.setitem(MECHANISMS, "twin", broken)
    code, out, _ = dpsw("audit", "twin", "--runs", "40000", "--epsilon", "3", "--seed", "0")
    assert code == 1 and "FALSE" in out
    assert "gaussian: the claim is false at confidence 99.99 %: mu is at least" in out
    code, out, _ = dpsw("audit", "twin", "--runs", "40000", "--epsilon", "3", "--seed", "0", "--json")
    assert code == 1 and json.loads(out)["refuted"]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (
            ("nonsense",),
            "nonsense is neither a mechanism nor a config: the mechanisms are all, sliced_histogram",
        ),
        (("nowhere.yaml",), "Config file nowhere.yaml does not exist"),
        (("gaussian", "--canaries", "3"), "--canaries is for configs, and gaussian names mechanisms."),
        (("gaussian", "--set", "seed=1"), "--set is for configs"),
        (("digits", "--epsilon", "3"), "--epsilon is for mechanisms: digits has a key for it"),
        (
            ("digits", "--seed", "3"),
            "--seed is for mechanisms: the noise of a pipeline comes from fresh keys.",
        ),
        (("digits", "--set", "privacy.epsilon=.inf"), "privacy.epsilon is .inf: such a run promises nothing"),
        (("gaussian", "--epsilon", "0"), "--epsilon must be positive and finite, found 0.0"),
        (("gaussian", "--epsilon", "inf"), "'--epsilon': must be a finite number, found 'inf'"),
        (("gaussian", "--delta", "2"), "delta must lie between 0 and 1, found 2.0"),
        (("gaussian", "--relation", "swap"), "relation must be one of replace_one, zero_out, add_remove"),
        (
            ("dp_sgd", "--relation", "replace_one"),
            "dp_sgd has no meaning under relation replace_one: use zero_out",
        ),
        (("gaussian", "--runs", "3"), "Invalid value for '--runs'"),
        (("gaussian", "--plot", "/"), "--plot / is a folder: give a file to write."),
    ],
)
def test_mistakes_are_one_sentence(dpsw: Dpsw, args: tuple[str, ...], part: str) -> None:
    code, out, err = dpsw("audit", *args)
    assert code == 2 and out == ""
    assert err.startswith("Error: ") and part in err and err.count("\n") == 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test's own."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("DPSW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    "settings",
    [
        ("privacy.relation=replace_one", "privacy.noise_seed=1"),
        ("privacy.relation=zero_out", "privacy.noise=discrete_gaussian"),
        ("privacy.relation=add_remove", "release.class_conditional=false"),
    ],
)
def test_a_pipeline_is_attacked_in_a_scratch_home(dpsw: Dpsw, home: Path, settings: tuple[str, ...]) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    code, out, _ = dpsw("audit", "digits", *SMALL, "--canaries", "2", *options, "--json")
    (found,) = json.loads(out)["audits"]
    assert code == 0 and not found["refuted"]
    assert found["group"] == 2 and found["runs"] == 20 and found["name"] == "digits"
    assert found["relation"] == settings[0].partition("=")[2]
    assert found["epsilon"]["claimed"] == pytest.approx(10, rel=2e-3)
    hidden = found["relation"] == "add_remove"  # the time would tell how many records there are
    assert (found["seconds"] is None) == hidden
    # No ledger, no divided data, and no encoder of them.
    assert {path.name for path in home.iterdir()} == {"audits"}
    assert not list((home / "audits").glob("audit-*"))


def test_a_data_set_is_audited_as_it_is_divided(dpsw: Dpsw, home: Path) -> None:
    """In another division the encoder would learn from records that a release protects."""
    info = import_dataset(load_config("digits").data, home, "replace_one")
    ledger = Ledger(home / "ledger.sqlite")
    ledger.divide("digits", info.division)
    code, _, err = dpsw("audit", "digits", *SMALL, "--set", "data.public_fraction=0.4")
    assert code == 2 and "the privacy ledger says, and data.public_fraction (there 0.3, here 0.4)" in err
    assert {path.name for path in home.iterdir()} == {"audits", "datasets", "ledger.sqlite"}
    ledger.register("digits", "replace_one", "record", 1e-4)
    assert "divided: public_fraction 0.3" in dpsw("ledger", "show", "digits")[1]
    ledger.register("digits users", "replace_one", "user", 1e-4)
    assert "divided: public_fraction 0.3" in dpsw("ledger", "show", "digits users")[1]


def test_every_release_is_charged_to_the_scratch_ledger_only(
    dpsw: Dpsw, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[Path] = []
    charge = Ledger.charge

    def counted(self: Ledger, *args: object, **kwargs: object) -> object:
        charged.append(self.path)
        return charge(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "charge", counted)
    code, out, _ = dpsw("audit", "digits", *SMALL)
    assert code == 0 and "releases with and as many without" in out
    assert len(charged) == 40
    assert all((home / "audits") in path.parents for path in charged)


def test_a_failing_audit_leaves_no_private_copy(
    dpsw: Dpsw, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        assert list((home / "audits").glob("*/null/private/records.arrow"))
        raise UserError("This one fails.")

    monkeypatch.setattr(pipeline, "release_once", fail)
    code, _, err = dpsw("audit", "digits", *SMALL)
    assert code == 2 and "This one fails." in err
    assert not list((home / "audits").glob("audit-*"))


def test_a_terminated_audit_leaves_no_private_copy_and_a_killed_one_s_is_removed(home: Path) -> None:
    command = [sys.executable, "-m", "dpsw_ray", "audit", "digits", *SMALL[:-1], "5000"]
    environment = {**os.environ, "DPSW_HOME": str(home)}
    pattern, old = "audit-*/null/private/keys", set()
    for number, left in ((signal.SIGKILL, 1), (signal.SIGTERM, 0)):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not set((home / "audits").glob(pattern)) - old:
            assert process.poll() is None
            time.sleep(0.1)
        old = set((home / "audits").glob(pattern))
        os.kill(process.pid, number)
        process.wait()
        assert len(list((home / "audits").glob("audit-*"))) == left


def test_a_data_set_whose_count_is_protected_is_audited_under_its_own_relation_only(
    dpsw: Dpsw, home: Path
) -> None:
    Ledger(home / "ledger.sqlite").register("digits", "add_remove", "record", 1e-4)
    code, _, err = dpsw("audit", "digits", *SMALL)
    assert code == 2 and "registered" in err and "add_remove" in err
    assert [path.name for path in home.iterdir()] == ["ledger.sqlite"]


@pytest.mark.parametrize(("relation", "replaced"), [("replace_one", 3), ("add_remove", 0)])
def test_worlds_differ_in_canaries_and_are_their_owners_only(
    tmp_path: Path, relation: Relation, replaced: int
) -> None:
    config = DataConfig(source="digits")
    import_dataset(config, tmp_path, relation)
    data = open_dataset(config, tmp_path, relation)
    assert data is not None
    canary = np.zeros((1, 8, 8, 1), np.uint8)
    canaries = Part(np.repeat(canary, 3, axis=0), np.full(3, 4, np.int32), "private")
    world = plant(data.private_dir, tmp_path / "world", canaries, replaced)
    before, after = open_private_records(data.private_dir), open_private_records(world.private_dir)
    assert len(after) == len(before) + 3 - replaced
    assert np.array_equal(after.values[3:], before.values[replaced:])
    assert np.array_equal(after.labels[3:], before.labels[replaced:])
    assert not after.values[:3].any() and (after.labels[:3] == 4).all()
    assert world.info.private_count == (None if relation == "add_remove" else len(after))
    assert np.array_equal(world.public().values, data.public().values)
    for path in (tmp_path / "world", *(tmp_path / "world" / "private").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    with pytest.raises(UserError, match="fewer records than there are canaries"):
        plant(data.private_dir, tmp_path / "more", canaries, len(before) + 1)


def test_a_mechanism_needs_no_private_file(dpsw: Dpsw, home: Path) -> None:
    assert dpsw("audit", "noisy_count", "--runs", "100", "--quiet") == (0, "", "")
    assert list(home.iterdir()) == []
