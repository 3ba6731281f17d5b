"""The figures of one run: what is measured, on which records, beside which references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config.run import EvaluationConfig
from dpsw_ray.data.records import Part
from dpsw_ray.encoders.base import Encoder
from dpsw_ray.evaluation.classifier import Classifier, cached_classifier
from dpsw_ray.evaluation.downstream import intended_class_rate
from dpsw_ray.evaluation.features import coverage, inception_score, kernel_distance
from dpsw_ray.evaluation.fid import frechet_distance
from dpsw_ray.evaluation.models import ModelKind, model_accuracy
from dpsw_ray.evaluation.references import Candidate, PartName, References
from dpsw_ray.evaluation.report import Metric
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.evaluation.tables import correlation_gaps, marginals

__all__ = ["Records", "complete", "evaluate"]

Records = tuple[NDArray[Any], NDArray[np.int32]]
"""Records [n, *shape] and labels [n]."""

_NEAR = 5_000
"""Records at most on either side of a metric that looks at all pairs."""

_JUDGED = "in the feature space of a classifier trained on {known}; not comparable with Inception figures."
_STD = "in units of the test column's standard deviation"

_TEXTS: Mapping[str, tuple[Literal["lower", "higher"], str]] = {
    "sliced W2 to test latents": (
        "lower", "Distance between the particles and the encoded test records over {directions} directions."),
    "marginal W1, mean": ("lower", f"Wasserstein-1 distance to the test records' column, {_STD}: mean over columns."),
    "marginal W1, largest": ("lower", f"The same, {_STD}: the worst column."),
    "marginal KS, mean": ("lower", "Kolmogorov-Smirnov: the largest gap between the distribution functions of a "
                          "column, of samples and of test records: mean over columns."),
    "marginal KS, largest": ("lower", "The same: the worst column."),
    "Pearson correlations, RMS gap": (
        "lower", "Root mean square difference to the test records' correlations, over all pairs of columns."),
    "Pearson correlations, largest gap": ("lower", "The same: the worst pair of columns."),
    "Spearman correlations, RMS gap": ("lower", "As for Pearson's, of the ranks."),
    "Spearman correlations, largest gap": ("lower", "The same: the worst pair of columns."),
    "FID (classifier features)": ("lower", f"Fréchet distance to the test images {_JUDGED}"),
    "KID (classifier features)": (
        "lower", f"Kernel distance to the test images, unbiased (around zero it may be below), {_JUDGED}"),
    "precision": ("higher", "Share of the samples that lie where test images lie, by their 5 nearest neighbours in "
                  "those features."),
    "recall": ("higher", "Share of the test images that lie where samples lie."),
    "density": ("higher", "How many test images' neighbourhoods hold a sample, over 5: as precision, and not misled by "
                "outliers."),
    "coverage": ("higher", "Share of the test images with a sample in their neighbourhood."),
    "Inception score (classifier)": ("higher", "How sure the classifier is of every sample, and how many classes it "
                                     "sees: at most their number; not comparable with the Inception network's."),
    "LogReg accuracy, classes by the public classifier": (
        "higher", "Logistic regression trained on {trained} samples that a classifier trained on the public part has "
        "named, tested on real test records: for releases without labels, and beside those that have them."),
    "intended class": ("higher", "Share of samples that a classifier trained on {known} puts into the class "
                       "they were generated for."),
    "LogReg accuracy": ("higher", "Logistic regression trained on {trained} samples, tested on real test records."),
    "MLP accuracy": (
        "higher", "A perceptron with 100 hidden units trained on {trained} samples, tested on real test records."),
    "CNN accuracy": (
        "higher", "A network with three convolutions trained on {trained} samples, tested on real test records."),
    "boosted trees accuracy": (
        "higher", "Gradient-boosted trees trained on {trained} samples, tested on real test records."),
}  # fmt: skip
"""What every figure means, and which way is better, in the order they are shown."""

_MODELS: Mapping[ModelKind, str] = {
    "logreg": "LogReg accuracy",
    "mlp": "MLP accuracy",
    "cnn": "CNN accuracy",
    "boosted": "boosted trees accuracy",
}


def evaluate(
    config: EvaluationConfig,
    *,
    particles: NDArray[np.float64],
    samples: Records,
    public: Part,
    test: Part,
    encoder: Encoder,
    encoder_seed: int,
    classes: Sequence[str],
    seed: int,
    home: Path,
    progress: Callable[[str, int, int, dict[str, float]], None] | None = None,
    beside: bool = True,
) -> list[Metric]:
    """Measures samples against public and test records; no private record is read.

    Without public records every other test record takes their place, as what the classifier and the references are
    made of; the rest is what everything is measured against.

    Args:
        config: what is measured, on how many records.
        particles: array of size [n, d].
        samples: the decoded particles, shuffled.
        public: the public part, perhaps empty.
        test: the test part.
        encoder: of the run.
        encoder_seed: it was trained with: public records held out of its training make the ceiling first.
        classes: names; empty without labels.
        seed: public seed.
        home: where the classifier and the references' figures are cached.
        progress: told of the classifier's training.
        beside: whether the references are measured too.
    """
    known = "the public part"
    if not len(public):
        public, test = _half(test, 0), _half(test, 1)
        known = "one half of the test part (measured against the other)"
    # Training an encoder shuffles by this seed and holds out the first.
    order = np.random.default_rng(encoder_seed).permutation(len(public))
    public, order = complete(public, order)
    test, _ = complete(test, np.arange(len(test)))
    if not len(test) or not len(public):
        return []
    bench = _Bench(config, encoder, public, test, tuple(classes), seed, home, progress)
    count = min(len(samples[0]), max(config.images, config.train))
    references = References(encoder, public, test, order=order, count=count, seed=seed, home=home)
    run = Candidate(particles, *samples)
    own: dict[str, float] = {}
    others: dict[str, dict[str, float]] = {}
    for name, measure, part, key in bench.measures(run):
        found = measure(run)
        own |= found
        for reference, figures in references.figures(measure, part, of=name, **key).items() if beside else ():
            for figure, value in figures.items():
                others.setdefault(figure, {})[reference] = value
    words = {
        "directions": config.directions,
        "trained": f"{min(len(samples[0]), config.train):,}",
        "known": known,
    }
    return [
        Metric(
            name,
            own[name],
            others.get(name, {}),
            text.format(**words),
            better,
            bench.parts(name, own, others),
        )
        for name, (better, text) in _TEXTS.items()
        if name in own
    ]


def _half(part: Part, first: int) -> Part:
    """Every other record, from the first or the second on."""
    return Part(part.values[first::2], part.labels[first::2], part.name)


def complete(part: Part, order: NDArray[np.int64]) -> tuple[Part, NDArray[np.int64]]:
    """The records of a part that no value is missing in, and an order of them that keeps to one of the part's.

    Args:
        part: of images, which are always whole, or of a table.
        order: numbers of the part's records.
    """
    if part.values.dtype == np.uint8 or (whole := np.isfinite(part.values).all(axis=1)).all():
        return part, order
    kept = np.cumsum(whole) - 1
    return Part(part.values[whole], part.labels[whole], part.name), kept[order[whole[order]]]


Measured = tuple[str, Callable[[Candidate], dict[str, float]], PartName, dict[str, Any]]
"""A name, what computes figures, of which part's records in the references, and what decides them."""


