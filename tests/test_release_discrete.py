"""Releases with exact discrete noise: the attacks on keyed noise again, on drawn tables; and the noise as released."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_release
from scipy import stats
from test_private_protocol import (
    interrupted,
    test_a_charge_to_one_account_is_no_charge_to_another,  # noqa: F401
    test_a_copied_folder_repeats_the_same_noise_or_pays,  # noqa: F401
    test_a_worker_that_dies_before_the_charge_costs_nothing,  # noqa: F401
    test_latents_with_the_old_time_and_size_get_no_second_use_of_a_key,  # noqa: F401
)
from test_release import (
    latents,
    ledger,  # noqa: F401
    release,
    shards,
    store,
    test_a_release_that_was_lost_is_charged_again,  # noqa: F401
    test_a_stored_release_is_read_back_and_costs_nothing,  # noqa: F401
    test_a_worker_that_dies_in_the_release_costs_nothing_more,  # noqa: F401
    test_an_interrupted_release_is_repeated_with_the_same_bits,  # noqa: F401
    test_changed_latents_get_no_second_use_of_a_key,  # noqa: F401
)

from dpsw_ray.base.errors import PrivateSideError, UserError
from dpsw_ray.methods.dpswflow_h.mechanism import bound, noise
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy.accountants import compose_mu
from dpsw_ray.privacy.discrete import NoiseTable
from dpsw_ray.privacy.events import NoiseKind
from dpsw_ray.privacy.filters import Filter
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.noise import NoiseKey, low_bits
from dpsw_ray.private.keys import KeyStore
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.plan import SlicesPlan, changed_cells
from dpsw_ray.tables.release import Release

# ruff: noqa: F811 (the fixture)


def plan(
    release_id: str = "r",
    classes: int = 3,
    epsilon: float = 1.0,
    relation: Any = "replace_one",
    kind: NoiseKind = "discrete_gaussian",
    frames: int = 3,
    bins: int = 16,
) -> SlicesPlan:
    """`test_release.make_plan`, with discrete noise unless told otherwise."""
    return HistogramPlan.make(
        release_id=release_id, dim=test_release.DIM, frames=frames, grid=BinGrid(bins, 0.5), classes=classes,
        class_conditional=classes > 1, relation=relation, epsilon=epsilon, delta=1e-5, seed=7, noise=kind,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def discrete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every release here, those of the imported tests included, is one of a discrete plan."""
    monkeypatch.setattr(test_release, "make_plan", plan)


