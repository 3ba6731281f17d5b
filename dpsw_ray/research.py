"""Figures that read private records without noise: their epsilon is infinite, and they stay in a run's `research/`.

Shards compute them, on request (`evaluation.research`); the folder is its owner's alone, and nothing of it is logged.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from dpsw_ray.cluster import WorkerGroup
from dpsw_ray.config import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder
from dpsw_ray.evaluation.membership import auc_at_most
from dpsw_ray.exhibits import SLICES, slice_masses
from dpsw_ray.files import write_bytes, write_json
from dpsw_ray.flow.solver import FlowResult
from dpsw_ray.release import Release
from dpsw_ray.release.quantiles import Targets

__all__ = ["against_private", "private_exhibits"]

_WARNING = "Computed from private records without noise: not covered by the run's epsilon, never publish."


def against_private(
    config: RunConfig,
    data: Dataset,
    encoder: Encoder,
    release: Release,
    shards: WorkerGroup,
    flow: FlowResult,
    folder: Path,
) -> None:
    """Writes what attacks and distances say: particles against the private latents."""
    distance = shards.call(
        "research_sliced_wasserstein", (flow.particles, config.evaluation.directions, config.evaluation_seed)
    )[0]
    test = data.test()
    outsiders = encoder.encode(test.values, test.labels)
    attack = shards.call(
        "research_membership", (flow.particles, outsiders, config.evaluation.images, config.evaluation_seed)
    )[0]
    mu = release.manifest["privacy"]["mu"]
    limited = mu is not None and config.privacy.relation == "replace_one"
    folder.mkdir(mode=0o700, exist_ok=True)
    write_json(
        folder / "metrics.json",
        {
            "epsilon": math.inf,
            "warning": _WARNING,
            "sliced_w2_to_private_latents": distance,
            "membership": {**asdict(attack), "auc_at_most": auc_at_most(float(mu)) if limited else None},
            "directions": config.evaluation.directions,
        },
    )


def private_exhibits(
    config: RunConfig,
    data: Dataset,
    encoder: Encoder,
    release: Release,
    targets: Targets,
    shards: WorkerGroup,
    flow: FlowResult,
    folder: Path,
) -> None:
    """The private records' own slices beside the released ones, and their own latents as the ceiling."""
    masses = slice_masses(config, release, targets, flow, encoder)
    grid, directions = release.grid, targets.slices.directions[:SLICES]
    slices = shards.call("research_slices", (directions, grid, release.kernel, masses))[0]
    write_bytes(folder / "slices.png", slices, mode=0o600)
    if config.evaluation.enabled:
        asked = (config.evaluation, data.info, config.encoder_seed, config.evaluation_seed, config.home)
        figures = shards.call("research_ceiling", (*asked, len(flow.particles)))[0]
        write_json(
            folder / "ceiling.json",
            {
                "epsilon": math.inf,
                "warning": _WARNING,
                "private latents, decoded": figures,
            },
        )
