"""One shard of the private records: a plain class that an actor wraps, tested without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config.run import EvaluationConfig
from dpsw_ray.data.split import Dataset, DatasetInfo
from dpsw_ray.encoders.base import load_encoder
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.membership import Membership, membership
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.answering import Answering
from dpsw_ray.private.held import HeldRecords
from dpsw_ray.private.latents import NULL, LatentStore
from dpsw_ray.private.sealing import sealed
from dpsw_ray.release.plan import Plan
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.slicing.histogram import add_histograms

if TYPE_CHECKING:
    from dpsw_ray.evaluation.pictures import SliceMasses

__all__ = ["Shard"]


class Shard(Answering):
    """Opens its rows of the private latents; nothing but a masked, noised message leaves it."""

    def __init__(
        self,
        rank: int,
        size: int,
        private_dir: Path,
        receipts_dir: Path,
        encoder_dir: Path,
        latents_key: str,
        threads: int = 1,
    ) -> None:
        """Points the shard at its data; nothing is read yet.

        Args:
            rank: this shard's number, from 0.
            size: number of shards.
            private_dir: the data set's private folder.
            receipts_dir: where receipts of charges are kept.
            encoder_dir: folder of the (public) encoder.
            latents_key: name of the encoder by content; latents are stored under it.
            threads: threads this shard may use.
        """
        super().__init__(rank, size, private_dir, receipts_dir, threads)
        self.encoder_dir = Path(encoder_dir)
        self.store = LatentStore(self.private_dir, latents_key)

    @sealed("encoding private records")
    def encode(self) -> None:
        """Writes this shard's share of the private latents, where they are not there yet."""
        self.store.encode(load_encoder(self.encoder_dir), self.rank, self.size)

    def held(self, plan: Plan, chunk: int, chunks: int, choices: NoiseKey | None) -> HeldRecords:
        """PRIVATE: a stretch of the rows."""
        rows = self.store.rows()
        start, stop = chunk * rows // chunks, (chunk + 1) * rows // chunks
        return HeldRecords(self.store, start, stop, self.threads, choices)

    def fingerprint(self) -> str:
        """PRIVATE: a hash of the latents."""
        return self.store.fingerprint()

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
