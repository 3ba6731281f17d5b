"""The figures of one run: what is measured, on which records, beside which baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config import EvaluationConfig
from dpsw_ray.data.records import Part
from dpsw_ray.encoders.base import Encoder
from dpsw_ray.evaluation.classifier import Classifier, cached_classifier
from dpsw_ray.evaluation.downstream import intended_class_rate
from dpsw_ray.evaluation.features import coverage, inception_score, kernel_distance
from dpsw_ray.evaluation.fid import frechet_distance
from dpsw_ray.evaluation.models import ModelKind, cached_model_accuracy, model_accuracy
from dpsw_ray.evaluation.report import Metric
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.flow.particles import random_latents

__all__ = ["evaluate"]

Records = tuple[NDArray[Any], NDArray[np.int32]]
"""Records [n, *shape] and labels [n]."""

_NEAR = 5_000
"""Records at most on either side of a metric that looks at all pairs."""

_MODELS: dict[ModelKind, tuple[str, str]] = {
    "logreg": ("LogReg", "Logistic regression"),
    "mlp": ("MLP", "A perceptron with 100 hidden units"),
    "cnn": ("CNN", "A network with three convolutions"),
}


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
        config: what is measured, on how many records.
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
    if not len(test):
        return []
    rng = np.random.default_rng([seed, 0xE7A1])
    noise = random_latents(min(len(samples[0]), config.images), encoder.latent_dim, encoder.sphere, rng)
    intended = rng.integers(0, max(1, len(classes)), len(noise)).astype(np.int32)
    test_latents = encoder.encode(test.values, test.labels)
    public_latents = encoder.encode(public.values, public.labels)

    def sliced(x: NDArray[np.float64]) -> float:
        return sliced_wasserstein(x, test_latents, config.directions, seed)

    metrics = [
        Metric(
            "sliced W2 to test latents",
            sliced(particles),
            {"random latents": sliced(noise), "public latents": sliced(public_latents)},
            f"Distance between the particles and the encoded test records over {config.directions} directions.",
            "lower",
        )
    ]
    if not classes or (public.labels < 0).all():
        return metrics
    classifier = cached_classifier(
        public_values=public.values, public_labels=public.labels, classes=len(classes),
        schema=encoder.schema, seed=seed, home=home, progress=progress,
    )  # fmt: skip
    random_records = encoder.decode(noise, intended)
    if encoder.schema.kind == "image" and min(len(samples[0]), len(test)) > 1:
        shown = slice(0, config.images)
        decoded = encoder.decode(test_latents[shown], test.labels[shown])
        metrics += _picture_metrics(
            classifier, samples[0][shown], test.values[shown], decoded, random_records, seed
        )
    judge = _Judge(config, encoder, public, public_latents, test, len(classes), seed, home)
    records, labels = samples[0][: config.train], samples[1][: config.train]
    metrics.append(
        judge.metric(
            "logreg",
            (records, classifier.predict(records)),
            (random_records, classifier.predict(random_records)),
            (public.values, classifier.predict(public.values[: config.train])),
            ", classes by the public classifier",
            " that a classifier trained on the public part has named",
            ": for releases without labels, and beside those that have them",
        )
    )
    if not (labels >= 0).any():
        return metrics
    metrics.append(
        Metric(
            "intended class",
            intended_class_rate(classifier, samples[0][: config.images], samples[1][: config.images]),
            {
                "random latents": intended_class_rate(classifier, random_records, intended),
                "test records": intended_class_rate(classifier, test.values, test.labels),
            },
            "Share of samples that a classifier trained on real public records puts into the class they were "
            "generated for.",
            "higher",
        )
    )
    for kind in config.models:
        if kind != "cnn" or encoder.schema.kind == "image":
            known = (public.values, public.labels)
            metrics.append(judge.metric(kind, (records, labels), (random_records, intended), known))
    return metrics


@dataclass(frozen=True)
class _Judge:
    """Models trained on something and tested on the real test records."""

    config: EvaluationConfig
    encoder: Encoder
    public: Part
    public_latents: NDArray[np.float64]
    test: Part
    classes: int
    seed: int
    home: Path

    def metric(
        self, kind: ModelKind, samples: Records, random: Records, public: Records,
        name: str = "", which: str = "", why: str = "",
    ) -> Metric:  # fmt: skip
        """Accuracy of a model trained on samples, beside the same from random latents and from public records."""
        title, model = _MODELS[kind]
        common: dict[str, Any] = {
            "schema": self.encoder.schema, "classes": self.classes, "seed": self.seed, "schedule": self.config.schedule,
        }  # fmt: skip
        real = (self.test.values, self.test.labels)
        count = len(samples[0])

        def baseline(x: NDArray[Any], y: NDArray[np.int32]) -> float:
            """The same for every run with the same encoder and seed."""
            return cached_model_accuracy(kind, x, y, *real, **common, home=self.home)

        return Metric(
            f"{title} accuracy{name}",
            model_accuracy(kind, *samples, *real, **common),
            {
                "random latents": baseline(*random),
                "public records, decoded": baseline(
                    self.encoder.decode(self.public_latents[:count], self.public.labels[:count]),
                    public[1][:count],
                ),
                "public records": baseline(public[0][:count], public[1][:count]),
            },
            f"{model} trained on {count:,} samples{which}, tested on real test records{why}.",
            "higher",
        )


def _picture_metrics(
    classifier: Classifier,
    samples: NDArray[Any],
    test: NDArray[Any],
    decoded: NDArray[Any],
    random: NDArray[Any],
    seed: int,
) -> list[Metric]:
    """Samples [n, *shape] beside test images, in the features of a classifier trained on the public part."""
    features = {
        name: classifier.features(images)
        for name, images in (
            ("this run", samples),
            ("random latents", random),
            ("test records, decoded", decoded),
        )
    }
    reference = classifier.features(test)
    judged = "in the feature space of a classifier trained on the public part; not comparable with Inception figures."

    def metric(name: str, measure: Callable[[str], float], explanation: str, lower: bool = False) -> Metric:
        values = {which: measure(which) for which in features}
        return Metric(name, values.pop("this run"), values, explanation, "lower" if lower else "higher")

    around = {which: coverage(x[:_NEAR], reference[:_NEAR]) for which, x in features.items()}
    scores = {
        "this run": inception_score(classifier.probabilities(samples)),
        "random latents": inception_score(classifier.probabilities(random)),
        "test records": inception_score(classifier.probabilities(test)),
    }
    return [
        metric(
            "FID (classifier features)", lambda which: frechet_distance(features[which], reference),
            f"Fréchet distance to the test images {judged}", lower=True,
        ),
        # Decoded test images are no sample of their own: each has its original on the other side.
        Metric(
            "KID (classifier features)", kernel_distance(features["this run"], reference, seed),
            {"random latents": kernel_distance(features["random latents"], reference, seed)},
            f"Kernel distance to the test images, unbiased (around zero it may be below), {judged}", "lower",
        ),
        metric("precision", lambda which: around[which].precision,
               "Share of the samples that lie where test images lie, by their 5 nearest neighbours in those features."),
        metric("recall", lambda which: around[which].recall,
               "Share of the test images that lie where samples lie."),
        metric("density", lambda which: around[which].density,
               "How many test images' neighbourhoods hold a sample, over 5: as precision, and not misled by outliers."),
        metric("coverage", lambda which: around[which].coverage,
               "Share of the test images with a sample in their neighbourhood."),
        Metric(
            "Inception score (classifier)", scores.pop("this run"), scores,
            "How sure the classifier is of every sample, and how many classes it sees: at most their number; not "
            "comparable with figures of the Inception network.", "higher",
        ),
    ]  # fmt: skip
