"""What every run's report shows: samples, the encoder, neighbours, a table's columns.

Everything here comes from the release and from public and test records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.data.split import Dataset
from dpsw_ray.encoders.pca import PcaEncoder
from dpsw_ray.evaluation.features import nearest_rows
from dpsw_ray.evaluation.pictures import image_grid, image_pairs, losses_figure
from dpsw_ray.evaluation.report import EncoderSection, Metric, ReportSection
from dpsw_ray.evaluation.table_report import table_sections
from dpsw_ray.methods.method import Learnt

__all__ = [
    "Results",
    "Told",
    "components",
    "encoder_exhibit",
    "neighbours",
    "samples_png",
    "tables",
]

_PER_CLASS = 10
_RECONSTRUCTIONS = 12
_NEIGHBOURS = 12


@dataclass(frozen=True)
class Told:
    """What a world says of a run; nothing in it is private.

    Attributes:
        mechanism: what was released, where it is not what the method says.
        sections: of the report.
        trust: who sees what during the run.
        simulated: whether users were made up.
    """

    mechanism: str | None = None
    sections: Sequence[ReportSection] = ()
    trust: str = "central"
    simulated: bool = False


@dataclass(frozen=True)
class Results(Learnt):
    """What the pipeline computed; nothing in it is private.

    Attributes:
        samples: records [n, *shape] and labels [n].
        metrics: how good they are.
        timings: seconds, by phase.
        told: what the run's world says of it.
    """

    samples: tuple[NDArray[Any], NDArray[np.int32]]
    metrics: list[Metric]
    timings: dict[str, float]
    told: Told = field(default_factory=Told)


def samples_png(results: Results) -> bytes | None:
    """Samples by class; None for tables."""
    schema, (records, labels) = results.encoder.schema, results.samples
    if schema.value_range is None:
        return None
    names = list(results.release.manifest["class_names"])
    return image_grid(records, labels if names else None, names, _PER_CLASS, schema.value_range)


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
