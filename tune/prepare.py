"""Everything that has to be there before a trial: encoders, private latents, the charge, the releases, in this order.

The whole sweep is charged before its first release is drawn. What is interrupted goes on: an encoder that is there
is not trained again, a release that was charged is drawn once, with the same bits however often it is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpsw_ray.base.files import write_arrays
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import Cluster, LocalCluster, WorkerGroup
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder, load_encoder
from dpsw_ray.methods.method import Tools
from dpsw_ray.methods.registry import method_of
from dpsw_ray.pipeline.division import check_receipts, check_relation, divided_data
from dpsw_ray.pipeline.memory import check_memory
from dpsw_ray.pipeline.plan import ledger_account, make_plan, register_account
from dpsw_ray.pipeline.publish import release_manifest
from dpsw_ray.pipeline.records import check_delta, spawn_shards
from dpsw_ray.pipeline.steps import threads_per_actor, train_encoder
from dpsw_ray.privacy.accountants import Account, account
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.gaussian import EpsilonBounds
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.release.exchange import charge, release_once, reserve_release
from dpsw_ray.release.plan import Plan
from dpsw_ray.tune.plan import SweepPlan
from dpsw_ray.tune.policy import query_epsilon, split_epsilon
from dpsw_ray.tune.scores import withhold

__all__ = ["Group", "Prepared", "costs", "open_data", "prepare", "write_reference"]


@dataclass(frozen=True)
class Group:
    """Trials that share a release.

    Attributes:
        number: from 0.
        config: a run with this release, all else as in the base.
        encoder: folder of its encoder.
        folder: holds `release/` and, where slices are withheld, the reference particles.
        query: folder of the noisy query that its trials are judged by, with the reference particles.
    """

    number: int
    config: RunConfig
    encoder: Path
    folder: Path
    query: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """What the trials start from, and what it cost.

    Attributes:
        groups: by number.
        events: of the whole sweep.
        epsilon: that each release was calibrated to.
        privacy: `Account.to_dict()` of the whole sweep.
    """

    groups: tuple[Group, ...]
    events: tuple[Event, ...]
    epsilon: float
    privacy: dict[str, Any]


def open_data(config: RunConfig, cluster: Cluster, ledger: Ledger, progress: Progress) -> Dataset:
    """The divided data set; refuses what a run refuses before it looks at a private record."""
    p = config.privacy
    check_relation(config, ledger)
    ledger.check(ledger_account(config), p.relation, unit=p.unit, delta=p.delta, publishable=p.publishable)
    check_receipts(config, cluster, ledger)
    data = divided_data(config, cluster, progress, ledger)
    check_delta(config, data)
    check_memory(config, data.info)
    return data


def prepare(plan: SweepPlan, folder: Path, cluster: Cluster, ledger: Ledger, progress: Progress) -> Prepared:
    """Makes, or finds, all releases of the sweep.

    Args:
        plan: the sweep.
        folder: its folder.
        cluster: who holds the private shards.
        ledger: who is charged.
        progress: where to report.

    Raises:
        UserError: the ledger refuses, or something that was paid for is lost.
    """
    base = plan.base.config
    # As its runs: those of a sweep that promises nothing are research, whose division binds nobody.
    data = open_data(plan.config({}, base.privacy.epsilon), cluster, ledger, progress)
    encoders: dict[str, Path] = {}
    for mechanism in plan.mechanisms:
        config = plan.config(mechanism, base.privacy.epsilon)
        key = _encoder_key(config)
        if key not in encoders:
            encoders[key] = folder / "encoders" / f"{len(encoders):03d}"
            train_encoder(config, data, encoders[key], progress)

    p, selection = base.privacy, plan.sweep.selection
    each, configs, events = costs(plan, lambda config: _make_plan(config, data, encoders, "plan").event)
    query = folder / "releases" / "query" if selection.score == "noisy_query" else None
    releases = [
        Group(number, config, encoders[_encoder_key(config)], folder / "releases" / f"{number:05d}", query)
        for number, config in enumerate(configs)
    ]
    if query is not None:
        releases[-1] = replace(releases[-1], folder=query)
    groups = tuple(releases[: len(plan.mechanisms)])
    privacy = account(events, p.relation, p.delta).to_dict()
    _release_all(plan, releases, events, privacy, data, cluster, ledger, progress)
    if query is not None:
        write_reference(groups[0], None, query)  # one for all: their scores compare
    elif selection.score == "validation_slices":
        with progress.task("Base run, for the weights of the validation slices", len(groups)) as task:
            for group in groups:
                write_reference(group, selection.withheld, group.folder)
                task.advance()
    return Prepared(groups, events, each, privacy)


def costs(
    plan: SweepPlan, event: Callable[[RunConfig], Event]
) -> tuple[float, tuple[RunConfig, ...], tuple[Event, ...]]:
    """What a sweep that charges before its first release is going to release.

    Args:
        plan: the sweep.
        event: of a run's release.

    Returns:
        The epsilon that each trial's release is calibrated to; a run for each release, in the order of
        `plan.mechanisms` and then the noisy query's, if there is one; their events.
    """
    p = plan.base.config.privacy
    queries: list[RunConfig] = []
    if plan.sweep.selection.score == "noisy_query":
        queries = [plan.query(query_epsilon(plan.sweep, p.epsilon, p.delta))]
    asked = [event(config) for config in queries]

    def configs(each: float) -> list[RunConfig]:
        return [plan.config(mechanism, each) for mechanism in plan.mechanisms]

    def events(each: float) -> list[Event]:
        return [event(config) for config in configs(each)]

    each = p.epsilon
    if plan.sweep.selection.policy != "nonprivate":
        each = split_epsilon(events, p.relation, p.epsilon, p.delta, asked)
    return each, (*configs(each), *queries), (*events(each), *asked)


def _encoder_key(config: RunConfig) -> str:
    return config.encoder.model_dump_json()


def _make_plan(config: RunConfig, data: Dataset, encoders: dict[str, Path], release_id: str) -> Plan:
    encoder = load_encoder(encoders[_encoder_key(config)])
    return make_plan(config, encoder.latent_dim, len(data.info.classes), data.info.private_count, release_id)


def _release_all(
    plan: SweepPlan,
    groups: Sequence[Group],
    events: Sequence[Event],
    privacy: dict[str, Any],
    data: Dataset,
    cluster: Cluster,
    ledger: Ledger,
    progress: Progress,
) -> None:
    config = groups[0].config
    p = config.privacy
    if all((group.folder / "release" / "manifest.json").exists() for group in groups):
        progress.say("Using the stored releases: nothing is charged")
    name = register_account(config, ledger)
    if fresh := [events[group.number] for group in groups if not (group.folder / "release").exists()]:
        ledger.check(name, p.relation, fresh)  # refused as a whole, before anything is made or charged
    encoders = {_encoder_key(group.config): group.encoder for group in groups}
    shards: dict[Path, WorkerGroup] = {}
    # Said, not timed: how long this takes could tell a protected number of records.
    progress.say("Encoding private records (on the private side)")
    for folder in encoders.values():
        shards[folder] = spawn_shards(config, cluster, data, folder)
        shards[folder].call("encode", retry=True)

    def arguments(group: Group) -> dict[str, Any]:
        return {
            "shards": shards[group.encoder],
            "make_plan": lambda release_id: _make_plan(group.config, data, encoders, release_id),
            "folder": group.folder / "release",
            "ledger": ledger,
            "account": name,
            "noise_seed": None if p.noise_seed is None else p.noise_seed + group.number,
        }

    reserved = {group.number: reserve_release(**arguments(group)) for group in groups}
    unpaid = {number: reserve for number, reserve in reserved.items() if reserve is not None}
    if unpaid:
        ledger.check(name, p.relation, [reserve.event for reserve in unpaid.values()])
    for number, reserve in unpaid.items():
        note = f"sweep {plan.sweep.name}: release {number + 1} of {len(groups)}"
        workers = shards[groups[number].encoder]
        charge(workers, ledger, name, [reserve.event], plan.sweep.name, note, release_id=reserve.release_id)
    alone = plan.sweep.selection.policy == "nonprivate"
    if unpaid:
        progress.say(f"Releasing {len(groups)} times: sum, noise; all of it is charged")
    for group in groups:
        stated = _uncounted(account([events[group.number]], p.relation, p.delta)) if alone else privacy
        release_once(
            method_of(group.config).released,
            **arguments(group),
            run_id=plan.sweep.name,
            manifest=_manifest(
                group, load_encoder(group.encoder), data, ledger, stated, plan.sweep.selection.policy
            ),
            prepaid=True,
        )
    for workers in shards.values():
        workers.close()


def _uncounted(alone: Account) -> dict[str, Any]:
    """Of a release that may be chosen among several without counting the choice: no figure holds for it."""
    infinite = EpsilonBounds(math.inf, math.inf, math.inf)
    return {**alone.to_dict(), "epsilon": infinite.to_dict(), "mu": math.inf, "checks": {}}


def _manifest(
    group: Group, encoder: Encoder, data: Dataset, ledger: Ledger, privacy: dict[str, Any], policy: str
) -> Callable[[Plan], dict[str, Any]]:
    """Of a release that was chosen among several: it costs what all of them cost."""
    return lambda plan: {
        **release_manifest(group.config, plan, data.info, encoder, ledger),
        "privacy": privacy,
        "selection": policy,
    }


def write_reference(group: Group, withheld: float | None, folder: Path) -> None:
    """Stores the particles of the base run with this release, which slices are weighted by, in `folder`."""
    path = folder / "reference.npz"
    if path.exists():
        return
    config, method = group.config, method_of(group.config)
    release: Any = method.released.load(group.folder / "release")
    fitted = release if withheld is None else withhold(release, withheld)[0]
    with LocalCluster(1) as cluster:
        tools = Tools(load_encoder(group.encoder), cluster, threads_per_actor(config))
        model = method.learn(config, method.targets(config, fitted), tools)
        points = model.sample(config.count, config.seed)
    write_arrays(path, {"particles": points.particles, "labels": points.labels})
