"""The rounds of a federated run, on the driver: who answers, what it costs, and when to stop.

    asked, away, late   simulated, by public seeds
    refused             messages in the wrong form, looked at before anything is added up
    below the threshold the round is aborted: nothing was unmasked, nothing is charged
    charged             with the number of survivors as it was; where that would pass the budget, the run stops before
    released            by the protocol of the main job: charge, sum, write, commit

Every released round is a release in a folder of its own, which is the checkpoint: whoever starts again reads the stored
ones back, and the one that was begun is repeated bit for bit or charged anew.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DAMAGE, DamagedFile, read_bytes, read_manifest, write_json, write_manifest
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import WorkerGroup
from dpsw_ray.data.split import DatasetInfo
from dpsw_ray.encoders import Encoder
from dpsw_ray.federated.cohort import Cohort
from dpsw_ray.federated.config import FederatedConfig
from dpsw_ray.federated.message import TAMPERINGS, tampered
from dpsw_ray.federated.plan import RoundPlan, needed_survivors, round_plan
from dpsw_ray.federated.traffic import RoundTraffic, round_traffic
from dpsw_ray.pipeline.plan import ledger_account
from dpsw_ray.pipeline.publish import release_manifest
from dpsw_ray.privacy.accountants import account, bound
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.release.exchange import release_once
from dpsw_ray.release.place import weakest
from dpsw_ray.tables.release import Release

__all__ = ["BudgetSpent", "RoundRecord", "Rounds", "check_rounds_whole", "merged", "run_rounds"]

_FOLLOWED = 25  # rounds whose epsilon so far is worked out one by one


class BudgetSpent(UserError):
    """The next round would bring the run above its epsilon."""


@dataclass(frozen=True)
class RoundRecord:
    """What may be told of a round: nothing in it depends on a record.

    Attributes:
        number: from 0.
        outcome: `released`, `aborted` (below the threshold) or `stopped` (before it would pass the budget).
        asked: users that were asked; under a secret sample, those that could have been in it.
        away: of them, did not answer.
        late: of them, answered after the deadline, and were refused.
        refused: messages in the wrong form.
        survivors: messages that counted.
        threshold: survivors that were needed.
        epsilon: of this run's charges so far, lost rounds included, or None where it was not worked out.
        seconds: simulated time.
        up: bytes that a user sends.
        down: bytes that a user gets.
    """

    number: int
    outcome: str
    asked: int
    away: int
    late: int
    refused: int
    survivors: int
    threshold: int
    epsilon: float | None
    seconds: float
    up: int
    down: int


@dataclass(frozen=True)
class Rounds:
    """All of a run's rounds.

    Attributes:
        releases: of the released rounds, in order.
        records: of all rounds that were begun.
        refused: reasons for which messages were refused, and how often.
        traffic: of a round.
        plan: of the last released round.
        events: all that this run was charged for, lost rounds included.
    """

    releases: tuple[Release, ...]
    records: tuple[RoundRecord, ...]
    refused: dict[str, int]
    traffic: RoundTraffic
    plan: RoundPlan = field(repr=False)
    events: tuple[Event, ...]


def check_rounds_whole(folder: Path) -> None:
    """Refuses to go on with rounds of which a released one is gone: it would be paid for again.

    Args:
        folder: `release/` of the run's folder.

    Raises:
        UserError: a round that was released is missing, or a part of it is.
    """
    try:
        written = os.path.lexists(folder / "rounds.json")
        stored = json.loads(read_bytes(folder / "rounds.json")) if written else []
        released = [int(record["number"]) for record in stored if record["outcome"] == "released"]
    except (DamagedFile, RecursionError, *DAMAGE):
        raise UserError(
            f"{folder / 'rounds.json'} cannot be read: restore it from a copy, or give another --output for a run that "
            "is charged anew."
        ) from None
    lost = [number for number in released if not (_round(folder, number) / "manifest.json").exists()]
    if lost or ((folder.parent / "privacy.json").exists() and not released):
        which = f"round {lost[0] + 1}" if lost else "all of them"
        raise UserError(
            f"What was paid for in {folder} is not whole ({which} missing): restore the folder from a copy, or give "
            "another --output for a run that is charged anew."
        )


def _round(folder: Path, number: int) -> Path:
    return folder / "rounds" / f"{number:04d}"


def run_rounds(
    config: FederatedConfig,
    shards: WorkerGroup,
    folder: Path,
    ledger: Ledger,
    info: DatasetInfo,
    encoder: Encoder,
    users: int,
    progress: Progress,
) -> Rounds:
    """Makes the rounds of a run, or reads those back that are there.

    Args:
        config: the run.
        shards: `UserShard`s, users in place.
        folder: `release/` of the run's folder.
        ledger: who is charged.
        info: what is public of the data.
        encoder: of the run.
        users: in the population.
        progress: where to report.

    Raises:
        UserError: no round could be released.
    """
    run = _Run(config, shards, folder, ledger, info, encoder, users)
    if config.trust == "distributed":  # what cannot be is refused before any round is charged
        for number in range(config.rounds):
            run.plan(Cohort.of(config, users, number), "check")
    releases: list[Release] = []
    records: list[RoundRecord] = []
    refused: Counter[str] = Counter()
    traffic: RoundTraffic | None = None
    last: RoundPlan | None = None
    # Without a clock: how long a round takes may tell how many records there are, or who is in a secret sample.
    progress.say(f"Rounds: charge, sum, noise ({config.rounds:,})")
    for number in range(config.rounds):
        cohort = Cohort.of(config, users, number)
        plan = run.plan(cohort, "check")
        wrong = _refused(plan)
        asked, survivors = cohort.asked(), int(cohort.survivors().sum())
        threshold = needed_survivors(config, int(asked.sum()))
        outcome = "released" if survivors >= threshold else "aborted"
        if outcome == "released":
            try:
                releases.append(run.release(cohort, number))
            except BudgetSpent:
                outcome = "stopped"
            else:
                last = plan
        traffic = round_traffic(plan, config.secagg.neighbours, int(asked.sum()))
        followed = number < _FOLLOWED or number == config.rounds - 1
        spent = run.spent(str(releases[-1].manifest["release_id"])) if followed and releases else ()
        record = RoundRecord(
            number, outcome, int(asked.sum()), int((asked & cohort.away()).sum()),
            int((asked & ~cohort.away() & cohort.late()).sum()), sum(wrong.values()), survivors, threshold,
            _epsilon(config, spent) if spent else None, cohort.duration_s(), traffic.up, traffic.down,
        )  # fmt: skip
        records.append(record)
        refused.update(wrong)
        write_json(folder / "rounds.json", [dataclasses.asdict(record) for record in records])
        progress.say(f"Round {number + 1:,} of {config.rounds:,}: {survivors:,} users, {outcome}")
        if outcome == "stopped":
            break
    if not releases or last is None or traffic is None:
        raise UserError(_nothing(records))
    return Rounds(tuple(releases), tuple(records), dict(refused), traffic, last, run.spent())


@dataclass(frozen=True)
class _Run:
    config: FederatedConfig
    shards: WorkerGroup
    folder: Path
    ledger: Ledger
    info: DatasetInfo
    encoder: Encoder
    users: int

    def plan(self, cohort: Cohort, release_id: str) -> RoundPlan:
        return round_plan(
            self.config, self.encoder.latent_dim, len(self.info.classes), self.users, cohort, release_id
        )

    def spent(self, release_id: str | None = None) -> tuple[Event, ...]:
        """All that this run was charged for, or what it was charged for up to one release."""
        events: list[Event] = []
        for entry in self.ledger.entries(ledger_account(self.config)):
            if entry.run_id == self._run_id():
                events += entry.events
                if entry.release_id == release_id:
                    break
        return tuple(events)

    def release(self, cohort: Cohort, number: int) -> Release:
        """The stored round, or a new one, unless it would pass the budget."""

        def make_plan(release_id: str) -> RoundPlan:
            plan = self.plan(cohort, release_id)
            new = self.ledger.find_charge(release_id) is None  # it is going to be charged
            if new and not _fits(self.config, self.spent(), plan.event):
                raise BudgetSpent(
                    f"Round {number + 1} would bring this run above privacy.epsilon "
                    f"{self.config.privacy.epsilon:g}."
                )
            return plan

        return release_once(
            Release,
            self.shards,
            make_plan,
            _round(self.folder, number),
            ledger=self.ledger,
            account=ledger_account(self.config),
            run_id=self._run_id(),
            noise_seed=self.config.privacy.noise_seed,
            manifest=lambda plan: release_manifest(self.config, plan, self.info, self.encoder, self.ledger),
        )

    def _run_id(self) -> str:
        """The run's name and a random part, so that its charges are told from those of other runs of that name."""
        path = self.folder / "run.json"
        if not path.exists():
            write_manifest(path, {"run_id": f"{self.config.name} {secrets.token_hex(4)}"})
        try:
            return str(read_manifest(path)["run_id"])
        except KeyError:
            raise DamagedFile.of(path, "is damaged (it names no run)") from None


