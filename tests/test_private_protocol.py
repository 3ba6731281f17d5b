"""Attacks on the release protocol: one noise for every charge, whoever starts again, with whatever folder."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import test_release
from support import small
from test_release import DIM, latents, ledger, make_plan, release, shards, store  # noqa: F401

from dpsw_ray.base.errors import PrivateSideError, UserError
from dpsw_ray.base.files import write_arrow
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import WorkerDied
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.pipeline.generate import generate
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.keys import KeyStore
from dpsw_ray.private.latents import BALL, LatentStore, bounded
from dpsw_ray.private.sealing import sealed
from dpsw_ray.release.exchange import release_once
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.tables.plan import SlicesPlan
from dpsw_ray.tables.release import Release

# ruff: noqa: F811 (the fixture)


def interrupted(group: Any, folder: Path, book: Ledger) -> np.ndarray:
    """A release that dies when its noisy total is known and not stored; returns that total."""
    seen: list[np.ndarray] = []

    def die(self: Release, folder: Path) -> None:
        seen.append(self.counts.copy())
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Release, "save", die)
        with pytest.raises(KeyboardInterrupt):
            release(group, folder, book)
    return seen[0]


class Interposed:
    """A group with something happening just before one method is called for the first time."""

    def __init__(self, group: Any, method: str, happening: Callable[[], None]) -> None:
        self.group, self.size, self.method, self.happening = group, group.size, method, happening

    def call(self, method: str, args: Any = (), **kwargs: Any) -> Any:
        if method == self.method:
            self.method = ""
            self.happening()
        return self.group.call(method, args, **kwargs)

    def rebuild(self) -> None:
        pass


@pytest.mark.parametrize("moment", ["can_repeat", "answer", "contribute"])
def test_a_copied_folder_repeats_the_same_noise_or_pays(moment: str, tmp_path: Path, ledger: Ledger) -> None:
    """A begun release in two folders, finished in one while the other is in the middle."""
    private = store(tmp_path / "private")
    first = interrupted(shards(private), tmp_path / "a", ledger)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def finish_the_other() -> None:
        assert np.array_equal(release(shards(private), tmp_path / "a", ledger).counts, first)

    group = Interposed(shards(private), moment, finish_the_other)
    if moment != "can_repeat":
        with pytest.raises(PrivateSideError):
            release(group, tmp_path / "b", ledger)
        assert ledger.total("d").charges == 1
        assert not (tmp_path / "b" / "manifest.json").exists()
    made = release(group, tmp_path / "b", ledger)
    assert ledger.total("d").charges == 2
    assert np.mean(made.counts == first) < 0.01


def test_a_worker_that_dies_before_the_charge_costs_nothing(tmp_path: Path, ledger: Ledger) -> None:
    def die() -> None:
        raise WorkerDied(0, 2, "prepare")

    release(Interposed(shards(store(tmp_path / "private")), "prepare", die), tmp_path / "a", ledger)
    assert ledger.total("d").charges == 1


def test_a_refused_charge_leaves_no_key(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "capped.sqlite")
    book.register("d", "replace_one", "record", 1e-5, cap=0.5)
    with pytest.raises(UserError, match="budget"):
        release(shards(store(tmp_path / "private")), tmp_path / "a", book)
    assert not list((tmp_path / "private" / "keys").iterdir())


def test_latents_with_the_old_time_and_size_get_no_second_use_of_a_key(
    tmp_path: Path, ledger: Ledger
) -> None:
    private = store(tmp_path / "private")
    first = interrupted(shards(private), tmp_path / "a", ledger)
    chunk = LatentStore(private, "key").folder / "chunk-000000.arrow"
    before = chunk.stat()
    x, labels = latents(500)
    x[0] = -x[0]
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), DIM)
    write_arrow(chunk, pa.table({"latent": column, "label": labels}), mode=0o600)
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert chunk.stat().st_size == before.st_size
    made = release(shards(private), tmp_path / "a", ledger)
    assert ledger.total("d").charges == 2
    assert np.mean(made.counts == first) < 0.01


def test_a_charge_to_one_account_is_no_charge_to_another(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release begun for research cannot be finished as one to be published."""
    ledger.register("research", "replace_one", "record", 1e-5, publishable=False)
    private = store(tmp_path / "private")
    with monkeypatch.context() as patch:
        patch.setattr(
            test_release, "release_once", lambda *a, **k: release_once(*a, **{**k, "account": "research"})
        )
        first = interrupted(shards(private), tmp_path / "a", ledger)
    made = release(shards(private), tmp_path / "a", ledger)
    assert ledger.total("d").charges == 1
    assert np.mean(made.counts == first) < 0.01


