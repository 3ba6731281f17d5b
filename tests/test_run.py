"""Whole runs: the same bits whoever computes, honest figures in every output."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pyarrow import feather
from support import small

from dpsw_ray.base.files import read_arrow
from dpsw_ray.base.progress import Progress
from dpsw_ray.data import open_dataset
from dpsw_ray.encoders import load_encoder
from dpsw_ray.pipeline.generate import generate
from dpsw_ray.pipeline.run import RunResult, run
from dpsw_ray.pipeline.samples import read_samples
from dpsw_ray.tables.release import Release

QUIET = Progress(quiet=True)


def particles(folder: Path) -> bytes:
    return (
        read_arrow(folder / "particles.arrow")
        .column("latent")
        .combine_chunks()
        .flatten()
        .to_numpy()
        .tobytes()
    )


def test_actors_and_the_local_executor_give_identical_particles(ray_session: None, tmp_path: Path) -> None:
    seen = set()
    for executor, actors in (("local", 1), ("ray", 1), ("ray", 2), ("ray", 4)):
        # A home of their own: latents, too, are encoded anew by each.
        home = tmp_path / f"home-{executor}-{actors}"
        config = small(
            "privacy.noise_seed=11", f"cluster.executor={executor}", f"cluster.actors={actors}", f"paths.home={home}",
            "cluster.cpus_per_actor=0.5",
        )  # fmt: skip
        result = run(config, tmp_path / f"{executor}-{actors}", QUIET)
        seen.add(particles(result.folder))
        shutil.rmtree(home)
    assert len(seen) == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One complete small run with every output, on the local executor."""
    folder = tmp_path_factory.mktemp("finished")
    config = small(
        "cluster.executor=local", "tracking.enabled=true", "evaluation.enabled=true", "evaluation.research=true",
        "evaluation.directions=64", "encoder.epochs=40", f"paths.home={folder / 'home'}",
    )  # fmt: skip
    return run(config, folder / "runs" / "digits", QUIET)


def test_a_run_leaves_every_promised_file(finished: RunResult) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {
        "config.yaml", "privacy.json", "metrics.json", "release", "particles.arrow", "samples.parquet", "samples.png",
        "report.html", "checkpoints", "research", "encoder",
    }  # fmt: skip


def test_privacy_report_and_mlflow_say_the_same_epsilon(finished: RunResult) -> None:
    import mlflow

    privacy = json.loads((finished.folder / "privacy.json").read_text())
    assert privacy["epsilon"]["upper"] <= 10
    assert privacy["epsilon"]["upper"] > 9.95
    assert privacy["epsilon"]["lower"] <= privacy["epsilon"]["estimate"] <= privacy["epsilon"]["upper"]
    assert (privacy["relation"], privacy["unit"], privacy["delta"]) == ("replace_one", "record", 1e-4)
    check = privacy["checks"]["PRV"]
    assert check["lower"] <= privacy["epsilon"]["upper"] <= check["upper"]
    manifest = json.loads((finished.folder / "release" / "manifest.json").read_text())
    assert manifest["privacy"]["epsilon"] == privacy["epsilon"]
    report = (finished.folder / "report.html").read_text()
    assert "epsilon" in report and "10" in report
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dpsw_ray")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["epsilon"] == pytest.approx(privacy["epsilon"]["upper"])
    assert tracked.data.metrics["delta"] == 1e-4
    assert tracked.data.params["release.frames"] == "2"
    figures = json.loads((finished.folder / "metrics.json").read_text())["metrics"]
    tracked_values = sorted(round(value, 6) for value in tracked.data.metrics.values())
    assert all(round(entry["value"], 6) in tracked_values for entry in figures.values())


def test_files_report_and_mlflow_say_where_the_time_went(finished: RunResult) -> None:
    import mlflow

    seconds = json.loads((finished.folder / "metrics.json").read_text())["seconds"]
    phases = {"encoder", "flow: kernels", "flow: communication", "flow: driver"}
    assert phases <= set(seconds) and seconds["flow: kernels"] > 0
    # How long these take may depend on what the records are.
    assert not {"data", "private latents", "release"} & set(seconds)
    release = json.loads((finished.folder / "release" / "manifest.json").read_text())
    assert datetime.date.fromisoformat(release["created"]), "the day, and no more"
    report = (finished.folder / "report.html").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dpsw_ray")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    for phase, spent in seconds.items():
        assert f">{phase}<" in report
        assert tracked.data.metrics[f"seconds/{phase}"] == spent


def test_figures_from_private_records_stay_in_research(finished: RunResult) -> None:
    research = json.loads((finished.folder / "research" / "metrics.json").read_text())
    assert research["epsilon"] == "inf"
    attack = research["membership"]
    # About 100 members and outsiders at epsilon 10: the area of an attack that finds nothing, within five deviations.
    assert attack["records"] > 50 and abs(attack["auc"] - 0.5) < 5 / (6 * attack["records"]) ** 0.5
    assert 0.85 < attack["auc_at_most"] < 0.9
    for figure in (research["sliced_w2_to_private_latents"], attack["auc"]):
        for name in ("report.html", "metrics.json", "privacy.json"):
            assert str(round(figure, 6)) not in (finished.folder / name).read_text()
    assert "sliced_w2_to_private_latents" not in (finished.folder.parent / "mlflow.db").read_bytes().decode(
        "latin-1"
    )


