"""Shared by the tests of federated runs: small runs, small populations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from support import kept

from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import LocalCluster
from dpsw_ray.data.split import Dataset
from dpsw_ray.federated.config import FEDERATED, FederatedConfig, load_federated
from dpsw_ray.federated.data import population_data
from dpsw_ray.federated.worker import UserShard
from dpsw_ray.federated.world import Users, spawn_users
from dpsw_ray.pipeline.run import RunResult, run
from dpsw_ray.pipeline.steps import train_encoder
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.latents import bounded
from dpsw_ray.slicing.directions import LATTICE

DIGITS = Path(__file__).parents[1] / "configs" / "federated" / "digits.yaml"
SMALL = (
    "encoder.epochs=3",
    "population.users=40",
    "release.frames=2",
    "release.bins=16",
    "release.smoothing=1",
    "flow.particles=60",
    "flow.steps=6",
    "tracking.enabled=false",
    "evaluation.enabled=false",
    "cluster.executor=local",
    "cluster.actors=2",
)


def run_federated(config: FederatedConfig, output: Path, progress: Progress) -> RunResult:
    """A federated run."""
    return run(config, output, progress, world=Users)


def small(home: Path, *overrides: str) -> FederatedConfig:
    """A federated run on the digits that takes seconds, with a home and a ledger of its own."""
    return load_federated(
        DIGITS,
        (
            *kept(SMALL, overrides, FEDERATED),
            f"paths.home={home}",
            f"paths.ledger={home}/ledger.sqlite",
            *overrides,
        ),
    )


def population(
    counts: list[int], dim: int = 3, classes: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latents, the same in multiples of 2^-26, sorted labels with unknown ones among them, and offsets."""
    rng = np.random.default_rng(seed)
    total = sum(counts)
    points = rng.standard_normal((total, dim)) * rng.uniform(0.1, 2, (total, 1))
    latents, _ = bounded(points, np.zeros(total, np.int32))
    labels = [np.sort(rng.integers(-1, classes, n)) for n in counts]
    flat = np.concatenate([*labels, np.empty(0, int)]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return latents, np.rint(latents / LATTICE).astype(np.int32), flat, offsets


def divided_users(config: FederatedConfig, book: str = "") -> tuple[Dataset, int]:
    """The data set and the number of users of a run, under its ledger, or another one beside it."""
    ledger = config.ledger_path.with_stem(book) if book else config.ledger_path
    return population_data(config, LocalCluster(1), Progress(quiet=True), Ledger(ledger))


def shards_of(config: FederatedConfig, tmp_path: Path, size: int = 2) -> tuple[list[UserShard], int]:
    """The users of a run, in place, without the run."""
    cluster, quiet = LocalCluster(size), Progress(quiet=True)
    data, users = divided_users(config)
    train_encoder(config, data, tmp_path / "encoder", quiet)
    group = spawn_users(config, cluster, data, tmp_path / "encoder", users)
    for step in ("inspect", "encode", "arrange", "fill", "finish"):
        group.call(step)
    return group._parts, users  # type: ignore[attr-defined]


class Here:
    """Workers in this process, as a group that can be asked."""

    def __init__(self, parts: list[UserShard]) -> None:
        self.parts, self.size = parts, len(parts)

    def call(self, method: str, args: tuple[object, ...] = (), *, retry: bool = False) -> list[Any]:
        return [getattr(part, method)(*args) for part in self.parts]

    def rebuild(self) -> None: ...

    def close(self) -> None: ...
