"""`dpsw compare` on the digits: real runs, real kills."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL, run_dpsw

from dpsw_ray.privacy.ledger import Ledger


def arguments(place: Path, *options: object, epsilon: str = "1,5", seeds: int = 2) -> list[str]:
    """Of a comparison in `place` with a home of its own."""
    overrides = [*SMALL, "cluster.executor=local", f"paths.home={place / 'home'}"]
    sets = [word for override in overrides for word in ("--set", override)]
    words = ["compare", "digits", "--methods", "dpswflow-h", "--epsilon", epsilon, "--seeds", seeds]
    place_words = ["--output", place / "c", *sets, "--set", f"paths.ledger={place / 'ledger.sqlite'}"]
    return [str(word) for word in (*words, *place_words, *options)]


def table(place: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((place / "c" / "table.json").read_text())
    return read


def charges(place: Path) -> Counter[str]:
    ledger = Ledger(place / "ledger.sqlite")
    return Counter(entry.run_id for dataset in ledger.datasets() for entry in ledger.entries(dataset.name))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison with every measure and tracking, made in this process."""
    place, threads = tmp_path_factory.mktemp("measured"), torch.get_num_threads()
    torch.set_num_threads(1)  # the classifier's steps are tiny: a second thread only waits for the first
    options = (
        "--metrics", "sliced_w2,sliced_w2_test,fid,logreg,pseudo_logreg,intended,seconds",
        "--set", "evaluation.enabled=true", "--set", "evaluation.directions=16", "--set", "tracking.enabled=true",
    )  # fmt: skip
    code, out, err = run_dpsw(*arguments(place, *options))
    torch.set_num_threads(threads)
    assert (code, err) == (0, "")
    (place / "said.txt").write_text(out)
    yield place


def test_every_trial_is_a_whole_run_that_says_not_to_publish_it(measured: Path) -> None:
    folders = sorted((measured / "c" / "trials").iterdir())
    assert [folder.name for folder in folders] == [f"dpswflow-h-{e}-{s}" for e in (1, 5) for s in (0, 1)]
    for folder in folders:
        assert not json.loads((folder / "privacy.json").read_text())["publishable"]
        assert (folder / "samples.parquet").exists() and (folder / "report.html").exists()
    (account,) = Ledger(measured / "ledger.sqlite").datasets()
    assert account.name.startswith("digits (research") and not account.publishable


def test_the_table_holds_the_figures_of_the_trials_own_files(measured: Path) -> None:
    found = table(measured)
    assert (found["finished"], found["failed"], found["pending"]) == (4, 0, 0)
    for trial in found["trials"]:
        folder = measured / "c" / "trials" / trial["name"]
        metrics = json.loads((folder / "metrics.json").read_text())
        research = json.loads((folder / "research" / "metrics.json").read_text())
        assert trial["figures"] == {
            "sliced_w2": research["sliced_w2_to_private_latents"],
            "sliced_w2_test": metrics["metrics"]["sliced W2 to test latents"]["value"],
            "fid": metrics["metrics"]["FID (classifier features)"]["value"],
            "logreg": metrics["metrics"]["LogReg accuracy"]["value"],
            "pseudo_logreg": metrics["metrics"]["LogReg accuracy, classes by the public classifier"]["value"],
            "intended": metrics["metrics"]["intended class"]["value"],
            "seconds": pytest.approx(sum(metrics["seconds"].values())),
        }
        privacy = json.loads((folder / "privacy.json").read_text())
        assert trial["privacy"]["epsilon"] == privacy["epsilon"]["upper"] <= trial["epsilon"]
        assert trial["privacy"]["accountant"] == privacy["accountant"]
    first = found["cells"][0]
    own = [trial["figures"]["fid"] for trial in found["trials"] if trial["epsilon"] == first["epsilon"]]
    assert first["figures"]["fid"]["mean"] == pytest.approx(sum(own) / 2)
    assert first["figures"]["fid"]["std"] == pytest.approx(abs(own[0] - own[1]) / 2**0.5)
    assert list(found["baselines"]["fid"]) == ["ceiling", "random latents", "real records"]


def test_seeds_differ_in_their_release_and_share_encoder_and_classifier(measured: Path) -> None:
    assert len(list((measured / "home" / "encoders").iterdir())) == 1
    assert len(list((measured / "home" / "classifiers").iterdir())) == 1
    seeds = {
        json.loads((folder / "release" / "manifest.json").read_text())["directions_seed"]
        for folder in (measured / "c" / "trials").iterdir()
    }
    assert seeds == {0, 1}


def test_a_line_is_said_for_every_trial_and_the_table_at_the_end(measured: Path) -> None:
    said = (measured / "said.txt").read_text()
    assert re.search(r"^1 of 4  dpswflow-h-1-0  sliced_w2 [\d.]+, .*about \d+ min left$", said, re.MULTILINE)
    assert (measured / "c" / "table.md").read_text() in said
    rows = list(csv.DictReader((measured / "c" / "table.csv").open()))
    assert [row["status"] for row in rows] == ["finished"] * 4


