"""What a statement says of who saw private sums while the release was made: what ran, not what the config says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from federated_support import run_federated
from federated_support import small as federated_small
from support import small
from test_release import ledger, shards, store  # noqa: F401
from test_release_rows import Dying, made, rows

from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.pipeline.records import Records
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.release.place import place, weakest

# ruff: noqa: F811 (the fixture)

QUIET = Progress(quiet=True)

SAID = {
    "driver": "in its own process (cluster.executor local)",
    "worker": "one worker summed the private records and added the noise",
    "workers": "the driver and its logs saw masked sums and the noisy total",
    "unknown": "does not say which process summed",
}


def said(folder: Path) -> str:
    return " ".join(json.loads((folder / "privacy.json").read_text())["statement"]["against"])


def kept(folder: Path) -> Any:
    return json.loads((folder / "release" / "manifest.json").read_text())["computed_in"]


def check(folder: Path, where: str) -> None:
    assert kept(folder) == where
    for other, sentence in SAID.items():
        assert (sentence in said(folder)) is (other == where), other


@pytest.mark.parametrize("actors", [1, 2])
def test_a_run_in_this_process_says_that_the_driver_held_the_sums(actors: int, tmp_path: Path) -> None:
    config = small("cluster.executor=local", f"cluster.actors={actors}", f"paths.home={tmp_path / 'home'}")
    run(config, tmp_path / "run", QUIET)
    check(tmp_path / "run", "driver")


@pytest.mark.parametrize(("actors", "where"), [(1, "worker"), (2, "workers")])
def test_a_run_on_ray_says_whether_there_was_anybody_to_mask_with(
    actors: int, where: str, tmp_path: Path, ray_session: None
) -> None:
    shared = (f"cluster.actors={actors}", f"paths.home={tmp_path / 'home'}")
    run(small(*shared), tmp_path / "run", QUIET)
    check(tmp_path / "run", where)
    # Whoever ends the run, the release was made by whom it was made.
    (tmp_path / "run" / "privacy.json").unlink()
    run(small("cluster.executor=local", *shared), tmp_path / "run", QUIET)
    check(tmp_path / "run", where)


def test_a_release_of_this_process_stays_one_where_ray_goes_on(tmp_path: Path, ray_session: None) -> None:
    shared = ("cluster.actors=2", f"paths.home={tmp_path / 'home'}")
    run(small("cluster.executor=local", *shared), tmp_path / "run", QUIET)
    (tmp_path / "run" / "privacy.json").unlink()
    run(small(*shared), tmp_path / "run", QUIET)
    check(tmp_path / "run", "driver")


def test_the_moments_of_a_private_encoder_are_a_release_too(tmp_path: Path, ray_session: None) -> None:
    shared = (
        "encoder.kind=dp_pca", "encoder.latent_dim=3", "encoder.basis=16", "data.public_fraction=0",
        "data.classes=[0,1,2,3,4,5,6,7,8,9]", "cluster.actors=2", f"paths.home={tmp_path / 'home'}",
    )  # fmt: skip
    config, folder = small("cluster.executor=local", *shared), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Records, "release", _interrupt)  # the moments are made, nothing else is
        run(config, folder, QUIET)
    run(small(*shared), folder, QUIET)
    assert kept(folder) == "workers" and SAID["driver"] in said(folder)


def test_a_release_that_does_not_say_it_has_a_driver_to_be_trusted(tmp_path: Path) -> None:
    config = small("cluster.executor=local", f"paths.home={tmp_path / 'home'}")
    run(config, tmp_path / "run", QUIET)
    path = tmp_path / "run" / "release" / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("computed_in", "sha256"):  # earlier versions wrote neither
        del manifest[key]
    path.write_text(json.dumps(manifest))
    (tmp_path / "run" / "privacy.json").unlink()
    run(config, tmp_path / "run", QUIET)
    assert SAID["unknown"] in said(tmp_path / "run")


def test_an_attempt_in_this_process_is_remembered_by_the_one_that_ends_it(
    tmp_path: Path, ledger: Ledger, ray_session: None
) -> None:
    private, plan = store(tmp_path / "private"), rows(epochs=4, batches=2)
    with pytest.raises(KeyboardInterrupt):
        made(plan, tmp_path / "a", ledger, Dying(shards(private), 2), seed=None)
    with open_cluster(ClusterConfig(actors=2, cpus_per_actor=0.5)) as cluster:
        group = cluster.spawn(*_like(shards(private)))
        finished = made(plan, tmp_path / "a", ledger, group, seed=None)
        other = made(dataclasses.replace(plan), tmp_path / "b", ledger, group, seed=None)
    assert finished.manifest["computed_in"] == "driver" and other.manifest["computed_in"] == "workers"


@pytest.mark.parametrize(
    ("noted", "where"), [("missing", "unknown"), (None, "driver"), ("elsewhere", "unknown")]
)
def test_a_note_that_does_not_say_where_an_attempt_was_is_no_place(
    noted: str | None, where: str, tmp_path: Path, ledger: Ledger
) -> None:
    private, plan = store(tmp_path / "private"), rows(epochs=4, batches=2)
    with pytest.raises(KeyboardInterrupt):
        made(plan, tmp_path / "a", ledger, Dying(shards(private), 2), seed=None)
    (pending,) = tmp_path.rglob("pending.json")
    stored = json.loads(pending.read_text())
    assert stored.pop("computed_in") == "driver"
    pending.write_text(json.dumps(stored if noted == "missing" else {**stored, "computed_in": noted}))
    assert made(plan, tmp_path / "a", ledger, shards(private), seed=None).manifest["computed_in"] == where


def test_a_note_says_that_nothing_is_summed_yet(tmp_path: Path, ledger: Ledger) -> None:
    class Uncharged(Ledger):
        def charge(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    private, plan = store(tmp_path / "private"), rows(epochs=4, batches=2)
    with pytest.raises(KeyboardInterrupt):
        made(plan, tmp_path / "a", Uncharged(ledger.path), shards(private), seed=None)
    (pending,) = tmp_path.rglob("pending.json")
    assert json.loads(pending.read_text())["computed_in"] is None
    assert made(plan, tmp_path / "a", ledger, shards(private), seed=None).manifest["computed_in"] == "driver"


def _like(group: Any) -> tuple[Any, list[dict[str, Any]]]:
    """What makes the same shards elsewhere."""
    parts = group._parts
    names = ("rank", "size", "private_dir", "encoder_dir")
    kwargs = [
        {
            **{name: getattr(p, name) for name in names},
            "latents_key": p.store.folder.name,
            "receipts_dir": p.receipt_store.folder,
        }
        for p in parts
    ]
    return type(parts[0]), kwargs


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
def test_a_federated_run_tells_the_promise_from_who_simulated_the_devices(trust: str, tmp_path: Path) -> None:
    config = federated_small(
        tmp_path / "home", f"trust={trust}", "secagg.threshold=0.5", "cluster.executor=local"
    )
    run_federated(config, tmp_path / "run", QUIET)
    assert kept(tmp_path / "run") == "driver"
    assert "Here the driver simulated them in its own process (cluster.executor local)" in said(
        tmp_path / "run"
    )


def test_places_are_told_apart_by_the_processes_themselves() -> None:
    from dpsw_ray.release.place import PROCESS

    assert (
        place([PROCESS, "other"]) == "driver" and place(["a"]) == "worker" and place(["a", "a"]) == "worker"
    )
    assert place(["a", "b"]) == "workers"
    assert weakest(["workers", "driver", "worker"]) == "driver" and weakest(["workers", "worker"]) == "worker"
    assert weakest([]) == weakest(["workers", None]) == weakest(["elsewhere"]) == "unknown"
