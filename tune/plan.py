"""What a sweep is going to do, fixed before anything is done: its trials, and the different releases they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.registry import decides_release, method_of
from dpsw_ray.tune.config import Base, SweepConfig
from dpsw_ray.tune.policy import check_sweep
from dpsw_ray.tune.scores import Score, score_of
from dpsw_ray.tune.space import Point, Space, parse_space

__all__ = ["SweepPlan", "SweepTrial", "plan_sweep"]

_QUERY_BINS = 32
"""Of a noisy query, smoothed by one of them: what most budgets can learn."""


@dataclass(frozen=True)
class SweepTrial:
    """One trial.

    Attributes:
        number: from 0.
        point: what it changes of the base run.
        group: number of the release that it starts from.
    """

    number: int
    point: Point
    group: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:05d}"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, checked.

    Attributes:
        sweep: as configured.
        base: the run that all trials go back to.
        space: what is varied.
        score: what is selected by.
        trials: all of them; of a search that looks at scores the first one, and of one whose number of trials is
            secret none.
        mechanisms: for each release what it changes of the base run.
    """

    sweep: SweepConfig
    base: Base
    space: Space
    score: Score
    trials: tuple[SweepTrial, ...]
    mechanisms: tuple[Point, ...]

    def config(self, point: Point, epsilon: float) -> RunConfig:
        """The run of a point, its release calibrated to `epsilon`.

        Encoder and everything that judges keep the base's public seed, whatever `seed` becomes.

        Raises:
            UserError: no such run.
        """
        base = self.base.config
        config = self.base.at({**point, "privacy.epsilon": epsilon})
        if config.encoder.kind == "dp_pca":
            raise UserError(
                "encoder.kind dp_pca is charged beside the release, which a sweep does not plan yet: sweep over runs "
                "with another encoder.kind."
            )
        privacy = config.privacy
        if self.sweep.selection.policy == "nonprivate":
            privacy = privacy.model_copy(update={"research": True})
        return config.model_copy(
            update={
                "name": f"{self.sweep.name}-best",
                "encoder": config.encoder.model_copy(update={"seed": base.encoder_seed}),
                "privacy": privacy,
                "evaluation": config.evaluation.model_copy(update={"seed": base.evaluation_seed}),
                "paths": config.paths.model_copy(update={"home": base.home, "ledger": base.ledger_path}),
                "data": config.data.model_copy(
                    update={"path": config.data.path and config.data.path.expanduser().absolute()}
                ),
            }
        )

    def query(self, epsilon: float) -> RunConfig:
        """A run whose release is the noisy query that trials are judged by: DPSWflow-h on directions of its own.

        It has the classes only where every trial has them.
        """
        base, selection = self.base.config, self.sweep.selection
        varied = {"release.class_conditional", "method"} & set(self.space.keys)
        conditional = method_of(base).labelled(base) and not varied
        point = {
            "method": "dpswflow-h",
            "seed": int(np.random.default_rng([base.seed, 0x9E57]).integers(2**31)),
            "release.frames": selection.query_frames,
            "release.bins": _QUERY_BINS,
            "release.smoothing": 1.0,
            "release.class_conditional": conditional,
        }
        return self.config(point, epsilon)

    @property
    def count(self) -> int:
        """How many trials there are going to be, where that is public."""
        return self.sweep.search.trials if self.sweep.search.kind == "optuna" else len(self.trials)


def plan_sweep(sweep: SweepConfig, where: str, epsilon: float | None = None) -> SweepPlan:
    """Checks a sweep as a whole, every value of its space included, and lists its trials.

    Args:
        sweep: as configured.
        where: its file, for messages.
        epsilon: in place of the base's.

    Raises:
        UserError: whatever is wrong with it, in one sentence.
    """
    base = Base(sweep, where, epsilon)
    space = parse_space(sweep.space, where)
    check_sweep(sweep, space, base.config, where)
    points = _points(sweep, space)
    for point in space.corners() if space.keys else []:
        base.at(point)
    for point in points:
        base.at(point)
    mechanisms: dict[str, Point] = {}
    trials = []
    for number, point in enumerate(points):
        mechanism = {key: value for key, value in point.items() if decides_release(key)}
        text = base.at(mechanism).model_dump_json()
        mechanisms.setdefault(text, mechanism)
        trials.append(SweepTrial(number, point, list(mechanisms).index(text)))
    return SweepPlan(sweep, base, space, score_of(sweep.selection), tuple(trials), tuple(mechanisms.values()))


def _points(sweep: SweepConfig, space: Space) -> Sequence[Point]:
    search = sweep.search
    if sweep.selection.policy == "private_selection":
        return []  # how many there are going to be is secret
    first: list[Point] = [{}] if search.base else []
    if search.kind == "grid":
        grid = space.grid()
        if len(grid) > search.trials and "trials" in search.model_fields_set:
            raise UserError(f"search.trials {search.trials} is fewer than the grid's {len(grid)} points.")
        return [*first, *grid]
    if search.kind == "optuna":
        return first or [{}]
    rng = np.random.default_rng([search.seed, 0x7A9E])
    return [*first, *(space.draw(rng) for _ in range(search.trials - len(first)))]
