"""Steps that runs, sweeps and audits share: an encoder of public records, decoded samples, their figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import digest_arrays
from dpsw_ray.base.progress import Progress, Task
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder, cached_encoder, fit_encoder, load_encoder
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.evaluate import evaluate
from dpsw_ray.evaluation.report import Metric
from dpsw_ray.flow.points import Points
from dpsw_ray.methods.registry import method_of
from dpsw_ray.release.released import Released

__all__ = ["decode", "measure", "threads_per_actor", "train_encoder"]


def train_encoder(config: RunConfig, data: Dataset, folder: Path, progress: Progress) -> Encoder:
    """The run's encoder, saved in `folder`: the one that is there, a cached one, or one trained on the public part.

    Raises:
        UserError: it would be computed from private records, which runs alone do: they charge it.
    """
    if config.encoder.kind == "dp_pca":
        raise UserError(
            "encoder.kind dp_pca is computed from private records and charged: `dpsw run` and `dpsw compare` do that, "
            "other commands need another encoder.kind."
        )
    if os.path.lexists(folder / "encoder.json"):
        return load_encoder(folder)  # the release of this folder, if there is one, was made with it
    public = data.public()
    classes = len(data.info.classes)
    inputs = [public.values, public.labels, np.array(classes)] if config.encoder.labelled else [public.values]

    def train() -> Encoder:
        learning = config.encoder.kind != "identity"
        title = "Training the encoder on the public part"
        with progress.task(title, config.encoder.epochs) if learning else nullcontext() as task:
            return fit_encoder(
                data.info.schema, public.values, config.encoder, config.encoder_seed,
                public_labels=public.labels, classes=classes, bounds=config.data.bounds,
                progress=None if task is None else _advance(task), device=_device(),
            )  # fmt: skip

    encoder = cached_encoder(config, data.info.schema, digest_arrays(*inputs), config.home, train)
    encoder.save(folder)
    return encoder


def decode(
    seed: int, points: Points, encoder: Encoder, release: Released[Any]
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Records [n, *shape] and labels [n] of points, shuffled by the public seed."""
    labels = points.labels if release.manifest["classes"] else np.full_like(points.labels, -1)
    order = np.random.default_rng([seed, 0x5AFE]).permutation(len(labels))
    columns = Columns.from_list(release.manifest.get("columns"))
    return columns.restore(encoder.decode(points.particles, labels))[order], labels[order]


def measure(
    config: RunConfig,
    data: Dataset,
    points: Points,
    samples: tuple[NDArray[Any], NDArray[np.int32]],
    encoder: Encoder,
    progress: Progress,
) -> list[Metric]:
    """The run's figures, from public and test records only."""
    met = method_of(config).figures(points)
    if not config.evaluation.enabled:
        return met
    with progress.task("Evaluating on public and test records") as task:
        return [
            *met,
            *evaluate(
                config.evaluation,
                particles=points.particles,
                samples=samples,
                public=data.public(),
                test=data.test(),
                encoder=encoder,
                encoder_seed=config.encoder_seed,
                classes=data.info.classes,
                seed=config.evaluation_seed,
                home=config.home,
                progress=_advance(task),
            ),
        ]


def _advance(task: Task) -> Callable[[str, int, int, dict[str, float]], None]:
    def report(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        task.total = total
        task.advance(done - task.done, " ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    return report


def threads_per_actor(config: RunConfig) -> int:
    """How many threads a worker may use."""
    if config.cluster.executor == "local":
        return torch.get_num_threads()  # the machine's, or what OMP_NUM_THREADS leaves to this process
    return max(1, int(config.cluster.cpus_per_actor))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
