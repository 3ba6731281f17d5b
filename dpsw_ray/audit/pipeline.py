"""Canaries for a whole pipeline: encoder, encoding, sums, masks, noise, ledger, as a run uses them.

Two copies of the data set, in a scratch folder that is deleted afterwards, differ in m records: synthetic canaries
of one kind in the first, of another kind (or none) in the second. Each is encoded by the real shards, and released
many times by the real protocol, with fresh ids and keys, charged to a scratch ledger. The attack is a matched
filter with the difference of the canaries' tables. The claim is that of the event with m times its sensitivity
(group privacy: neighbours of neighbours, by the triangle inequality), and what the attack proves is divided by m.

The rates depend on the canaries and on the noise alone: the other records add the same constant to every score,
which cancels out of them, and no threshold is shown. The user's ledger is not charged. The audit itself reads private
records and makes hundreds of releases of them in its scratch folder, which nothing is charged for: it belongs on the
machine that holds the private part, and the folder is removed when it ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.audit.bounds import Claim, lower_bound
from dpsw_ray.audit.result import AuditResult
from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress, Task
from dpsw_ray.cluster import LocalCluster
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset, open_dataset
from dpsw_ray.data.division import check_pinned
from dpsw_ray.data.records import Part
from dpsw_ray.methods.method import Audit
from dpsw_ray.methods.registry import METHODS, method_named, method_of
from dpsw_ray.pipeline.division import check_relation
from dpsw_ray.pipeline.plan import make_plan, pinned_division
from dpsw_ray.pipeline.records import spawn_shards
from dpsw_ray.pipeline.steps import train_encoder
from dpsw_ray.privacy.accountants import bound
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.ingest import ingest
from dpsw_ray.private.worlds import plant
from dpsw_ray.release.exchange import release_once

__all__ = ["RUNS", "audit_pipeline"]

RUNS = 300
"""Releases of each world, by default."""

_GROUP_MU = 3.0  # what the group's canaries should cost: enough to be seen in few runs
_ACCOUNT = "audit"
_LEDGER_LENGTH = 50  # releases; every charge reads the whole chain before it


def audit_pipeline(
    config: RunConfig,
    *,
    confidence: float,
    runs: int = RUNS,
    canaries: int | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """Attacks the releases that a config makes.

    Args:
        config: the run; its data set and encoder are used where they are stored, otherwise made for this audit alone.
        confidence: of the bound.
        runs: releases of each world.
        canaries: m; default: as many as make m * mu about 3.
        progress: where to report.

    Raises:
        UserError: nothing is promised (epsilon infinite), or anything a run would refuse.
    """
    if config.privacy.epsilon == math.inf:
        raise UserError(
            "privacy.epsilon is .inf: such a run promises nothing, so there is no claim to audit."
        )
    progress = progress or Progress()
    relation = config.privacy.relation
    hidden = relation == "add_remove"
    pinned = None
    if config.ledger_path.exists():
        ledger = Ledger(config.ledger_path)
        check_relation(config, ledger)
        pinned = pinned_division(config, ledger)
    with _scratch(config.home) as scratch:
        private = _in(config, scratch)
        stored = open_dataset(config.data, config.home, relation)
        if (
            stored and pinned is not None
        ):  # in another one the encoder would learn from what a release protects
            check_pinned(config.data.account, pinned, stored.info.division)
        data = stored or _divide(config, private, pinned, progress)
        # Of a division that is not kept, no encoder is kept.
        trained = config if stored else private
        encoder = train_encoder(trained, data, scratch / "encoder", progress)
        classes, records = len(data.info.classes), data.info.private_count
        plan = make_plan(private, encoder.latent_dim, classes, records, "audit")
        attack = method_of(private).audit()
        if attack is None:
            raise UserError(
                f"method {config.method} has no canaries yet: audit its mechanisms by name (`dpsw audit all`), or set "
                f"method {' or '.join(name for name in METHODS if method_named(name).audit() is not None)}."
            )
        group = canaries or max(1, math.ceil(_GROUP_MU * plan.noise_std / attack.sensitivity(plan, relation)))
        first, second, difference = attack.pair(encoder, plan, relation, group)
        apart = float(np.linalg.norm(difference)) / (group * attack.sensitivity(plan, relation))
        progress.say(
            f"{group} canaries, {100 * apart:.0f} % as far apart as the sensitivity allows; {runs} releases with and "
            "as many without, charged to a scratch ledger"
        )
        replaced = 0 if hidden else group
        start = time.perf_counter()
        # A rate of releases would tell how many records there are.
        with (Progress(quiet=True) if hidden else progress).task("Releasing", 2 * runs) as task:
            null, alternative = (
                _scores(private, data, scratch / name, part, replaced, plan, attack, difference, runs, task)
                for name, part in (("null", first), ("alternative", second))
            )
        seconds = None if hidden else time.perf_counter() - start
    claim = Claim((attack.of_group(plan.event, group),), relation)
    return AuditResult(
        name=config.name,
        events=(plan.event,),
        relation=relation,
        delta=config.privacy.delta,
        claim=claim,
        found=lower_bound(null, alternative, claim, confidence),
        group=group,
        epsilon=bound([plan.event], relation, config.privacy.delta).epsilon.upper,
        seconds=seconds,
    )


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A folder of the owner's only beside the data sets, removed in the end, also where the process is terminated.

    One that a killed audit left behind is removed by the next: its lock is free.
    """
    place = home / "audits"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _terminable(), contextlib.ExitStack() as held:
        with (place / ".lock").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            for left in place.glob("audit-*"):
                with contextlib.suppress(OSError), (left / ".lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
            folder = Path(tempfile.mkdtemp(prefix="audit-", dir=place))  # mode 0700
            fcntl.flock(held.enter_context((folder / ".lock").open("w")), fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end this block as an exit does, with its clean-up; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in(config: RunConfig, scratch: Path) -> RunConfig:
    """The same run in a scratch home, in this process, its noise from fresh keys."""
    return config.model_copy(
        update={
            "paths": config.paths.model_copy(
                update={"home": scratch / "home", "ledger": scratch / "unused.sqlite"}
            ),
            "privacy": config.privacy.model_copy(update={"noise_seed": None}),
            "cluster": config.cluster.model_copy(update={"executor": "local"}),
        }
    )


def _divide(
    config: RunConfig, private: RunConfig, pinned: Mapping[str, Any] | None, progress: Progress
) -> Dataset:
    """Divides the data set in the scratch home, from what the user has fetched already."""
    private.home.mkdir(mode=0o700)
    fetched = config.home / "downloads"
    if fetched.is_dir():
        (private.home / "downloads").symlink_to(fetched, target_is_directory=True)
    progress.say(f"Dividing {config.data.account} into public, private and test parts (for this audit alone)")
    return Dataset(ingest(private.data, private.home, private.privacy.relation, pinned=pinned))


def _scores(
    config: RunConfig,
    data: Dataset,
    folder: Path,
    canaries: Part,
    replaced: int,
    plan: Any,
    attack: Audit,
    difference: NDArray[np.float64],
    runs: int,
    task: Task,
) -> NDArray[np.float64]:
    """One world, encoded once and released `runs` times."""
    world = plant(data.private_dir, folder, canaries, replaced)
    shards = spawn_shards(config, LocalCluster(config.cluster.actors), world, folder.parent / "encoder")
    shards.call("encode")
    method, scores = method_of(config), np.empty(runs)
    for run in range(runs):
        if run % _LEDGER_LENGTH == 0:
            ledger = Ledger(folder / f"ledger-{run}.sqlite")
            ledger.register(
                _ACCOUNT, config.privacy.relation, config.privacy.unit, config.privacy.delta, False
            )
        release = release_once(
            method.released,
            shards,
            lambda release_id: dataclasses.replace(plan, release_id=release_id),
            folder / "release",
            ledger=ledger,
            account=_ACCOUNT,
            run_id=_ACCOUNT,
            noise_seed=None,
            manifest=lambda made: {
                "release_id": made.release_id,
                "publishable": False,
                **method.told(config, made),
            },
        )
        shutil.rmtree(folder / "release")
        scores[run] = difference @ attack.answer(release).ravel()
        task.advance(1)
    return scores
