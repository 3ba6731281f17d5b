"""What the driver can read: messages, logs, files, MLflow. No record and no true sum may be among it."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import RecordingCluster, small

import dpsw_ray
import dpsw_ray.pipeline.run as pipeline
from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import open_dataset
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.private.latents import LatentStore
from dpsw_ray.private.records import open_private_records
from dpsw_ray.tables.plan import SlicesPlan
from dpsw_ray.tables.release import Release

SOURCE = Path(dpsw_ray.__file__).parent


def recorded_run(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    clusters: list[RecordingCluster] = []

    def recording(cluster_config: Any) -> RecordingCluster:
        clusters.append(RecordingCluster(open_cluster(cluster_config)))
        return clusters[-1]

    monkeypatch.setattr(pipeline, "open_cluster", recording)
    pipeline.run(config, folder, Progress(quiet=True))
    return clusters[0].log


def true_sums(log: list[tuple[str, Any]], private_dir: Path) -> tuple[SlicesPlan, list[np.ndarray]]:
    """The plan that was released and every shard's exact part, computed from the private folder."""
    (plan, *_), _ = next(value for method, value in log if method == "answer")
    shards = next(value for method, value in log if method == "Shard")
    store = LatentStore(private_dir, shards[0]["latents_key"])
    total, size = store.rows(), len(shards)
    parts = [bound(store.batches(r * total // size, (r + 1) * total // size), plan) for r in range(size)]
    return plan, parts


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    return str(request.param)


def test_driver_reads_no_record_and_no_true_sum(
    executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    config = small(
        f"cluster.executor={executor}", "cluster.actors=2", f"paths.home={home}", "tracking.enabled=true",
        "evaluation.enabled=true", "evaluation.directions=16", "privacy.epsilon=1",
    )  # fmt: skip
    log = recorded_run(config, tmp_path / "runs" / "spied", monkeypatch)

    data = open_dataset(config.data, config.home, config.privacy.relation)
    assert data is not None
    plan, parts = true_sums(log, data.private_dir)
    truth = sum(parts)
    assert truth.any()

    # No message is close to any exact sum: what is left after taking the sum away fills all 64 bits.
    _, messages = next(value for method, value in log if method == "contribute")
    for message in messages:
        for exact in (*parts, truth):
            rest = (message - exact.view(np.uint64)).view(np.int64).astype(np.float64)
            assert np.mean(np.abs(rest) < 2.0**56) < 0.05
    noisy = messages[0] + messages[1]
    noise = (noisy.view(np.int64) - truth) / plan.noise_std
    assert 0.8 < noise.std() < 1.2
    assert np.mean(noise == 0) < 0.01
    release = Release.load(tmp_path / "runs" / "spied" / "release")
    assert np.array_equal(release.counts, noisy.view(np.int64))

    # Every byte outside the private folder, every message and everything printed.
    records = open_private_records(data.private_dir)
    store = LatentStore(data.private_dir, next(v for m, v in log if m == "Shard")[0]["latents_key"])
    latents = np.concatenate([x for x, _ in store.batches(0, store.rows())])
    needles = [row.tobytes() for row in np.asarray(records.values).reshape(len(records), -1)]
    needles += [row.tobytes() for row in latents]
    needles += [
        row.tobytes() for part in (*parts, truth) for row in part.reshape(-1, plan.grid.bins) if row.any()
    ]
    printed = "".join(capfd.readouterr())
    haystacks = {"messages": pickle.dumps(log), "printed": printed.encode()}
    for path in tmp_path.rglob("*"):
        if path.is_file() and data.private_dir not in path.parents:
            haystacks[str(path)] = path.read_bytes()
    if executor == "ray":
        import ray

        logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
        for path in logs.rglob("*"):
            if path.is_file():
                haystacks[str(path)] = path.read_bytes()
    assert any("mlflow.db" in name for name in haystacks)
    for name, hay in haystacks.items():
        found = sum(needle in hay for needle in needles)
        assert found == 0, f"{found} private rows in {name}"


def test_the_search_above_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: a shard that sends its sum without noise and mask is caught by the same comparison."""
    from dpsw_ray.release.masks import MaskingKey

    monkeypatch.setattr(MaskingKey, "mask", lambda self, message, *rest: message.view(np.uint64))
    config = small("cluster.executor=local", "cluster.actors=2", f"paths.home={tmp_path / 'home'}")
    log = recorded_run(config, tmp_path / "run", monkeypatch)
    data = open_dataset(config.data, config.home, config.privacy.relation)
    assert data is not None
    _, parts = true_sums(log, data.private_dir)
    _, messages = next(value for method, value in log if method == "contribute")
    rest = (messages[1] - parts[1].view(np.uint64)).view(np.int64).astype(np.float64)
    assert np.mean(np.abs(rest) < 2.0**56) == 1.0
    assert any(row.tobytes() in pickle.dumps(log) for row in parts[1].reshape(-1, 16) if row.any())


def test_add_remove_hides_the_number_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("cluster.executor=local", f"paths.home={tmp_path / 'home'}", "privacy.relation=add_remove")
    log = recorded_run(config, tmp_path / "run", monkeypatch)
    data = open_dataset(config.data, config.home, "add_remove")
    assert data is not None
    assert data.info.private_count is None
    assert Release.load(tmp_path / "run" / "release").manifest["private_records"] is None
    count = len(open_private_records(data.private_dir))
    returned = [
        result for method, (_, results) in ((m, v) for m, v in log if m[0].islower()) for result in [results]
    ]
    assert not any(value == count for value in _numbers(returned))
    metrics = (tmp_path / "run" / "metrics.json").read_text()
    assert '"release"' not in metrics.split('"seconds"')[1]
    assert '"private latents"' not in metrics and '"flow: kernels"' in metrics


def test_research_tells_no_number_of_records_that_is_protected(tmp_path: Path) -> None:
    shared = ("cluster.executor=local", f"paths.home={tmp_path / 'home'}")
    pipeline.run(small(*shared, "privacy.relation=add_remove"), tmp_path / "hidden", Progress(quiet=True))
    for research in ("privacy.research=true", "privacy.epsilon=.inf", "privacy.noise_seed=1"):
        with pytest.raises(UserError, match=r"registered in .* with relation add_remove"):
            pipeline.run(small(*shared, research), tmp_path / "told", Progress(quiet=True))
    assert len(list((tmp_path / "home" / "datasets" / "digits").glob("*/dataset.json"))) == 1
    assert not (tmp_path / "told").exists()


def _numbers(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return _numbers(vars(value)) if hasattr(value, "__dict__") else []


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("flow", ("private", "data", "privacy")),
        ("generator", ("private", "data", "privacy")),
        ("release", ("private", "data", "encoders")),
        ("slicing", ("private", "data", "encoders", "release", "flow", "privacy")),
        ("privacy", ("private", "data", "encoders", "release", "flow", "slicing")),
    ],
)
def test_the_public_wing_imports_nothing_private(folder: str, forbidden: tuple[str, ...]) -> None:
    for path in (SOURCE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith(tuple(f"dpsw_ray.{wing}" for wing in forbidden)), f"{path}: {name}"


def test_only_cluster_imports_ray() -> None:
    for path in SOURCE.rglob("*.py"):
        if "cluster" not in path.parts:
            assert "import ray" not in path.read_text(), path


def test_private_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    config = small("cluster.executor=local", f"paths.home={tmp_path / 'home'}")
    pipeline.run(config, tmp_path / "run", Progress(quiet=True))
    data = open_dataset(config.data, config.home, config.privacy.relation)
    assert data is not None
    for path in (data.private_dir, *data.private_dir.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_failing_private_worker_tells_no_value(tmp_path: Path) -> None:
    from dpsw_ray.base.errors import PrivateSideError
    from dpsw_ray.private.sealing import sealed

    class Worker:
        private_dir = tmp_path

        @sealed("adding numbers")
        def work(self, record: float) -> float:
            raise ValueError(f"cannot handle {record}")

    with pytest.raises(PrivateSideError) as caught:
        Worker().work(0.123456)
    assert "0.123456" not in repr(caught.value)
    assert "ValueError" not in str(caught.value), "which exception it is may depend on the record"
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    frames = []
    traceback = caught.value.__traceback__
    while traceback:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    assert "0.123456" in (tmp_path / "errors.log").read_text()
    assert (tmp_path / "errors.log").stat().st_mode & 0o077 == 0
