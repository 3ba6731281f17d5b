"""The best of a secret number of trials, and nothing else (Papernot and Steinke 2022).

Every trial draws its parameters from the space, makes a release of its own and scores it. Until the best is known
all of it lives in a folder of the private side, readable by its owner only: the drawn number of trials, the parameters,
the releases, the scores. Then the best one's release goes to the sweep's folder and the rest is deleted. Everything
happens in this process, one trial after the other: nothing of a loser passes through Ray, MLflow or a log.

The charge is durable before the number of trials is drawn. After a crash the trials that are there are used
again, bit for bit; a folder that is gone cannot be made again under the same charge.
"""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpsw_ray.cluster import LocalCluster, WorkerGroup
from dpsw_ray.config import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder
from dpsw_ray.errors import UserError
from dpsw_ray.files import write_bytes, write_json
from dpsw_ray.plan import ledger_account, make_plan
from dpsw_ray.privacy.accountants import account
from dpsw_ray.privacy.events import PrivateSelectionEvent
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.protocol import begin_release, draw_release
from dpsw_ray.progress import Progress
from dpsw_ray.publish import release_manifest
from dpsw_ray.release import Release, ReleasePlan
from dpsw_ray.run import spawn_shards, train_encoder
from tune.config import TrialsConfig
from tune.plan import SweepPlan, SweepTrial
from tune.policy import selection_event, selection_trial_mu, within_mu
from tune.prepare import Group, Prepared, open_data, write_reference
from tune.results import TrialResult
from tune.space import Point
from tune.trial import Outcome, Task, make_trial, read_outcome

__all__ = ["select_privately"]

_PENDING = "private.json"


def select_privately(
    plan: SweepPlan, folder: Path, ledger: Ledger, progress: Progress
) -> tuple[Prepared, TrialResult]:
    """Makes the trials and shows the best, or finds what an earlier call showed.

    Args:
        plan: the sweep.
        folder: its folder.
        ledger: who is charged.
        progress: where to report; says nothing that depends on a trial.

    Raises:
        UserError: the ledger refuses, what was paid for is lost, or no trial gave a score.
    """
    base = plan.base.config
    p = base.privacy
    with LocalCluster(1) as cluster:
        data = open_data(base, cluster, ledger, progress)
        encoder_dir = folder / "encoders" / "000"
        encoder = train_encoder(plan.config({}, p.epsilon), data, encoder_dir, progress)
        mu = selection_trial_mu(plan.sweep, p.relation, p.epsilon, p.delta)
        event = selection_event(plan.sweep, p.relation, mu)
        privacy = account([event], p.relation, p.delta).to_dict()
        shown = folder / "releases" / "00000"
        room = _room(plan, data, folder)
        if not (shown / "release" / "manifest.json").exists():
            ledger.register(ledger_account(base), p.relation, p.unit, p.delta, publishable=p.publishable)
            selection_id = _pay(event, room, folder, ledger, plan)
            progress.say(
                "Making a secret number of trials on the private side: charged once, the best alone is shown"
            )
            shards = spawn_shards(base, cluster, data, encoder_dir)
            shards.call("encode")
            _Trials(plan, data, encoder, encoder_dir, shards, room, mu).show_best(
                folder, lambda release: _manifest(release, selection_id, privacy, ledger)
            )
        shutil.rmtree(room, ignore_errors=True)
    stored = json.loads((shown / "point.json").read_text())
    config = plan.config(stored["point"], stored["epsilon"])
    group = Group(0, config, encoder_dir, shown)
    outcome = read_outcome(folder / "trials" / "00000")
    return Prepared((group,), (event,), stored["epsilon"], privacy), TrialResult(
        SweepTrial(0, stored["point"], 0), outcome
    )


def _room(plan: SweepPlan, data: Dataset, folder: Path) -> Path:
    mark = json.loads((folder / "experiment.json").read_text())
    return data.private_dir / "selections" / str(mark["id"])


def _pay(event: PrivateSelectionEvent, room: Path, folder: Path, ledger: Ledger, plan: SweepPlan) -> str:
    """Charges the whole, once; its id is durable before."""
    pending, state = folder / _PENDING, room / "state.json"
    selection_id = str(json.loads(pending.read_text())["release_id"]) if pending.exists() else None
    charged = selection_id is not None and ledger.find_charge(selection_id) is not None
    if charged and not state.exists():
        raise UserError(
            f"The private selection of {folder} was charged, but its private part is gone: begin anew in another "
            "--output, which is charged again."
        )
    if selection_id is None or not charged:
        selection_id = secrets.token_hex(16)
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
        room.chmod(0o700)
        _write(state, {"points": None})
        write_json(pending, {"release_id": selection_id})
        note = f"sweep {plan.sweep.name}: private selection"
        ledger.charge(
            ledger_account(plan.base.config), [event], plan.sweep.name, note, release_id=selection_id
        )
    return selection_id


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_bytes(path, json.dumps(values).encode(), mode=0o600)


