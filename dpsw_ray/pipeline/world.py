"""What a run asks of the world that its private records are in: one table, or the devices of many users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import Cluster, WorkerGroup
from dpsw_ray.config.family import Family
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder
from dpsw_ray.pipeline.exhibits import Results, Told
from dpsw_ray.pipeline.tracking import Tracker
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.release.released import Released

__all__ = ["World"]

C = TypeVar("C", bound=RunConfig)


class World(ABC, Generic[C]):
    """Who holds the private records of a run, and how they are reached; a run calls the methods in this order.

    Attributes:
        family: of its configs.
    """

    family: ClassVar[Family[Any]]

    def __init__(self, config: C, folder: Path, cluster: Cluster, ledger: Ledger, progress: Progress) -> None:
        """Takes what the run has; nothing is read yet.

        Args:
            config: the run.
            folder: its own.
            cluster: whose workers hold the private side.
            ledger: who is charged.
            progress: where to report.
        """
        self.config, self.folder, self.cluster = config, folder, cluster
        self.ledger, self.progress = ledger, progress

    @property
    @abstractmethod
    def masked(self) -> bool:
        """Whether it is not told how long work on private records takes: it may depend on what they are."""

    @abstractmethod
    def check(self) -> None:
        """Refuses what can be refused before a record is read.

        Raises:
            UserError: the ledger would refuse the run, or something that it paid for is lost.
        """

    @abstractmethod
    def data(self) -> Dataset:
        """The stored division of the records, made where it is not there yet, and pinned in the ledger.

        Raises:
            UserError: the source is missing, damaged, or does not fit the config, or another division is pinned.
        """

    @abstractmethod
    def encoder(self, data: Dataset) -> Encoder:
        """The run's encoder, in its folder."""

    @abstractmethod
    def shards(self, data: Dataset) -> WorkerGroup:
        """The private side's workers, what they hold in place wherever it is going to be looked at."""

    @abstractmethod
    def release(self, data: Dataset, encoder: Encoder, shards: WorkerGroup) -> Released[Any]:
        """The run's release: the stored one, or one that is made and paid for now."""

    @abstractmethod
    def research(self, results: Results, shards: WorkerGroup, lean: bool) -> None:
        """Writes figures of the private records, without noise, into `research/`."""

    def told(self) -> Told:
        """What the report says of this world."""
        return Told()

    def record(self, tracker: Tracker) -> None:
        """Writes and tracks what else a run leaves behind."""
