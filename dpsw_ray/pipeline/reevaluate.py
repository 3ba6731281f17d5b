"""A finished run measured anew: its samples as they are, public and test records; nothing private, no ledger."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpsw_ray.base.errors import UserError, named
from dpsw_ray.base.files import read_manifest
from dpsw_ray.base.progress import Progress
from dpsw_ray.config.file import read_values
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset, open_dataset
from dpsw_ray.encoders import load_encoder
from dpsw_ray.flow.film import read_film
from dpsw_ray.flow.points import Points
from dpsw_ray.methods.registry import load_config, method_of
from dpsw_ray.pipeline.exhibits import Results
from dpsw_ray.pipeline.folder import RunFolder, lasting, stored_config
from dpsw_ray.pipeline.publish import show
from dpsw_ray.pipeline.run import RunResult
from dpsw_ray.pipeline.samples import read_particles, read_samples
from dpsw_ray.pipeline.steps import measure
from dpsw_ray.pipeline.tracking import open_tracker

__all__ = ["evaluate_again"]

_NEEDED = ("config.yaml", "privacy.json", "metrics.json", "report.html", "particles.arrow", "samples.parquet")


def evaluate_again(
    folder: Path, overrides: Sequence[str] = (), full: bool = False, progress: Progress | None = None
) -> RunResult:
    """Writes `metrics.json`, pictures and the report of a finished run again; `research/` stays as it is.

    Args:
        folder: of the run.
        overrides: `evaluation.key=value`, for this evaluation alone: the run's own config is not changed.
        full: the published protocol: every model on the full schedule, trained on all samples.
        progress: where to report.

    Raises:
        UserError: the folder holds no finished run of records, its data set is not there, or an override is not of the
            evaluation.
    """
    progress = progress or Progress()
    folder = lasting(folder)
    for name in _NEEDED:
        if not os.path.lexists(folder / name):
            raise UserError(f"{folder} is not the folder of a finished run ({name} is missing).")
    path = stored_config(folder)
    if "population" in read_values(path)[0]:
        raise UserError(
            f"{folder} holds a federated run, whose report is made by `dpsw federated` alone: run it again in "
            "that folder, which charges nothing."
        )
    for override in overrides:
        if not override.strip().startswith("evaluation."):
            raise UserError(
                f"--set {named(override)}: only keys of the evaluation can change, such as evaluation.train=60000."
            )
    stored = load_config(path)
    config = _evaluated(load_config(path, overrides))
    with RunFolder(stored, folder), open_tracker(config.tracking, folder.parent, config.name) as tracker:
        data = open_dataset(config.data, config.home, config.privacy.relation)
        if data is None:
            raise UserError(
                f"The divided data set {config.data.account} of {folder} is not in {config.home}: set DPSW_HOME to "
                "where it is."
            )
        privacy = _dated(folder / "privacy.json")
        results = _measured(config, folder, data, full, progress)
        tracker.params(results.config.model_dump(mode="json"))
        show(results, privacy, folder, tracker)
        return RunResult(folder, privacy, results.metrics, tracker.ui_command)


def _dated(path: Path) -> dict[str, Any]:
    """What `privacy.json` holds; the ledger's total, which is not asked again, with the day that the file is from."""
    privacy = read_manifest(path)
    written = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return {**privacy, "ledger": {"date": written.date().isoformat(), **privacy["ledger"]}}


def _evaluated(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"enabled": True})})


def _measured(config: RunConfig, folder: Path, data: Dataset, full: bool, progress: Progress) -> Results:
    told = read_manifest(folder / "metrics.json")  # which also says whether the samples are those it measured
    encoder, method = load_encoder(folder / "encoder"), method_of(config)
    release = method.released.load(folder / "release")
    samples = read_samples(
        folder / "samples.parquet", encoder.schema, release.manifest["classes"], config.data.label
    )
    if full:
        other = "boosted" if encoder.schema.kind == "table" else "cnn"
        protocol: dict[str, Any] = {
            "schedule": "full",
            "train": len(samples[0]),
            "models": list(dict.fromkeys(("logreg", "mlp", other, *config.evaluation.models))),
        }
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=protocol)})
    film = read_film(folder / "checkpoints" / "flow.npz")
    points = Points(
        *read_particles(folder / "particles.arrow"), told["flow"]["distances"], told["flow"]["stopped"], film
    )
    start = time.perf_counter()
    metrics = measure(config, data, points, samples, encoder, progress)
    seconds = {**told["seconds"], "evaluation": round(time.perf_counter() - start, 3)}
    targets = method.targets(config, release)
    return Results(config, data.info, encoder, release, targets, points, samples, metrics, seconds)
