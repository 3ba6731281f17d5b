"""Shared by the tests of federated runs: small runs, small populations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpsw_ray.cluster import LocalCluster
from dpsw_ray.data.split import Dataset
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.latents import bounded
from dpsw_ray.progress import Progress
from dpsw_ray.run import train_encoder
from dpsw_ray.slicing.directions import LATTICE
from federated.config import FederatedConfig, load_federated
from federated.data import population_data
from federated.run import spawn_users
from federated.worker import UserShard

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


def small(home: Path, *overrides: str) -> FederatedConfig:
    """A federated run on the digits that takes seconds, with a home and a ledger of its own."""
    return load_federated(
        DIGITS, (*SMALL, f"paths.home={home}", f"paths.ledger={home}/ledger.sqlite", *overrides)
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
    for step in ("encode", "arrange", "fill", "finish"):
        group.call(step)
    return group._parts, users  # type: ignore[attr-defined]