def test_reproducible_noise_is_no_retry_of_secret_noise(tmp_path: Path, ledger: Ledger) -> None:
    private = store(tmp_path / "private")
    interrupted(shards(private), tmp_path / "a", ledger)
    release(shards(private), tmp_path / "a", ledger, seed=3)
    assert ledger.total("d").charges == 2


def test_a_release_of_another_ledger_is_not_counted_as_nothing(tmp_path: Path, ledger: Ledger) -> None:
    private = store(tmp_path / "private")
    release(shards(private), tmp_path / "a", ledger)
    other = Ledger(tmp_path / "other.sqlite")
    other.register("d", "replace_one", "record", 1e-5)
    with pytest.raises(UserError, match="not charged to d in the ledger"):
        release(shards(private), tmp_path / "a", other)


def test_a_release_id_leads_to_no_other_file(tmp_path: Path, ledger: Ledger) -> None:
    victim = tmp_path / "victim.json"
    victim.write_text("{}")
    keys = KeyStore(tmp_path / "private")
    keys.folder.mkdir(parents=True)
    for release_id in ("../../victim", str(tmp_path / "victim"), "", "."):
        keys.destroy(release_id)
        assert keys.find(make_plan(release_id), "latents") is None
        with pytest.raises(ValueError, match="id"):
            keys.create(make_plan(release_id), "latents")
    assert victim.read_text() == "{}"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pending.json").write_text(json.dumps({"release_id": "../../victim"}))
    release(shards(store(tmp_path / "other")), tmp_path / "a", ledger)


