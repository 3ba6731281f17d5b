from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.registry import load_config
from dpsw_ray.pipeline.destination import HOME_FOLDERS, check_free, out_file
from dpsw_ray.pipeline.folder import RunFolder, resolve_output
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


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, an experiment, a home with its ledger, and what may stand in a file's way."""
    monkeypatch.setenv("DPSW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DPSW_LEDGER", raising=False)
    begin(tmp_path / "run")
    put(tmp_path / "run" / "release" / "x.json")
    put(tmp_path / "experiment" / "experiment.json")
    put(tmp_path / "experiment" / ".lock")
    put(tmp_path / "elsewhere" / "dataset.json")
    put(tmp_path / "elsewhere" / "private" / "x.json")
    put(tmp_path / "home" / "encoders" / "x.json")
    put(tmp_path / "others" / "people.json")
    divided = tmp_path / "home" / "datasets" / "people" / "key" / "dataset.json"
    put(divided)
    divided.write_text(json.dumps({"path": str(tmp_path / "others" / "people.json")}))
    put(tmp_path / "source" / "table.json")
    Ledger(FIRST.ledger_path).register("digits", "replace_one", "record", 1e-5)
    Ledger(tmp_path / "old.json").register("digits", "replace_one", "record", 1e-5)
    (tmp_path / "hard.json").hardlink_to(FIRST.ledger_path)
    (tmp_path / "link.json").symlink_to(FIRST.ledger_path)
    (tmp_path / "into").symlink_to(tmp_path / "run" / "release")
    (tmp_path / "circle.json").symlink_to(tmp_path / "circle.json")
    os.mkfifo(tmp_path / "pipe.json")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("home/ledger.sqlite", "would write over the privacy ledger"),
        ("hard.json", "would write over the privacy ledger"),
        ("link.json", "would write over the privacy ledger"),
        ("old.json", "would write over the data base"),
        ("run/more.json", "would write into the run in"),
        ("run/release/x.json", "would write into the run in"),
        ("run/release/../x.json", "would write into the run in"),
        ("into/x.json", "would write into the run in"),
        ("experiment/trials/x.json", "would write into the experiment in"),
        ("elsewhere/private/x.json", "would write into the stored data set in"),
        ("others/people.json", "would write over the records in"),
        ("home/encoders/x.json", "would write into .*home/encoders, which the program keeps"),
        ("home/datasets/digits/x.json", "would write into .*home/datasets, which the program keeps"),
        ("pipe.json", "is a pipe: give a file to write"),
        ("socket.json", "is a socket: give a file to write"),
        ("circle.json", "is a link that leads in a circle: give a file to write"),
        ("run", "is a folder: give a file to write"),
        ("x\0.json", "is no path that can be followed"),
        ("~nobody-of-this-name/x.json", "is no path that can be followed"),
        ("x.txt", r"takes a name that ends in \.json, and .* ends in \.txt"),
        ("x", r"takes a name that ends in \.json, and .* has no ending"),
    ],
)
def test_no_file_is_written_over_what_is_kept(kept: Path, name: str, why: str) -> None:
    path = Path(name) if name.startswith("~") else kept / name
    with pytest.raises(UserError, match=why) as refused:
        out_file("--out", path, (".json",))
    assert str(refused.value).startswith("--out ") and str(refused.value).endswith(".")


def test_a_device_is_no_file_to_write() -> None:
    with pytest.raises(UserError, match=r"--out /dev/full is a device: give a file to write\."):
        out_file("--out", Path("/dev/full"), ("",))


def test_a_file_of_ones_own_may_be_written(kept: Path) -> None:
    (kept / "mine.json").symlink_to(kept / "source" / "table.json")
    assert out_file("--out", kept / "new" / "x.JSON", (".json",)) == kept / "new" / "x.JSON"
    assert out_file("--out", kept / "mine.json", (".json",)) == kept / "source" / "table.json"
    assert out_file("--out", kept / "home" / "x.json", (".json",)) == kept / "home" / "x.json"
    with pytest.raises(UserError, match="would write over the records in"):
        check_free(
            "--out", kept / "mine.json", load_config("digits", [f"data.path={kept}/source/table.json"])
        )


@pytest.mark.parametrize(
    "name", ["home/datasets/digits/x", "elsewhere/private/run", "run/release/y", "into/y", "home/encoders"]
)
def test_no_run_goes_into_what_is_kept(kept: Path, name: str) -> None:
    before = content(kept / "run")
    with pytest.raises(UserError, match=r"--output .* would write into "):
        resolve_output(FIRST, kept / name)
    assert content(kept / "run") == before
    assert resolve_output(FIRST, kept / "run") == kept / "run"
    assert resolve_output(FIRST, kept / "experiment" / "trials" / "a") == kept / "experiment/trials/a"


def test_what_the_program_keeps_in_a_home_is_known(home: Path) -> None:
    from support import small

    from dpsw_ray.pipeline.run import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPSW_HOME", str(home / "of-this-test"))
        run(small("evaluation.enabled=true"), home / "a-run", None)
    made = {entry.name for entry in (home / "of-this-test").iterdir() if entry.is_dir()}
    assert {"datasets", "encoders"} <= made <= set(HOME_FOLDERS)
