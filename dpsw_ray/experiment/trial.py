"""One trial: a whole run in a folder of its own, and what it says of itself when it has ended."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dpsw_ray.base.files import read_manifest
from dpsw_ray.base.progress import Progress
from dpsw_ray.config.run import ClusterConfig, RunConfig, TrackingConfig
from dpsw_ray.experiment.measures import Figures, read_figures
from dpsw_ray.pipeline.folder import RunFolder
from dpsw_ray.pipeline.run import run

__all__ = ["Privacy", "Trial", "TrialResult", "finished", "read_result", "run_trial", "trial_config"]

Factor = str | float | int

_OUTCOME = ("privacy.json", "metrics.json", "report.html")
"""What a run writes at its end, in this order."""

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Trial:
    """A run to be made.

    Attributes:
        name: its folder's, unique in the experiment.
        point: what was chosen for it, by factor; trials with the same point differ in their seed alone.
        seed: of the run.
        config: of the run; `trial_config` made it.
    """

    name: str
    point: Mapping[str, Factor]
    seed: int
    config: RunConfig

    @property
    def shares(self) -> str:
        """Trials with the same text share data, encoder, latents and classifier: one of them makes these first."""
        c = self.config
        return json.dumps(
            [
                c.data.model_dump(mode="json"),
                c.privacy.relation == "add_remove",
                c.encoder.model_dump(mode="json", exclude={"seed"}),
                c.encoder_seed,
                c.evaluation_seed,
            ]
        )


@dataclass(frozen=True)
class Privacy:
    """What a trial's `privacy.json` promises.

    Attributes:
        epsilon: upper bound; infinite without noise.
        delta: at which it holds.
        relation: under which.
        unit: what it protects.
        accountant: which one gave it.
        events: what was charged, in words.
    """

    epsilon: float
    delta: float
    relation: str
    unit: str
    accountant: str
    events: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Privacy:
        """Of a finished run."""
        stored = read_manifest(folder / "privacy.json")
        return cls(
            epsilon=float(stored["epsilon"]["upper"]),
            delta=float(stored["delta"]),
            relation=stored["relation"],
            unit=stored["unit"],
            accountant=stored["accountant"],
            events=tuple(event["label"] or event["kind"] for event in stored["events"]),
        )


@dataclass(frozen=True)
class TrialResult:
    """How a trial stands.

    Attributes:
        trial: which.
        status: `pending` where it was not begun, or not ended.
        error: of a failed one, a sentence.
        figures: of a finished one.
        privacy: of a finished one.
    """

    trial: Trial
    status: Literal["pending", "finished", "failed"] = "pending"
    error: str = ""
    figures: Figures = field(default_factory=Figures)
    privacy: Privacy | None = None


def trial_config(config: RunConfig, name: str) -> RunConfig:
    """Makes a config one of a trial.

    A trial works in one process, is watched by the experiment alone, charges the data set's research account and
    is never publishable. Encoder and everything that judges keep the seed of `config`, whatever `seed` the
    trial then gets: trials share them, and their figures compare. Paths become absolute, for other machines.
    """
    data = config.data.model_copy(
        update={"path": config.data.path and config.data.path.expanduser().absolute()}
    )
    return config.model_copy(
        update={
            "name": name,
            "data": data,
            "encoder": config.encoder.model_copy(update={"seed": config.encoder_seed}),
            "privacy": config.privacy.model_copy(update={"research": True}),
            "evaluation": config.evaluation.model_copy(
                update={"seed": config.evaluation_seed, "research": True}
            ),
            "cluster": ClusterConfig(executor="local", actors=1),
            "tracking": TrackingConfig(enabled=False),
            "paths": config.paths.model_copy(update={"home": config.home, "ledger": config.ledger_path}),
        }
    )


def run_trial(config: RunConfig, folder: Path, log: Path) -> None:
    """Makes the run, or goes on with it; what it says goes to the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        run(config, folder, Progress(stream=stream), lean=True)


def finished(trial: Trial, folder: Path) -> bool:
    """Whether the trial has ended here.

    Raises:
        UserError: the folder holds the results of another run, or somebody is writing it.
    """
    if not (folder / "config.yaml").exists():
        return False
    _await_writer(folder / ".lock")
    with RunFolder(trial.config, folder):
        return all((folder / name).exists() for name in _OUTCOME)


def _await_writer(lock: Path) -> None:
    """The workers of a driver that was killed outlive it by seconds, and hold what they were writing."""
    deadline = time.monotonic() + _PATIENCE_S
    while lock.exists() and time.monotonic() < deadline:
        with lock.open("rb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.2)


def read_result(trial: Trial, folder: Path) -> TrialResult:
    """The result of a finished trial."""
    return TrialResult(trial, "finished", figures=read_figures(folder), privacy=Privacy.read(folder))
