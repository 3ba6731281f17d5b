"""Whole runs with an encoder that is told the classes: labels reach it wherever records are encoded or decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from support import SMALL, small

from dpsw_ray.base.files import read_arrow
from dpsw_ray.base.progress import Progress
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import open_dataset
from dpsw_ray.encoders import load_encoder
from dpsw_ray.methods.dpswflow_h.audit import TableCanaries
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.pipeline.generate import generate
from dpsw_ray.pipeline.plan import make_plan
from dpsw_ray.pipeline.run import RunResult, run
from dpsw_ray.private.latents import bounded
from dpsw_ray.private.records import open_private_records

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return small(
        "encoder.conditional=true", "encoder.detail=200", "encoder.epochs=20", "cluster.executor=local",
        "evaluation.enabled=true", "evaluation.research=true", "evaluation.directions=64",
        f"paths.home={tmp_path_factory.mktemp('home')}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(config, tmp_path_factory.mktemp("runs") / "conditional", QUIET)


def test_the_shard_encodes_every_record_with_its_class(config: RunConfig, finished: RunResult) -> None:
    data = open_dataset(config.data, config.home, "replace_one")
    assert data is not None
    part, encoder = open_private_records(data.private_dir), load_encoder(finished.folder / "encoder")
    (chunk,) = data.private_dir.glob("latents/*/chunk-*.arrow")
    stored = read_arrow(chunk).column("latent").combine_chunks().flatten().to_numpy()
    latents = encoder.encode(part.values, part.labels)
    np.testing.assert_array_equal(stored.reshape(latents.shape), latents)
    assert not np.array_equal(encoder.encode(part.values, (part.labels + 1) % 10), latents)


def test_samples_are_decoded_with_the_class_they_were_released_for(finished: RunResult) -> None:
    encoder, table = (
        load_encoder(finished.folder / "encoder"),
        read_arrow(finished.folder / "particles.arrow"),
    )
    latents = table.column("latent").combine_chunks().flatten().to_numpy().reshape(-1, encoder.latent_dim)
    decoded = encoder.decode(latents, table.column("class").to_numpy())
    samples = _images(finished.folder / "samples.parquet")
    np.testing.assert_array_equal(
        np.sort(decoded.reshape(len(decoded), -1), axis=0), np.sort(samples, axis=0)
    )


def _images(path: Path) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = pq.read_table(path).column("pixels").combine_chunks().flatten().to_numpy()
    return pixels.reshape(60, -1)


def test_more_samples_come_from_the_stored_encoder(finished: RunResult, tmp_path: Path) -> None:
    generate(finished.folder, tmp_path / "again.parquet", 60, progress=QUIET)
    np.testing.assert_array_equal(
        _images(tmp_path / "again.parquet"), _images(finished.folder / "samples.parquet")
    )


def test_what_a_random_latent_would_give_stands_beside_the_figures(finished: RunResult) -> None:
    figures = json.loads((finished.folder / "metrics.json").read_text())["metrics"]
    assert (
        figures["intended class"]["baselines"]["random latents"] > 0.3
    )  # what is known without a private record
    assert set(figures["LogReg accuracy"]["baselines"]) == {"ceiling", "random latents", "real records"}


def test_canaries_are_encoded_with_the_classes_they_are_planted_under(
    config: RunConfig, finished: RunResult
) -> None:
    encoder = load_encoder(finished.folder / "encoder")
    plan = make_plan(config, encoder.latent_dim, 10, 700, "audit")
    assert isinstance(plan, HistogramPlan)
    first, second, difference = TableCanaries().pair(encoder, plan, "replace_one", 2)
    tables = [
        bound([bounded(encoder.encode(part.values, part.labels), part.labels)], plan).ravel()
        for part in (first, second)
    ]
    np.testing.assert_array_equal(tables[1] - tables[0], difference)


def test_data_without_classes_are_refused(tmp_path: Path, dpsw: Callable[..., tuple[int, str, str]]) -> None:
    values = np.random.default_rng(0).standard_normal((400, 2))
    pq.write_table(pa.table({"a": values[:, 0], "b": values[:, 1]}), tmp_path / "plain.parquet")
    sets = [
        *SMALL, "data.source=table", f"data.path={tmp_path / 'plain.parquet'}", "encoder.kind=mlp", "encoder.loss=mse",
        "encoder.conditional=true", "cluster.executor=local", f"paths.home={tmp_path / 'home'}",
        f"paths.ledger={tmp_path / 'ledger.sqlite'}", "privacy.force_delta=true",
    ]  # fmt: skip
    args = [word for key in sets for word in ("--set", key)]
    code, _, err = dpsw("flow", "digits", *args, "--output", tmp_path / "run")
    assert code == 2
    assert "encoder.conditional needs public labels, found none: set it to false." in err
    assert not (tmp_path / "run" / "release").exists() or not list((tmp_path / "run" / "release").iterdir())
