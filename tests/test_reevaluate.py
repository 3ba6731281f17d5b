"""`dpsw evaluate`: the same figures from the stored samples, without the private side and without the ledger."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import run_dpsw, small

from dpsw_ray.base.progress import Progress
from dpsw_ray.data import open_dataset
from dpsw_ray.flow.film import read_film
from dpsw_ray.pipeline.generate import generate
from dpsw_ray.pipeline.run import run

QUIET = Progress(quiet=True)
MEASURED = ("evaluation.enabled=true", "evaluation.directions=16", "cluster.executor=local")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured run on the digits, and one on a table with odd columns."""
    place = tmp_path_factory.mktemp("place")
    homes = (f"paths.home={place / 'home'}", *MEASURED)
    run(small("tracking.enabled=true", "evaluation.research=true", *homes), place / "runs" / "digits", QUIET)
    rng = np.random.default_rng(0)
    label = rng.choice(["a", "b"], 1_500)
    x = rng.normal(size=1_500) + 2.0 * (label == "a")
    x[::50] = np.nan
    columns = {
        "x": x,
        "count": rng.poisson(3, 1_500),
        "constant": np.full(1_500, 0.1),
        "member": label == "b",
    }
    labels = [None if i % 40 == 0 else name for i, name in enumerate(label)]
    pq.write_table(pa.table({**columns, "kind": labels}), place / "table.parquet")
    table = small(
        "data.source=table", f"data.path={place / 'table.parquet'}", "data.label=kind", "encoder.kind=identity",
        "evaluation.models=[logreg, boosted]", "flow.particles=300", "flow.steps=20", *homes,
    )  # fmt: skip
    run(table, place / "runs" / "table", QUIET)
    return place


def figures(folder: Path) -> dict[str, float]:
    stored = json.loads((folder / "metrics.json").read_text())["metrics"]
    return {name: entry["value"] for name, entry in stored.items()}


def test_the_figures_come_again_without_the_private_side_and_the_ledger(place: Path) -> None:
    folder = place / "runs" / "digits"
    kept = {
        name: (folder / name).read_bytes()
        for name in ("config.yaml", "privacy.json", "samples.parquet", "film.png")
    }
    before, ledger = figures(folder), (place / "home" / "ledger.sqlite").read_bytes()
    research = (folder / "research" / "metrics.json").stat().st_mtime_ns
    config = small(f"paths.home={place / 'home'}")
    data = open_dataset(config.data, config.home, "replace_one")
    assert data is not None
    (place / "home" / "ledger.sqlite").rename(place / "ledger.away")
    data.private_dir.rename(place / "private.away")
    try:
        code, out, err = run_dpsw("evaluate", folder)
    finally:
        (place / "private.away").rename(data.private_dir)
        assert not (place / "home" / "ledger.sqlite").exists()
        (place / "ledger.away").rename(place / "home" / "ledger.sqlite")
    assert (code, err) == (0, "")
    assert figures(folder) == before and "FID (classifier features)" in out
    assert (place / "home" / "ledger.sqlite").read_bytes() == ledger
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert (folder / "research" / "metrics.json").stat().st_mtime_ns == research