@pytest.mark.parametrize("kind", ["gaussian", "discrete_gaussian"])
def test_what_a_release_adds_to_the_exact_sum_is_noise_of_the_charged_scale(
    kind: NoiseKind, tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole protocol: fails if noise is halved, added by every shard, or reused by another release."""

    def wide(release_id: str) -> SlicesPlan:
        return plan(release_id, kind=kind, frames=8, bins=128)

    monkeypatch.setattr(test_release, "make_plan", wide)
    private = store(tmp_path / "private")
    exact = bound([latents(500)], wide("r"))
    added = []
    for name in ("a", "b"):
        made = release(shards(private, 3), tmp_path / name, ledger)
        charged = next(e for e in ledger.entries("d") if e.release_id == made.manifest["release_id"])
        (event,) = charged.events
        assert event == wide("r").event
        added.append((made.counts[0] - exact).ravel() / event.noise_std)  # type: ignore[attr-defined]
    cells = added[0].size
    for values in added:
        assert stats.kstest(values, "norm").pvalue > 1e-6
        assert abs(values.mean()) < 6 / np.sqrt(cells)
        assert abs((values**2).mean() - 1) < 6 * np.sqrt(2 / cells)
        assert abs((values[1:] * values[:-1]).mean()) < 6 / np.sqrt(cells)
    for transform in (np.asarray, np.square, np.sign):
        assert abs(np.corrcoef(transform(added[0]), transform(added[1]))[0, 1]) < 6 / np.sqrt(cells)


def test_the_drawn_table_waits_for_the_commit_where_only_its_owner_reads_it(
    tmp_path: Path, ledger: Ledger
) -> None:
    private = store(tmp_path / "private")
    seen = interrupted(shards(private), tmp_path / "a", ledger)
    (path,) = (private / "keys").iterdir()
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    drawn = (
        NoiseTable(bytes.fromhex(json.loads(path.read_text())["secret"])).cells().reshape(plan().cells[1:])
    )
    assert np.array_equal(seen[0] - bound([latents(500)], plan()), drawn)
    os.link(path, tmp_path / "kept")  # what was in the file, whatever its name
    release(shards(private), tmp_path / "a", ledger)
    assert not path.exists()
    assert not any((tmp_path / "kept").read_bytes())


def test_a_table_is_never_used_for_another_plan(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    drawn = keys.create(plan(), "latents")
    found = keys.find(plan(), "latents")
    assert isinstance(drawn, NoiseTable) and found is not None and found.secret == drawn.secret
    others = (plan(epsilon=2.0), plan(kind="gaussian"), dataclasses.replace(plan(), noise="gaussian"))
    for other in others:
        assert keys.find(other, "latents") is None
    assert keys.find(plan(), "other latents") is None
    with pytest.raises(RuntimeError, match="already"):
        keys.create(plan(), "latents")


def test_a_table_that_was_never_finished_is_none(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    keys.create(plan(), "latents")
    path = tmp_path / "keys" / "r.json"
    whole = path.read_text()
    shorter = {**json.loads(whole), "secret": "00" * 8}
    for content in ("", whole[: len(whole) // 2], whole[:-2], json.dumps(shorter)):
        path.write_text(content)
        assert keys.find(plan(), "latents") is None


@pytest.mark.parametrize(("kind", "sentence"), [("gaussian", "no Gaussian mechanism"), ("renyi", "budget")])
def test_a_refused_charge_leaves_no_table(kind: Filter, sentence: str, tmp_path: Path) -> None:
    book = Ledger(tmp_path / "capped.sqlite")
    book.register("d", "replace_one", "record", 1e-5, cap=0.5, filter=kind)
    with pytest.raises(UserError, match=sentence):
        release(shards(store(tmp_path / "private")), tmp_path / "a", book)
    assert book.total("d").charges == 0
    assert not list((tmp_path / "private" / "keys").iterdir())


def test_a_secret_of_the_other_kind_makes_no_noise() -> None:
    table = NoiseTable.draw((1.0, math.prod(plan().cells)))
    for secret, other in ((NoiseKey.generate(), plan()), (table, plan(kind="gaussian"))):
        with pytest.raises(ValueError, match="not one of"):
            noise(secret, other)


def test_a_seed_makes_no_discrete_noise(tmp_path: Path, ledger: Ledger) -> None:
    with pytest.raises(PrivateSideError):
        release(shards(store(tmp_path / "private")), tmp_path / "a", ledger, seed=3)
    assert not (tmp_path / "a" / "manifest.json").exists()


def test_infinite_epsilon_releases_the_exact_sum_without_a_sampler(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_release, "make_plan", lambda release_id: plan(release_id, epsilon=float("inf")))
    monkeypatch.setattr("opendp.measurements.make_gaussian", None)
    made = release(shards(store(tmp_path / "private")), tmp_path / "a", ledger)
    assert np.array_equal(made.counts[0], bound([latents(500)], plan()))
    assert made.cell_noise == 0


def test_more_cells_than_are_worth_drawing_are_refused() -> None:
    with pytest.raises(UserError, match="at most 16,777,216 cells"):
        plan(classes=1000, frames=64, bins=128)
    assert plan(classes=1000, frames=64, bins=128, kind="gaussian").cells == (1, 1000, 256, 128)


def test_the_kinds_of_noise_are_different_plans_and_events() -> None:
    exact, rounded = plan(), plan(kind="gaussian")
    same_scale = dataclasses.replace(rounded, noise_std=exact.noise_std)
    assert exact.digest() != same_scale.digest()
    assert exact.event != same_scale.event and exact.event.to_dict()["noise"] == "discrete_gaussian"


_KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_release as t
import test_release_discrete as d
from dpsw_ray.privacy.events import NoiseKind
from dpsw_ray.privacy.ledger import Ledger
import {module} as module
t.make_plan = d.plan
original = module.{name}
def die(*args, **kwargs):
    if {after}: original(*args, **kwargs)
    os._exit(9)
module.{name} = die
root = Path({root!r})
t.release(t.shards(root / "private"), root / "release", Ledger(root / "ledger.sqlite"))
"""


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [
        ("dpsw_ray.private.keys", "KeyStore.create", True),
        ("dpsw_ray.privacy.ledger", "Ledger.charge", True),
        ("dpsw_ray.tables.release", "Release.save", False),
        ("dpsw_ray.private.keys", "KeyStore.destroy", False),
    ],
)
def test_a_killed_release_never_makes_two_tables_for_one_charge(
    module: str, name: str, after: bool, tmp_path: Path, ledger: Ledger
) -> None:
    private = store(tmp_path / "private")
    code = _KILLED.format(
        tests=str(Path(__file__).parent), module=module, name=name, after=after, root=str(tmp_path)
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    drawn = None
    if ledger.total("d").charges and (private / "keys").exists():
        (path,) = (private / "keys").iterdir()
        drawn = NoiseTable(bytes.fromhex(json.loads(path.read_text())["secret"])).cells()
    stored = (tmp_path / "release" / "manifest.json").exists()
    before = Release.load(tmp_path / "release").counts.copy() if stored else None
    made = release(shards(private), tmp_path / "release", ledger)
    if before is not None:
        assert np.array_equal(made.counts, before)
    if drawn is not None:  # charged: the table of before the kill is the one that is released
        assert np.array_equal((made.counts[0] - bound([latents(500)], plan())).ravel(), drawn)
    assert ledger.total("d").charges == 1
    assert not list((private / "keys").iterdir())


def test_noise_whose_low_bits_would_tell_of_a_record_is_refused_and_exact_noise_is_the_way_out() -> None:
    with pytest.raises(
        UserError, match=r"low bits.*fewer release.frames, or privacy.noise discrete_gaussian\.$"
    ):
        plan(epsilon=1e-4, frames=500, kind="gaussian")
    assert plan(epsilon=1e-4, frames=500).noise == "discrete_gaussian"
    for epsilon in (0.01, 1.0, 100.0):
        accepted = plan(epsilon=epsilon, frames=500, kind="gaussian")
        mu = compose_mu([accepted.event], "replace_one")
        assert mu is not None
        changed = changed_cells(accepted.directions.shape[1], accepted.grid)
        assert low_bits(accepted.noise_std, changed) <= 0.01 * mu
