"""The best of a secret number of trials, and nothing else (Papernot and Steinke 2022).

Every trial draws its parameters from the space, makes a release of its own and scores it. Until the best is known
all of it lives in a folder of the private side, readable by its owner only: the drawn number of trials, the parameters,
the releases, the scores. Then the best one's release goes to the sweep's folder and the rest is deleted. Everything
happens in this process, one trial after the other: nothing of a loser passes through Ray, MLflow or a log.

The charge is durable before the number of trials is drawn. After a crash the trials that are there are used
again, bit for bit; a folder that is gone cannot be made again under the same charge.

What is shown bears the time of the charge: that of the best trial would tell its place among the others.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_json, read_manifest, write_bytes, write_json, write_manifest
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import LocalCluster, WorkerGroup
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder
from dpsw_ray.methods.registry import decides_release, method_of
from dpsw_ray.pipeline.plan import ledger_account, make_plan, register_account
from dpsw_ray.pipeline.publish import release_manifest
from dpsw_ray.pipeline.records import spawn_shards
from dpsw_ray.pipeline.steps import train_encoder
from dpsw_ray.privacy.accountants import account
from dpsw_ray.privacy.events import PrivateSelectionEvent
from dpsw_ray.privacy.ledger import Ledger, LedgerEntry
from dpsw_ray.private.keys import KeyStore
from dpsw_ray.release.exchange import begin_release, charge, draw_release, end_release, keep_receipt
from dpsw_ray.release.plan import Plan
from dpsw_ray.release.preflight import check_release_whole
from dpsw_ray.release.released import Released
from dpsw_ray.tune.config import TrialsConfig
from dpsw_ray.tune.plan import SweepPlan, SweepTrial
from dpsw_ray.tune.policy import selection_event, selection_trial_mu, within_mu
from dpsw_ray.tune.prepare import Group, Prepared, open_data, write_reference
from dpsw_ray.tune.results import TrialResult
from dpsw_ray.tune.space import Point
from dpsw_ray.tune.trial import MISTAKES, Outcome, Task, failed_outcome, make_trial, read_outcome

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
        shown = folder / "releases" / "00000"
        manifest = shown / "release" / "manifest.json"
        room = _room(plan, data, folder)
        if not manifest.exists():
            check_release_whole(shown / "release")
            trials = _Trials(plan, data, encoder, encoder_dir, room, mu)
            trials.check()
            shards = spawn_shards(base, cluster, data, encoder_dir)
            shards.call("encode")
            register_account(base, ledger)
            entry = _pay(event, room, folder, ledger, plan, shards)
            progress.say(
                "Making a secret number of trials on the private side: charged once, the best alone is shown"
            )
            try:
                trials.show_best(shards, folder, lambda release: _manifest(release, entry, base))
            except UserError:
                raise
            except Exception:  # what it says may tell of a trial that is not shown
                raise UserError(
                    f"A trial of the private selection of {folder} ended in an unexpected error, which stays secret; "
                    "--resume goes on."
                ) from None
        entry = _charged(str(read_manifest(manifest)["release_id"]), event, folder, ledger, plan)
        # How many secrets were destroyed would tell how many trials there were.
        KeyStore(data.private_dir).forget(_release_ids(room))
        shutil.rmtree(room, ignore_errors=True)
    stored = read_manifest(shown / "point.json")
    config = plan.config(stored["point"], stored["epsilon"])
    group = Group(0, config, encoder_dir, shown)
    outcome = read_outcome(folder / "trials" / "00000")
    privacy = account(entry.events, p.relation, p.delta).to_dict()
    return Prepared((group,), entry.events, stored["epsilon"], privacy), TrialResult(
        SweepTrial(0, stored["point"], 0), outcome
    )


def _release_ids(room: Path) -> list[str]:
    """Of all trials in the room."""
    found = [*room.glob("*/release/manifest.json"), *room.glob("*/release/pending.json")]
    return [str(read_json(path)["release_id"]) for path in found]


def _room(plan: SweepPlan, data: Dataset, folder: Path) -> Path:
    found = str(read_manifest(folder / "experiment.json")["id"])
    if not re.fullmatch(r"[0-9a-f]{32}", found):  # the folder is deleted in the end: it must be no other one
        raise UserError(f"{folder / 'experiment.json'} is damaged: give another --output.")
    return data.private_dir / "selections" / found


def _pay(
    event: PrivateSelectionEvent,
    room: Path,
    folder: Path,
    ledger: Ledger,
    plan: SweepPlan,
    shards: WorkerGroup,
) -> LedgerEntry:
    """Charges the whole, once, and returns the charge; its id is durable before."""
    pending, state = folder / _PENDING, room / "state.json"
    selection_id = str(read_json(pending)["release_id"]) if pending.exists() else None
    if selection_id is not None and ledger.find_charge(selection_id) is not None:
        entry = _charged(selection_id, event, folder, ledger, plan)
        if not state.exists():
            raise UserError(
                f"The private selection of {folder} was charged, but its private part is gone: begin anew in another "
                "--output, which is charged again."
            )
        keep_receipt(shards, ledger, entry)  # whoever charged it may have died before
        return entry
    name = ledger_account(plan.base.config)
    ledger.check(name, plan.base.config.privacy.relation, [event])  # refused before the folder is anybody's
    shutil.rmtree(room, ignore_errors=True)  # of an attempt that was never charged
    selection_id = secrets.token_hex(16)
    room.mkdir(mode=0o700, parents=True)
    room.chmod(0o700)
    _write(state, {"points": None})
    write_json(pending, {"release_id": selection_id})
    note = f"sweep {plan.sweep.name}: private selection"
    try:
        charge(shards, ledger, name, [event], plan.sweep.name, note, release_id=selection_id)
    except UserError:
        pending.unlink()
        shutil.rmtree(room, ignore_errors=True)
        raise
    return _charged(selection_id, event, folder, ledger, plan)


def _charged(
    selection_id: str, event: PrivateSelectionEvent, folder: Path, ledger: Ledger, plan: SweepPlan
) -> LedgerEntry:
    """The charge; refuses one that was for another sweep, which must not pay for this one."""
    entry = ledger.find_charge(selection_id)
    if entry is None or entry.dataset != ledger_account(plan.base.config) or entry.events != (event,):
        raise UserError(
            f"The private selection of {folder} is not what was charged to {ledger_account(plan.base.config)} in the "
            f"ledger {ledger.path}: go on with the config and the ledger it was begun with, or begin anew in another "
            "--output, which is charged again."
        )
    return entry


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_bytes(path, json.dumps(values).encode(), mode=0o600)


def _manifest(release: Released[Any], entry: LedgerEntry, base: RunConfig) -> dict[str, Any]:
    """Of the release that is shown: it goes by the charge's id and time, and costs what the whole costs."""
    return {
        **release.manifest,
        "release_id": entry.release_id,
        "privacy": account(entry.events, base.privacy.relation, base.privacy.delta).to_dict(),
        "ledger": {"account": entry.dataset, "entry": entry.entry_hash},
        "publishable": entry.publishable,
        "created": entry.time,
        "selection": "private_selection",
    }


