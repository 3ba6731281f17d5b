"""The pipeline of one run: private records in, a private release, samples, pictures, one honest epsilon out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import open_cluster
from dpsw_ray.cluster.head_ledger import open_ledger
from dpsw_ray.config.run import RunConfig
from dpsw_ray.evaluation.report import Metric
from dpsw_ray.methods.method import Tools
from dpsw_ray.methods.registry import method_of
from dpsw_ray.pipeline.destination import check_place
from dpsw_ray.pipeline.division import check_receipts
from dpsw_ray.pipeline.folder import RunFolder, resolve_output
from dpsw_ray.pipeline.memory import check_memory
from dpsw_ray.pipeline.plan import encoder_events
from dpsw_ray.pipeline.publish import Results, publish
from dpsw_ray.pipeline.records import Records
from dpsw_ray.pipeline.steps import decode, measure, threads_per_actor
from dpsw_ray.pipeline.timings import Timings
from dpsw_ray.pipeline.tracking import check_tracking, open_tracker
from dpsw_ray.pipeline.world import World

__all__ = ["RunResult", "run"]


@dataclass(frozen=True)
class RunResult:
    """What a finished run hands back; everything is in its folder too."""

    folder: Path
    privacy: dict[str, Any]
    metrics: list[Metric]
    mlflow_command: str


def run(
    config: RunConfig,
    output: Path | None = None,
    progress: Progress | None = None,
    lean: bool = False,
    world: type[World[Any]] = Records,
) -> RunResult:
    """Makes one run, or goes on with the same run in the same folder; see the README for its outputs.

    Args:
        config: the run.
        output: its folder; default `runs/<name>`.
        progress: where to report; default: standard output.
        lean: leave out what a comparison has no use for: the particles' path, and in `research/` slices and ceiling.
        world: who holds the private records.

    Raises:
        UserError: anything the user can mend, in one sentence.
    """
    progress = progress or Progress()
    path = resolve_output(config, output)
    check_place(path)
    check_memory(config)
    timings = Timings()
    with (
        RunFolder(config, path, world.family) as folder,
        open_cluster(config.cluster) as cluster,  # tells on which machine the ledger is
        ExitStack() as stack,
    ):
        ledger = open_ledger(config.ledger_path)
        private = world(config, path, cluster, ledger, progress)
        private.check()
        check_tracking(config.tracking, path.parent)
        if folder.resumed:
            progress.say(f"Going on with the run in {path}: what is stored there is used again")
        masked = private.masked
        with timings.phase("data", hidden=masked):
            check_receipts(config, cluster, ledger)
            data = private.data()
            check_memory(config, data.info)
        # Not before: whatever is refused until here leaves no run in MLflow.
        tracker = stack.enter_context(open_tracker(config.tracking, path.parent, config.name))
        tracker.params(config.model_dump(mode="json"))
        with timings.phase("encoder", hidden=bool(encoder_events(config)) and masked):
            encoder = private.encoder(data)
        with timings.phase("private latents", hidden=masked):
            shards = private.shards(data)
        with timings.phase("release", hidden=masked):
            release = private.release(data, encoder, shards)
        method = method_of(config)
        for sentence in method.notices(config, release):
            progress.say(sentence)
        with timings.phase("denoise"):
            targets = method.targets(config, release)
        with timings.phase("flow", on=cluster):
            threads = threads_per_actor(config)
            tools = Tools(encoder, cluster, threads, progress, folder / "checkpoints", film=not lean)
            points = method.learn(config, targets, tools).sample(config.count, config.seed)
        with timings.phase("decode"):
            samples = decode(config.seed, points, encoder, release)
        with timings.phase("evaluation"):
            metrics = measure(config, data, points, samples, encoder, progress)
        results = Results(
            config, data.info, encoder, release, targets, points, samples, metrics, timings.seconds,
            private.told(),
        )  # fmt: skip
        if config.evaluation.research:
            progress.say(
                "Measuring against private records: epsilon of these figures is infinite, they stay in research/"
            )
            private.research(results, shards, lean)
        privacy = publish(results, path, ledger, tracker)
        private.record(tracker)
        return RunResult(path, privacy, metrics, tracker.ui_command)
