"""What a run's figures stand beside: random latents, the ceiling, and real records. Computed once for many runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import digest_arrays, read_manifest, write_manifest
from dpsw_ray.data.records import Part
from dpsw_ray.encoders.base import Encoder
from dpsw_ray.encoders.cache import cache_key, cached, code_version
from dpsw_ray.encoders.pca import PcaEncoder
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.report import REFERENCES
from dpsw_ray.flow.particles import random_latents

__all__ = ["CEILING", "RANDOM", "REAL", "Candidate", "PartName", "References"]

CEILING, RANDOM, REAL = REFERENCES

PartName = Literal["public", "test"]

Measure = Callable[["Candidate"], dict[str, float]]

_MODULES = ("downstream", "evaluate", "features", "fid", "models", "sliced", "tables")


@dataclass(frozen=True)
class Candidate:
    """Records that are measured: a run's samples, or what they are compared with.

    Attributes:
        latents: array of size [m, d], or None for records that did not pass through the encoder.
        records: array of size [n, *shape].
        labels: array of size [n], int32, -1 without.
    """

    latents: NDArray[np.float64] | None
    records: NDArray[Any]
    labels: NDArray[np.int32]


class References:
    """The three references of runs with one encoder, data set and seed; no private record is read.

    * `random latents`: decoded random points, with labels in the public part's shares.
    * `ceiling`: real records through the encoder and back: what a release could give that told the latents' law.
    * `real records`: the same records as they are.

    The latter two are of the public part where figures compare with test records or train on them, and of the test
    part where a classifier judges that was trained on the public part.
    """

    def __init__(
        self,
        encoder: Encoder,
        public: Part,
        test: Part,
        *,
        order: NDArray[np.int64],
        count: int,
        seed: int,
        home: Path,
    ) -> None:
        """Computes nothing yet.

        Args:
            encoder: of the runs.
            public: the public part.
            test: the test part.
            order: numbers of public records, those that are to be taken first in front.
            count: records at most in a reference.
            seed: public seed of the random latents.
            home: where figures are kept.
        """
        self._encoder, self._seed, self._home = encoder, seed, home
        self._parts: Mapping[PartName, tuple[Part, NDArray[np.int64]]] = {
            "public": (public, order[:count]),
            "test": (test, np.arange(min(count, len(test)))),
        }
        self._count = count

    def candidate(self, name: str, part: PartName = "public") -> Candidate:
        """One of them, computed anew."""
        if name == RANDOM:
            return self._random()
        records, rows = self._parts[part]
        values, labels = records.values[rows], records.labels[rows]
        if name == REAL:
            return Candidate(None, values, labels)
        latents = self._encoder.encode(values, labels)
        return Candidate(latents, self._columns.restore(self._encoder.decode(latents, labels)), labels)

    def figures(
        self, measure: Measure, part: PartName = "public", **what: Any
    ) -> dict[str, dict[str, float]]:
        """The figures of every reference, by its name: read from `home/baselines`, or computed and kept there.

        A private encoder is one run's own, so no other run has a use for its figures: they are computed, and nothing
        of them stays where runs share.

        Args:
            measure: computes figures; nan where one has no meaning.
            part: whose records.
            what: what decides the figures beside encoder, data and seed; plain values.
        """
        names = (CEILING, RANDOM, REAL)
        if isinstance(self._encoder, PcaEncoder):
            return {name: measure(self.candidate(name, part)) for name in names}
        common = cache_key(**self._identity, part=part, **what)
        return {
            name: cached(
                self._home / "baselines" / cache_key(name=name, common=common),
                _read,
                lambda name=name: measure(self.candidate(name, part)),  # type: ignore[misc]
                lambda figures, folder: write_manifest(folder / "figures.json", figures),
            )
            for name in names
        }

    @cached_property
    def _columns(self) -> Columns:
        return Columns.of(self._encoder.schema, self._parts["public"][0].values)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        (public, order), (test, _) = self._parts.values()
        weights = {name: tensor.cpu().numpy() for name, tensor in self._encoder.weights().items()}
        return {
            "encoder": cache_key(manifest=self._encoder.manifest(), weights=digest_arrays(**weights)),
            "public": digest_arrays(public.values, public.labels, order),
            "test": digest_arrays(test.values, test.labels),
            "count": self._count,
            "seed": self._seed,
            "code": [
                code_version("dpsw_ray.encoders"),
                *(code_version("dpsw_ray.evaluation", module) for module in _MODULES),
            ],
        }

    def _random(self) -> Candidate:
        rng = np.random.default_rng([self._seed, 0xE7A1])
        latents = random_latents(self._count, self._encoder.latent_dim, self._encoder.sphere, rng)
        known = self._parts["public"][0].labels
        known = known[known >= 0]
        labels = (rng.choice(known, self._count) if len(known) else np.full(self._count, -1)).astype(np.int32)
        records = self._columns.restore(self._encoder.decode(latents, labels))
        return Candidate(latents, records, labels)


def _read(folder: Path) -> dict[str, float]:
    try:
        stored = read_manifest(folder / "figures.json")
        return {name: math.nan if value is None else float(value) for name, value in stored.items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder} is damaged: {error}.") from error