class _Trials:
    """The trials of one selection, in their private folder."""

    def __init__(
        self,
        plan: SweepPlan,
        data: Dataset,
        encoder: Encoder,
        encoder_dir: Path,
        room: Path,
        mu: float,
    ) -> None:
        self._plan, self._data, self._encoder, self._encoder_dir = plan, data, encoder, encoder_dir
        self._room, self._mu = room, mu

    def check(self) -> None:
        """Refuses a space that holds a release which is no Gaussian mechanism, before anything is charged."""
        corners = self._plan.space.corners()
        mechanisms = [{key: p[key] for key in p if decides_release(key)} for p in corners]
        for mechanism in {json.dumps(m, default=str): m for m in mechanisms}.values():
            self._config(mechanism)

    def show_best(
        self, shards: WorkerGroup, folder: Path, manifest: Callable[[Released[Any]], dict[str, Any]]
    ) -> None:
        """Makes what is missing and moves the best trial's release and outcome to the sweep's folder."""
        points = self._points()
        outcomes = [self._trial(shards, number, point) for number, point in enumerate(points)]
        for number in range(len(points)):  # no noise secret outlives the choice, of a failed trial neither
            end_release(shards, self._room / f"{number:06d}" / "release")
        sign = self._plan.score.sign
        scores = [math.inf if o.score is None else sign * o.score for o in outcomes]
        best = int(np.argmin(scores))
        if math.isinf(scores[best]):
            raise UserError(
                "No trial of the private selection gave a score; what the trials said stays secret."
            )
        place = self._room / f"{best:06d}"
        shown = folder / "releases" / "00000"
        shutil.rmtree(shown, ignore_errors=True)
        if (place / "reference.npz").exists():
            shown.mkdir(parents=True)
            shutil.copyfile(place / "reference.npz", shown / "reference.npz")
        config = self._config(points[best])
        write_manifest(shown / "point.json", {"point": points[best], "epsilon": config.privacy.epsilon})
        trial = folder / "trials" / "00000"
        trial.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / "points.npz", trial / "points.npz")
        dataclasses.replace(outcomes[best], seconds={}).write(trial)
        release: Any = method_of(config).released.load(place / "release")
        dataclasses.replace(release, manifest=manifest(release)).save(
            shown / "release"
        )  # the last: it counts

    def _points(self) -> list[Point]:
        """The drawn parameters of all trials; drawn once."""
        path = self._room / "state.json"
        points = read_json(path)["points"]
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

    def _release_plan(self, config: RunConfig, release_id: str) -> Plan:
        info = self._data.info
        return make_plan(config, self._encoder.latent_dim, len(info.classes), info.private_count, release_id)

    def _trial(self, shards: WorkerGroup, number: int, point: Point) -> Outcome:
        place = self._room / f"{number:06d}"
        if (done := read_outcome(place)).status != "pending":
            return done
        try:
            return self._made(shards, number, point, place)
        except MISTAKES as error:  # an outcome as any other: to end here would tell of this trial
            outcome = failed_outcome(error)
            outcome.write(place)
            return outcome

    def _made(self, shards: WorkerGroup, number: int, point: Point, place: Path) -> Outcome:
        config = self._config(point)
        group = Group(number, config, self._encoder_dir, place)
        if not (place / "release" / "manifest.json").exists():
            plan = begin_release(
                shards, lambda release_id: self._release_plan(config, release_id), place / "release"
            )
            draw_release(
                method_of(config).released, shards, plan, place / "release", noise_seed=None,
                manifest=lambda plan: _unchosen(config, plan, self._data, self._encoder),
            )  # fmt: skip
        end_release(shards, place / "release")  # where somebody died between the release and its commit
        selection = self._plan.sweep.selection
        if selection.score == "validation_slices":
            write_reference(group, selection.withheld, group.folder)
        return make_trial(Task(config, group, place, selection, TrialsConfig()), lambda step, score: None)


def _unchosen(config: RunConfig, plan: Plan, data: Dataset, encoder: Encoder) -> dict[str, Any]:
    """The manifest of a trial's release while nobody knows whether it is the best: it promises nothing."""
    described = release_manifest(config, plan, data.info, encoder, None)
    return {**described, "publishable": False}
