"""The private side of a federated run: thousands of virtual users in each worker, a plain class that an actor wraps.

It has the interface of `dpsw_ray.private.shard.Shard`, so that charging, retries, masks between workers and the life of
the noise secret are those of the main job. Nothing but a masked, noisy message leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.encoders.base import load_encoder
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.privacy.noise import NoiseKey, poisson_sample
from dpsw_ray.private.keys import KeyStore
from dpsw_ray.private.latents import NULL, LatentStore
from dpsw_ray.private.masking import MaskingKey
from dpsw_ray.private.mechanism import NoiseSecret, cell_blocks, noise
from dpsw_ray.private.rows import noisy_histograms
from dpsw_ray.private.sealing import sealed
from dpsw_ray.slicing.directions import LATTICE
from federated.config import PopulationConfig
from federated.kernel import ABSENT, DECOY, PRESENT, add_users
from federated.plan import RoundPlan, UserPlan, UserRowPlan
from federated.population.generated import generated_chunk
from federated.population.make import make_partitioner
from federated.population.natural import NaturalPartitioner
from federated.population.statistics import statistics
from federated.shares import skellam
from federated.store import UserStore

__all__ = ["UserShard"]

_USERS = 4096  # at a time: what bounds the memory that is touched


class UserShard:
    """Some users' devices, and, in rank 0, the server that adds noise under `central`."""

    def __init__(
        self,
        rank: int,
        size: int,
        private_dir: Path,
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
            encoder_dir: folder of the (public) encoder.
            latents_key: name of the encoder by content.
            population: who holds what.
            generated: the users' records are made up here.
            users: in the population.
            store_key: name of the population under this encoder.
            threads: threads to use.
        """
        self.rank, self.size, self.threads = rank, size, threads
        self.private_dir, self.encoder_dir = Path(private_dir), Path(encoder_dir)
        self.population, self.generated, self.users = population, generated, users
        self.records = LatentStore(self.private_dir, latents_key)
        self.store = UserStore(self.private_dir / "users" / store_key)
        self.keys = KeyStore(self.private_dir)
        self._masking: MaskingKey | None = None

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
        for first in range(self.rank * _USERS, self.users, self.size * _USERS):
            last = min(first + _USERS, self.users)
            latents, labels = generated_chunk(self.population, encoder, first, last)
            self.store.put(slice(first * each, last * each), latents, labels)

    @sealed("generating users")
    def finish(self) -> None:
        """Rank 0 declares the users' latents whole."""
        if self.rank == 0 and not self.store.ready:
            self.store.finish()

    @sealed("drawing noise")
    def prepare(self, plan: RoundPlan) -> None:
        """Rank 0 makes the round's noise secret durable: called before it is charged, once or again."""
        if self.rank == 0 and self.keys.find(plan, self._fingerprint) is None:
            self.keys.create(plan, self._fingerprint)

    @sealed("looking for a noise secret")
    def can_repeat(self, plan: RoundPlan) -> bool:
        """On rank 0: whether this very round was begun and not committed, so that a retry costs nothing."""
        return self.rank == 0 and self.keys.find(plan, self._fingerprint) is not None

    @sealed("starting a round")
    def announce(self) -> bytes:
        """A fresh masking key between workers; returns its public half."""
        self._masking = MaskingKey()
        return self._masking.public

    @sealed("adding users' messages")
    def contribute(
        self, plan: RoundPlan, number: int, public_keys: Sequence[bytes], noise_seed: int | None = None
    ) -> NDArray[np.uint64]:
        """The sum of this worker's users' messages, masked; in rank 0 the noise is in it.

        Args:
            plan: of the round; it was prepared and charged before this call.
            number: 0.
            public_keys: all workers' announced keys, in rank order.
            noise_seed: reproducible noise, for tests and papers.

        Returns:
            Array of size [1, C, K, bins], uint64.
        """
        masking, self._masking = self._masking, None
        if masking is None or len(public_keys) != self.size:
            raise RuntimeError("contribute follows announce, with the keys of every worker")
        everywhere = isinstance(plan, UserRowPlan) or plan.rate < 1  # noise on rows, or a sample of the users
        secret = self._secret(plan, noise_seed) if everywhere or self.rank == 0 else None
        if isinstance(plan, UserRowPlan):
            assert isinstance(secret, NoiseKey), "rows draw their noise from a key"
            message = self._rows(plan, secret)
        else:
            message = self.sums(plan, secret)
            if self.rank == 0:
                assert secret is not None
                message += self._noise(plan, secret)
        context = f"{plan.release_id} {plan.digest()} {number}".encode()
        return masking.mask(message[None] if message.ndim == 3 else message, self.rank, public_keys, context)

    @sealed("destroying a noise secret")
    def commit(self, release_id: str) -> None:
        """Destroys the round's noise secret: called when the round is durable."""
        if self.rank == 0:
            self.keys.destroy(release_id)

    @sealed("measuring against private records")
    def research(self, particles: NDArray[np.float64], directions: int, seed: int) -> dict[str, Any]:
        """Distance to the private latents and facts of the population, without noise: `research/` only."""
        latents = self.store.latents * LATTICE
        return {
            "sliced_w2_to_private_latents": sliced_wasserstein(particles, latents, directions, seed),
            "population": statistics(self.store.offsets, self.store.labels),
        }

    def sums(self, plan: UserPlan, secret: NoiseSecret | None) -> NDArray[np.int64]:
        """The exact sum of this worker's users' messages: PRIVATE, array of size [C, K, bins].

        Raises:
            RuntimeError: a message passed its bound, which the arithmetic excludes.
        """
        first, last = self.store.share(self.rank, self.size)
        present = plan.cohort.survivors()
        total = np.zeros(plan.cells[1:], dtype=np.int64)
        for begin in range(first, last, _USERS):
            end = min(begin + _USERS, last)
            roles = np.where(present[begin:end], PRESENT, ABSENT).astype(np.uint8)
            if plan.rate < 1:
                assert isinstance(secret, NoiseKey), "samples come from a key"
                key = secret.derive(plan.digest().encode()).derive(b"sample")
                member = poisson_sample(key, plan.rate, begin, end - begin)
                roles = np.where(member | (roles == ABSENT), roles, DECOY).astype(np.uint8)
            rows = slice(int(self.store.offsets[begin]), int(self.store.offsets[end]))
            over = add_users(
                self.store.latents[rows], cell_blocks(self.store.labels[rows], plan),
                self.store.offsets[begin : end + 1] - rows.start, roles, plan.directions[0], plan.grid, plan.table,
                total, full_weight_at=plan.full_weight_at, precision=plan.precision,
                largest_norm_sq=plan.form.row_norm_sq, threads=self.threads,
            )  # fmt: skip
            if over.any():
                raise RuntimeError("a message passed its bound")
        return total

    def _noise(self, plan: UserPlan, secret: NoiseSecret) -> NDArray[np.int64]:
        if plan.trust == "central":
            return noise(secret, plan)
        assert isinstance(secret, NoiseKey), "shares of noise come from a key"
        # All survivors' shares at once: Skellam numbers add up to Skellam numbers.
        key, cells = secret.derive(plan.digest().encode()), plan.cells[1:]
        return skellam(key, plan.survivors * plan.share, int(np.prod(cells))).reshape(cells)

    def _rows(self, plan: UserRowPlan, key: NoiseKey) -> NDArray[np.int64]:
        first, last = self.store.share(self.rank, self.size)
        present, c = plan.cohort.survivors(), plan.rows
        before = int(present[:first].sum())

        def batches() -> Iterator[tuple[NDArray[np.float64], NDArray[np.int32]]]:
            rng = np.random.default_rng([plan.cohort.seed, 0x20E5])
            places = rng.random(self.users)  # public: which of its records a user sends
            for begin in range(first, last, _USERS):
                users = np.flatnonzero(present[begin : min(begin + _USERS, last)]) + begin
                yield self._padded(users, places[users], c), np.zeros(len(users) * c, np.int32)

        return noisy_histograms(batches(), plan, 0, before * c, int(present.sum()) * c, key)

    def _padded(self, users: NDArray[np.int64], places: NDArray[np.float64], c: int) -> NDArray[np.float64]:
        """Exactly c rows of every user: records spread over its own, over again where it has few, zero without any."""
        starts = self.store.offsets[users]
        counts = (self.store.offsets[users + 1] - starts)[:, None]
        some_of, steps, begin = np.maximum(counts, 1), np.arange(c), places[:, None]
        spread = np.floor((steps + begin) / c * counts)
        again = (steps + np.floor(begin * some_of)) % some_of
        picked = np.where(counts >= c, spread, again).astype(np.int64)
        picked = np.minimum(picked, some_of - 1) + starts[:, None]
        rows = np.zeros((len(users) * c, self.store.latents.shape[1]))
        some = np.repeat(counts[:, 0] > 0, c)
        flat = picked.ravel()[some]
        good = self.store.labels[flat] != NULL
        rows[np.flatnonzero(some)[good]] = self.store.latents[flat[good]] * LATTICE
        return rows

    def _secret(self, plan: RoundPlan, noise_seed: int | None) -> NoiseSecret:
        if noise_seed is not None:
            return NoiseKey.from_seed(noise_seed)
        secret = self.keys.find(plan, self._fingerprint)
        if secret is None:
            raise RuntimeError("no noise secret of this round and these users: committed, or never prepared")
        return secret

    @cached_property
    def _fingerprint(self) -> str:
        return self.store.fingerprint()
