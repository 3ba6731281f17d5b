"""Figures that read private records without noise: their epsilon is infinite, and they stay in a run's `research/`.

Shards compute them, on request (`evaluation.research`); the folder is its owner's alone, and nothing of it is logged.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from dpsw_ray.base.files import write_bytes, write_json
from dpsw_ray.cluster import WorkerGroup
from dpsw_ray.data import Dataset
from dpsw_ray.evaluation.membership import auc_at_most
from dpsw_ray.methods.registry import method_of
from dpsw_ray.pipeline.exhibits import Results

__all__ = ["WARNING", "against_private", "private_exhibits"]

WARNING = "Computed from private records without noise: not covered by the run's epsilon, never publish."


def against_private(results: Results, shards: WorkerGroup, folder: Path) -> None:
    """Writes what attacks and distances say: particles against the private latents."""
    config, encoder, particles = results.config, results.encoder, results.points.particles
    distance = shards.call(
        "research_sliced_wasserstein", (particles, config.evaluation.directions, config.evaluation_seed)
    )[0]
    test = Dataset(results.info).test()
    outsiders = encoder.encode(test.values, test.labels)
    attack = shards.call(
        "research_membership", (particles, outsiders, config.evaluation.images, config.evaluation_seed)
    )[0]
    mu = results.release.manifest["privacy"]["mu"]
    limited = mu is not None and config.privacy.relation == "replace_one"
    folder.mkdir(mode=0o700, exist_ok=True)
    write_json(
        folder / "metrics.json",
        {
            "epsilon": math.inf,
            "warning": WARNING,
            "sliced_w2_to_private_latents": distance,
            "membership": {**asdict(attack), "auc_at_most": auc_at_most(float(mu)) if limited else None},
            "directions": config.evaluation.directions,
        },
    )


def private_exhibits(results: Results, shards: WorkerGroup, folder: Path) -> None:
    """The private records' own slices beside the released ones, and their own latents as the ceiling."""
    config = results.config
    shown = method_of(config).shown_slices(results)
    if shown is not None:
        slices = shards.call("research_slices", (shown.directions, shown.grid, shown.kernel, shown.masses))[0]
        write_bytes(folder / "slices.png", slices, mode=0o600)
    if config.evaluation.enabled:
        asked = (config.evaluation, results.info, config.encoder_seed, config.evaluation_seed, config.home)
        figures = shards.call("research_ceiling", (*asked, len(results.points.particles)))[0]
        write_json(
            folder / "ceiling.json",
            {
                "epsilon": math.inf,
                "warning": WARNING,
                "private latents, decoded": figures,
            },
        )