def test_the_page_needs_nothing_else_and_warns(measured: Path) -> None:
    page = (measured / "c" / "compare.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3  # curves, and a strip for each epsilon
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert not re.search(r"<script|https?://|<link", page)
    assert "must NOT be published" in page
    assert "epsilon is infinite: sliced W2 to private latents." in page
    assert "analytic Gaussian" in page and "replace_one" in page


def test_trials_are_nested_in_mlflow(measured: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{measured / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dpsw_ray")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("digits")
    assert len(runs) == 4
    for run in (*runs.values(), parent):
        assert run.info.status == "FINISHED"
    for name, run in runs.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert "sliced_w2" not in run.data.metrics and run.data.metrics["fid"] > 0
        assert run.data.params["privacy.epsilon"] == f"{run.data.metrics['epsilon']:.1f}", name


def test_a_larger_grid_reuses_what_is_there_and_json_prints_the_table(measured: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in measured.glob("c/trials/*/privacy.json")}
    options = ("--set", "evaluation.enabled=true", "--set", "evaluation.directions=16", "--json")
    code, out, err = run_dpsw(*arguments(measured, *options, epsilon="1,5,inf", seeds=1))
    assert (code, err) == (0, "")
    assert json.loads(out) == table(measured)
    assert [trial["name"] for trial in table(measured)["trials"]] == [
        "dpswflow-h-1-0", "dpswflow-h-5-0", "dpswflow-h-inf-0",
    ]  # fmt: skip
    assert table(measured)["trials"][2]["privacy"]["epsilon"] == "inf"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(charges(measured).values()) == {1} and len(charges(measured)) == 5
    assert "∞" in (measured / "c" / "table.md").read_text()


def test_another_config_in_the_same_folder_is_refused_before_anything_is_done(measured: Path) -> None:
    before = (measured / "c" / "table.json").read_bytes()
    code, _, err = run_dpsw(*arguments(measured, "--set", "flow.steps=5"))
    assert code == 2 and "holds another run" in err and err.count("\n") == 1
    assert (measured / "c" / "table.json").read_bytes() == before


def test_a_failed_trial_stops_no_other_and_is_made_good_by_the_same_command(tmp_path: Path) -> None:
    broken = tmp_path / "c" / "trials" / "dpswflow-h-5-0"
    code, *_ = run_dpsw(*arguments(tmp_path, "--quiet", epsilon="1", seeds=1))
    assert code == 0
    broken.mkdir()
    (broken / "notes.txt").write_text("not a run")
    code, out, _ = run_dpsw(*arguments(tmp_path, epsilon="1,5,7", seeds=1))
    assert code == 1
    assert re.search(r"dpswflow-h-5-0  FAILED: --output .* holds files that are not a run", out)
    assert [trial["status"] for trial in table(tmp_path)["trials"]] == ["finished", "failed", "finished"]
    assert "holds files that are not a run" in (tmp_path / "c" / "compare.html").read_text()
    (broken / "notes.txt").unlink()
    code, *_ = run_dpsw(*arguments(tmp_path, epsilon="1,5,7", seeds=1))
    assert code == 0
    assert set(charges(tmp_path).values()) == {1} and len(charges(tmp_path)) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metrics", "beauty"), "--metrics takes some of sliced_w2"),
        (("--methods", "gan"), "--methods takes some of dpswflow-h"),
        (("--epsilon", "none"), "--epsilon takes numbers or inf with commas between them"),
        (("--jobs", "2"), "--jobs 2 needs cluster.executor ray"),
        (("--for", "dpswflow-h:seed=1"), "seed is the same for all methods"),
        (("--set", "flow.stepz=1"), "did you mean flow.steps"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    options: tuple[str, str], words: str, tmp_path: Path
) -> None:
    code, out, err = run_dpsw(*arguments(tmp_path, *options))
    assert (code, out) == (2, "")
    assert words in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def child(place: Path, *options: object) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal would start it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dpsw_ray", *arguments(place, *options)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[1],
        # A shell's background job hands down that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_the_first_trial(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("1 of 4"):
            return
    pytest.fail(f"the comparison ended early: {process.stderr and process.stderr.read()}")


def test_killed_under_ray_it_goes_on_without_a_second_charge(tmp_path: Path) -> None:
    options = ("--set", "cluster.executor=ray", "--set", "tracking.enabled=true", "--jobs", "2")
    process = child(tmp_path, *options)
    wait_for_the_first_trial(process)
    folders = [tmp_path / "c" / "trials" / f"dpswflow-h-{name}" for name in ("5-0", "1-1")]
    deadline = time.monotonic() + 30
    while not any((folder / "config.yaml").exists() for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()  # its workers are in the middle of two trials, whose locks they hold
    process.communicate()
    before = (tmp_path / "c" / "trials" / "dpswflow-h-1-0" / "privacy.json").stat().st_mtime_ns
    again = child(tmp_path, *options)
    out, err = again.communicate(timeout=300)
    assert (again.returncode, err) == (0, ""), out
    assert [trial["status"] for trial in table(tmp_path)["trials"]] == ["finished"] * 4
    assert set(charges(tmp_path).values()) == {1} and len(charges(tmp_path)) == 4
    assert (tmp_path / "c" / "trials" / "dpswflow-h-1-0" / "privacy.json").stat().st_mtime_ns == before

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dpsw_ray")
    assert experiment is not None
    statuses = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert statuses == ["FINISHED"] * 5


def test_interrupted_it_leaves_a_table_of_what_has_ended(tmp_path: Path) -> None:
    process = child(tmp_path)
    wait_for_the_first_trial(process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "Interrupted: the same command goes on from here.\n"
    statuses = Counter(trial["status"] for trial in table(tmp_path)["trials"])
    assert statuses["finished"] >= 1 and statuses["pending"] >= 1
    assert "pending" in (tmp_path / "c" / "table.md").read_text()
    assert (tmp_path / "c" / "compare.html").exists()
