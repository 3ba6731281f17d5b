"""What methods that release slices have in common: how plans are told, and what a release is read and shown as."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from dpsw_ray.methods.method import Exhibits, Facts, Held, Learnt, Method, ShownSlices, Tools
from dpsw_ray.methods.sections import FlowingConfig, SlicedConfig
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.slicing.grid import SCALE
from dpsw_ray.tables.plan import SlicesPlan

if TYPE_CHECKING:  # torch takes seconds, and `dpsw plan` needs none
    from dpsw_ray.evaluation.report import Metric, ReportSection
    from dpsw_ray.flow.points import Points
    from dpsw_ray.methods.flowing import Flow
    from dpsw_ray.tables.classes import ReleasedClasses
    from dpsw_ray.tables.quantiles import Targets
    from dpsw_ray.tables.release import Release

__all__ = ["FlowingMethod", "SlicedMethod"]

C = TypeVar("C", bound=SlicedConfig)
F = TypeVar("F", bound=FlowingConfig)

_DISTANCE = "sliced W2 to the release"


class SlicedMethod(Method[C]):
    """A method that releases slices."""

    @property
    def released(self) -> type[Release]:
        """Noisy slices."""
        from dpsw_ray.tables.release import Release

        return Release

    def describe(self, config: C, plan: SlicesPlan, facts: Facts, known: bool) -> dict[str, Any]:
        """The plan in numbers."""
        rounds, blocks, directions, bins = plan.cells
        return {
            "release": {
                "rounds": rounds,
                "directions": f"{directions}, in dimension {plan.directions.shape[2]}",
                "bins": bins,
                "smoothing": f"{plan.grid.smoothing:.4g} bin widths (sigma {plan.grid.sigma:.4g})",
                "classes": blocks
                if known
                else "not known before the data set is divided; they do not change the cost",
                "cells": rounds * blocks * directions * bins
                if known
                else f"{rounds * directions * bins} per class",
                **self.predicted(config, facts, blocks),
            },
            "noise": _noise(plan),
        }

    def predicted(self, config: C, facts: Facts, blocks: int) -> dict[str, Any]:
        """How close the points are expected to come, where there is a model of it."""
        return {}

    def memory(self, config: C, held: Held) -> dict[str, int]:
        """Bytes by what takes them."""
        asked, count = config.slices, held.count
        directions = asked.directions or asked.frames * held.dim
        classes = held.classes if asked.labelled else 1
        named = "release.directions" if asked.directions else "release.frames"
        times = f" times release.rounds {asked.rounds:,}" if asked.rounds > 1 else ""
        return {
            # State, sum of displacements and next state in 64 bits; samples in 32.
            f"flow.particles {count:,}": count * (24 * held.dim + 4 * held.record),
            # Directions; counts and CDF of every cell, and the map of its ends.
            f"{named} {asked.directions or asked.frames:,}{times}": asked.rounds
            * directions
            * 8
            * (held.dim + 4 * asked.bins * classes),
        }

    def labelled(self, config: C) -> bool:
        """Whether classes are told apart in what is released."""
        return config.slices.labelled

    def told(self, config: C, plan: SlicesPlan) -> dict[str, Any]:
        """The public seed of the directions."""
        return {"directions_seed": config.seed if plan.seeded else None}

    def reading(self, config: C) -> float:
        """The pull of the denoising."""
        return config.flow.denoising

    def read(self, release: Release, reading: float) -> Sequence[Targets]:
        """CDFs and class shares of every round."""
        from dpsw_ray.tables.quantiles import denoise

        return denoise(release, reading)

    def figures(self, points: Points) -> list[Metric]:
        """The distance to the release."""
        from dpsw_ray.evaluation.report import Metric

        return [
            Metric(
                _DISTANCE,
                points.distances[-1],
                explanation="What is left between the particles and the noisy slices; the noise is part of it.",
                better="lower",
            )
        ]

    def notices(self, config: C, release: Release) -> list[str]:
        """How large the released classes are, and whether most records are in none."""
        classes = self._classes(config, release)
        if classes is None:
            return []
        return [classes.sentence, *([f"WARNING: {classes.warning}"] if classes.warning is not None else [])]

    def exhibits(self, learnt: Learnt) -> Exhibits:
        """Slices, convergence, the points' path, and the classes."""
        from dpsw_ray.evaluation.pictures import curve_figure, slices_figure
        from dpsw_ray.methods.shown import classes_section, release_facts

        points = learnt.points
        shown = self.shown_slices(learnt)
        steps = list(range(len(points.distances)))
        return Exhibits(
            facts={
                **release_facts(learnt.release),
                "private records": learnt.release.manifest["private_records"],
                "particles": len(points.particles),
                "flow": points.stopped,
            },
            slices_png=slices_figure(shown.grid.edges, shown.masses),
            curve_png=curve_figure(steps, points.distances, "Convergence of the flow", _DISTANCE),
            film=self.film(learnt),
            sections=classes_section(self._classes(learnt.config, learnt.release)),
            curves={f"flow/{_DISTANCE}": points.distances},
        )

    @abstractmethod
    def film(self, learnt: Learnt) -> ReportSection | None:
        """The points' path."""

    @abstractmethod
    def shown_slices(self, learnt: Learnt) -> ShownSlices:
        """The first directions."""

    def _classes(self, config: Any, release: Release) -> ReleasedClasses | None:
        from dpsw_ray.tables.classes import ReleasedClasses

        if config.privacy.unit != "record":  # mass of users is no number of records
            return None
        return ReleasedClasses.of(release, config.slices.rate)


class FlowingMethod(SlicedMethod[F]):
    """A method whose particles flow."""

    free: ClassVar = ("flow.",)
    watched: ClassVar = True

    def steps(self, config: F, release: Release) -> int:
        """How many steps a flow takes at most."""
        from dpsw_ray.flow.step import flow_steps

        return flow_steps(config.flow, release.rounds)

    def learn(self, config: F, targets: Sequence[Targets], tools: Tools) -> Flow:
        """A flow: the particles are moved when they are asked for."""
        from dpsw_ray.methods.flowing import Flow

        return Flow(config, targets, tools)

    def again(self, config: F, targets: Sequence[Targets], tools: Tools) -> Flow:
        """A flow of other particles, which the run's checkpoint is not of."""
        from dataclasses import replace

        return self.learn(config, targets, replace(tools, checkpoints=None))

    def film(self, learnt: Learnt) -> ReportSection | None:
        """The particles' path; None where none was kept."""
        from dpsw_ray.methods.film import film_exhibit

        return film_exhibit(learnt)

    def shown_slices(self, learnt: Learnt) -> ShownSlices:
        """The first directions, with the particles before and after the flow."""
        from dpsw_ray.flow.particles import initial
        from dpsw_ray.methods.shown import shown_slices

        points = len(learnt.points.particles)
        start = initial(points, learnt.release.dim, learnt.encoder.sphere, learnt.config.seed)
        return shown_slices(learnt, start)


def _noise(plan: SlicesPlan) -> dict[str, Any]:
    if plan.noise_on == "messages":
        return {"kind": plan.noise, "standard deviation per projection": plan.noise_std * LATTICE}
    per_cell = plan.noise_std / SCALE
    return {
        "kind": plan.noise,
        "beta": plan.grid.beta,
        "standard deviation per cell, in records": per_cell,
        "standard deviation per direction and class, in records": per_cell * plan.grid.bins**0.5,
    }
