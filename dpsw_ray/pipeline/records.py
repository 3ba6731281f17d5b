"""The records of one data set, on the shards of a cluster: the world of a usual run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar

from dpsw_ray.base.errors import UserError
from dpsw_ray.cluster import Cluster, WorkerGroup
from dpsw_ray.config.family import Family
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder
from dpsw_ray.methods.registry import RUNS, method_of
from dpsw_ray.pipeline.division import check_relation, divided_data
from dpsw_ray.pipeline.exhibits import Results
from dpsw_ray.pipeline.plan import (
    charged_events,
    encoder_events,
    ledger_account,
    make_plan,
    planned,
    register_account,
)
from dpsw_ray.pipeline.private_encoder import private_encoder
from dpsw_ray.pipeline.publish import release_manifest
from dpsw_ray.pipeline.research import against_private, private_exhibits
from dpsw_ray.pipeline.steps import threads_per_actor, train_encoder
from dpsw_ray.pipeline.world import World
from dpsw_ray.privacy.events import Event
from dpsw_ray.private.shard import Shard
from dpsw_ray.release.exchange import is_charged, release_once
from dpsw_ray.release.preflight import check_nothing_lost
from dpsw_ray.release.released import Released

__all__ = ["Records", "check_delta", "spawn_shards"]


class Records(World[RunConfig]):
    """See the module; a unit of privacy is a record."""

    family: ClassVar[Family[Any]] = RUNS

    @property
    def masked(self) -> bool:
        """Of what may be published, and where their number is protected."""
        return self.config.privacy.relation == "add_remove" or self.config.privacy.publishable

    def check(self) -> None:
        """Before a record is read: under another relation, dividing the data set would tell a protected N.

        A cap refuses here what it would refuse later, when the encoder is trained: all that is not charged yet, so that
        no encoder is paid for whose release has no room.
        """
        config, p = self.config, self.config.privacy
        check_relation(config, self.ledger)
        self.ledger.check(
            ledger_account(config),
            p.relation,
            self._expected(),
            unit=p.unit,
            delta=p.delta,
            publishable=p.publishable,
        )
        check_nothing_lost(self.folder)

    def _expected(self) -> tuple[Event, ...]:
        """What the run is still going to charge; of a table which is not divided yet the encoder's part alone."""
        release = self.folder / "release"
        if is_charged(self.ledger, release):
            return ()
        encoder = () if is_charged(self.ledger, release / "encoder") else encoder_events(self.config)
        try:
            return (*encoder, planned(self.config)[0].event)
        except UserError:
            return encoder

    def data(self) -> Dataset:
        """Divided by record."""
        data = divided_data(self.config, self.cluster, self.progress, self.ledger)
        check_delta(self.config, data)
        return data

    def encoder(self, data: Dataset) -> Encoder:
        """From public records or, charged, from the private ones."""
        if self.config.encoder.kind != "dp_pca":
            return train_encoder(self.config, data, self.folder / "encoder", self.progress)

        def spawn(basis: Path) -> WorkerGroup:
            return spawn_shards(self.config, self.cluster, data, basis)

        return private_encoder(self.config, data, self.folder, self.ledger, spawn, self.progress)

    def shards(self, data: Dataset) -> WorkerGroup:
        """A share of the records each; encoded, unless nobody is going to look at them again."""
        shards = spawn_shards(self.config, self.cluster, data, self.folder / "encoder")
        if not self._stored or self.config.evaluation.research:
            self.progress.say("Encoding private records (on the private side)")
            shards.call("encode", retry=True)
        return shards

    @property
    def _stored(self) -> bool:
        return os.path.lexists(self.folder / "release" / "manifest.json")

    def release(self, data: Dataset, encoder: Encoder, shards: WorkerGroup) -> Released[Any]:
        """What the method releases, in one charge."""
        config, folder, info = self.config, self.folder / "release", data.info
        name = register_account(config, self.ledger)
        self.progress.say(
            f"Using the release stored in {folder}: nothing is charged"
            if self._stored
            else "Releasing: charge, sum, noise"
        )
        paid = charged_events(encoder, self.ledger)
        release = release_once(
            method_of(config).released,
            shards,
            lambda release_id: make_plan(
                config, encoder.latent_dim, len(info.classes), info.private_count, release_id, paid
            ),
            folder,
            ledger=self.ledger,
            account=name,
            run_id=config.name,
            noise_seed=config.privacy.noise_seed,
            manifest=lambda plan: release_manifest(config, plan, info, encoder, self.ledger),
        )
        if release.manifest.get("encoder", {}) != encoder.source:
            raise UserError(
                f"The release stored in {folder} was made with another private encoder than the one in {self.folder}: "
                "restore both from one copy, or give another --output."
            )
        return release

    def research(self, results: Results, shards: WorkerGroup, lean: bool) -> None:
        """Distances, attacks, slices, and what the private latents themselves would give."""
        folder = self.folder / "research"
        against_private(results, shards, folder)
        if not lean:
            private_exhibits(results, shards, folder)


def check_delta(config: RunConfig, data: Dataset) -> None:
    """Refuses a delta at which a mechanism may publish a record whole, unless `privacy.force_delta` accepts it."""
    count, delta = data.info.private_count, config.privacy.delta
    if count is not None and delta >= 1 / count and not config.privacy.force_delta:
        raise UserError(
            f"privacy.delta {delta:g} is not below 1/N = {1 / count:.3g} for the {count:,} private records: at such a "
            "delta a mechanism may publish a record whole; choose a smaller one, or set privacy.force_delta: true."
        )


def spawn_shards(config: RunConfig, cluster: Cluster, data: Dataset, encoder_dir: Path) -> WorkerGroup:
    """One shard of the private part on each worker of the cluster; nothing is read yet."""
    key = hashlib.sha256((encoder_dir / "encoder.json").read_bytes()).hexdigest()[:32]
    shared = {
        "size": cluster.size,
        "private_dir": data.private_dir,
        "receipts_dir": data.receipts_dir,
        "encoder_dir": encoder_dir,
        "latents_key": key,
    }
    return cluster.spawn(
        Shard, [{"rank": r, "threads": threads_per_actor(config), **shared} for r in range(cluster.size)]
    )
