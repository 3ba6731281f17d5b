"""The pipeline of one run: private records in, a private release, particles, pictures, one honest epsilon out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpsw_ray.cluster import Cluster, WorkerGroup, open_cluster
from dpsw_ray.cluster.head_ledger import open_ledger
from dpsw_ray.config import RunConfig, load_config
from dpsw_ray.data import Dataset, open_dataset
from dpsw_ray.data.split import check_count_secret
from dpsw_ray.encoders import Encoder, cached_encoder, digest_arrays, fit_encoder, load_encoder
from dpsw_ray.errors import UserError
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.evaluate import evaluate
from dpsw_ray.evaluation.report import Metric
from dpsw_ray.exhibits import followed
from dpsw_ray.flow.film import Choice
from dpsw_ray.flow.particles import allocate
from dpsw_ray.flow.solver import FlowResult, Watch, flow_steps, solve
from dpsw_ray.generator.training import generator_steps, train_generator
from dpsw_ray.output import RunFolder, resolve_output
from dpsw_ray.plan import (
    charged_events,
    encoder_events,
    ledger_account,
    make_plan,
    pin_division,
    pinned_division,
    planned,
    register_account,
)
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.ingest import ingest
from dpsw_ray.private.protocol import is_charged, release_once
from dpsw_ray.private.shard import Shard
from dpsw_ray.private_encoder import private_encoder
from dpsw_ray.progress import Progress, Task
from dpsw_ray.publish import Results, publish, release_manifest
from dpsw_ray.release import Release
from dpsw_ray.release.quantiles import Targets, denoise
from dpsw_ray.research import against_private, private_exhibits
from dpsw_ray.samples import write_samples
from dpsw_ray.timings import Timings
from dpsw_ray.tracking import open_tracker

__all__ = [
    "RunResult",
    "check_delta",
    "check_relation",
    "decode",
    "divided_data",
    "generate",
    "measure",
    "move_points",
    "run",
    "spawn_shards",
    "threads_per_actor",
    "train_encoder",
]


@dataclass(frozen=True)
class RunResult:
    """What a finished run hands back; everything is in its folder too."""

    folder: Path
    privacy: dict[str, Any]
    metrics: list[Metric]
    mlflow_command: str


def run(
    config: RunConfig, output: Path | None = None, progress: Progress | None = None, lean: bool = False
) -> RunResult:
    """Makes one run, or goes on with the same run in the same folder; see the README for its outputs.

    Args:
        config: the run.
        output: its folder; default `runs/<name>`.
        progress: where to report; default: standard output.
        lean: leave out what a comparison has no use for: the particles' path, and in `research/` slices and ceiling.

    Raises:
        UserError: anything the user can mend, in one sentence.
    """
    progress = progress or Progress()
    path = resolve_output(config, output)
    timings = Timings()
    hidden = config.privacy.relation == "add_remove"
    with (
        RunFolder(config, path) as folder,
        open_cluster(config.cluster) as cluster,  # tells on which machine the ledger is
        nullcontext(_open_ledger(config, path / "release")) as ledger,
        open_tracker(config.tracking, path.parent, config.name) as tracker,
    ):
        tracker.params(config.model_dump(mode="json"))
        if folder.resumed:
            progress.say(f"Going on with the run in {path}: what is stored there is used again")
        # How long work on private records takes may depend on what they are, not only on how many.
        masked = hidden or config.privacy.publishable
        with timings.phase("data", hidden=masked):
            data = divided_data(config, cluster, progress, ledger)
            check_delta(config, data)
        with timings.phase("encoder", hidden=bool(encoder_events(config)) and masked):
            encoder = _encoder(config, cluster, data, folder.path, ledger, progress)
        shards = spawn_shards(config, cluster, data, folder / "encoder")
        stored = (folder / "release" / "manifest.json").exists()
        with timings.phase("private latents", hidden=masked):
            if not stored or config.evaluation.research:  # otherwise no private record is looked at again
                progress.say("Encoding private records (on the private side)")
                shards.call("encode", retry=True)
        with timings.phase("release", hidden=masked):
            release = _release(config, data, encoder, shards, folder / "release", ledger, progress)
        with timings.phase("denoise"):
            rounds = denoise(release, config.flow.denoising)
        with timings.phase("flow", on=cluster):
            flow = move_points(
                config, rounds, encoder, cluster, folder / "checkpoints", config.seed, progress,
                follow=None if lean else followed(encoder),
            )  # fmt: skip
        with timings.phase("decode"):
            samples = decode(config.seed, flow, encoder, release)
        with timings.phase("evaluation"):
            metrics = measure(config, data, flow, samples, encoder, progress)
        if config.evaluation.research:
            progress.say(
                "Measuring against private records: epsilon of these figures is infinite, they stay in research/"
            )
            against_private(config, data, encoder, release, shards, flow, folder / "research")
            if not lean:
                private_exhibits(config, data, encoder, release, rounds[0], shards, flow, folder / "research")
        results = Results(
            config, data.info, encoder, release, rounds, flow, samples, metrics, timings.seconds
        )
        privacy = publish(results, folder.path, ledger, tracker)
        return RunResult(path, privacy, metrics, tracker.ui_command)


def generate(
    folder: Path,
    out: Path,
    num: int,
    seed: int | None = None,
    progress: Progress | None = None,
    load: Callable[[Path], RunConfig] = load_config,
) -> None:
    """Draws more samples from a stored release: post-processing, nothing is charged and no record is read.

    Args:
        folder: of a finished run.
        out: the Parquet file to write.
        num: number of samples.
        seed: public seed of the new particles; default: the run's, so that the run's own number of
            particles gives the run's own samples.
        progress: where to report.
        load: reads the run's config.
    """
    progress = progress or Progress()
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is not the folder of a run (config.yaml is missing).")
    config = load(folder / "config.yaml")
    config = config.model_copy(update={"flow": config.flow.model_copy(update={"particles": num})})
    drawn = config.seed if seed is None else seed
    release = Release.load(folder / "release")
    encoder = load_encoder(folder / "encoder")
    with open_cluster(config.cluster) as cluster:
        checkpoints = folder / "checkpoints" if config.method == "dpswgen" else None
        result = move_points(
            config, denoise(release, config.flow.denoising), encoder, cluster, checkpoints, drawn, progress
        )
    records, labels = decode(drawn, result, encoder, release)
    columns = Columns.from_list(release.manifest.get("columns"))
    write_samples(out, records, labels, encoder.schema, release.manifest["classes"], columns.whole)
    progress.say(f"{num:,} samples in {out}: from the stored release, nothing was charged")
    if not release.publishable:
        progress.say("DO NOT PUBLISH them: the release is not publishable (see the run's report)")


def _open_ledger(config: RunConfig, release: Path) -> Ledger:
    """Before a record is read: under another relation, dividing the data set would tell a protected N.

    A cap refuses here what it would refuse later, when the encoder is trained: all that is not charged yet, so that no
    encoder is paid for whose release has no room.
    """
    ledger = open_ledger(config.ledger_path)
    check_relation(config, ledger)
    ledger.check(ledger_account(config), config.privacy.relation, _expected(config, ledger, release))
    return ledger


def check_relation(config: RunConfig, ledger: Ledger) -> None:
    """Refuses what would tell a protected number of records: before one is read, as dividing the data set tells it.

    Raises:
        UserError: the data set is registered under `add_remove` and the run is not, or the run is, and a division made
            under another relation has told the number already.
    """
    own = next((entry for entry in ledger.datasets() if entry.name == config.data.account), None)
    if own is not None and own.relation == "add_remove":  # a research account hides N no less
        ledger.check(own.name, config.privacy.relation)
    if config.privacy.relation == "add_remove" and config.privacy.publishable:
        check_count_secret(config.data, config.home)


def _expected(config: RunConfig, ledger: Ledger, release: Path) -> tuple[Event, ...]:
    """What the run is still going to charge; of a table which is not divided yet the encoder's part alone."""
    if is_charged(ledger, release):
        return ()
    encoder = () if is_charged(ledger, release / "encoder") else encoder_events(config)
    try:
        return (*encoder, planned(config)[0].event)
    except UserError:
        return encoder


