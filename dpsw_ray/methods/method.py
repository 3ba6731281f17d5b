"""What a method is: all that the pipeline, comparisons, sweeps and audits ask of one. None of them knows a name.

A method's folder holds its config (`config.py`), its plan (`plan.py`), its mechanism (`mechanism.py`: PRIVATE, imported
by name on the private side only), what it learns from what was released (`learn.py`), and what puts them together
(`method.py`, which a line of the registry names). Whatever needs torch is imported when it is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.progress import Progress
from dpsw_ray.config.run import RunConfig
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.relations import Relation

if TYPE_CHECKING:  # torch takes seconds, and `dpsw plan` needs none
    from dpsw_ray.cluster import Cluster
    from dpsw_ray.data.records import Part
    from dpsw_ray.data.split import DatasetInfo
    from dpsw_ray.encoders import Encoder
    from dpsw_ray.evaluation.columns import Columns
    from dpsw_ray.evaluation.pictures import SliceMasses
    from dpsw_ray.evaluation.report import Metric, ReportSection
    from dpsw_ray.flow.points import Points
    from dpsw_ray.release.plan import Plan
    from dpsw_ray.release.released import Released
    from dpsw_ray.slicing.grid import BinGrid

__all__ = ["Audit", "Exhibits", "Facts", "Held", "Learnt", "Method", "Model", "ShownSlices", "Tools"]

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class Facts:
    """What is public of a run's data before its release.

    Attributes:
        dim: d, of the latents.
        classes: length of the public class list, 0 without labels.
        records: number of private records where it is public.
        beside: what else the run's epsilon pays for.
    """

    dim: int
    classes: int
    records: int | None
    beside: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Held:
    """Sizes that are known of what a run holds.

    Attributes:
        record: numbers of a record.
        dim: numbers of a latent.
        classes: at least 1.
        count: samples that are drawn at a time.
    """

    record: int
    dim: int
    classes: int
    count: int


@dataclass(frozen=True)
class Tools:
    """What a model is learnt with.

    Attributes:
        encoder: of the latents.
        cluster: who computes.
        threads: that a worker may use.
        progress: where to report.
        checkpoints: a folder to resume from and to save to.
        film: whether the path of some points is kept, where they have one.
        watch: called with the number of steps taken, points [n, d] and labels [n] of a model that is `watched`.
    """

    encoder: Encoder
    cluster: Cluster
    threads: int = 1
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    checkpoints: Path | None = None
    film: bool = False
    watch: Callable[[int, NDArray[np.float64], NDArray[np.int32]], None] | None = None


class Model(Protocol):
    """What was learnt from a release: free, like all that is computed from it."""

    def sample(self, count: int, seed: int) -> Points:
        """Draws points; the same bits for the same count and public seed."""


@dataclass(frozen=True)
class Learnt:
    """A finished run, for figures and exhibits; nothing in it is private.

    Attributes:
        config: of the run.
        info: what is public of its data.
        encoder: of its latents.
        release: what was released, of the method's kind.
        targets: what `Method.targets` made of it.
        points: that were drawn.
    """

    config: RunConfig
    info: DatasetInfo
    encoder: Encoder
    release: Any
    targets: Sequence[Any]
    points: Points

    @property
    def columns(self) -> Columns:
        """Of a table, as its public part is."""
        from dpsw_ray.evaluation.columns import Columns

        return Columns.from_list(self.release.manifest.get("columns"))

    @cached_property
    def test(self) -> NDArray[Any]:
        """Test records without missing values."""
        from dpsw_ray.data.split import Dataset
        from dpsw_ray.evaluation.evaluate import complete

        part = Dataset(self.info).test()
        return complete(part, np.arange(len(part)))[0].values


@dataclass(frozen=True)
class Exhibits:
    """What a report shows of a release and of what was learnt from it.

    Attributes:
        facts: name -> value.
        slices_png: what was released beside what was drawn.
        curve_png: how the points came closer, step by step.
        film: their path, or why there is none.
        sections: further ones.
        curves: name -> values by step, for the tracker.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    slices_png: bytes | None = None
    curve_png: bytes | None = None
    film: ReportSection | None = None
    sections: Sequence[ReportSection] = ()
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownSlices:
    """A few released directions, beside which research shows the private records' own.

    Attributes:
        directions: array of size [k, d].
        grid: of the bins.
        kernel: integer rows [phases, taps] that a record adds.
        masses: what was released and drawn along them.
    """

    directions: NDArray[np.float64]
    grid: BinGrid
    kernel: NDArray[np.int64]
    masses: SliceMasses


