"""One shard of the private records: a plain class that an actor wraps, tested without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config import EvaluationConfig
from dpsw_ray.data.split import Dataset, DatasetInfo
from dpsw_ray.encoders.base import load_encoder
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.membership import Membership, membership
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.keys import KeyStore
from dpsw_ray.private.latents import NULL, LatentStore
from dpsw_ray.private.masking import MaskingKey
from dpsw_ray.private.mechanism import NoiseSecret, bound, noise
from dpsw_ray.private.moments import moment_noise, moment_sums
from dpsw_ray.private.rows import noisy_histograms
from dpsw_ray.private.sampled import sampled_noise, sampled_sums
from dpsw_ray.private.sealing import sealed
from dpsw_ray.release.moments import MomentsPlan
from dpsw_ray.release.plan import AnyPlan, HistogramPlan, SampledHistogramPlan
from dpsw_ray.release.rows import RowPlan
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.slicing.histogram import add_histograms

if TYPE_CHECKING:
    from dpsw_ray.evaluation.pictures import SliceMasses

__all__ = ["Shard"]


class Shard:
    """Opens its rows of the private latents; nothing but a masked, noised message leaves it.

    Noise on a sum is added by rank 0, the designated shard, to its own part before masking; noise on a row by the shard
    that owns the row.
    """

    def __init__(
        self, rank: int, size: int, private_dir: Path, encoder_dir: Path, latents_key: str, threads: int = 1
    ) -> None:
        """Points the shard at its data; nothing is read yet.

        Args:
            rank: this shard's number, from 0.
            size: number of shards.
            private_dir: the data set's private folder.
            encoder_dir: folder of the (public) encoder.
            latents_key: name of the encoder by content; latents are stored under it.
            threads: threads this shard may use.
        """
        self.rank = rank
        self.size = size
        self.private_dir = Path(private_dir)
        self.encoder_dir = Path(encoder_dir)
        self.threads = threads
        self.store = LatentStore(self.private_dir, latents_key)
        self.keys = KeyStore(self.private_dir)
        self._masking: MaskingKey | None = None

    @sealed("encoding private records")
    def encode(self) -> None:
        """Writes this shard's share of the private latents, where they are not there yet."""
        self.store.encode(load_encoder(self.encoder_dir), self.rank, self.size)

    @sealed("drawing noise")
    def prepare(self, plan: AnyPlan) -> None:
        """Rank 0 makes the release's noise secret durable: called before the release is charged, once or again."""
        if self.rank == 0:
            fingerprint = self.store.fingerprint()
            if self.keys.find(plan, fingerprint) is None:
                self.keys.create(plan, fingerprint)

    @sealed("looking for a noise secret")
    def can_repeat(self, plan: AnyPlan) -> bool:
        """On rank 0: whether this very release was begun and not committed, so that a retry costs nothing."""
        return self.rank == 0 and self.keys.find(plan, self.store.fingerprint()) is not None

    @sealed("starting a release")
    def announce(self) -> bytes:
        """Starts a round: a fresh masking key; returns its public half."""
        self._masking = MaskingKey()
        return self._masking.public

    @sealed("summing private records")
    def contribute(
        self,
        plan: AnyPlan,
        number: int,
        public_keys: Sequence[bytes],
        noise_seed: int | None = None,
    ) -> NDArray[np.uint64]:
        """Returns one of this shard's messages: its part of some rounds, masked modulo 2^64.

        Args:
            plan: what is released; it was prepared and charged before this call.
            number: of the message, of `plan.messages`.
            public_keys: all shards' announced keys, in rank order.
            noise_seed: reproducible noise, for tests and papers; the release is marked.

        Returns:
            Array of size [rounds of the message, C, K, bins], of moments `plan.cells`, uint64.
        """
        masking, self._masking = self._masking, None
        if masking is None or len(public_keys) != self.size:
            raise RuntimeError("contribute follows announce, with the keys of every shard")
        message = self._message(plan, number, noise_seed)
        context = f"{plan.release_id} {plan.digest()} {number}".encode()
        return masking.mask(message, self.rank, public_keys, context)

    @sealed("destroying a noise secret")
    def commit(self, release_id: str) -> None:
        """Destroys the release's noise secret: called when the release is durable."""
        if self.rank == 0:
            self.keys.destroy(release_id)

    @sealed("measuring against private records")
    def research_sliced_wasserstein(
        self, particles: NDArray[np.float64], directions: int, seed: int
    ) -> float | None:
        """On rank 0 the sliced W2 of particles to the private latents, without noise: `research/` only."""
        if self.rank:
            return None
        return sliced_wasserstein(particles, self._latents(), directions, seed)

    @sealed("measuring against private records")
    def research_membership(
        self, particles: NDArray[np.float64], outsiders: NDArray[np.float64], most: int, seed: int
    ) -> Membership | None:
        """On rank 0 attacks particles with the private latents, without noise: `research/` only."""
        if self.rank:
            return None
        return membership(particles, self._latents(), outsiders, most, seed)

    @sealed("measuring against private records")
    def research_slices(
        self,
        directions: NDArray[np.float64],
        grid: BinGrid,
        kernel: NDArray[np.int64],
        masses: SliceMasses,
    ) -> bytes | None:
        """On rank 0 draws the private records' slices, without noise, beside what was released: `research/` only."""
        if self.rank:
            return None
        # Loaded by who asks for research: every worker of every run imports this module.
        from dpsw_ray.evaluation.pictures import slices_figure

        total = np.zeros((1, len(directions), grid.bins), np.int64)
        for latents, labels in self.store.batches(0, self.store.rows()):
            blocks = np.where(labels == NULL, -1, 0).astype(np.int32)
            add_histograms(latents, blocks, directions, grid, kernel, total, self.threads)
        private = total[0] / np.maximum(total[0].sum(axis=1, keepdims=True), 1)
        return slices_figure(grid.edges, masses, private)

    @sealed("measuring against private records")
    def research_ceiling(
        self, config: EvaluationConfig, info: DatasetInfo, encoder_seed: int, seed: int, home: Path, most: int
    ) -> dict[str, float] | None:
        """On rank 0 the figures of the private latents, decoded, at most so many: `research/` only."""
        if self.rank:
            return None
        from dpsw_ray.evaluation.evaluate import evaluate

        encoder, data = load_encoder(self.encoder_dir), Dataset(info)
        batches = list(self.store.batches(0, self.store.rows()))
        latents, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        chosen = np.random.default_rng(seed).permutation(np.flatnonzero(labels != NULL))[:most]
        public = data.public()
        records = Columns.of(encoder.schema, public.values).restore(
            encoder.decode(latents[chosen], labels[chosen])
        )
        metrics = evaluate(
            config, particles=latents[chosen], samples=(records, labels[chosen]), public=public, test=data.test(),
            encoder=encoder, encoder_seed=encoder_seed, classes=info.classes, seed=seed, home=home, beside=False,
        )  # fmt: skip
        return {metric.name: metric.value for metric in metrics}

    def _latents(self) -> NDArray[np.float64]:
        return np.concatenate([batch for batch, _ in self.store.batches(0, self.store.rows())])

    def _message(self, plan: AnyPlan, number: int, noise_seed: int | None) -> NDArray[np.int64]:
        rows = self.store.rows()
        start, stop = self.rank * rows // self.size, (self.rank + 1) * rows // self.size
        batches = self.store.batches(start, stop)
        if isinstance(plan, HistogramPlan):
            secret = self._noise_secret(plan, noise_seed) if self.rank == 0 else None
            total = bound(batches, plan, self.threads)
            return (total if secret is None else total + noise(secret, plan))[None]
        key = self._noise_secret(plan, noise_seed)
        assert isinstance(key, NoiseKey), "these plans draw their noise from a key"
        if isinstance(plan, MomentsPlan):
            sums = moment_sums(batches, plan)
            return sums + moment_noise(key, plan) if self.rank == 0 else sums
        if isinstance(plan, RowPlan):
            return noisy_histograms(batches, plan, number, start, rows, key)
        assert isinstance(plan, SampledHistogramPlan)
        sums = sampled_sums(batches, plan, number, start, key, self.threads)
        return sums + sampled_noise(key, plan, number) if self.rank == 0 else sums

    def _noise_secret(self, plan: AnyPlan, noise_seed: int | None) -> NoiseSecret:
        if noise_seed is not None:
            return NoiseKey.from_seed(noise_seed)
        secret = self.keys.find(plan, self.store.fingerprint())
        if secret is None:
            raise RuntimeError("no noise secret of this plan and these latents: committed, or never prepared")
        return secret
