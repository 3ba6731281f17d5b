"""An experiment in MLflow: one parent run, one nested run per trial, gone on with rather than begun again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import TrackingConfig
from dpsw_ray.experiment.folder import ExperimentFolder
from dpsw_ray.experiment.measures import MEASURES
from dpsw_ray.experiment.trial import TrialResult
from dpsw_ray.pipeline.tracking import Tracker, open_tracker

__all__ = ["Recorder"]

_LOGGER = logging.getLogger(__name__)
_ELSEWHERE = ("cluster", "tracking", "paths")
"""Sections that may change when an experiment goes on; MLflow takes a parameter once."""


class Recorder:
    """Writes to MLflow from the driver alone.

    The runs are known by the random id of the experiment's folder, so that whoever starts again after a crash,
    at any moment, finds them. Figures computed from private records without noise stay out: a tracking server
    has readers of its own.
    """

    def __init__(self, config: TrackingConfig, folder: ExperimentFolder, name: str) -> None:
        """Opens the parent run.

        Raises:
            UserError: the store cannot be used.
        """
        self._config, self._folder = config, folder
        self.parent = open_tracker(config, folder.path.parent, name, key=folder.id)
        self._alive = self.parent.enabled

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Says on the parent run what is being done."""
        self.parent.tags({"folder": self._folder.path, "publishable": False, **facts})

    def trial(self, result: TrialResult) -> None:
        """Records a trial that has ended, once; should the store be gone, warns once and goes silent."""
        self.record(result.trial.name, lambda run: _write(run, result), failed=bool(result.error))

    def record(self, name: str, write: Callable[[Tracker], None], *, failed: bool = False) -> None:
        """Calls `write` with the nested run of a trial, once in the experiment's life unless the trial failed."""
        if not self._alive:
            return
        try:
            with self._nested(name) as run:
                if not run.complete:
                    write(run)
                if failed:
                    raise _Failed
        except _Failed:
            pass
        except UserError as error:
            self._alive = False
            _LOGGER.warning("%s The experiment goes on, its folder is complete.", error)

    def counts(self, values: Mapping[str, int]) -> None:
        """Trials by status, on the parent run."""
        self.parent.metrics({f"trials/{status}": float(count) for status, count in values.items()})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.parent.__exit__(kind, error, trace)

    def _nested(self, name: str) -> Tracker:
        return open_tracker(
            self._config,
            self._folder.path.parent,
            name,
            parent=self.parent.run_id,
            key=f"{self._folder.id}.{name}",
        )


class _Failed(Exception):
    """Ends a nested run as FAILED."""


def _write(run: Tracker, result: TrialResult) -> None:
    run.params(result.trial.config.model_dump(mode="json", exclude=set(_ELSEWHERE)))
    run.tags({**result.trial.point, "publishable": False, "error": result.error})
    values = result.figures.values
    run.metrics({name: values[name] for name in values if not MEASURES[name].private})
    run.metrics(
        {
            f"{name}/{which}": v
            for name, beside in result.figures.baselines.items()
            for which, v in beside.items()
        }
    )
    if result.privacy is not None:
        run.metrics({"epsilon": result.privacy.epsilon, "delta": result.privacy.delta})
        run.tags({"relation": result.privacy.relation, "accountant": result.privacy.accountant})
