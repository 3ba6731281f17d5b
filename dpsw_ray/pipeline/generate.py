"""More samples of a finished run: post-processing of its release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import RunConfig
from dpsw_ray.encoders import load_encoder
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.methods.method import Tools
from dpsw_ray.methods.registry import load_config, method_of
from dpsw_ray.pipeline.destination import check_free
from dpsw_ray.pipeline.folder import stored_config
from dpsw_ray.pipeline.memory import check_memory
from dpsw_ray.pipeline.samples import write_samples
from dpsw_ray.pipeline.steps import decode, threads_per_actor

__all__ = ["generate"]


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
    method = method_of(config)
    release = method.released.load(folder / "release")
    encoder = load_encoder(folder / "encoder")
    with open_cluster(config.cluster) as cluster:
        tools = Tools(encoder, cluster, threads_per_actor(config), progress, folder / "checkpoints")
        points = method.again(config, method.targets(config, release), tools).sample(num, drawn)
    records, labels = decode(drawn, points, encoder, release)
    columns, classes = Columns.from_list(release.manifest.get("columns")), release.manifest["classes"]
    write_samples(out, records, labels, encoder.schema, classes, columns.whole, config.data.label)
    progress.say(f"{num:,} samples in {out}: from the stored release, nothing was charged")
    if not release.manifest["publishable"]:
        progress.say("DO NOT PUBLISH them: the release is not publishable (see the run's report)")