def divided_data(config: RunConfig, cluster: Cluster, progress: Progress, ledger: Ledger) -> Dataset:
    """The stored division of the run's data set, made now where it is not there yet, and pinned in the ledger.

    Args:
        config: the run.
        cluster: on whose private side the source is read.
        progress: where to report.
        ledger: that is going to be charged.

    Raises:
        UserError: the source is missing, damaged, or does not fit the config, or another division is pinned.
    """
    data = open_dataset(config.data, config.home, config.privacy.relation)
    if data is None:
        progress.say(f"Dividing {config.data.account} into public, private and test parts (once)")
        pinned = pinned_division(config, ledger)
        cluster.run(ingest, config.data, config.home, config.privacy.relation, 1, pinned)
        data = open_dataset(config.data, config.home, config.privacy.relation)
        assert data is not None
    pin_division(config, ledger, data.info)
    return data


def check_delta(config: RunConfig, data: Dataset) -> None:
    """Refuses a delta at which a mechanism may publish a record whole, unless `privacy.force_delta` accepts it."""
    count, delta = data.info.private_count, config.privacy.delta
    if count is not None and delta >= 1 / count and not config.privacy.force_delta:
        raise UserError(
            f"privacy.delta {delta:g} is not below 1/N = {1 / count:.3g} for the {count:,} private records: at such a "
            "delta a mechanism may publish a record whole; choose a smaller one, or set privacy.force_delta: true."
        )


