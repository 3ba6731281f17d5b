"""A search that looks at scores: Optuna's sampler, with every suggestion on disk before it is tried.

Whoever goes on after a crash gives the sampler what has ended, tries again what has not, and suggests the rest.
"""

from __future__ import annotations

import warnings
from collections import deque
from pathlib import Path
from typing import Any

from dpsw_ray.base.files import read_manifest, write_manifest
from dpsw_ray.config.fields import MOST_SEED
from dpsw_ray.tune.plan import SweepPlan, SweepTrial
from dpsw_ray.tune.space import Distribution, Point
from dpsw_ray.tune.trial import read_outcome

__all__ = ["Study"]


class Study:
    """Trials of a sweep as Optuna suggests them; numbers go up from 0, which is the base run where that is one."""

    def __init__(self, plan: SweepPlan, folder: Path, trials: Path) -> None:
        """Reads what was suggested before.

        Args:
            plan: the sweep.
            folder: of the suggestions.
            trials: folder of the trials, whose outcomes the sampler learns from.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._plan, self._folder, self._trials = optuna, plan, folder, trials
        stored = sorted(folder.glob("*.json")) if folder.exists() else []
        self._known = [self._read(path) for path in stored]
        self._told: set[int] = set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # conditional spaces are marked experimental
            seed = (plan.sweep.search.seed + len(stored)) % (MOST_SEED + 1)
            sampler = optuna.samplers.TPESampler(seed=seed, group=True, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._waiting = deque(
            t for t in self._known if read_outcome(self._place(t)).status in ("pending", "failed")
        )

    def known(self) -> list[SweepTrial]:
        """What was suggested so far."""
        return list(self._known)

    def next(self) -> SweepTrial | None:
        """The next trial to make: one that was suggested and has not ended, or a new one."""
        if self._waiting:
            return self._waiting.popleft()
        number = len(self._known)
        if number >= self._plan.sweep.search.trials:
            return None
        self._tell()
        if number == 0 and self._plan.sweep.search.base:
            point: Point = {}
        else:
            asked = self._study.ask()
            point = self._plan.space.build(lambda distribution: _suggest(asked, distribution))
        trial = SweepTrial(number, point, 0)
        write_manifest(self._folder / f"{trial.name}.json", {"number": number, "point": point})
        self._known.append(trial)
        return trial

    def _tell(self) -> None:
        """Gives the sampler every outcome that it does not know yet."""
        for trial in self._known:
            outcome = read_outcome(self._place(trial))
            if trial.number in self._told or not trial.point or outcome.score is None:
                continue
            self._told.add(trial.number)
            used = [d for d in self._plan.space.distributions if d.key in trial.point]
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    params={d.key: _encoded(d, trial.point[d.key]) for d in used},
                    distributions={d.key: self._distribution(d) for d in used},
                    value=self._plan.score.sign * outcome.score,
                )
            )

    def _distribution(self, distribution: Distribution) -> Any:
        kinds = self._optuna.distributions
        if distribution.listed:
            return kinds.CategoricalDistribution(list(range(len(distribution.values))))
        low, high = distribution.values
        if distribution.kind == "randint":
            return kinds.IntDistribution(low, high)
        return kinds.FloatDistribution(low, high, log=distribution.kind == "loguniform")

    def _place(self, trial: SweepTrial) -> Path:
        return self._trials / trial.name

    @staticmethod
    def _read(path: Path) -> SweepTrial:
        stored = read_manifest(path)
        return SweepTrial(int(stored["number"]), stored["point"], 0)


def _suggest(asked: Any, distribution: Distribution) -> Any:
    if distribution.listed:
        return distribution.values[
            asked.suggest_categorical(distribution.key, list(range(len(distribution.values))))
        ]
    low, high = distribution.values
    if distribution.kind == "randint":
        return int(asked.suggest_int(distribution.key, low, high))
    return float(asked.suggest_float(distribution.key, low, high, log=distribution.kind == "loguniform"))


def _encoded(distribution: Distribution, value: Any) -> Any:
    """Listed values by their number: Optuna knows no lists."""
    return distribution.values.index(value) if distribution.listed else value
