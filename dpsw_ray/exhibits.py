"""What a run's report shows: samples, the particles' path, slices, the encoder, neighbours, a table's columns.

Everything here comes from the release and from public and test records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config import RunConfig
from dpsw_ray.data.split import Dataset, DatasetInfo
from dpsw_ray.encoders import Encoder
from dpsw_ray.encoders.pca import PcaEncoder
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.evaluate import complete
from dpsw_ray.evaluation.features import nearest_rows
from dpsw_ray.evaluation.pictures import (
    SliceMasses,
    film_strip,
    image_grid,
    image_pairs,
    losses_figure,
    moving_grid,
    slices_figure,
)
from dpsw_ray.evaluation.report import EncoderSection, Metric, ReportSection
from dpsw_ray.evaluation.table_pictures import paths_figure
from dpsw_ray.evaluation.table_report import table_sections
from dpsw_ray.evaluation.tables import marginals
from dpsw_ray.flow.film import Choice, Film, evenly, first_of_each
from dpsw_ray.flow.particles import initial
from dpsw_ray.flow.solver import FlowResult
from dpsw_ray.release import Release
from dpsw_ray.release.quantiles import Targets

__all__ = [
    "SLICES",
    "Results",
    "components",
    "encoder_exhibit",
    "film_exhibit",
    "followed",
    "neighbours",
    "samples_png",
    "slice_masses",
    "slices_png",
    "tables",
]

SLICES = 4
"""Directions that are shown."""

_PER_CLASS = 10
_RECONSTRUCTIONS = 12
_NEIGHBOURS = 12
_CLASSES = 12  # rows of a film
_FOLLOWED = 120  # images of a film's frame
_ACROSS = 24  # images in a row of its strip
_FOLLOWED_ROWS = 2_000  # a film's particles where they are rows of a table
_PATHS = 2  # columns of a table whose paths are shown


@dataclass(frozen=True)
class Results:
    """What the pipeline computed; nothing in it is private.

    `mechanism` and `sections` are what the report says of a release that is not made from one table of records;
    `trust` says who sees what during the run, `simulated` that users were made up.
    """

    config: RunConfig
    info: DatasetInfo
    encoder: Encoder
    release: Release
    rounds: Sequence[Targets]
    flow: FlowResult
    samples: tuple[NDArray[Any], NDArray[np.int32]]
    metrics: list[Metric]
    timings: dict[str, float]
    mechanism: str | None = None
    sections: Sequence[ReportSection] = ()
    trust: str = "central"
    simulated: bool = False

    @property
    def columns(self) -> Columns:
        """Of a table, as its public part is."""
        return Columns.from_list(self.release.manifest.get("columns"))

    @cached_property
    def test(self) -> NDArray[Any]:
        """Test records without missing values."""
        part = Dataset(self.info).test()
        return complete(part, np.arange(len(part)))[0].values


def followed(encoder: Encoder) -> Choice:
    """Whose path a run keeps: some particles of every class, or of a table's evenly from all."""
    if encoder.schema.kind == "table":
        return evenly(_FOLLOWED_ROWS)
    return first_of_each(_CLASSES, _FOLLOWED)


def samples_png(results: Results) -> bytes | None:
    """Samples by class; None for tables."""
    schema, (records, labels) = results.encoder.schema, results.samples
    if schema.value_range is None:
        return None
    names = list(results.release.manifest["class_names"])
    return image_grid(records, labels if names else None, names, _PER_CLASS, schema.value_range)