def _encoder(
    config: RunConfig, cluster: Cluster, data: Dataset, folder: Path, ledger: Ledger, progress: Progress
) -> Encoder:
    """The run's encoder, from public records or, charged, from the private ones; it is saved in the run's folder."""
    if config.encoder.kind != "dp_pca":
        return train_encoder(config, data, folder / "encoder", progress)
    return private_encoder(
        config, data, folder, ledger, lambda basis: spawn_shards(config, cluster, data, basis), progress
    )


def train_encoder(config: RunConfig, data: Dataset, folder: Path, progress: Progress) -> Encoder:
    """The run's encoder, saved in `folder`: the one that is there, a cached one, or one trained on the public part.

    Raises:
        UserError: it would be computed from private records, which runs alone do: they charge it.
    """
    if config.encoder.kind == "dp_pca":
        raise UserError(
            "encoder.kind dp_pca is computed from private records and charged: `dpsw flow` and `dpsw compare` do that, "
            "other commands need another encoder.kind."
        )
    if (folder / "encoder.json").exists():
        return load_encoder(folder)  # the release of this folder, if there is one, was made with it
    public = data.public()
    classes = len(data.info.classes)
    inputs = [public.values, public.labels, np.array(classes)] if config.encoder.labelled else [public.values]

    def train() -> Encoder:
        with progress.task("Training the encoder on the public part", config.encoder.epochs) as task:
            return fit_encoder(
                data.info.schema, public.values, config.encoder, config.encoder_seed,
                public_labels=public.labels, classes=classes, bounds=config.data.bounds,
                progress=_advance(task), device=_device(),
            )  # fmt: skip

    encoder = cached_encoder(config, data.info.schema, digest_arrays(*inputs), config.home, train)
    encoder.save(folder)
    return encoder


def spawn_shards(config: RunConfig, cluster: Cluster, data: Dataset, encoder_dir: Path) -> WorkerGroup:
    """One shard of the private part on each worker of the cluster; nothing is read yet."""
    key = hashlib.sha256((encoder_dir / "encoder.json").read_bytes()).hexdigest()[:32]
    shared = {
        "size": cluster.size,
        "private_dir": data.private_dir,
        "encoder_dir": encoder_dir,
        "latents_key": key,
    }
    return cluster.spawn(
        Shard, [{"rank": r, "threads": threads_per_actor(config), **shared} for r in range(cluster.size)]
    )


def _release(
    config: RunConfig,
    data: Dataset,
    encoder: Encoder,
    shards: WorkerGroup,
    folder: Path,
    ledger: Ledger,
    progress: Progress,
) -> Release:
    name = register_account(config, ledger)
    stored = (folder / "manifest.json").exists()
    progress.say(
        f"Using the release stored in {folder}: nothing is charged"
        if stored
        else "Releasing: charge, sum, noise"
    )

    paid = charged_events(encoder, ledger)
    release = release_once(
        shards,
        lambda release_id: make_plan(
            config, encoder.latent_dim, len(data.info.classes), data.info.private_count, release_id, paid
        ),
        folder,
        ledger=ledger,
        account=name,
        run_id=config.name,
        noise_seed=config.privacy.noise_seed,
        manifest=lambda plan: release_manifest(config, plan, data.info, encoder, ledger),
    )
    if release.manifest.get("encoder", {}) != encoder.source:
        raise UserError(
            f"The release stored in {folder} was made with another private encoder than the one in {folder.parent}: "
            "restore both from one copy, or give another --output."
        )
    return release


