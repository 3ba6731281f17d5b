from __future__ import annotations

import logging
import math
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import TrackingConfig
from dpsw_ray.pipeline.tracking import Tracker, check_tracking, open_tracker


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out put")


@pytest.fixture
def tracker(root: Path) -> Iterator[Tracker]:
    with open_tracker(TrackingConfig(), root, "digits") as opened:
        yield opened


def stored(tracker: Tracker) -> Any:
    return tracker._client.get_run(tracker.run_id)


def test_everything_is_recorded(tracker: Tracker, root: Path, tmp_path: Path) -> None:
    tracker.params({"privacy": {"epsilon": 1.0, "note": "x" * 9000}, "name": "digits", "empty": {}})
    tracker.metrics({"SW2 [public]": 0.5, "epsilon": math.inf, "gone": math.nan})
    tracker.metrics({"accuracy": 0.7}, step=3)
    tracker.step_metrics({"drift": [(step, 1.0 / (step + 1)) for step in range(2500)]})
    tracker.tags({"publishable": False})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("a")
    tracker.artifact(tmp_path / "sub" / "a.txt")
    tracker.artifact(tmp_path / "sub", "folder")
    tracker.figure("curve", b"png")

    run = stored(tracker)
    assert run.info.run_name == "digits"
    assert run.data.params["privacy.epsilon"] == "1.0" and len(run.data.params["privacy.note"]) == 6000
    assert run.data.metrics == {"SW2 _public_": 0.5, "accuracy": 0.7, "drift": pytest.approx(1 / 2500)}
    assert run.data.tags["epsilon"] == "inf" and run.data.tags["gone"] == "nan"
    assert run.data.tags["publishable"] == "False"
    assert len(tracker._client.get_metric_history(tracker.run_id, "drift")) == 2500
    written = {path.name for path in (root / "mlartifacts").rglob("*") if path.is_file()}
    assert written == {"a.txt", "curve.png"}
    assert tracker.ui_command == f"mlflow ui --backend-store-uri 'sqlite:///{root}/mlflow.db'"


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_status_tells_how_the_run_ended(
    root: Path, error: type[BaseException] | None, status: str
) -> None:
    tracker = open_tracker(TrackingConfig(), root, "run")
    try:
        with tracker:
            if error:
                raise error
    except BaseException as caught:
        assert error and isinstance(caught, error)
    assert stored(tracker).info.status == status


def test_runs_share_an_experiment_and_nest(tracker: Tracker, root: Path) -> None:
    with open_tracker(TrackingConfig(), root, "trial", parent=tracker.run_id) as child:
        assert stored(child).data.tags["mlflow.parentRunId"] == tracker.run_id
        assert stored(child).info.experiment_id == stored(tracker).info.experiment_id
        tracker._client.delete_experiment(stored(tracker).info.experiment_id)
        with open_tracker(TrackingConfig(), root, "again") as again:
            assert stored(again).info.experiment_id == stored(tracker).info.experiment_id


def test_disabled_tracking_has_the_same_interface(tmp_path: Path) -> None:
    with open_tracker(TrackingConfig(enabled=False), tmp_path, "run") as tracker:
        tracker.params({"a": 1})
        tracker.metrics({"a": 1.0})
        tracker.step_metrics({"a": [(0, 1.0)]})
        tracker.tags({"a": 1})
        tracker.artifact(tmp_path)
        tracker.figure("a", b"")
    assert not tracker.enabled and tracker.ui_command == "" and list(tmp_path.iterdir()) == []


def test_a_store_that_fails_midway_costs_one_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    with caplog.at_level(logging.WARNING), open_tracker(TrackingConfig(), root, "run") as tracker:
        monkeypatch.setattr(tracker._client, "log_batch", fail)
        tracker.metrics({"a": 1.0})
        tracker.metrics({"b": 1.0})
        client = tracker._failed
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [record.message for record in caplog.records if record.name == "dpsw_ray.pipeline.tracking"] == [
        "MLflow stopped recording (gone); the run goes on, its folder is complete."
    ]


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:1",
        "http://user:secret@127.0.0.1:1/path",
        "http://127.0.0.1:99999",
        "nonsense://x",
        "./mlruns",
        "sqlite:////proc/nowhere/mlflow.db",
    ],
)
def test_a_store_that_cannot_be_used_is_refused(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^tracking\.uri: MLflow cannot use ") as caught:
        open_tracker(TrackingConfig(uri=uri), tmp_path, "run")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_mlflow_store_is_refused_and_kept(tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a data base" * 100)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE experiments (x)")
    for path in (broken, foreign, tmp_path):
        before = path.read_bytes() if path == broken else b""
        with pytest.raises(UserError, match=r"tracking\.uri"):
            open_tracker(TrackingConfig(uri=f"sqlite:///{path}"), tmp_path, "run")
        assert path != broken or path.read_bytes() == before


def test_keys_that_look_alike_to_mlflow_stay_apart(
    tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    columns = [
        "a[",
        "a]",
        "a?",
        "a_",
        "../x",
        "..",
        ".",
        "/x",
        "x//y",
        "x/",
        "",
        "ü",
        "\n",
        "long" * 90,
        "long" * 91,
    ]
    keys = [f"W1 of {name}" for name in columns] + columns
    tracker.params({"data": {"bounds": {name: [i, i + 1] for i, name in enumerate(columns)}}})
    tracker.metrics({key: float(i) for i, key in enumerate(keys)})
    tracker.tags({key: str(i) for i, key in enumerate(keys)})
    tracker.metrics({"a[": 70.0, "a]": 71.0})  # the names are the same each time
    data = stored(tracker).data
    assert not caplog.records and tracker.enabled
    assert len(data.params) == len(columns)
    assert sorted(data.params.values()) == sorted(str([i, i + 1]) for i in range(len(columns)))
    expected = [float(i) for i in range(len(keys))]
    expected[keys.index("a[")], expected[keys.index("a]")] = 70.0, 71.0
    assert sorted(data.metrics.values()) == sorted(expected)
    assert {str(i) for i in range(len(keys))} <= set(data.tags.values())


def test_the_names_do_not_depend_on_the_order_of_the_keys() -> None:
    names = [
        dict(Tracker()._named("param", {key: key for key in keys})) for keys in (("a[", "a]"), ("a]", "a["))
    ]
    assert names[0] == names[1] and set(names[0].values()) == {"a[", "a]"}


def test_any_folder_may_hold_the_data_base(tmp_path: Path) -> None:
    root = tmp_path / "what?mode=ro & 100%20 #1: ü"
    with open_tracker(TrackingConfig(), root, "run") as tracker:
        tracker.metrics({"a": 1.0})
        tracker.figure("b", b"png")
        assert tracker.enabled
    assert {path.name for path in root.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert [path.name for path in (root / "mlartifacts").rglob("*.png")] == ["b.png"]
    assert [path.name for path in tmp_path.iterdir()] == [root.name]
    assert stored(tracker).data.metrics == {"a": 1.0} and stored(tracker).info.status == "FINISHED"


def test_a_full_folder_for_temporary_files_costs_a_warning(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    tracker.figure("a", b"png")
    assert len(caplog.records) == 1 and not tracker.enabled


def test_a_look_at_the_store_makes_nothing(tmp_path: Path) -> None:
    check_tracking(TrackingConfig(), tmp_path / "deep" / "runs")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mlflow.db").write_bytes(b"not a data base" * 100)
    with pytest.raises(UserError, match=r"tracking\.uri: MLflow cannot use "):
        check_tracking(TrackingConfig(), tmp_path)
