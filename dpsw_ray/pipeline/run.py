"""The pipeline of one run: private records in, a private release, particles, pictures, one honest epsilon out."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import digest_arrays
from dpsw_ray.base.progress import Progress, Task
from dpsw_ray.cluster import Cluster, WorkerGroup, open_cluster
from dpsw_ray.cluster.head_ledger import open_ledger
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset, open_dataset
from dpsw_ray.data.division import check_bounds
from dpsw_ray.data.split import check_count_secret
from dpsw_ray.encoders import Encoder, cached_encoder, fit_encoder, load_encoder
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.evaluate import evaluate
from dpsw_ray.evaluation.report import Metric
from dpsw_ray.flow.points import Points
from dpsw_ray.methods.method import Tools
from dpsw_ray.methods.registry import load_config, method_of
from dpsw_ray.pipeline.destination import check_free, check_place
from dpsw_ray.pipeline.folder import RunFolder, at_terminal, resolve_output, stored_config
from dpsw_ray.pipeline.memory import check_memory
from dpsw_ray.pipeline.plan import (
    charged_events,
    encoder_events,
    ledger_account,
    make_plan,
    pin_division,
    pinned_division,
    planned,
    protection,
    register_account,
)
from dpsw_ray.pipeline.private_encoder import private_encoder
from dpsw_ray.pipeline.publish import Results, publish, release_manifest
from dpsw_ray.pipeline.research import against_private, private_exhibits
from dpsw_ray.pipeline.samples import write_samples
from dpsw_ray.pipeline.timings import Timings
from dpsw_ray.pipeline.tracking import check_tracking, open_tracker
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.ingest import ingest, source_changed
from dpsw_ray.private.receipts import stored_receipts
from dpsw_ray.private.shard import Shard
from dpsw_ray.release.exchange import is_charged, release_once
from dpsw_ray.release.preflight import check_nothing_lost
from dpsw_ray.tables.release import Release

__all__ = [
    "RunResult",
    "changed_source",
    "check_delta",
    "check_receipts",
    "check_relation",
    "decode",
    "divided_data",
    "generate",
    "measure",
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
    check_place(path)
    check_memory(config)
    timings = Timings()
    hidden = config.privacy.relation == "add_remove"
    with (
        RunFolder(config, path) as folder,
        open_cluster(config.cluster) as cluster,  # tells on which machine the ledger is
        nullcontext(_open_ledger(config, path / "release")) as ledger,
        ExitStack() as stack,
    ):
        check_nothing_lost(path)
        check_tracking(config.tracking, path.parent)
        if folder.resumed:
            progress.say(f"Going on with the run in {path}: what is stored there is used again")
        # How long work on private records takes may depend on what they are, not only on how many.
        masked = hidden or config.privacy.publishable
        with timings.phase("data", hidden=masked):
            check_receipts(config, cluster, ledger)
            data = divided_data(config, cluster, progress, ledger)
            check_delta(config, data)
            check_memory(config, data.info)
        # Not before: whatever is refused until here leaves no run in MLflow.
        tracker = stack.enter_context(open_tracker(config.tracking, path.parent, config.name))
        tracker.params(config.model_dump(mode="json"))
        with timings.phase("encoder", hidden=bool(encoder_events(config)) and masked):
            encoder = _encoder(config, cluster, data, folder.path, ledger, progress)
        shards = spawn_shards(config, cluster, data, folder / "encoder")
        stored = os.path.lexists(folder / "release" / "manifest.json")
        with timings.phase("private latents", hidden=masked):
            if not stored or config.evaluation.research:  # otherwise no private record is looked at again
                progress.say("Encoding private records (on the private side)")
                shards.call("encode", retry=True)
        with timings.phase("release", hidden=masked):
            release = _release(config, data, encoder, shards, folder / "release", ledger, progress)
        method = method_of(config)
        for sentence in method.notices(config, release):
            progress.say(sentence)
        with timings.phase("denoise"):
            targets = method.targets(config, release)
        with timings.phase("flow", on=cluster):
            tools = Tools(
                encoder, cluster, threads_per_actor(config), progress, folder / "checkpoints", film=not lean
            )
            points = method.learn(config, targets, tools).sample(config.count, config.seed)
        with timings.phase("decode"):
            samples = decode(config.seed, points, encoder, release)
        with timings.phase("evaluation"):
            metrics = measure(config, data, points, samples, encoder, progress)
        results = Results(
            config, data.info, encoder, release, targets, points, samples, metrics, timings.seconds
        )
        if config.evaluation.research:
            progress.say(
                "Measuring against private records: epsilon of these figures is infinite, they stay in research/"
            )
            against_private(results, shards, folder / "research")
            if not lean:
                private_exhibits(results, shards, folder / "research")
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
        out: the file to write, in the form that its suffix names (`dpsw_ray.pipeline.samples.SUFFIXES`).
        num: number of samples.
        seed: public seed of the new particles; default: the run's, so that the run's own number of
            particles gives the run's own samples.
        progress: where to report.
        load: reads the run's config.
    """
    progress = progress or Progress()
    config = load(stored_config(folder))
    check_free("--out", out, config)
    check_memory(config, count=num)
    drawn = config.seed if seed is None else seed
    release = Release.load(folder / "release")
    encoder = load_encoder(folder / "encoder")
    method = method_of(config)
    with open_cluster(config.cluster) as cluster:
        tools = Tools(encoder, cluster, threads_per_actor(config), progress, folder / "checkpoints")
        points = method.again(config, method.targets(config, release), tools).sample(num, drawn)
    records, labels = decode(drawn, points, encoder, release)
    columns, classes = Columns.from_list(release.manifest.get("columns")), release.manifest["classes"]
    write_samples(out, records, labels, encoder.schema, classes, columns.whole, config.data.label)
    progress.say(f"{num:,} samples in {out}: from the stored release, nothing was charged")
    if not release.publishable:
        progress.say("DO NOT PUBLISH them: the release is not publishable (see the run's report)")