def test_a_key_that_was_never_finished_is_none(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    keys.create(make_plan(), "latents")
    for content in ("", "{", "[]", '{"plan": 1}'):
        (tmp_path / "keys" / "r.json").write_text(content)
        assert keys.find(make_plan(), "latents") is None
    with pytest.raises(RuntimeError, match="already"):
        keys.create(make_plan(), "latents")


def test_a_destroyed_secret_has_no_successor(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    keys.create(make_plan(), "latents")
    stored = (tmp_path / "keys" / "r.json").read_bytes()
    keys.destroy("r")
    with pytest.raises(RuntimeError, match="which is destroyed"):
        keys.create(make_plan(), "latents")
    assert list((tmp_path / "keys").iterdir()) == []
    (tmp_path / "keys" / "r.json").write_bytes(stored)  # as a backup would bring it back
    assert keys.find(make_plan(), "latents") is None
    keys.forget(["r"])
    assert list((tmp_path / "spent").iterdir()) == []


def test_a_worker_taken_for_lost_that_wakes_makes_no_second_noise_for_a_charge(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps between finding no secret and making one, while another makes the release and commits it."""
    import dpsw_ray.private.keys as module

    private, asleep, awake = store(tmp_path / "private"), threading.Event(), threading.Event()
    original, sleepers = module.draw_secret, []

    def slow(plan: SlicesPlan) -> Any:
        if not asleep.is_set():
            asleep.set()
            awake.wait()
        return original(plan)

    class Replaced:
        """A group whose first call of `prepare` does not answer."""

        def __init__(self) -> None:
            self.group = shards(private)
            self.size = self.group.size

        def call(self, method: str, args: Any = (), *, retry: bool = False) -> list[Any]:
            if method == "prepare" and not sleepers:
                sleepers.append(threading.Thread(target=self.group.call, args=(method, args)))
                sleepers[0].start()
                asleep.wait()
                shutil.copytree(tmp_path / "a", tmp_path / "copy")  # with the id that was begun
                raise WorkerDied(0, 2, method)
            return self.group.call(method, args, retry=retry)

        def rebuild(self) -> None:
            self.group = shards(private)

    monkeypatch.setattr(module, "draw_secret", slow)
    made = release(cast(Any, Replaced()), tmp_path / "a", ledger)
    awake.set()
    sleepers[0].join()
    assert ledger.total("d").charges == 1
    copied = release(shards(private), tmp_path / "copy", ledger)
    assert ledger.total("d").charges == 2  # not a second noise under the first charge
    assert copied.manifest["release_id"] != made.manifest["release_id"]


def test_records_are_binned_with_the_table_the_sensitivity_comes_from() -> None:
    plan = make_plan()
    x, labels = latents(3)
    labels[0] = 0
    wider = dataclasses.replace(plan, table=plan.table * 2)
    for used in (plan, wider):
        table = bound([(x[:1], labels[:1])], used)
        assert (table.sum(axis=2)[0] == used.table[0].sum()).all()
        assert int((table**2).sum()) <= used.event.sensitivity_sq("add_remove")
    with pytest.raises(ValueError, match="kernel has shape"):
        bound([(x, labels)], dataclasses.replace(plan, table=np.pad(plan.table, ((0, 0), (1, 1)))))
    with pytest.raises(RuntimeError, match="dimension"):
        bound([(np.pad(x, ((0, 0), (0, 1))), labels)], plan)


@pytest.mark.parametrize("dim", [2, 8, 20_000])
def test_no_rounding_takes_a_latent_out_of_the_ball(dim: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (4, dim)) * rng.uniform(0.9, 1.1, (4, dim))
    # Every coordinate just above half of a lattice step: rounded to nearest, all would grow.
    x[0] = (np.floor(BALL / np.sqrt(dim) / LATTICE) + 0.51) * LATTICE
    safe, labels = bounded(x, np.zeros(4, np.int32))
    assert (np.linalg.norm(safe, axis=1) <= BALL).all()
    assert np.array_equal(safe, np.rint(safe / LATTICE) * LATTICE)
    again, _ = bounded(safe, labels)
    assert np.array_equal(again, safe)


def test_the_private_side_neither_warns_nor_names_a_chunk(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    class Worker:
        private_dir = tmp_path

        @sealed("working")
        def work(self) -> None:
            warnings.warn("value 0.123456", stacklevel=1)
            np.array([1e308]) * 10
            raise OSError(28, "No space left on device", str(tmp_path / "latents" / "chunk-000042.arrow"))

    with pytest.raises(UserError, match="disk is full") as caught:
        Worker().work()
    assert "000042" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not list(recwarn)


def test_another_relation_is_refused_before_it_tells_the_number_of_records(tmp_path: Path) -> None:
    home = tmp_path / "home"
    config = small("cluster.executor=local", f"paths.home={home}", "privacy.relation=add_remove")
    run(config, tmp_path / "a", Progress(quiet=True))
    manifests = sorted(home.rglob("dataset.json"))
    for extra in ("privacy.delta=1e-5", "privacy.delta=0.5"):  # delta 0.5 is refused in a sentence with N
        config = small("cluster.executor=local", f"paths.home={home}", extra)
        with pytest.raises(UserError, match=r"registered .* with relation add_remove"):
            run(config, tmp_path / "b", Progress(quiet=True))
    assert sorted(home.rglob("dataset.json")) == manifests


def test_what_must_not_be_published_says_so_when_drawn_from_and_stays_the_owners(tmp_path: Path) -> None:
    config = small("cluster.executor=local", f"paths.home={tmp_path}", "privacy.noise_seed=1")
    config = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"research": True, "directions": 8})}
    )
    run(config, tmp_path / "a", Progress(quiet=True))
    assert (tmp_path / "a" / "research").stat().st_mode & 0o077 == 0
    printed = io.StringIO()
    generate(tmp_path / "a", tmp_path / "more.parquet", 20, progress=Progress(stream=printed))
    assert "DO NOT PUBLISH" in printed.getvalue()
