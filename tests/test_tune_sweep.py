"""Sweeps on the digits from command to report: real Ray, real charges, real kills."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support import SMALL, as_earlier, descendants, run_dpsw

from dpsw_ray.pipeline import memory
from dpsw_ray.privacy.accountants import compose_mu
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.selection import TrialsLaw
from dpsw_ray.private.shard import Shard
from dpsw_ray.tables.release import Release

KILLS = int(os.environ.get("DPSW_KILLS", "2"))
STEPS = {"flow.steps": {"grid": [3, 4, 5, 6]}}


def write_sweep(place: Path, **sections: Any) -> Path:
    """A sweep's file over small digits with a home and a ledger in `place`."""
    run = {key: yaml.safe_load(value) for key, value in (override.split("=") for override in SMALL)}
    run |= {"paths.home": str(place / "home"), "paths.ledger": str(place / "ledger.sqlite")}
    values: dict[str, Any] = {"name": "small", "base": "digits", "set": run | sections.pop("set", {})}
    # A trial is short, and a worker's start is not.
    values |= {"space": STEPS, "search": {"kind": "grid"}, "trials": {"at_once": 1}}
    path = place / "sweep.yaml"
    place.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values | sections, sort_keys=False))
    return path


def run_tune(place: Path, *options: object) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    return run_dpsw("tune", place / "sweep.yaml", "--output", place / "s", *options)