def test_samples_load_with_any_parquet_reader(finished: RunResult) -> None:
    table = pq.read_table(finished.folder / "samples.parquet")
    assert table.num_rows == 60
    assert json.loads(table.schema.metadata[b"shape"]) == [8, 8, 1]
    pixels = table.column("pixels").combine_chunks().flatten().to_numpy()
    assert pixels.max() <= 16 and len(pixels) == 60 * 64
    assert set(table.column("label").to_pylist()) <= set("0123456789")


def test_the_stored_release_gives_the_same_bits_without_any_private_file(
    finished: RunResult, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    home = finished.folder.parent.parent / "home"
    away = tmp_path / "away"
    home.rename(away)
    try:
        generate(copy, tmp_path / "again.parquet", 60, progress=QUIET)
        generate(copy, tmp_path / "other.parquet", 60, seed=9, progress=QUIET)
    finally:
        away.rename(home)
    stored = pq.read_table(finished.folder / "samples.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(stored)
    assert not pq.read_table(tmp_path / "other.parquet").equals(stored)


def test_noise_seed_and_infinite_epsilon_are_marked_and_charged_apart(tmp_path: Path) -> None:
    from dpsw_ray.privacy.ledger import Ledger

    for override, words in (("privacy.noise_seed=1", "noise_seed"), ("privacy.epsilon=.inf", "no privacy")):
        config = small(override, "cluster.executor=local", f"paths.home={tmp_path / 'home'}")
        result = run(config, tmp_path / words.replace(" ", "_"), QUIET)
        assert not result.privacy["publishable"]
        assert words in " ".join(result.privacy["warnings"])
        report = (result.folder / "report.html").read_text()
        assert "must not be published" in report.lower()
        manifest = Release.load(result.folder / "release").manifest
        assert manifest["reproducible_noise"] is (override == "privacy.noise_seed=1")
    ledger = Ledger(tmp_path / "home" / "ledger.sqlite")
    assert all(not entry.publishable and "research" in entry.name for entry in ledger.datasets())


@pytest.mark.parametrize("relation", ["replace_one", "zero_out", "add_remove"])
def test_every_relation_runs_and_costs_what_it_says(relation: str, tmp_path: Path) -> None:
    config = small(
        f"privacy.relation={relation}", "cluster.executor=local", f"paths.home={tmp_path / 'home'}"
    )
    result = run(config, tmp_path / "run", QUIET)
    release = Release.load(result.folder / "release")
    (event,) = release.manifest["privacy"]["events"]
    changed = 2 if relation == "replace_one" else 1
    assert event["row_norm_sq"] == int((release.kernel**2).sum(axis=1).max())
    mu = np.sqrt(changed * event["directions"] * event["row_norm_sq"]) / event["noise_std"]
    assert result.privacy["mu"] == pytest.approx(mu)
    assert result.privacy["relation"] == relation


def test_a_table_with_labels_goes_through(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 4000
    label = rng.choice(["a", "b"], n)
    x = rng.standard_normal(n) + 3 * (label == "a")
    y = 0.5 * x + rng.standard_normal(n)
    x[:5] = np.nan  # some of them are private: no error
    pq.write_table(pa.table({"label": x, "label_": y, "income": label}), tmp_path / "table.parquet")
    config = small(
        "data.source=table", f"data.path={tmp_path / 'table.parquet'}", "data.label=income", "encoder.kind=identity",
        "privacy.delta=1e-5", "flow.steps=40", "flow.particles=500", "release.frames=8", "release.bins=32",
        "cluster.executor=local",
        f"paths.home={tmp_path / 'home'}",
    )  # fmt: skip
    result = run(config, tmp_path / "run", QUIET)
    made = pq.read_table(result.folder / "samples.parquet")
    assert made.column_names == ["label", "label_", "income"]  # as the source calls them
    values, kinds = made.column("label").to_numpy(), np.array(made.column("income").to_pylist())
    assert values[kinds == "a"].mean() - values[kinds == "b"].mean() == pytest.approx(3, abs=0.6)
    assert np.corrcoef(values, made.column("label_").to_numpy())[0, 1] == pytest.approx(0.64, abs=0.2)
    for suffix, read in (
        (".csv", pa.csv.read_csv), (".pq", pq.read_table), (".arrow", read_arrow), (".Feather", feather.read_table),
    ):  # fmt: skip
        generate(result.folder, tmp_path / f"more{suffix}", 500, progress=QUIET)
        more = read(tmp_path / f"more{suffix}")
        assert more.column_names == made.column_names
        assert more.column("income").to_pylist() == made.column("income").to_pylist()
        assert np.array_equal(more.column("label_").to_numpy(), made.column("label_").to_numpy())
    encoder, release = load_encoder(result.folder / "encoder"), Release.load(result.folder / "release")
    read_back = read_samples(
        result.folder / "samples.parquet", encoder.schema, release.manifest["classes"], "income"
    )
    assert np.array_equal(read_back[0][:, 0], values)
    assert [release.manifest["classes"][number] for number in read_back[1]] == list(kinds)


def test_fashion_mnist_runs_on_two_actors(ray_session: None, tmp_path: Path) -> None:
    if not Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    config = small(
        "data.source=fashion_mnist", "data.public_fraction=0.5", "encoder.kind=conv", "encoder.epochs=1",
        "encoder.batch_size=500", "privacy.delta=1e-5",
    )  # fmt: skip
    result = run(config, tmp_path / "fashion", QUIET)
    data = open_dataset(config.data, config.home, "replace_one")
    assert data is not None and data.info.private_count is not None
    assert 29_000 < data.info.private_count < 31_000
    assert pq.read_table(result.folder / "samples.parquet").num_rows == 60
    assert result.metrics[0].value < 0.2
