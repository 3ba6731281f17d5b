"""The records of many users, on devices that are simulated: the world of a federated run."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import write_bytes, write_json
from dpsw_ray.cluster import Cluster, WorkerGroup
from dpsw_ray.config.family import Family
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder
from dpsw_ray.federated.config import FEDERATED, FederatedConfig
from dpsw_ray.federated.data import population_data
from dpsw_ray.federated.population.statistics import heterogeneity_figure
from dpsw_ray.federated.report import mechanism, sections, summary
from dpsw_ray.federated.rounds import Rounds, check_rounds_whole, merged, run_rounds
from dpsw_ray.federated.worker import UserShard
from dpsw_ray.pipeline.exhibits import Results, Told
from dpsw_ray.pipeline.plan import ledger_account, register_account
from dpsw_ray.pipeline.research import WARNING
from dpsw_ray.pipeline.steps import threads_per_actor, train_encoder
from dpsw_ray.pipeline.tracking import Tracker
from dpsw_ray.pipeline.world import World
from dpsw_ray.tables.release import Release

__all__ = ["Users", "spawn_users"]


class Users(World[FederatedConfig]):
    """See the module; a unit of privacy is a user."""

    family: ClassVar[Family[Any]] = FEDERATED

    _users: int  # in the population
    _rounds: Rounds

    @property
    def masked(self) -> bool:
        """Always: a user may have any number of records."""
        return True

    def check(self) -> None:
        """What is charged is known round by round: here no more than that the account allows it."""
        p = self.config.privacy
        self.ledger.check(
            ledger_account(self.config), p.relation, unit=p.unit, delta=p.delta, publishable=p.publishable
        )
        check_rounds_whole(self.folder / "release")

    def data(self) -> Dataset:
        """Divided by user, or by record where users are made up afterwards."""
        data, self._users = population_data(self.config, self.cluster, self.progress, self.ledger)
        _check_delta(self.config, self._users)
        return data

    def encoder(self, data: Dataset) -> Encoder:
        """From public records."""
        return train_encoder(self.config, data, self.folder / "encoder", self.progress)

    def shards(self, data: Dataset) -> WorkerGroup:
        """A share of the users each, their latents in place."""
        shards = spawn_users(self.config, self.cluster, data, self.folder / "encoder", self._users)
        self.progress.say(f"Preparing {self._users:,} users (on the private side)")
        for step in ("inspect", "encode", "arrange", "fill", "finish"):
            shards.call(step, retry=True)
        return shards

    def release(self, data: Dataset, encoder: Encoder, shards: WorkerGroup) -> Release:
        """All rounds, as one release."""
        folder = self.folder / "release"
        register_account(self.config, self.ledger)
        self._rounds = run_rounds(
            self.config, shards, folder, self.ledger, data.info, encoder, self._users, self.progress
        )
        release = merged(self._rounds, self.config)
        if not (folder / "manifest.json").exists():
            release.save(folder)
        return release

    def research(self, results: Results, shards: WorkerGroup, lean: bool) -> None:
        """The distance to the private latents, and how the users differ."""
        e, folder = self.config.evaluation, self.folder / "research"
        asked = (results.points.particles, e.directions, self.config.evaluation_seed)
        found = shards.call("research", asked)[0]
        folder.mkdir(mode=0o700, exist_ok=True)
        write_json(folder / "metrics.json", {"epsilon": math.inf, "warning": WARNING, **found})
        write_bytes(folder / "population.png", heterogeneity_figure(found["population"]))

    def told(self) -> Told:
        """The population, the rounds, the traffic."""
        config = self.config
        return Told(
            mechanism(config),
            sections(config, self._rounds, self._users, self.folder / "encoder"),
            config.trust,
            config.simulated,
        )

    def record(self, tracker: Tracker) -> None:
        """`rounds.json`."""
        rounds, path = self._rounds, self.folder / "rounds.json"
        write_json(path, summary(self.config, rounds, self._users, self.folder / "encoder"))
        for name in ("survivors", "epsilon", "seconds", "up", "down"):
            values = [(record.number, getattr(record, name)) for record in rounds.records]
            tracker.step_metrics(
                {f"rounds/{name}": [(step, float(value)) for step, value in values if value is not None]}
            )
        tracker.tags({"outcomes": ", ".join(sorted({record.outcome for record in rounds.records}))})
        tracker.artifact(path)


def spawn_users(
    config: FederatedConfig, cluster: Cluster, data: Dataset, encoder_dir: Path, users: int
) -> WorkerGroup:
    """The population, on the workers of the cluster; nothing is read yet."""
    latents_key = hashlib.sha256((encoder_dir / "encoder.json").read_bytes()).hexdigest()[:32]
    law = config.population.model_dump(mode="json", exclude={"malformed", "full_weight_at"})
    store = hashlib.sha256(json.dumps([latents_key, users, law], sort_keys=True).encode()).hexdigest()[:32]
    shared = {
        "size": cluster.size,
        "private_dir": data.private_dir,
        "receipts_dir": data.receipts_dir,
        "encoder_dir": encoder_dir,
        "latents_key": latents_key,
        "population": config.population,
        "generated": config.data.source == "generated",
        "users": users,
        "store_key": store,
        "threads": threads_per_actor(config),
    }
    return cluster.spawn(UserShard, [{"rank": rank, **shared} for rank in range(cluster.size)])


def _check_delta(config: FederatedConfig, users: int) -> None:
    delta = config.privacy.delta
    if delta >= 1 / users and not config.privacy.force_delta:
        raise UserError(
            f"privacy.delta {delta:g} is not below 1/users = {1 / users:.3g} for the {users:,} users: at such a delta "
            "a mechanism may publish a user whole; choose a smaller one, or set privacy.force_delta: true."
        )