def trials(place: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(place / "s" / "trials.parquet").to_pylist()
    return rows


def charges(place: Path) -> list[Any]:
    ledger = Ledger(place / "ledger.sqlite")
    return [entry for dataset in ledger.datasets() for entry in ledger.entries(dataset.name)]


def privacy(place: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((place / "s" / "privacy.json").read_text())
    return read


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Path]:
    """A sweep under `reuse`, in which two of five trials cannot be made: they do not fit, and nobody knew it before."""
    place = tmp_path_factory.mktemp("swept")
    space = {"flow.particles": {"grid": [60, 10**10]}, "flow.steps": {"grid": [3, 5]}}
    write_sweep(place, space=space, set={"tracking.enabled": True}, trials={"at_once": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "machine_memory", lambda: 10**18)
        code, out, err = run_tune(place)
        (place / "said.txt").write_text(out)
        assert (code, err) == (1, ""), out  # two trials failed
        yield place


def test_trials_that_fail_are_reported_and_stop_no_other(swept: Path) -> None:
    found = trials(swept)
    assert [row["status"] for row in found] == ["finished", "finished", "finished", "failed", "failed"]
    for row in found:
        assert ("would take at least" in row["error"]) == (row["status"] == "failed")
        assert (row["score"] is None) == (row["status"] == "failed")
    assert [row["flow.steps"] for row in found] == [None, 3, 5, 3, 5]
    said = (swept / "said.txt").read_text()
    assert len(re.findall(r"^ +\d  FAILED: ", said, re.MULTILINE)) == 2
    ended = re.findall(r"^ +(\d) +-?[\d.]+ ([* ]) +(\d+) ", said, re.MULTILINE)
    assert sorted((number, steps) for number, _, steps in ended) == [("0", "6"), ("1", "3"), ("2", "5")]
    assert "*" in {best for _, best, _ in ended}


def test_one_release_is_charged_whatever_the_number_of_trials(swept: Path) -> None:
    (entry,) = charges(swept)
    release = Release.load(swept / "s" / "releases" / "00000" / "release")
    assert entry.release_id == release.manifest["release_id"]
    stated = privacy(swept)
    assert stated["epsilon"] == release.manifest["privacy"]["epsilon"]["upper"] <= 10.0
    assert stated["policy"] == "reuse" and stated["publishable"] and stated["releases"] == 1
    assert stated["score"]["kind"] == "post_processing"


def test_the_best_is_a_run_that_dpsw_flow_goes_on_with_for_free(swept: Path) -> None:
    found = [row for row in trials(swept) if row["status"] == "finished"]
    best = min(found, key=lambda row: row["score"])
    chosen = yaml.safe_load((swept / "s" / "best.yaml").read_text())
    assert chosen["flow"]["steps"] == (best["flow.steps"] or 6)
    assert (swept / "s" / "best" / "report.html").exists()
    code, _, err = run_dpsw("flow", swept / "s" / "best.yaml", "--output", swept / "s" / "best", "--quiet")
    assert (code, err) == (0, "") and len(charges(swept)) == 1


def test_the_report_needs_nothing_else_and_states_the_whole(swept: Path) -> None:
    page = (swept / "s" / "report.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 4  # strip, scatter, parallel coordinates, learning curves
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert not re.search(r"<script|https?://|<link", page)
    assert "One release was made and paid for: epsilon at most" in page
    assert "2 failed" in page and "NOT FOR PUBLICATION" not in page


def test_trials_are_nested_in_mlflow(swept: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{swept / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dpsw_ray")
    assert experiment is not None
    runs = {
        run.info.run_name: run
        for run in client.search_runs([experiment.experiment_id])
        if run.info.run_name != "small-best"
    }
    parent = runs.pop("small")
    assert parent.data.tags["policy"] == "reuse"
    assert parent.data.metrics["epsilon"] == pytest.approx(privacy(swept)["epsilon"])
    assert sorted(runs) == [f"{n:05d}" for n in range(5)]
    statuses = [runs[name].info.status for name in sorted(runs)]
    assert statuses == ["FINISHED"] * 3 + ["FAILED"] * 2
    for name, row in zip(sorted(runs), trials(swept), strict=True):
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[name].data.metrics.get("score") == (
            None if row["score"] is None else pytest.approx(row["score"])
        )


def test_a_folder_is_gone_on_with_only_when_asked_and_only_by_the_same_sweep(swept: Path) -> None:
    code, _, err = run_tune(swept)
    assert code == 2 and "--resume goes on with it" in err and err.count("\n") == 1
    code, _, err = run_tune(swept, "--resume", "--set", "search.seed=5")
    assert code == 2 and "holds another sweep (sweep.yaml differs)" in err
    code, _, err = run_tune(swept, "--resume", "--set", "set.flow.tolerance=0.1")
    assert code == 2 and "holds another sweep" in err
    before = trials(swept)
    base = swept / "s" / "base.yaml"
    base.write_text(as_earlier(base.read_text()))
    code, _, err = run_tune(swept, "--resume")  # tries the failed ones again
    assert (code, err) == (1, "")
    assert [row["score"] for row in trials(swept)] == [row["score"] for row in before]
    assert len(charges(swept)) == 1


def test_releases_of_a_split_are_charged_together_before_the_first_is_drawn(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpsw_ray.tune.prepare as preparing

    space = {"release.frames": {"grid": [2, 3]}, "seed": {"grid": [0, 7]}, "flow.steps": {"grid": [3, 5]}}
    write_sweep(tmp_path, space=space, selection={"policy": "split"}, set={"privacy.epsilon": 2.0})
    seen = []
    original = preparing.release_once

    def watched(*args: Any, **kwargs: Any) -> Release:
        seen.append(len(charges(tmp_path)))
        return original(*args, **kwargs)

    monkeypatch.setattr(preparing, "release_once", watched)
    code, _, err = run_tune(tmp_path, "--quiet")
    assert (code, err) == (0, "")
    assert seen == [4] * 4
    assert len(trials(tmp_path)) == 9 and {row["release"] for row in trials(tmp_path)} == {0, 1, 2, 3}
    ledger = Ledger(tmp_path / "ledger.sqlite")
    total = ledger.total("digits").epsilon.upper
    assert 1.999 <= total <= 2.0 and privacy(tmp_path)["epsilon"] == pytest.approx(total)
    # What is shown of the best was chosen by all of them: its own run promises no less than the whole.
    best = json.loads((tmp_path / "s" / "best" / "privacy.json").read_text())
    assert best["epsilon"]["upper"] == privacy(tmp_path)["epsilon"] and len(best["events"]) == 4
    ids = {entry.release_id for entry in charges(tmp_path)}
    assert ids == {
        Release.load(folder / "release").manifest["release_id"]
        for folder in (tmp_path / "s" / "releases").iterdir()
    }
    code, _, err = run_tune(tmp_path, "--quiet", "--resume")
    assert (code, err, len(charges(tmp_path))) == (0, "", 4)


def test_a_noisy_query_is_charged_with_the_release_and_judges_every_trial(
    tmp_path: Path, ray_session: None
) -> None:
    space = {"release.bins": {"grid": [24, 48]}, "flow.steps": {"grid": [3, 5]}}
    selection = {"policy": "split", "score": "noisy_query", "query_share": 0.2, "query_frames": 3}
    write_sweep(tmp_path, space=space, selection=selection, set={"privacy.epsilon": 2.0})
    code, _, err = run_tune(tmp_path, "--quiet")
    assert (code, err) == (0, "")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    entries = charges(tmp_path)
    assert len(entries) == 4  # two grids beside the base's, and the query
    total = ledger.total("digits").epsilon.upper
    assert 1.999 <= total <= 2.0 and privacy(tmp_path)["epsilon"] == pytest.approx(total)
    assert privacy(tmp_path)["releases"] == 3 and privacy(tmp_path)["queries"] == 1
    assert privacy(tmp_path)["score"]["kind"] == "charged"
    query = Release.load(tmp_path / "s" / "releases" / "query" / "release")
    asked = [entry for entry in entries if entry.release_id == query.manifest["release_id"]]
    shares = [compose_mu(entry.events, "replace_one") or 0.0 for entry in asked + entries]
    assert shares[0] ** 2 / sum(mu**2 for mu in shares[1:]) == pytest.approx(0.2, rel=1e-4)
    assert query.directions.shape[1] == 3 * query.dim and query.blocks == 10
    shown = Release.load(tmp_path / "s" / "releases" / "00000" / "release").directions
    assert not set(map(tuple, query.directions[0])) & set(map(tuple, shown[0]))
    assert {row["status"] for row in trials(tmp_path)} == {"finished"}
    assert "was charged with the others" in (tmp_path / "s" / "report.html").read_text()
    best = json.loads((tmp_path / "s" / "best" / "privacy.json").read_text())
    assert best["epsilon"]["upper"] == privacy(tmp_path)["epsilon"]
    code, _, err = run_tune(tmp_path, "--quiet", "--resume")
    assert (code, err, len(charges(tmp_path))) == (0, "", 4)


def test_a_cap_refuses_the_sweeps_of_a_frontier_as_a_whole(tmp_path: Path, ray_session: None) -> None:
    write_sweep(tmp_path, epsilons=[1.0, 2.0])
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.register("digits", "replace_one", "record", 1e-4, cap=2.1)
    code, _, err = run_tune(tmp_path, "--quiet")
    assert code == 2 and "The budget of data set digits is epsilon 2.1" in err
    assert charges(tmp_path) == []


def test_a_cap_refuses_a_split_as_a_whole_before_anything_is_charged(
    tmp_path: Path, ray_session: None
) -> None:
    write_sweep(tmp_path, space={"seed": {"grid": [0, 1, 2]}}, selection={"policy": "split"})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    # The whole would cost 10, each of the four by itself less than 6.
    ledger.register("digits", "replace_one", "record", 1e-4, cap=9.0)
    code, _, err = run_tune(tmp_path, "--quiet")
    assert code == 2 and "The budget of data set digits is epsilon 9" in err
    assert charges(tmp_path) == []
    code, _, err = run_tune(tmp_path, "--quiet", "--set", "set.privacy.epsilon=8")
    assert (code, err) == (0, "")


def test_a_config_without_the_files_that_say_what_was_paid_for_is_refused(
    swept: Path, tmp_path: Path
) -> None:
    shutil.copytree(swept / "s", tmp_path / "s")
    shutil.copyfile(swept / "sweep.yaml", tmp_path / "sweep.yaml")
    cheaper = ("--quiet", "--resume", "--set", "set.privacy.epsilon=1")
    pretend(tmp_path, 1.0)
    code, _, err = run_tune(tmp_path, *cheaper)
    assert code == 2 and "was charged for another mechanism or another epsilon" in err
    (tmp_path / "s" / "base.yaml").unlink()
    code, _, err = run_tune(tmp_path, *cheaper)
    assert code == 2 and "holds a sweep whose base.yaml is missing" in err and len(charges(swept)) == 1


def pretend(place: Path, epsilon: float) -> None:
    """Makes a sweep's folder say that it was begun at another epsilon."""
    for name, section, key in (("sweep", "set", "privacy.epsilon"), ("base", "privacy", "epsilon")):
        path = place / "s" / f"{name}.yaml"
        values = yaml.safe_load(path.read_text())
        values[section][key] = epsilon if name == "base" else int(epsilon)
        path.write_text(yaml.safe_dump(values, sort_keys=False))


def test_research_says_that_epsilon_is_infinite(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpsw_ray.tune.frontier as frontier

    connections: list[str] = []
    connect, make = frontier.connected, frontier.make_best

    def connecting(cluster: Any) -> Any:
        stop = connect(cluster)
        connections.append("open")
        return lambda: (stop(), connections.append("closed"))

    def making(*args: Any) -> None:
        assert connections == ["open"], "the base run asks for the ledger of this machine"
        make(*args)

    monkeypatch.setattr(frontier, "connected", connecting)
    monkeypatch.setattr(frontier, "make_best", making)
    space = {"release.frames": {"grid": [2, 3]}}
    write_sweep(tmp_path, space=space, selection={"policy": "nonprivate"}, epsilons=[1.0])
    code, _, err = run_tune(tmp_path, "--quiet")
    assert (code, err, connections) == (0, "", ["open", "closed"])
    place = tmp_path / "s" / "epsilon-1"
    whole = json.loads((place / "privacy.json").read_text())
    assert whole["epsilon"] == "inf" and not whole["publishable"]
    page = (place / "report.html").read_text()
    assert "This sweep must NOT be published" in page and "Epsilon is infinite" in page
    assert [entry.publishable for entry in charges(tmp_path)] == [False, False]
    assert Ledger(tmp_path / "ledger.sqlite").division("digits") is None, "research binds no other run"
    for run in ("best", "base"):  # nor do the runs that it leaves promise anything
        stated = json.loads((place / run / "privacy.json").read_text())
        assert stated["epsilon"]["upper"] == "inf" and not stated["publishable"]
        assert "was chosen among several by looking at all of them" in stated["statement"]["promise"][0]
        assert "at most 1" not in (place / run / "report.html").read_text()
    page = (tmp_path / "s" / "report.html").read_text()
    assert "NOT FOR PUBLICATION" in page and "These sweeps must NOT be published" in page
    assert "Epsilon is infinite for whoever sees this page" in page and "whoever sees several" not in page


def test_a_private_selection_shows_its_best_and_leaves_no_trace_of_the_others(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode = [], Shard.encode
    monkeypatch.setattr(Shard, "encode", lambda shard: encoded.append(shard.rank) or encode(shard))
    space = {"release.frames": {"choice": [2, 3, 4]}, "flow.steps": {"randint": [3, 9]}}
    selection = {"policy": "private_selection", "mean_trials": 12, "eta": 1}
    write_sweep(
        tmp_path, space=space, search={"kind": "random"}, selection=selection, set={"tracking.enabled": True}
    )
    code, out, err = run_tune(tmp_path)
    assert (code, err) == (0, "")
    assert encoded == [0], "the best run looks at no private record"
    (entry,) = charges(tmp_path)
    assert entry.events[0].kind == "private_selection"
    total = Ledger(tmp_path / "ledger.sqlite").total("digits").epsilon.upper
    assert 9.9 <= total <= 10.0 and privacy(tmp_path)["epsilon"] == total
    (row,) = trials(tmp_path)
    assert row["trial"] == 0 and row["status"] == "finished"
    release = Release.load(tmp_path / "s" / "releases" / "00000" / "release")
    assert release.manifest["release_id"] == entry.release_id and release.publishable
    assert release.manifest["privacy"]["events"][0]["kind"] == "private_selection"
    assert release.directions.shape[1] == 6 * row["release.frames"]
    # When the best was made would tell its place among the others.
    assert release.manifest["created"] == entry.time
    shown_ms = (tmp_path / "s" / "releases" / "00000" / "release" / "manifest.json").stat().st_mtime * 1000
    assert min(run_starts(tmp_path)) >= int(shown_ms)
    against = json.loads((tmp_path / "s" / "best" / "privacy.json").read_text())["statement"]["against"]
    assert any("the process that makes the trials is trusted" in sentence for sentence in against)
    assert not any("masked sums" in sentence for sentence in against)
    (private,) = tmp_path.glob("home/datasets/digits/*/private")
    assert list((private / "selections").iterdir()) == [] and list((private / "keys").iterdir()) == []
    # The shown one alone: the others would tell how many trials there were.
    assert [path.name for path in (private / "spent").iterdir()] == [entry.release_id]
    assert not re.search(r"trial \d", out.replace("trial 0", "")), "no word about how many there were"
    code, _, err = run_tune(tmp_path, "--resume", "--quiet")
    assert (code, err, len(charges(tmp_path)), trials(tmp_path)) == (0, "", 1, [row])


def run_starts(place: Path) -> list[int]:
    """When the runs in MLflow were begun, in milliseconds."""
    with sqlite3.connect(place / "mlflow.db") as connection:
        return [start for (start,) in connection.execute("select start_time from runs")]


def write_selection(place: Path, **changes: Any) -> None:
    selection = {"policy": "private_selection", "mean_trials": 6, "eta": 1}
    space = {"release.frames": {"choice": [2, 3, 4]}}
    write_sweep(place, **{"space": space, "search": {"kind": "random"}, "selection": selection} | changes)


def private_names(place: Path, folder: str) -> list[str]:
    return [path.name for path in place.glob(f"home/datasets/digits/*/private/{folder}/*")]


def test_a_charge_pays_for_the_selection_it_was_made_for_and_no_other(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpsw_ray.tune.private_selection as selecting

    def dying(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    write_selection(tmp_path, set={"privacy.epsilon": 1})
    with monkeypatch.context() as patch:
        patch.setattr(selecting, "draw_release", dying)
        assert run_tune(tmp_path, "--quiet")[0] == 130
    dearer = ("--quiet", "--resume", "--set", "set.privacy.epsilon=10")
    pretend(tmp_path, 10.0)
    code, _, err = run_tune(tmp_path, *dearer)
    assert code == 2 and "is not what was charged to digits" in err and err.count("\n") == 1
    for name in ("sweep.yaml", "base.yaml"):
        (tmp_path / "s" / name).unlink()
    code, _, err = run_tune(tmp_path, *dearer)
    assert code == 2 and "is missing" in err
    assert len(charges(tmp_path)) == 1 and not (tmp_path / "s" / "releases").exists()


def test_a_selection_that_is_refused_leaves_the_folder_free(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"privacy.noise": {"choice": ["gaussian", "discrete_gaussian"]}}
    write_selection(tmp_path, space=space)
    code, _, err = run_tune(tmp_path, "--quiet")
    assert code == 2 and "needs releases that are Gaussian mechanisms" in err
    write_selection(tmp_path, selection={"policy": "private_selection", "mean_trials": 1.5})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.register("digits", "replace_one", "record", 1e-4, cap=3.0, filter="renyi")
    code, _, err = run_tune(tmp_path, "--quiet")
    assert code == 2 and "The budget of data set digits is epsilon 3" in err
    with monkeypatch.context() as patch:  # as if somebody else had charged between the check and the charge
        patch.setattr(Ledger, "check", lambda *_, **__: None)
        assert run_tune(tmp_path, "--quiet")[0] == 2
    assert charges(tmp_path) == [] and not (tmp_path / "s" / "private.json").exists()
    assert private_names(tmp_path, "selections") == []
    code, _, err = run_tune(tmp_path, "--quiet", "--set", "set.privacy.epsilon=2")
    assert (code, err, len(charges(tmp_path))) == (0, "", 1)


def test_a_selection_charges_the_ledger_of_the_clusters_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests left
    write_selection(tmp_path, set={"cluster.address": "127.0.0.1:1"})
    code, _, err = run_tune(tmp_path, "--quiet")
    assert code == 2 and "No Ray cluster answers at cluster.address 127.0.0.1:1" in err
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_trial_that_breaks_is_not_told_of(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpsw_ray.release.exchange as protocol
    import dpsw_ray.tune.private_selection as selecting

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    def breaking(error: Exception) -> Any:
        made = []

        def write(group: Any, *args: Any) -> None:
            made.append(group)
            if len(made) == 2:
                raise error
            original(group, *args)

        return write

    original = selecting.write_reference
    monkeypatch.setattr(TrialsLaw, "draw", lambda law: 4)
    write_selection(tmp_path)
    with monkeypatch.context() as patch:  # between a release and the end of its noise secret
        patch.setattr(protocol, "_commit", killed)
        assert run_tune(tmp_path, "--quiet")[0] == 130
    assert len(private_names(tmp_path, "keys")) == 1
    for error, expected in ((KeyError("a loser"), 2), (FloatingPointError("a loser"), 0)):
        with monkeypatch.context() as patch:
            patch.setattr(selecting, "write_reference", breaking(error))
            code, out, err = run_tune(tmp_path, "--resume")
        assert code == expected and "loser" not in out + err
        assert bool(err) == ("which stays secret" in err) == (code == 2)
    assert private_names(tmp_path, "keys") == private_names(tmp_path, "selections") == []
    assert len(charges(tmp_path)) == 1 and not list((tmp_path / "s").rglob("pending.json"))
    victim = tmp_path / "victim"
    victim.mkdir()
    mark = tmp_path / "s" / "experiment.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"id": str(victim)}))
    code, _, err = run_tune(tmp_path, "--quiet", "--resume")
    assert code == 2 and "experiment.json is damaged" in err and victim.exists()


def test_an_interrupted_private_selection_draws_nothing_twice(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dpsw_ray.tune.private_selection as selecting

    space = {"release.frames": {"choice": [2, 3, 4]}}
    selection = {"policy": "private_selection", "mean_trials": 30, "eta": 5}
    write_sweep(tmp_path, space=space, search={"kind": "random"}, selection=selection)
    original, drawn = selecting.draw_release, []

    def dying(kind: Any, shards: Any, plan: Any, place: Path, **kwargs: Any) -> Release:
        drawn.append(place)
        release: Release = original(kind, shards, plan, place, **kwargs)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return release

    monkeypatch.setattr(selecting, "draw_release", dying)
    assert run_tune(tmp_path, "--quiet")[0] == 130
    (room,) = tmp_path.glob("home/datasets/digits/*/private/selections/*")
    assert room.stat().st_mode & 0o077 == 0 and not (tmp_path / "s" / "trials").exists()
    points = json.loads((room / "state.json").read_text())["points"]
    tables = {path: path.read_bytes() for path in room.glob("*/release/table.arrow")}
    assert len(tables) == 3
    code, _, err = run_tune(tmp_path, "--quiet", "--resume")
    assert (code, err, len(charges(tmp_path))) == (0, "", 1)
    assert len(drawn) == len(set(drawn)) == len(points)


def test_nothing_is_begun_and_paid_for_where_there_is_nothing_to_resume(tmp_path: Path) -> None:
    for sections in ({}, {"epsilons": [1.0, 2.0]}):
        write_sweep(tmp_path, **sections)
        code, out, err = run_tune(tmp_path, "--resume")
        assert (code, out) == (2, "") and "There is nothing to resume in" in err and err.count("\n") == 1
        assert not (tmp_path / "s").exists() and not (tmp_path / "ledger.sqlite").exists()


def test_what_no_trial_gets_is_known_before_the_charge(tmp_path: Path, ray_session: None) -> None:
    write_sweep(tmp_path, trials={"gpus": 1})
    code, _, err = run_tune(tmp_path, "--quiet")
    assert code == 2 and "one trial asks for 1 GPUs (1 workers), but the Ray cluster has 0" in err
    assert not charges(tmp_path)


def test_a_sweep_s_release_that_is_not_whole_is_not_paid_for_again(tmp_path: Path, ray_session: None) -> None:
    write_sweep(tmp_path, space={"flow.steps": {"grid": [3]}})
    assert run_tune(tmp_path, "--quiet")[0] == 0
    book = (tmp_path / "ledger.sqlite").read_bytes()
    (tmp_path / "s" / "releases" / "00000" / "release" / "manifest.json").unlink()
    code, _, err = run_tune(tmp_path, "--quiet", "--resume")
    assert code == 2 and "is not whole: table.arrow is a part of one" in err
    assert len(charges(tmp_path)) == 1
    (tmp_path / "ledger.sqlite").unlink()
    write_sweep(tmp_path, name="other", space={"flow.steps": {"grid": [3]}})
    shutil.rmtree(tmp_path / "s")
    code, _, err = run_tune(tmp_path, "--quiet")
    assert code == 2 and "lacks a charge to digits that was made" in err and not charges(tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(book)
    assert run_tune(tmp_path, "--quiet")[0] == 0 and len(charges(tmp_path)) == 2


def test_a_private_selection_notices_a_ledger_that_lacks_its_charge(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialsLaw, "draw", lambda law: 2)
    write_selection(tmp_path)
    assert run_tune(tmp_path, "--quiet")[0] == 0 and len(charges(tmp_path)) == 1
    (tmp_path / "ledger.sqlite").unlink()
    shutil.rmtree(tmp_path / "s")
    code, _, err = run_tune(tmp_path, "--quiet")
    assert code == 2 and "lacks a charge to digits that was made" in err and not charges(tmp_path)


def child(place: Path, *options: object) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal would start it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    words = [place / "sweep.yaml", "--output", place / "s", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "tune", *map(str, words)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[1],
        # A shell's background job hands down that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


LONG = {
    "space": {"flow.step_size": {"grid": [1.0, 6.0]}, "release.frames": {"grid": [2, 3]}},
    "selection": {"policy": "split"},
    "trials": {},
    "set": {"flow.steps": 250, "flow.patience": 250, "flow.particles": 4000, "privacy.noise_seed": 3},
}


def wait_for(place: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not list(place.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def wait_for_trials(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not descendants(process.pid, b"ray::ImplicitFunc"):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


@pytest.mark.timeout(600 + 30 * KILLS)
def test_killed_and_interrupted_it_ends_as_if_it_had_not_been_and_charges_nothing_again(
    tmp_path: Path,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, killed):
        write_sweep(place, **{**LONG, "set": LONG["set"] | {"tracking.enabled": True}})
    moments = ["s/releases/*/release/*.json", "s/trials/*/trial.json"]
    unharmed = child(whole)  # beside the other: both wait more than they work
    # At random moments after those two: as many more as DPSW_KILLS asks for.
    moments += [""] * (KILLS - len(moments))
    for number, moment in enumerate(moments):
        process = child(killed, *(["--resume"] if number else []))
        if moment:
            wait_for(killed, moment, process)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(0, 20))
        process.kill()
        process.communicate()
    if len(moments) == 2:  # after more kills nothing may be left to interrupt
        process = child(killed, "--resume")
        wait_for_trials(process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert re.fullmatch(
            r"Interrupted: --resume goes on from here; what has ended is in .*report.html\n", err
        )
        found = [row["status"] for row in trials(killed)]
        assert "finished" in found and "pending" in found
        assert "to do" in (killed / "s" / "report.html").read_text()
    for place, process in ((killed, child(killed, "--resume")), (whole, unharmed)):
        out, err = process.communicate(timeout=500)
        assert (process.returncode, err) == (0, ""), out
        assert len(charges(place)) == 2
    assert all(row["status"] == "finished" for row in trials(killed))
    compared = ("trial", "score", "release", "flow.step_size", "release.frames")
    assert [[row[key] for key in compared] for row in trials(killed)] == [
        [row[key] for key in compared] for row in trials(whole)
    ]
    best = [yaml.safe_load((place / "s" / "best.yaml").read_text())["flow"] for place in (whole, killed)]
    assert best[0] == best[1]

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{killed / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dpsw_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 6 and {run.info.status for run in runs} == {"FINISHED"}


def test_a_worker_that_dies_costs_its_trial_a_second_try(tmp_path: Path) -> None:
    write_sweep(tmp_path, **LONG)
    process = child(tmp_path)
    wait_for(tmp_path, "s/trials/*/trial.json", process)
    os.kill(descendants(process.pid, b"ray::ImplicitFunc")[0], signal.SIGKILL)
    out, err = process.communicate(timeout=500)
    assert (process.returncode, err) == (0, ""), out
    assert {row["status"] for row in trials(tmp_path)} == {"finished"} and len(charges(tmp_path)) == 2


def test_trials_with_actors_of_their_own_give_the_same_scores(tmp_path: Path, ray_session: None) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for place, actors in ((alone, 1), (together, 2)):
        sections = {"trials": {"actors": actors}, "set": {"privacy.noise_seed": 1}}
        sections["search"] = {"kind": "grid", "base": False}
        write_sweep(place, space={"flow.steps": {"grid": [3]}}, **sections)
        code, _, err = run_tune(place, "--quiet")
        assert (code, err) == (0, "")
    assert [row["score"] for row in trials(alone)] == [row["score"] for row in trials(together)]
