"""Generated users: as many as one likes, made up where they are needed, from a public seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.files import write_manifest
from dpsw_ray.data.parts import write_part
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.data.split import record_digests
from dpsw_ray.encoders.base import Encoder
from dpsw_ray.federated.config import PopulationConfig
from dpsw_ray.private.latents import bounded

__all__ = ["generated_chunk", "write_generated"]

_LUMPS, _SPREAD = 3, 0.25
_PUBLIC = 10_000  # records of the public part, and of the test part


def generated_chunk(
    population: PopulationConfig, encoder: Encoder, first: int, last: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Bounded latents and labels of the users `first` to `last`, a user's labels sorted.

    Args:
        population: the law: `iid` users see every class alike, `dirichlet` ones have a mixture of their own.
        encoder: from records to latents.
        first: number of the first user; where a chunk begins decides its draws.
        last: after the last.
    """
    rng = np.random.default_rng([population.seed, 0x6E6E, first])
    users, each = last - first, population.records
    if population.partition == "dirichlet":
        shares = rng.gamma(population.alpha, size=(users, population.classes)) + 1e-12
        ends = np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)
        points = rng.random((users, each))
        labels = (points[:, :, None] > ends[:, None, :-1]).sum(axis=2)
    else:
        labels = rng.integers(0, population.classes, (users, each))
    flat = np.sort(labels, axis=1).ravel().astype(np.int32)
    return bounded(encoder.encode(_records(population, encoder.latent_dim, flat, rng), flat), flat)


def write_generated(folder: Path, population: PopulationConfig, dim: int) -> None:
    """Writes a data set whose public and test part follow the users' law, and whose private part is not there.

    Args:
        folder: to be made.
        population: the law.
        dim: columns of a record.
    """
    schema = RecordSchema("table", (dim,), tuple(f"x{i}" for i in range(dim)))
    rng = np.random.default_rng([population.seed, 0x6E6D])
    for part, mode in (("public", 0o755), ("test", 0o755), ("private", 0o700)):
        (folder / part).mkdir(mode=mode, parents=True)
        if part == "private":
            continue
        labels = rng.integers(0, population.classes, _PUBLIC).astype(np.int32)
        values = _records(population, dim, labels, rng)
        write_part(folder / part, values, labels, record_digests(values, schema))
    classes = [str(label) for label in range(population.classes)]
    write_manifest(
        folder / "dataset.json",
        {
            "format": 1,
            "source": "generated",
            "schema": schema.to_dict(),
            "classes": classes,
            "class_names": None,
            "counts": {"public": _PUBLIC, "test": _PUBLIC},
        },
    )


def _records(
    population: PopulationConfig, dim: int, labels: NDArray[np.int32], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Records of given classes: lumps on the unit sphere, [n, dim]."""
    centres = np.random.default_rng([population.seed, 0x6E6C]).standard_normal(
        (population.classes, _LUMPS, dim)
    )
    centres /= np.linalg.norm(centres, axis=2, keepdims=True)
    lump = rng.integers(0, _LUMPS, len(labels))
    return np.asarray(centres[labels, lump] + _SPREAD * rng.standard_normal((len(labels), dim)))