class Audit(Protocol):
    """How canaries attack what a method releases."""

    def pair(
        self, encoder: Encoder, plan: Any, relation: Relation, copies: int
    ) -> tuple[Part, Part, NDArray[np.float64]]:
        """Canaries of the first world, of the second, and what the second's add to an answer beyond the first's."""

    def sensitivity(self, plan: Any, relation: Relation) -> float:
        """How far one record moves an answer, in lattice units."""

    def of_group(self, event: Any, size: int) -> Event:
        """The event for which neighbours differ in so many records."""

    def answer(self, release: Any) -> NDArray[Any]:
        """The noisy numbers of a release, in the order of what `pair` says that its canaries add."""


class Method(ABC, Generic[C]):
    """A system that draws synthetic records from one private release.

    Attributes:
        Config: the class of its configs: what all runs share, and sections of its own.
        free: beginnings of keys that decide nothing of a release: what is computed from it, at no cost.
        watched: whether its way can be looked at while it learns, and ended by a scheduler.
    """

    Config: type[C]
    free: ClassVar[tuple[str, ...]]
    watched: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """As configs and the registry call it."""
        return str(self.Config.model_fields["method"].default)

    @property
    @abstractmethod
    def released(self) -> type[Released[Any]]:
        """What kind of release it makes."""

    @abstractmethod
    def plan(self, config: C, facts: Facts, release_id: str) -> Plan:
        """What a run is going to release: public, fixed before a record is read.

        Raises:
            UserError: noise beyond what fits, or something that nothing public tells yet.
        """

    @abstractmethod
    def describe(self, config: C, plan: Any, facts: Facts, known: bool) -> dict[str, Any]:
        """The plan in numbers, for people: sections `release` and `noise`.

        Args:
            config: the run.
            plan: its release.
            facts: that it was made from.
            known: whether the number of classes is known.
        """

    @abstractmethod
    def statement(self, config: C) -> str:
        """What is released, in a sentence or two for who reads the report."""

    @abstractmethod
    def memory(self, config: C, held: Held) -> dict[str, int]:
        """Bytes by what takes them: lower bounds, of what is certain to be held at one time."""

    def labelled(self, config: C) -> bool:
        """Whether classes are told apart in what is released."""
        return False

    def told(self, config: C, plan: Any) -> dict[str, Any]:
        """What a release's manifest says beside what all say."""
        return {}

    def slice_keys(self, config: C) -> tuple[str, ...]:
        """Keys, or their beginnings, that decide which distribution released slices show.

        Distances to slices of different ones do not compare.
        """
        return ()

    def steps(self, config: C, release: Any) -> int:
        """How many steps a model takes at most to learn from a release."""
        return 0

    def targets(self, config: C, release: Any) -> Sequence[Any]:
        """What of a release is learnt from, made once."""
        return self.read(release, self.reading(config))

    def reading(self, config: C) -> Hashable:
        """What of a config `read` depends on."""
        return None

    def read(self, release: Any, reading: Any) -> Sequence[Any]:
        """See `targets`."""
        return [release]

    @abstractmethod
    def learn(self, config: C, targets: Sequence[Any], tools: Tools) -> Model:
        """Learns from what was released; what was begun in `tools.checkpoints` is gone on with.

        Raises:
            UserError: nothing can be learnt from it, or not with this config.
        """

    def again(self, config: C, targets: Sequence[Any], tools: Tools) -> Model:
        """The model of a finished run whose checkpoints are in `tools.checkpoints`, to draw more from."""
        return self.learn(config, targets, tools)

    def figures(self, points: Points) -> list[Metric]:
        """Figures of how well a release was met."""
        return []

    def notices(self, config: C, release: Any) -> list[str]:
        """Sentences about what was released, which a run says before it goes on."""
        return []

    def exhibits(self, learnt: Learnt) -> Exhibits:
        """What the report shows."""
        return Exhibits()

    def shown_slices(self, learnt: Learnt) -> ShownSlices | None:
        """A few released slices; None where there are none."""
        return None

    def audit(self) -> Audit | None:
        """How canaries attack a run's release; None where nothing attacks it yet."""
        return None
