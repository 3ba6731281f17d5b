"""The pipeline of one federated run: users' records in, a private release, particles, one honest epsilon out."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import nullcontext
from pathlib import Path

from dpsw_ray.cluster import Cluster, WorkerGroup, open_cluster
from dpsw_ray.cluster.head_ledger import open_ledger
from dpsw_ray.data import Dataset
from dpsw_ray.errors import UserError
from dpsw_ray.exhibits import followed
from dpsw_ray.files import write_bytes, write_json
from dpsw_ray.flow.solver import FlowResult
from dpsw_ray.output import RunFolder, resolve_output
from dpsw_ray.plan import ledger_account, register_account
from dpsw_ray.progress import Progress
from dpsw_ray.publish import Results, publish
from dpsw_ray.release.quantiles import denoise
from dpsw_ray.run import (
    RunResult,
    decode,
    measure,
    move_points,
    threads_per_actor,
    train_encoder,
)
from dpsw_ray.timings import Timings
from dpsw_ray.tracking import Tracker, open_tracker
from federated.config import FederatedConfig
from federated.data import population_data
from federated.population.statistics import heterogeneity_figure
from federated.report import mechanism, sections, summary
from federated.rounds import Rounds, merged, run_rounds
from federated.worker import UserShard

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
    timings = Timings()
    with (
        RunFolder(config, path) as folder,
        open_cluster(config.cluster) as cluster,
        nullcontext(open_ledger(config.ledger_path)) as ledger,
        open_tracker(config.tracking, path.parent, config.name) as tracker,
    ):
        p = config.privacy
        ledger.check(ledger_account(config), p.relation, unit=p.unit, delta=p.delta)
        tracker.params(config.model_dump(mode="json"))
        if folder.resumed:
            progress.say(f"Going on with the run in {path}: what is stored there is used again")
        with timings.phase("data", hidden=True):
            data, users = population_data(config, cluster, progress, ledger)
            _check_delta(config, users)
        with timings.phase("encoder"):
            encoder = train_encoder(config, data, folder / "encoder", progress)
        shards = spawn_users(config, cluster, data, folder / "encoder", users)
        progress.say(f"Preparing {users:,} users (on the private side)")
        for step in ("encode", "arrange", "fill", "finish"):
            shards.call(step, retry=True)
        register_account(config, ledger)
        rounds = run_rounds(config, shards, folder / "release", ledger, data.info, encoder, users, progress)
        release = merged(rounds, config)
        if not (folder / "release" / "manifest.json").exists():
            release.save(folder / "release")
        with timings.phase("denoise"):
            targets = [target for one in rounds.releases for target in denoise(one, config.flow.denoising)]
        with timings.phase("flow", on=cluster):
            flow = move_points(
                config, targets, encoder, cluster, folder / "checkpoints", config.seed, progress,
                follow=followed(encoder),
            )  # fmt: skip
        with timings.phase("decode"):
            samples = decode(config.seed, flow, encoder, release)
        with timings.phase("evaluation"):
            metrics = measure(config, data, flow, samples, encoder, progress)
        if config.evaluation.research:
            _research(config, shards, flow, folder / "research", progress)
        results = Results(
            config, data.info, encoder, release, targets, flow, samples, metrics, timings.seconds,
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
    config: FederatedConfig, shards: WorkerGroup, flow: FlowResult, folder: Path, progress: Progress
) -> None:
    progress.say(
        "Measuring against private records: epsilon of these figures is infinite, they stay in research/"
    )
    e = config.evaluation
    found = shards.call("research", (flow.particles, e.directions, config.evaluation_seed))[0]
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
