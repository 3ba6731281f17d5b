"""The pipeline of one federated run: users' records in, a private release, particles, one honest epsilon out."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import ExitStack, nullcontext
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import write_bytes, write_json
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import Cluster, WorkerGroup, open_cluster
from dpsw_ray.cluster.head_ledger import open_ledger
from dpsw_ray.data import Dataset
from dpsw_ray.federated.config import FEDERATED, FederatedConfig
from dpsw_ray.federated.data import population_data
from dpsw_ray.federated.population.statistics import heterogeneity_figure
from dpsw_ray.federated.report import mechanism, sections, summary
from dpsw_ray.federated.rounds import Rounds, check_rounds_whole, merged, run_rounds
from dpsw_ray.federated.worker import UserShard
from dpsw_ray.flow.points import Points
from dpsw_ray.methods.method import Tools
from dpsw_ray.methods.registry import method_of
from dpsw_ray.pipeline.destination import check_place
from dpsw_ray.pipeline.folder import RunFolder, resolve_output
from dpsw_ray.pipeline.memory import check_memory
from dpsw_ray.pipeline.plan import ledger_account, register_account
from dpsw_ray.pipeline.publish import Results, publish
from dpsw_ray.pipeline.run import (
    RunResult,
    check_receipts,
    decode,
    measure,
    threads_per_actor,
    train_encoder,
)
from dpsw_ray.pipeline.timings import Timings
from dpsw_ray.pipeline.tracking import Tracker, check_tracking, open_tracker

__all__ = ["run_federated", "spawn_users"]


def run_federated(
    config: FederatedConfig, output: Path | None = None, progress: Progress | None = None
) -> RunResult:
    """Makes one federated run, or goes on with the same run in the same folder.

    Args:
        config: the run.
        output: its folder; default `runs/<name>`.
        progress: where to report; default: standard output.

    Raises:
        UserError: anything the user can mend, in one sentence.
    """
    progress = progress or Progress()
    path = resolve_output(config, output)
    check_place(path)
    check_memory(config)
    timings = Timings()
    with (
        RunFolder(config, path, FEDERATED) as folder,
        open_cluster(config.cluster) as cluster,
        nullcontext(open_ledger(config.ledger_path)) as ledger,
        ExitStack() as stack,
    ):
        check_tracking(config.tracking, path.parent)
        p = config.privacy
        ledger.check(ledger_account(config), p.relation, unit=p.unit, delta=p.delta)
        check_rounds_whole(path / "release")
        if folder.resumed:
            progress.say(f"Going on with the run in {path}: what is stored there is used again")
        with timings.phase("data", hidden=True):
            check_receipts(config, cluster, ledger)
            data, users = population_data(config, cluster, progress, ledger)
            _check_delta(config, users)
            check_memory(config, data.info)
        tracker = stack.enter_context(open_tracker(config.tracking, path.parent, config.name))
        tracker.params(config.model_dump(mode="json"))
        with timings.phase("encoder"):
            encoder = train_encoder(config, data, folder / "encoder", progress)
        shards = spawn_users(config, cluster, data, folder / "encoder", users)
        progress.say(f"Preparing {users:,} users (on the private side)")
        for step in ("inspect", "encode", "arrange", "fill", "finish"):
            shards.call(step, retry=True)
        register_account(config, ledger)
        rounds = run_rounds(config, shards, folder / "release", ledger, data.info, encoder, users, progress)
        release = merged(rounds, config)
        if not (folder / "release" / "manifest.json").exists():
            release.save(folder / "release")
        with timings.phase("denoise"):
            method = method_of(config)
            targets = [target for one in rounds.releases for target in method.targets(config, one)]
        with timings.phase("flow", on=cluster):
            threads = threads_per_actor(config)
            tools = Tools(encoder, cluster, threads, progress, folder / "checkpoints", film=True)
            points = method.learn(config, targets, tools).sample(config.count, config.seed)
        with timings.phase("decode"):
            samples = decode(config.seed, points, encoder, release)
        with timings.phase("evaluation"):
            metrics = measure(config, data, points, samples, encoder, progress)
        if config.evaluation.research:
            _research(config, shards, points, folder / "research", progress)
        results = Results(
            config, data.info, encoder, release, targets, points, samples, metrics, timings.seconds,
            mechanism=mechanism(config), sections=sections(config, rounds, users, folder / "encoder"),
            trust=config.trust, simulated=config.simulated,
        )  # fmt: skip
        privacy = publish(results, folder.path, ledger, tracker)
        write_json(folder / "rounds.json", summary(config, rounds, users, folder / "encoder"))
        _track(rounds, folder.path, tracker)
        return RunResult(path, privacy, metrics, tracker.ui_command)


def spawn_users(
    config: FederatedConfig, cluster: Cluster, data: Dataset, encoder_dir: Path, users: int
) -> WorkerGroup:
    """The population, on the workers of the cluster; nothing is read yet."""
    latents_key = hashlib.sha256((encoder_dir / "encoder.json").read_bytes()).hexdigest()[:32]
    law = config.population.model_dump(mode="json", exclude={"malformed", "full_weight_at"})
    store = hashlib.sha256(json.dumps([latents_key, users, law], sort_keys=True).encode()).hexdigest()[:32]
    shared = {
        "size": cluster.size,
        "private_dir": data.private_dir,
        "receipts_dir": data.receipts_dir,
        "encoder_dir": encoder_dir,
        "latents_key": latents_key,
        "population": config.population,
        "generated": config.data.source == "generated",
        "users": users,
        "store_key": store,
        "threads": threads_per_actor(config),
    }
    return cluster.spawn(UserShard, [{"rank": rank, **shared} for rank in range(cluster.size)])


def _check_delta(config: FederatedConfig, users: int) -> None:
    delta = config.privacy.delta
    if delta >= 1 / users and not config.privacy.force_delta:
        raise UserError(
            f"privacy.delta {delta:g} is not below 1/users = {1 / users:.3g} for the {users:,} users: at such a delta "
            "a mechanism may publish a user whole; choose a smaller one, or set privacy.force_delta: true."
        )


def _research(
    config: FederatedConfig, shards: WorkerGroup, points: Points, folder: Path, progress: Progress
) -> None:
    progress.say(
        "Measuring against private records: epsilon of these figures is infinite, they stay in research/"
    )
    e = config.evaluation
    found = shards.call("research", (points.particles, e.directions, config.evaluation_seed))[0]
    folder.mkdir(mode=0o700, exist_ok=True)
    warning = "Computed from private records without noise: not covered by the run's epsilon, never publish."
    write_json(folder / "metrics.json", {"epsilon": math.inf, "warning": warning, **found})
    write_bytes(folder / "population.png", heterogeneity_figure(found["population"]))


def _track(rounds: Rounds, folder: Path, tracker: Tracker) -> None:
    for name in ("survivors", "epsilon", "seconds", "up", "down"):
        values = [(record.number, getattr(record, name)) for record in rounds.records]
        tracker.step_metrics(
            {f"rounds/{name}": [(step, float(value)) for step, value in values if value is not None]}
        )
    tracker.tags({"outcomes": ", ".join(sorted({record.outcome for record in rounds.records}))})
    tracker.artifact(folder / "rounds.json")