def film_exhibit(results: Results) -> ReportSection | None:
    """The particles' path: images as a strip and moving, for a table two of its columns; None where none was kept."""
    title, film = "The path of the particles", results.flow.film
    if results.config.method == "dpswgen":
        return ReportSection(title, "There is none: dpswgen trains a generator, no particle moves.")
    if film is None:
        return None
    steps = film.steps.tolist()
    labels = np.tile(results.flow.labels[film.rows], len(steps))
    decoded = results.encoder.decode(film.frames.reshape(-1, film.frames.shape[2]), labels)
    frames = results.columns.restore(decoded).reshape(*film.frames.shape[:2], *results.encoder.schema.shape)
    if results.encoder.schema.value_range is None:
        return _paths(title, results, steps, frames)
    grid, names = _by_class(results, film, frames)
    value_range = results.encoder.schema.value_range
    shown = grid[:, :, : max(1, _ACROSS // len(steps))]
    moving = moving_grid(grid, steps, value_range)
    return ReportSection(
        title,
        "Where the same few particles are after so many steps of the flow, decoded: the first of every class, none was "
        "picked by hand. They start from noise, follow what was released, and never see a record.",
        picture_png=film_strip(shown, steps, names, value_range),
        more_png=() if moving is None else (moving,),
    )


def _by_class(results: Results, film: Film, frames: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    """Frames as grids [f, rows, k, h, w, c], a row for each class that has particles, and the rows' names."""
    names, labels = list(results.release.manifest["class_names"]), results.flow.labels[film.rows]
    found = np.unique(labels)
    if len(found) == 1 and not names:
        rows = max(1, int(np.sqrt(len(labels))))
        return frames[:, : rows * (len(labels) // rows)].reshape(len(frames), rows, -1, *frames.shape[2:]), [
            ""
        ] * rows
    each = int(np.bincount(labels)[found].max())
    white = results.encoder.schema.value_range
    assert white is not None
    grid = np.full((len(frames), len(found), each, *frames.shape[2:]), white[1], frames.dtype)
    for row, label in enumerate(found):
        own = frames[:, labels == label]
        grid[:, row, : own.shape[1]] = own
    return grid, [names[label] if names else "" for label in found]


def _paths(title: str, results: Results, steps: list[int], frames: NDArray[Any]) -> ReportSection:
    """The columns of a table that move farthest."""
    names, real = results.encoder.schema.columns, results.test
    travelled = marginals(frames[0], frames[-1]).wasserstein
    chosen = np.sort(np.argsort(-np.nan_to_num(travelled), kind="stable")[:_PATHS])
    beside = "; the line is the test records'" if len(real) else ""
    return ReportSection(
        title,
        f"Two columns after so many steps of the flow{beside}: those that change most from the start to the end.",
        picture_png=paths_figure(
            steps,
            list(frames[..., chosen]),
            real[:, chosen] if len(real) else None,
            [names[i] for i in chosen],
        ),
    )


def slices_png(results: Results) -> bytes:
    """A few directions: what was released, what is made of it, and the particles before and after."""
    targets = results.rounds[0]
    masses = slice_masses(results.config, results.release, targets, results.flow, results.encoder)
    return slices_figure(results.release.grid.edges, masses)


def slice_masses(
    config: RunConfig, release: Release, targets: Targets, flow: FlowResult, encoder: Encoder
) -> SliceMasses:
    """What is shown of the first directions, over all classes."""
    counts = release.counts[0, :, :SLICES].sum(axis=0).astype(np.float64)
    total = float(counts.sum(axis=1).mean())
    densities = np.diff(targets.slices.cdf[:, :SLICES], axis=2)
    start = None
    if config.method != "dpswgen":
        start = initial(len(flow.particles), release.dim, encoder.sphere, config.seed)
    directions = targets.slices.directions[:SLICES]
    return SliceMasses(
        noisy=counts / total if total > 0 else counts,
        denoised=np.einsum("c,cjb->jb", targets.weights, densities),
        start=None if start is None else _masses(start, directions, release),
        end=_masses(flow.particles, directions, release),
    )


def _masses(
    particles: NDArray[np.float64], directions: NDArray[np.float64], release: Release
) -> NDArray[np.float64]:
    """The particles' masses [k, bins] along directions [k, d], smoothed as the released ones are."""
    rng = np.random.default_rng(0)
    projections = particles @ directions.T
    smoothed = projections + release.grid.sigma * rng.standard_normal(projections.shape)
    edges = release.grid.edges
    return np.stack([np.histogram(along, edges)[0] for along in smoothed.T]) / max(len(particles), 1)


def encoder_exhibit(results: Results) -> EncoderSection | None:
    """The training of the encoder, and what it makes of the first test records, of public ones without a test part."""
    encoder, config, data = results.encoder, results.config.encoder, Dataset(results.info)
    if not encoder.history:
        return None
    losses = [epoch["holdout_loss"] for epoch in encoder.history]
    kept = int(np.nanargmin(losses))
    facts = {
        "kind": config.kind,
        "latent dimension": encoder.latent_dim,
        "loss": config.loss,
        "epochs trained": len(losses),
        "weights of epoch": kept + 1,
        "training loss then": encoder.history[kept]["train_loss"],
        "hold-out loss then": losses[kept],
    }
    reconstructions_png, part = None, "test" if results.info.test_count else "public"
    if encoder.schema.kind == "image":
        assert encoder.schema.value_range is not None
        shown = data.test() if part == "test" else data.public()
        records, labels = shown.values[:_RECONSTRUCTIONS], shown.labels[:_RECONSTRUCTIONS]
        decoded = encoder.decode(encoder.encode(records, labels), labels)
        reconstructions_png = image_pairs(
            records, decoded, ("original", "decoded"), encoder.schema.value_range
        )
    return EncoderSection(
        facts, losses_figure(encoder.history), reconstructions_png, f"The first records of the {part} part"
    )


def components(results: Results) -> list[ReportSection]:
    """What a private encoder is, and, where some records are public, what it makes of the first test records."""
    encoder, info = results.encoder, results.info
    if not isinstance(encoder, PcaEncoder):
        return []
    picture, said = None, ""
    # Who makes no record public gave up the test records' protection for figures, not for their pictures.
    if encoder.schema.kind == "image" and info.test_count and info.public_count:
        assert encoder.schema.value_range is not None
        records = results.test[:_RECONSTRUCTIONS]
        decoded = encoder.decode(encoder.encode(records))
        picture = image_pairs(records, decoded, ("original", "decoded"), encoder.schema.value_range)
        said = (
            " The picture shows the first test records, in the order they came; below each, what is decoded from its "
            "latent."
        )
    return [
        ReportSection(
            "Encoder",
            "Principal components of noisy second moments of the private records, which are one of the events above."
            + said,
            {
                "latent dimension": encoder.latent_dim,
                "dimension of the public basis": encoder.basis.latent_dim,
                "components seen above the noise": encoder.above_noise,
            },
            picture_png=picture,
        )
    ]


def neighbours(results: Results) -> list[ReportSection]:
    """Samples above the public images that they are nearest to."""
    schema, samples = results.encoder.schema, results.samples[0][:_NEIGHBOURS]
    if schema.kind != "image" or not results.info.public_count:
        return []
    assert schema.value_range is not None
    public = Dataset(results.info).public().values
    nearest = nearest_rows(samples, public)
    return [
        ReportSection(
            "Nearest public records",
            "The first samples, each above the public image with the smallest squared distance to it: what the "
            "decoder, which was trained on public images, gives back as it was is no news about the private ones.",
            picture_png=image_pairs(samples, public[nearest], ("sample", "public"), schema.value_range),
        )
    ]


def tables(results: Results) -> list[ReportSection]:
    """A table's columns and correlations beside the test records'; nothing for images, or without an evaluation."""
    schema = results.encoder.schema
    if schema.kind != "table" or not results.config.evaluation.enabled:
        return []
    samples = results.samples[0][: results.config.evaluation.images]
    return table_sections(samples, results.test, schema.columns, results.metrics)