def _open_ledger(config: RunConfig, release: Path) -> Ledger:
    """Before a record is read: under another relation, dividing the data set would tell a protected N.

    A cap refuses here what it would refuse later, when the encoder is trained: all that is not charged yet, so that no
    encoder is paid for whose release has no room.
    """
    ledger = open_ledger(config.ledger_path)
    p = config.privacy
    check_relation(config, ledger)
    ledger.check(
        ledger_account(config),
        p.relation,
        _expected(config, ledger, release),
        unit=p.unit,
        delta=p.delta,
        publishable=p.publishable,
    )
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

    Says which records are protected and which are not.

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
    elif at_terminal() and cluster.run(
        source_changed, config.data, config.home, config.privacy.relation
    ):  # a fact about private records
        print(changed_source(config.data.account), file=sys.stderr)
    for part in (data.public, data.test):  # damaged ones are refused before anything is written
        part()
    if data.info.schema.kind == "table":
        check_bounds(config.data, data.info.schema.columns, data.info.public_count > 0)
    pin_division(config, ledger, data.info)
    progress.say(protection(config, data.info))
    _say_public_classes(config, data, progress)
    return data


def _say_public_classes(config: RunConfig, data: Dataset, progress: Progress) -> None:
    """Holds a given class list against the labels of public records, which cost nothing."""
    if not config.data.classes or not data.info.public_count:
        return
    labels = data.public().labels
    share, found = float((labels >= 0).mean()), set(np.unique(labels).tolist())
    lacking = [name for code, name in enumerate(data.info.classes) if code not in found]
    if share < 0.5:
        progress.say(
            f"WARNING: {share:.0%} of the public records have a label of data.classes, the others none"
        )
    if lacking:
        progress.say(
            f"WARNING: no public record has a label of data.classes called {', '.join(lacking[:20])}"
        )


def changed_source(account: str) -> str:
    """What is said where a stored division is used although its source holds something else by now."""
    return (
        f"The source of {account} has changed since it was divided: the stored division is used "
        "(`dpsw data import --again` divides corrected data anew)"
    )


def check_receipts(config: RunConfig, cluster: Cluster, ledger: Ledger) -> None:
    """Refuses a ledger that lacks a charge to the run's account, before records are divided and anything is computed.

    Such a ledger may have forgotten a relation under which nobody is to learn how many records there are.

    Raises:
        UserError: the private side has a receipt of such a charge.
    """
    folder = config.home / "datasets" / config.data.account / ".receipts"
    ledger.check_receipts(cluster.run(stored_receipts, folder, ledger_account(config)))


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
            "encoder.kind dp_pca is computed from private records and charged: `dpsw run` and `dpsw compare` do that, "
            "other commands need another encoder.kind."
        )
    if os.path.lexists(folder / "encoder.json"):
        return load_encoder(folder)  # the release of this folder, if there is one, was made with it
    public = data.public()
    classes = len(data.info.classes)
    inputs = [public.values, public.labels, np.array(classes)] if config.encoder.labelled else [public.values]

    def train() -> Encoder:
        learning = config.encoder.kind != "identity"
        title = "Training the encoder on the public part"
        with progress.task(title, config.encoder.epochs) if learning else nullcontext() as task:
            return fit_encoder(
                data.info.schema, public.values, config.encoder, config.encoder_seed,
                public_labels=public.labels, classes=classes, bounds=config.data.bounds,
                progress=None if task is None else _advance(task), device=_device(),
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
        "receipts_dir": data.receipts_dir,
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
    stored = os.path.lexists(folder / "manifest.json")
    progress.say(
        f"Using the release stored in {folder}: nothing is charged"
        if stored
        else "Releasing: charge, sum, noise"
    )

    paid = charged_events(encoder, ledger)
    release = release_once(
        Release,
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


def decode(
    seed: int, points: Points, encoder: Encoder, release: Release
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Records [n, *shape] and labels [n] of points, shuffled by the public seed."""
    labels = points.labels if release.manifest["classes"] else np.full_like(points.labels, -1)
    order = np.random.default_rng([seed, 0x5AFE]).permutation(len(labels))
    columns = Columns.from_list(release.manifest.get("columns"))
    return columns.restore(encoder.decode(points.particles, labels))[order], labels[order]


def measure(
    config: RunConfig,
    data: Dataset,
    points: Points,
    samples: tuple[NDArray[Any], NDArray[np.int32]],
    encoder: Encoder,
    progress: Progress,
) -> list[Metric]:
    """The run's figures, from public and test records only."""
    met = method_of(config).figures(points)
    if not config.evaluation.enabled:
        return met
    with progress.task("Evaluating on public and test records") as task:
        return [
            *met,
            *evaluate(
                config.evaluation,
                particles=points.particles,
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