def move_points(
    config: RunConfig,
    rounds: Sequence[Targets],
    encoder: Encoder,
    cluster: Cluster,
    checkpoints: Path | None,
    seed: int,
    progress: Progress,
    watch: Watch | None = None,
    follow: Choice | None = None,
) -> FlowResult:
    """Latents that follow the release: particles that flowed there, or what a generator draws.

    Args:
        config: the run.
        rounds: CDFs and class shares from `release.quantiles.denoise`.
        encoder: of the latents; says whether they live on the sphere.
        cluster: who computes.
        checkpoints: a folder to resume from and to save to.
        seed: public seed of the particles.
        progress: where to report.
        watch: of the flow, see `flow.solver.solve`; a generator has nothing to watch.
        follow: of the flow, likewise.
    """
    if config.method == "dpswgen":
        return _generated(config, rounds, encoder, checkpoints, seed, progress)
    with progress.task("Moving particles", flow_steps(config.flow, len(rounds))) as task:

        def step(distance: float) -> None:
            task.advance(1, f"sliced W2 to the release {distance:.4f}")
            cluster.show({"flow_step": task.done, "flow_sliced_w2": distance})

        return solve(
            rounds,
            config.flow,
            sphere=encoder.sphere,
            seed=seed,
            cluster=cluster,
            threads=threads_per_actor(config),
            gpu=config.cluster.gpus_per_actor > 0 and config.flow.kernel != "numba",
            checkpoint=checkpoints / "flow.npz" if checkpoints else None,
            on_step=step,
            watch=watch,
            follow=follow,
            say=progress.say if config.cluster.executor == "ray" else lambda sentence: None,
        )


def _generated(
    config: RunConfig,
    rounds: Sequence[Targets],
    encoder: Encoder,
    checkpoints: Path | None,
    seed: int,
    progress: Progress,
) -> FlowResult:
    distances: list[float] = []
    steps = generator_steps(config.generator, len(rounds))

    def report(distance: float) -> None:
        distances.append(distance)
        task.advance(1, f"sliced W2 to the release {distance:.4f}")

    with progress.task("Training the generator on the release", steps) as task:
        generator = train_generator(
            rounds,
            config.generator,
            sphere=encoder.sphere,
            seed=config.seed,
            device=_device(),
            checkpoint=checkpoints / "generator.pt" if checkpoints else None,
            on_step=report,
        )
    weights = np.mean([targets.weights for targets in rounds], axis=0)
    offsets = allocate(weights, config.flow.particles, config.flow.class_balance)
    labels = np.repeat(np.arange(len(weights), dtype=np.int32), np.diff(offsets))
    latents = generator.sample(config.flow.particles, seed, labels)
    return FlowResult(latents, labels, distances, f"the generator took {steps} steps")


def decode(
    seed: int, flow: FlowResult, encoder: Encoder, release: Release
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Records [n, *shape] and labels [n] of the particles, shuffled by the public seed."""
    labels = flow.labels if release.manifest["classes"] else np.full_like(flow.labels, -1)
    order = np.random.default_rng([seed, 0x5AFE]).permutation(len(labels))
    columns = Columns.from_list(release.manifest.get("columns"))
    return columns.restore(encoder.decode(flow.particles, labels))[order], labels[order]


def measure(
    config: RunConfig,
    data: Dataset,
    flow: FlowResult,
    samples: tuple[NDArray[Any], NDArray[np.int32]],
    encoder: Encoder,
    progress: Progress,
) -> list[Metric]:
    """The run's figures, from public and test records only."""
    fit = Metric(
        "sliced W2 to the release",
        flow.distances[-1],
        explanation="What is left between the particles and the noisy slices; the noise is part of it.",
        better="lower",
    )
    if not config.evaluation.enabled:
        return [fit]
    with progress.task("Evaluating on public and test records") as task:
        return [
            fit,
            *evaluate(
                config.evaluation,
                particles=flow.particles,
                samples=samples,
                public=data.public(),
                test=data.test(),
                encoder=encoder,
                encoder_seed=config.encoder_seed,
                classes=data.info.classes,
                seed=config.evaluation_seed,
                home=config.home,
                progress=_advance(task),
            ),
        ]


def _advance(task: Task) -> Callable[[str, int, int, dict[str, float]], None]:
    def report(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        task.total = total
        task.advance(done - task.done, " ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    return report


def threads_per_actor(config: RunConfig) -> int:
    """How many threads a worker may use."""
    if config.cluster.executor == "local":
        return torch.get_num_threads()  # the machine's, or what OMP_NUM_THREADS leaves to this process
    return max(1, int(config.cluster.cpus_per_actor))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