def _manifest(
    release: Release, selection_id: str, privacy: Mapping[str, Any], ledger: Ledger
) -> dict[str, Any]:
    """Of the release that is shown: it goes by the id of the charge, and costs what the whole costs."""
    entry = ledger.find_charge(selection_id)
    assert entry is not None
    stated = {"account": entry.dataset, "entry": entry.entry_hash}
    publishable = entry.publishable
    return {
        **release.manifest,
        "release_id": selection_id,
        "privacy": dict(privacy),
        "ledger": stated,
        "publishable": publishable,
    }


class _Trials:
    """The trials of one selection, in their private folder."""

    def __init__(
        self,
        plan: SweepPlan,
        data: Dataset,
        encoder: Encoder,
        encoder_dir: Path,
        shards: WorkerGroup,
        room: Path,
        mu: float,
    ) -> None:
        self._plan, self._data, self._encoder, self._encoder_dir = plan, data, encoder, encoder_dir
        self._shards, self._room, self._mu = shards, room, mu

    def show_best(self, folder: Path, manifest: Any) -> None:
        """Makes what is missing and moves the best trial's release and outcome to the sweep's folder."""
        points = self._points()
        outcomes = [self._trial(number, point) for number, point in enumerate(points)]
        sign = self._plan.score.sign
        scores = [math.inf if o.score is None else sign * o.score for o in outcomes]
        best = int(np.argmin(scores))
        if math.isinf(scores[best]):
            raise UserError(
                "No trial of the private selection gave a score; what the trials said stays secret."
            )
        place = self._room / f"{best:06d}"
        release = Release.load(place / "release")
        shown = folder / "releases" / "00000"
        shutil.rmtree(shown, ignore_errors=True)
        if (place / "reference.npz").exists():
            shown.mkdir(parents=True)
            shutil.copyfile(place / "reference.npz", shown / "reference.npz")
        config = self._config(points[best])
        write_json(shown / "point.json", {"point": points[best], "epsilon": config.privacy.epsilon})
        trial = folder / "trials" / "00000"
        trial.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / "points.npz", trial / "points.npz")
        dataclasses.replace(outcomes[best], seconds={}).write(trial)
        dataclasses.replace(release, manifest=manifest(release)).save(
            shown / "release"
        )  # the last: it counts

    def _points(self) -> list[Point]:
        """The drawn parameters of all trials; drawn once."""
        path = self._room / "state.json"
        points = json.loads(path.read_text())["points"]
        if points is None:
            law = selection_event(self._plan.sweep, self._plan.base.config.privacy.relation, self._mu).law
            rng = np.random.default_rng(secrets.randbits(256))
            points = [self._plan.space.draw(rng) for _ in range(law.draw())]
            _write(path, {"points": points})
        return list(points)

    def _config(self, point: Point) -> RunConfig:
        base = self._plan.base.config.privacy
        epsilon = within_mu(
            lambda epsilon: self._release_plan(self._plan.config(point, epsilon), "plan").event,
            base.relation, self._mu, base.delta,
        )  # fmt: skip
        return self._plan.config(point, epsilon)

    def _release_plan(self, config: RunConfig, release_id: str) -> ReleasePlan:
        info = self._data.info
        return make_plan(config, self._encoder.latent_dim, len(info.classes), info.private_count, release_id)

    def _trial(self, number: int, point: Point) -> Outcome:
        place = self._room / f"{number:06d}"
        if (done := read_outcome(place)).status != "pending":
            return done
        config = self._config(point)
        group = Group(number, config, self._encoder_dir, place)
        if not (place / "release" / "manifest.json").exists():
            plan = begin_release(
                self._shards, lambda release_id: self._release_plan(config, release_id), place / "release"
            )
            draw_release(
                self._shards, plan, place / "release", noise_seed=None,
                manifest=lambda plan: _unchosen(config, plan, self._data, self._encoder),
            )  # fmt: skip
        selection = self._plan.sweep.selection
        try:
            if selection.score == "validation_slices":
                write_reference(group, selection.withheld)
        except UserError as error:
            return Outcome("failed", error=str(error))
        return make_trial(Task(config, group, place, selection, TrialsConfig()), lambda step, score: None)


def _unchosen(config: RunConfig, plan: ReleasePlan, data: Dataset, encoder: Encoder) -> dict[str, Any]:
    """The manifest of a trial's release while nobody knows whether it is the best: it promises nothing."""
    described = release_manifest(config, plan, data.info, encoder, None)
    return {**described, "publishable": False}