def _refused(plan: RoundPlan) -> dict[str, int]:
    """How many messages that come in time are refused, by reason; who is broken, and how, is simulated and public."""
    if plan.form is None:
        return {}
    found: Counter[str] = Counter()
    wrong = np.flatnonzero(plan.cohort.answering() & plan.cohort.broken()) % TAMPERINGS
    for how, count in zip(*np.unique(wrong, return_counts=True), strict=True):
        reason = plan.form.refusal(tampered(plan.form, int(how)))
        if reason is None:
            raise RuntimeError("a broken device's message passed for a right one")
        found[reason] += int(count)
    return dict(found)


def _fits(config: FederatedConfig, spent: Sequence[Event], event: Event) -> bool:
    if len(spent) < config.rounds and config.trust == "central" and all(e == event for e in spent):
        return True  # what the noise was calibrated for
    limit = config.privacy.epsilon * (1 + 1e-9)
    return bound([*spent, event], config.privacy.relation, config.privacy.delta).epsilon.upper <= limit


def _epsilon(config: FederatedConfig, events: Sequence[Event]) -> float:
    return bound(events, config.privacy.relation, config.privacy.delta).epsilon.upper


def _nothing(records: Sequence[RoundRecord]) -> str:
    aborted = [record for record in records if record.outcome == "aborted"]
    if aborted:
        best = max(aborted, key=lambda record: record.survivors)
        return (
            f"No round was released: at most {best.survivors:,} users answered, and {best.threshold:,} are needed "
            "(secagg.threshold); nothing was unmasked, nothing was charged for these rounds."
        )
    return (
        "No round was released: what this run was charged for before it was interrupted leaves no room under "
        "privacy.epsilon; give another --output for a run of its own."
    )


def merged(rounds: Rounds, config: FederatedConfig) -> Release:
    """One release of all rounds, whose account is that of all that the run was charged for."""
    releases, p = rounds.releases, config.privacy
    noise = float(np.sqrt(np.mean([release.cell_noise**2 for release in releases])))
    manifest = {
        **releases[-1].manifest,
        "privacy": account(rounds.events, p.relation, p.delta).to_dict(),
        "trust": config.trust,
        "computed_in": weakest(release.manifest.get("computed_in") for release in releases),
        "survivors": [record.survivors for record in rounds.records if record.outcome == "released"],
        "round_ids": [release.manifest["release_id"] for release in releases],
    }
    return Release(
        np.concatenate([release.directions for release in releases]),
        np.concatenate([release.counts for release in releases]),
        releases[0].kernel,
        releases[0].grid,
        noise,
        manifest,
    )
