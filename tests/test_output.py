from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dpsw_ray.config import RunConfig, load_config
from dpsw_ray.errors import UserError
from dpsw_ray.output import RunFolder, resolve_output
from dpsw_ray.privacy.events import GaussianEvent
from dpsw_ray.privacy.ledger import Ledger

FIRST, SECOND = load_config("digits"), load_config("digits", ["seed=1"])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin(path: Path, config: RunConfig = FIRST) -> None:
    """A run that was killed: no clean-up of its own."""
    folder = RunFolder(config, path)
    os.close(folder._lock)


def put(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_same_run_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder(FIRST, run) as folder:
        assert not folder.resumed
        put(folder / "privacy.json")
    before = content(run)
    with pytest.raises(UserError, match=r"holds another run \(seed is 0 there and 1 here\)"):
        RunFolder(SECOND, run)
    assert content(run) == before
    with RunFolder(FIRST, run) as folder:
        assert folder.resumed
    assert content(run) == before


def test_another_executor_or_tracking_store_goes_on_with_the_run(tmp_path: Path) -> None:
    with RunFolder(FIRST, tmp_path / "run") as folder:
        put(folder / "privacy.json")
    with RunFolder(
        load_config("digits", ["cluster.actors=1", "tracking.enabled=no"]), tmp_path / "run"
    ) as folder:
        assert folder.resumed


def test_a_refused_attempt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError), RunFolder(FIRST, tmp_path / "deep" / "run"):
        raise UserError("no")
    assert not list(tmp_path.iterdir())


def test_a_refused_attempt_leaves_an_empty_folder_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(UserError), RunFolder(FIRST, tmp_path) as folder:
        (folder / "encoder").mkdir()
        raise UserError("no")
    assert not list(tmp_path.iterdir())


def test_a_failed_attempt_keeps_what_it_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), RunFolder(FIRST, tmp_path / "run") as folder:
        put(folder / "encoder" / "weights.pt")
        raise OSError("full")
    assert (tmp_path / "run" / "encoder" / "weights.pt").exists()
    with RunFolder(FIRST, tmp_path / "run") as folder:
        assert folder.resumed


def test_an_attempt_that_never_paid_is_taken_over_with_another_config(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin(run)
    put(run / "encoder" / "encoder.json")
    put(run / "release" / "pending.json", json.dumps({"release_id": "never charged"}))
    with RunFolder(SECOND, run) as folder:
        assert not folder.resumed
    assert set(content(run)) == {".lock", "config.yaml"}
    assert load_config(run / "config.yaml") == SECOND


def test_an_attempt_that_paid_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSW_LEDGER", str(tmp_path / "ledger.sqlite"))
    ledger = Ledger(FIRST.ledger_path)
    ledger.register("digits", "replace_one", "record", 1e-5)
    ledger.charge("digits", [GaussianEvent("g", {"replace_one": 1.0}, 1.0)], "run", release_id="paid")
    run = tmp_path / "run"
    begin(run)
    put(run / "release" / "pending.json", json.dumps({"release_id": "paid"}))
    with pytest.raises(UserError, match="holds another run"):
        RunFolder(SECOND, run)
    assert (run / "release" / "pending.json").exists()


def test_a_finished_release_is_not_taken_over(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    put(tmp_path / "run" / "release" / "manifest.json")
    with pytest.raises(UserError, match="holds another run"):
        RunFolder(SECOND, tmp_path / "run")


@pytest.mark.parametrize("name", ["notes.txt", "config.yaml"])
def test_a_folder_with_files_of_the_user_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, FIRST.to_yaml())
    before = content(tmp_path)
    with pytest.raises(UserError, match="holds files that are not a run"):
        RunFolder(FIRST, tmp_path)
    assert content(tmp_path) == before


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    put(tmp_path / "run" / "config.yaml", "seed: [")
    with pytest.raises(UserError, match="cannot be read as the config of a run"):
        RunFolder(FIRST, tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: ["


def test_a_run_of_an_older_version_without_a_key_goes_on(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("  split_seed: 0\n", ""))
    with RunFolder(FIRST, tmp_path / "run") as folder:
        assert folder.resumed


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    with RunFolder(FIRST, tmp_path / "run"):
        for config in (FIRST, SECOND):
            with pytest.raises(UserError, match="Another process is writing the run"):
                RunFolder(config, tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.yaml") == FIRST


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "file")
    with pytest.raises(UserError, match="file is a file: give a folder"):
        RunFolder(FIRST, tmp_path / "file")
    with pytest.raises(UserError, match=r"file/a/b lies inside .*file, which is a file"):
        RunFolder(FIRST, tmp_path / "file" / "a" / "b")
    assert (tmp_path / "file").read_text() == "x"


def test_where_a_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPSW_OUTPUT_ROOT", raising=False)
    assert resolve_output(FIRST, None) == tmp_path / "runs" / "digits"
    assert resolve_output(FIRST, Path("a")) == tmp_path / "a"
    assert resolve_output(FIRST, tmp_path / "b") == tmp_path / "b"
    monkeypatch.setenv("DPSW_OUTPUT_ROOT", str(tmp_path / "root"))
    assert resolve_output(FIRST, None) == tmp_path / "root" / "runs" / "digits"


def test_a_submitted_job_does_not_write_into_its_vanishing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "runtime_resources" / "working_dir_files"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    monkeypatch.delenv("DPSW_OUTPUT_ROOT", raising=False)
    assert resolve_output(FIRST, None) == FIRST.home / "runs" / "digits"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("paths.ledger", "ledger.sqlite"),
        ("paths.home", "home"),
        ("tracking.uri", "sqlite:///mlflow.db"),
        ("--output", "runs"),
    ],
)
def test_nothing_that_must_outlive_a_job_goes_into_its_folder(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "runtime_resources" / "working_dir_files"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    monkeypatch.setenv("DPSW_OUTPUT_ROOT", "." if key == "--output" else str(tmp_path))
    overrides = [] if key == "--output" else [f"{key}={value}"]
    config = load_config("digits", ["cluster.executor=local", *overrides])
    with pytest.raises(
        UserError, match=rf"{key} is a relative path, .* give an absolute one, found .*{value[-3:]}"
    ):
        resolve_output(config, None)
