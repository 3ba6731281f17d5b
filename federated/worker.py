"""The private side of a federated run: thousands of virtual users in each worker, a plain class that an actor wraps.

It has the interface of `dpsw_ray.private.shard.Shard`, so that charging, retries, masks between workers and the life of
the noise secret are those of the main job. Nothing but a masked, noisy message leaves it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.encoders.base import load_encoder
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.federated.config import PopulationConfig
from dpsw_ray.federated.mechanism import USERS, HeldUsers
from dpsw_ray.federated.population.generated import generated_chunk
from dpsw_ray.federated.population.make import make_partitioner
from dpsw_ray.federated.population.natural import NaturalPartitioner
from dpsw_ray.federated.population.statistics import statistics
from dpsw_ray.federated.store import UserStore
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.answering import Answering
from dpsw_ray.private.latents import LatentStore
from dpsw_ray.private.sealing import sealed
from dpsw_ray.release.plan import Plan
from dpsw_ray.slicing.directions import LATTICE

__all__ = ["UserShard"]


class UserShard(Answering):
    """Some users' devices, and, with chunk 0, the server that adds noise under `central`."""

    def __init__(
        self,
        rank: int,
        size: int,
        private_dir: Path,
        receipts_dir: Path,
        encoder_dir: Path,
        latents_key: str,
        population: PopulationConfig,
        generated: bool,
        users: int,
        store_key: str,
        threads: int = 1,
    ) -> None:
        """Points at the users' data; nothing is read yet.

        Args:
            rank: this worker's number, from 0.
            size: number of workers.
            private_dir: the data set's private folder.
            receipts_dir: where receipts of charges are kept.
            encoder_dir: folder of the (public) encoder.
            latents_key: name of the encoder by content.
            population: who holds what.
            generated: the users' records are made up here.
            users: in the population.
            store_key: name of the population under this encoder.
            threads: threads to use.
        """
        super().__init__(rank, size, private_dir, receipts_dir, threads)
        self.encoder_dir = Path(encoder_dir)
        self.population, self.generated, self.users = population, generated, users
        self.records = LatentStore(self.private_dir, latents_key)
        self.store = UserStore(self.private_dir / "users" / store_key)

    @sealed("looking at the users' latents")
    def inspect(self) -> None:
        """Rank 0 removes users' latents that are not what was written: they are made anew."""
        if self.rank == 0:
            self.store.inspect()

    @sealed("encoding private records")
    def encode(self) -> None:
        """Writes this worker's share of the private latents, where they are not there yet."""
        if not self.generated and not self.store.ready:
            self.records.encode(load_encoder(self.encoder_dir), self.rank, self.size)

    @sealed("dividing private records among users")
    def arrange(self) -> None:
        """Rank 0 sorts the latents by user, or makes room for those that are generated."""
        if self.rank or self.store.ready:
            return
        if self.generated:
            counts = np.full(self.users, self.population.records, dtype=np.int64)
            self.store.create(counts, load_encoder(self.encoder_dir).latent_dim)
            return
        if self.population.partition == "natural":
            partitioner: Any = NaturalPartitioner(np.load(self.private_dir / "owners.npy"))
        else:
            partitioner = make_partitioner(self.population)
        self.store.arrange(self.records, partitioner, self.users, self.population.seed)

    @sealed("generating users")
    def fill(self) -> None:
        """Makes this worker's users' records up, where they are generated."""
        if not self.generated or self.store.ready:
            return
        encoder, each = load_encoder(self.encoder_dir), self.population.records
        for first in range(self.rank * USERS, self.users, self.size * USERS):
            last = min(first + USERS, self.users)
            latents, labels = generated_chunk(self.population, encoder, first, last)
            self.store.put(slice(first * each, last * each), latents, labels)

    @sealed("generating users")
    def finish(self) -> None:
        """Rank 0 declares the users' latents whole."""
        if self.rank == 0 and not self.store.ready:
            self.store.finish()

    @sealed("measuring against private records")
    def research(self, particles: NDArray[np.float64], directions: int, seed: int) -> dict[str, Any]:
        """Distance to the private latents and facts of the population, without noise: `research/` only."""
        latents = self.store.latents * LATTICE
        return {
            "sliced_w2_to_private_latents": sliced_wasserstein(particles, latents, directions, seed),
            "population": statistics(self.store.offsets, self.store.labels),
        }

    def held(self, plan: Plan, chunk: int, chunks: int, choices: NoiseKey | None) -> HeldUsers:
        """PRIVATE: some users: about as many records in every chunk, or as many users in every part."""
        first, last = self.store.share(chunk, chunks)
        if plan.parts is not None:  # which users are in it must not follow from what they hold
            first, last = chunk * self.users // chunks, (chunk + 1) * self.users // chunks
        return HeldUsers(self.store, first, last, self.users, self.threads, choices)

    def fingerprint(self) -> str:
        """PRIVATE: a hash of the users' latents."""
        return self.store.fingerprint()
