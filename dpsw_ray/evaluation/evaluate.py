"""The figures of one run: what is measured, on which records, beside which baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config import EvaluationConfig
from dpsw_ray.data.records import Part
from dpsw_ray.encoders.base import Encoder
from dpsw_ray.evaluation.classifier import cached_classifier
from dpsw_ray.evaluation.downstream import cached_logreg_accuracy, intended_class_rate, logreg_accuracy
from dpsw_ray.evaluation.fid import frechet_distance
from dpsw_ray.evaluation.report import Metric
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.flow.particles import random_latents

__all__ = ["evaluate"]

Records = tuple[NDArray[Any], NDArray[np.int32]]
"""Records [n, *shape] and labels [n]."""


def evaluate(
    config: EvaluationConfig,
    *,
    particles: NDArray[np.float64],
    samples: Records,
    public: Part,
    test: Part,
    encoder: Encoder,
    classes: Sequence[str],
    seed: int,
    home: Path,
    progress: Callable[[str, int, int, dict[str, float]], None] | None = None,
) -> list[Metric]:
    """Measures samples against public and test records; no private record is read.

    Args:
        config: how many images and directions.
        particles: array of size [n, d].
        samples: the decoded particles, shuffled.
        public: the public part.
        test: the test part.
        encoder: of the run.
        classes: names; empty without labels.
        seed: public seed.
        home: where the classifier and the baselines are cached.
        progress: told of the classifier's training.
    """
    rng = np.random.default_rng([seed, 0xE7A1])
    metrics: list[Metric] = []
    if not len(test):
        return metrics
    records, labels = samples[0][: config.images], samples[1][: config.images]
    noise = random_latents(len(records), encoder.latent_dim, encoder.sphere, rng)
    random_records = encoder.decode(noise)
    test_latents = encoder.encode(test.values)

    def sliced(x: NDArray[np.float64]) -> float:
        return sliced_wasserstein(x, test_latents, config.directions, seed)

    metrics.append(
        Metric(
            "sliced W2 to test latents",
            sliced(particles),
            {"random latents": sliced(noise), "public latents": sliced(encoder.encode(public.values))},
            f"Distance between the particles and the encoded test records over {config.directions} directions.",
            "lower",
        )
    )
    if not classes or (public.labels < 0).all():
        return metrics
    classifier = cached_classifier(
        public_values=public.values, public_labels=public.labels, classes=len(classes),
        schema=encoder.schema, seed=seed, home=home, progress=progress,
    )  # fmt: skip
    if encoder.schema.kind == "image" and min(len(records), len(test)) > 1:
        reference = classifier.features(test.values[: config.images])
        decoded = encoder.decode(test_latents[: config.images])
        metrics.append(
            Metric(
                "FID (classifier features)",
                frechet_distance(classifier.features(records), reference),
                {
                    "random latents": frechet_distance(classifier.features(random_records), reference),
                    "test records, decoded": frechet_distance(classifier.features(decoded), reference),
                },
                "Fréchet distance to the test images in the feature space of a classifier trained on the public part; "
                "not comparable with Inception figures.",
                "lower",
            )
        )
    real = slice(0, len(records))

    def baseline(x: NDArray[Any], y: NDArray[np.int32]) -> float:
        """The same for every run with the same encoder and seed."""
        return cached_logreg_accuracy(x, y, test.values, test.labels, home)

    metrics.append(
        Metric(
            "LogReg accuracy, classes by the public classifier",
            logreg_accuracy(records, classifier.predict(records), test.values, test.labels),
            {
                "random latents": baseline(random_records, classifier.predict(random_records)),
                "public records": baseline(public.values[real], classifier.predict(public.values[real])),
            },
            f"Logistic regression trained on {len(records):,} samples that a classifier trained on the public part has "
            "named, tested on real test records: for releases without labels, and beside those that have them.",
            "higher",
        )
    )
    if (labels >= 0).any():
        intended = rng.integers(0, len(classes), len(records)).astype(np.int32)
        metrics.append(
            Metric(
                "intended class",
                intended_class_rate(classifier, records, labels),
                {
                    "random latents": intended_class_rate(classifier, random_records, intended),
                    "test records": intended_class_rate(classifier, test.values, test.labels),
                },
                "Share of samples that a classifier trained on real public records puts into the class they were "
                "generated for.",
                "higher",
            )
        )
        metrics.append(
            Metric(
                "LogReg accuracy",
                logreg_accuracy(records, labels, test.values, test.labels),
                {
                    "random latents": baseline(random_records, intended),
                    "public records": baseline(public.values[real], public.labels[real]),
                },
                f"Logistic regression trained on {len(records):,} samples, tested on real test records.",
                "higher",
            )
        )
    return metrics