def test_the_ledger_s_total_keeps_the_day_it_is_from(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(place / "runs" / "digits", folder)
    stored = json.loads((folder / "privacy.json").read_text())
    (said,) = (text for text in stored["statement"]["not_covered"] if text.startswith("Further releases"))
    today = said.split(" as of ")[1].split(". ")[0]
    stored["ledger"].pop("date", None)
    stored.pop("sha256")
    (folder / "privacy.json").write_text(json.dumps(stored).replace(today, "2024-02-29"))
    os.utime(folder / "privacy.json", (1_709_164_800, 1_709_164_800))  # 29 February 2024
    code, _, err = run_dpsw("evaluate", folder, "--quiet")
    assert (code, err) == (0, "")
    report = (folder / "report.html").read_text()
    assert "to “digits” as of 2024-02-29</small>" in report and "charge to digits as of 2024-02-29." in report


def test_a_fuller_evaluation_adds_models_and_says_so_in_the_report(place: Path) -> None:
    folder = place / "runs" / "digits"
    before, config = figures(folder), (folder / "config.yaml").read_bytes()
    code, _, err = run_dpsw("evaluate", folder, "--set", "evaluation.models=[logreg, boosted]", "--quiet")
    assert (code, err) == (0, "")
    assert set(figures(folder)) - set(before) == {"boosted trees accuracy"}
    report = (folder / "report.html").read_text()
    assert "boosted trees accuracy" in report and "- boosted" in report
    assert (folder / "config.yaml").read_bytes() == config  # the run goes on as what it was
    code, _, err = run_dpsw("evaluate", place / "runs" / "table", "--full", "--quiet")
    assert (code, err) == (0, "")
    report = (place / "runs" / "table" / "report.html").read_text()
    assert "schedule: full" in report and "train: 300" in report
    assert {"MLP accuracy", "boosted trees accuracy"} < set(figures(place / "runs" / "table"))


def test_every_figure_has_its_references_in_the_report_the_file_and_mlflow(place: Path) -> None:
    import mlflow

    stored = json.loads((place / "runs" / "digits" / "metrics.json").read_text())["metrics"]
    client = mlflow.MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dpsw_ray")
    assert experiment is not None
    tracked = client.search_runs([experiment.experiment_id])[-1].data.metrics
    for name, entry in stored.items():
        if name == "sliced W2 to the release":
            continue
        assert {"ceiling", "random latents"} <= set(entry["baselines"]), name
        for which, value in entry["baselines"].items():
            key = f"{name}/{which}".replace("(", "_").replace(")", "_").replace(",", "_")
            if "boosted" not in name:
                assert tracked[key] == pytest.approx(value), key
    report = (place / "runs" / "digits" / "report.html").read_text()
    assert "ceiling: real records through the encoder" in report and "The path of the particles" in report


def test_a_table_keeps_its_kinds_of_columns_and_reports_them(place: Path) -> None:
    folder = place / "runs" / "table"
    samples = pq.read_table(folder / "samples.parquet")
    assert [str(field.type) for field in samples.schema][:4] == ["double", "int64", "double", "int64"]
    assert samples.column("constant").to_numpy().tolist() == [0.1] * 300
    assert set(samples.column("member").to_pylist()) == {0, 1}
    stored = json.loads((folder / "metrics.json").read_text())["metrics"]
    parts = stored["marginal W1, mean"]["parts"]
    assert list(parts) == ["x", "count", "constant", "member"]
    assert (
        parts["constant"]["this run"] == 0.0 and parts["count"]["ceiling"] < parts["count"]["random latents"]
    )
    report = (folder / "report.html").read_text()
    for words in ("<h2>Columns</h2>", "<h2>Correlations</h2>", "Two columns after so many steps"):
        assert words in report
    assert not (folder / "film.apng").exists() and (folder / "film.png").exists()
    generate(folder, folder.parent / "again.parquet", 300, progress=QUIET)
    assert pq.read_table(folder.parent / "again.parquet").equals(samples)


def test_the_films_frames_end_where_the_samples_are_and_trials_keep_none(place: Path) -> None:
    film = read_film(place / "runs" / "digits" / "checkpoints" / "flow.npz")
    assert film is not None and film.steps.tolist() == [0, 1, 2, 4, 6]
    config = small(f"paths.home={place / 'home'}", "cluster.executor=local", "name=plain")
    run(config, place / "runs" / "plain", QUIET, lean=True)
    assert read_film(place / "runs" / "plain" / "checkpoints" / "flow.npz") is None
    assert not (place / "runs" / "plain" / "film.png").exists()
    (place / "runs" / "plain" / "metrics.json").unlink()
    run(
        config, place / "runs" / "plain", QUIET
    )  # a finished flow without frames: the start and the end are known
    assert read_film(place / "runs" / "plain" / "checkpoints" / "flow.npz") is None
    assert (place / "runs" / "plain" / "film.png").exists()


def test_a_generator_has_no_path_and_the_report_says_why(place: Path) -> None:
    config = small(
        "method=dpswgen", "privacy.relation=replace_one", "release.epochs=1", "generator.steps=20",
        f"paths.home={place / 'home'}", "cluster.executor=local", "name=generator",
    )  # fmt: skip
    run(config, place / "runs" / "generator", QUIET)
    report = (place / "runs" / "generator" / "report.html").read_text()
    assert "no particle moves" in report and not (place / "runs" / "generator" / "film.png").exists()


def test_what_private_records_give_without_noise_stays_in_research(place: Path) -> None:
    folder = place / "runs" / "digits"
    found = json.loads((folder / "research" / "ceiling.json").read_text())
    assert found["epsilon"] == "inf"
    ceiling = found["private latents, decoded"]
    assert {"FID (classifier features)", "LogReg accuracy", "sliced W2 to test latents"} <= set(ceiling)
    assert ceiling["sliced W2 to test latents"] < figures(folder)["sliced W2 to test latents"]
    assert (folder / "research" / "slices.png").stat().st_mode & 0o077 == 0
    public = [path for path in folder.rglob("*") if path.is_file() and "research" not in path.parts]
    public += [place / "runs" / "mlflow.db", *(place / "home" / "baselines").rglob("*.json")]
    for path in public:
        held = path.read_bytes()
        for name in ("FID (classifier features)", "sliced W2 to test latents"):
            assert repr(ceiling[name]).encode() not in held, path
    assert not [path for path in public if b"private latents, decoded" in path.read_bytes()]
    # Neighbours are looked for among public images alone.
    assert b"Nearest private" not in (folder / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("break_it", "options", "words"),
    [
        ("samples.parquet", (), "is not the folder of a finished run (samples.parquet is missing)"),
        ("", ("--set", "flow.particles=10"), "only keys of the evaluation can change"),
        ("", ("--set", "evaluation.nonsense=10"), "evaluation.nonsense"),
        ("home", (), "is not in"),
        ("damage", (), "samples.parquet is damaged"),
    ],
)
def test_a_mistake_ends_with_one_sentence(
    break_it: str, options: tuple[str, ...], words: str, place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(place / "runs" / "digits", folder)
    if break_it == "home":
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(
            text.replace(f"{place / 'home'}{os.linesep}", f"{tmp_path / 'no'}\n")
        )
    elif break_it == "damage":
        (folder / "samples.parquet").write_bytes(b"PAR1")
    elif break_it:
        (folder / break_it).unlink()
    code, _, err = run_dpsw("evaluate", folder, *options)
    assert code == 2 and words in err and err.count("\n") == 1