@dataclass(frozen=True)
class _Bench:
    """What candidates are measured with: the same for a run and for its references."""

    config: EvaluationConfig
    encoder: Encoder
    public: Part
    test: Part
    classes: tuple[str, ...]
    seed: int
    home: Path
    progress: Callable[[str, int, int, dict[str, float]], None] | None

    def measures(self, run: Candidate) -> list[Measured]:
        """All that have a meaning for a run."""
        c, kind = self.config, self.encoder.schema.kind
        shown: dict[str, Any] = {"images": c.images}
        known = len(self.classes) > 0 and bool((self.public.labels >= 0).any())
        found: list[Measured] = [("sliced", self._sliced, "public", {"directions": c.directions})]
        if kind == "table":
            found.append(("table", self._table, "public", shown))
        if not known:
            return found
        if kind == "image" and min(len(run.records), len(self.test)) > 1:
            found.append(("features", self._features, "public", shown))
            found.append(("inception", self._inception, "test", shown))
        trained: dict[str, Any] = {"train": c.train, "schedule": c.schedule, "classes": len(self.classes)}
        if self.public.name != self.test.name:
            found.append(("pseudo", self._pseudo, "public", trained))
        if not (run.labels >= 0).any():
            return found
        found.append(("intended", self._intended, "test", shown))
        kinds = [model for model in dict.fromkeys(c.models) if model != "cnn" or kind == "image"]
        for model in kinds:
            found.append((model, lambda x, model=model: self._trained(model, x), "public", trained))  # type: ignore[misc]
        return found

    def parts(
        self, name: str, own: Mapping[str, float], beside: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, float]]:
        """A figure's parts: of the columns of a table."""
        keys = {column: _part(name, column) for column in self.encoder.schema.columns}
        return {
            column: {"this run": own[key], **beside.get(key, {})}
            for column, key in keys.items()
            if key in own
        }

    @cached_property
    def _classifier(self) -> Classifier:
        return cached_classifier(
            public_values=self.public.values, public_labels=self.public.labels, classes=len(self.classes),
            schema=self.encoder.schema, seed=self.seed, home=self.home, progress=self.progress,
        )  # fmt: skip

    @cached_property
    def _test_latents(self) -> NDArray[np.float64]:
        return self.encoder.encode(self.test.values, self.test.labels)

    @cached_property
    def _test_features(self) -> NDArray[np.float64]:
        return self._classifier.features(self.test.values[: self.config.images])

    def _sliced(self, x: Candidate) -> dict[str, float]:
        if x.latents is None:
            return {}
        distance = sliced_wasserstein(x.latents, self._test_latents, self.config.directions, self.seed)
        return {"sliced W2 to test latents": distance}

    def _table(self, x: Candidate) -> dict[str, float]:
        synthetic, real = x.records[: self.config.images], self.test.values
        found, columns = marginals(synthetic, real), self.encoder.schema.columns
        figures: dict[str, float] = {}
        for name, values in (("W1", found.wasserstein), ("KS", found.kolmogorov)):
            mean = f"marginal {name}, mean"
            figures |= {mean: float(values.mean()), f"marginal {name}, largest": float(values.max())}
            figures |= {
                _part(mean, column): float(value) for column, value in zip(columns, values, strict=True)
            }
        if real.shape[1] > 1:
            for name, ranks in (("Pearson", False), ("Spearman", True)):
                largest, square = correlation_gaps(synthetic, real, ranks)
                figures |= {
                    f"{name} correlations, largest gap": largest,
                    f"{name} correlations, RMS gap": square,
                }
        return figures

    def _features(self, x: Candidate) -> dict[str, float]:
        """Images beside test images, in the features of a classifier trained on the public part."""
        features, real = self._classifier.features(x.records[: self.config.images]), self._test_features
        around = coverage(features[:_NEAR], real[:_NEAR])
        return {
            "FID (classifier features)": frechet_distance(features, real),
            "KID (classifier features)": kernel_distance(features, real, self.seed),
            "precision": around.precision,
            "recall": around.recall,
            "density": around.density,
            "coverage": around.coverage,
        }

    def _inception(self, x: Candidate) -> dict[str, float]:
        probabilities = self._classifier.probabilities(x.records[: self.config.images])
        return {"Inception score (classifier)": inception_score(probabilities)}

    def _pseudo(self, x: Candidate) -> dict[str, float]:
        records = x.records[: self.config.train]
        name = "LogReg accuracy, classes by the public classifier"
        return {name: self._accuracy("logreg", records, self._classifier.predict(records))}

    def _intended(self, x: Candidate) -> dict[str, float]:
        shown = slice(0, self.config.images)
        return {"intended class": intended_class_rate(self._classifier, x.records[shown], x.labels[shown])}

    def _trained(self, kind: ModelKind, x: Candidate) -> dict[str, float]:
        taken = slice(0, self.config.train)
        return {_MODELS[kind]: self._accuracy(kind, x.records[taken], x.labels[taken])}

    def _accuracy(self, kind: ModelKind, records: NDArray[Any], labels: NDArray[np.int32]) -> float:
        return model_accuracy(
            kind, records, labels, self.test.values, self.test.labels, schema=self.encoder.schema,
            classes=len(self.classes), seed=self.seed, schedule=self.config.schedule,
        )  # fmt: skip


def _part(name: str, column: str) -> str:
    return f"{name}: {column}"
