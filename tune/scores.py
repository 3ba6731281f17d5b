"""Scores: what a trial is judged by. None of them reads a private record.

Validation slices. Some of the released directions are kept from the flow. Their noisy CDFs F_y are unbiased and
know nothing of the trial, so that with F_p the smoothed CDF of the particles

    mean over directions of  sum_b ((F_p - F_y)^2 - var_b) width / g_b

estimates the squared distance to the true slices without bias: var_b, the variance of F_y at edge b, is known.
With the density g as weight this is the second-order expansion of the squared sliced W2 distance around g (the
quantiles move by (F_p - F) / g). The g are those of the base run's particles, the same for all trials and
independent of the withheld noise. Distances to the slices that the flow was fitted to would reward fitting the noise.

Noisy query. The same, with slices of a release of their own: other directions, other noise, a share of the budget. No
direction is kept from the flow then, and releases of different kinds are judged by the same slices.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder
from dpsw_ray.evaluation.classifier import cached_classifier
from dpsw_ray.evaluation.downstream import intended_class_rate, logreg_accuracy
from dpsw_ray.evaluation.fid import frechet_distance
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.slicing.histogram import add_histograms
from dpsw_ray.tables.release import Release
from dpsw_ray.tune.config import SelectionConfig

__all__ = ["HeldOut", "PublicScore", "Score", "score_of", "withhold"]

Array = NDArray[np.float64]

_MOST_ROUNDS = 64
"""Rounds of a long release that are looked at."""

_FLOOR = 0.5
"""Least density by which a gap is divided, in units of the uniform one on [-1, 1]: tails hold noise only."""


@dataclass(frozen=True)
class Score:
    """What a sweep selects by.

    Attributes:
        name: short.
        better: which way.
        kind: `post_processing` of the release, of a query `charged` beside it, or computed with `public` records.
        explanation: a sentence.
    """

    name: str
    better: Literal["lower", "higher"]
    kind: Literal["post_processing", "charged", "public"]
    explanation: str

    @property
    def sign(self) -> float:
        """1 where lower is better, else -1."""
        return 1.0 if self.better == "lower" else -1.0


def score_of(selection: SelectionConfig) -> Score:
    """The score that a sweep selects by."""
    if selection.score == "validation_slices":
        return Score(
            "validation slices", "lower", "post_processing",
            f"Distance to released slices that the flow never saw ({selection.withheld:.0%} of the directions), the "
            "known noise taken out. Around zero it is noise: then nothing more can be told apart.",
        )  # fmt: skip
    if selection.score == "noisy_query":
        return Score(
            "noisy query", "lower", "charged",
            f"Distance to slices that were released for this alone ({selection.query_share:.0%} of the budget), the "
            "known noise taken out. Around zero it is noise: then nothing more can be told apart.",
        )  # fmt: skip
    titles: dict[str, tuple[str, Literal["lower", "higher"], str]] = {
        "sliced_w2": ("sliced W2 to public latents", "lower", "Distance between particles and public latents."),
        "fid": ("FID to public records", "lower", "In the feature space of a classifier trained on public records."),
        "intended": ("intended class", "higher", "Share of samples that a classifier trained on public records puts "
                     "into the class they were generated for."),
        "logreg": ("LogReg accuracy on public records", "higher", "Logistic regression trained on samples, tested "
                   "on public records."),
    }  # fmt: skip
    name, better, explanation = titles[selection.measure]
    return Score(name, better, "public", explanation)


def withhold(release: Release, share: float) -> tuple[Release, Release]:
    """Divides a release into directions for the flow and directions to judge by, whole frames where there are frames.

    Raises:
        UserError: too few directions to keep some.
    """
    count, dim = release.directions.shape[1:]
    unit = dim if count % dim == 0 and count >= 2 * dim else 1
    held = max(1, round(share * count / unit)) * unit
    if held >= count:
        raise UserError(
            f"selection.withheld {share:g} of {count} directions leaves none for the flow: choose a smaller one, or "
            "more release.frames."
        )
    return _part(release, slice(0, count - held)), _part(release, slice(count - held, count))


def _part(release: Release, chosen: slice) -> Release:
    return dataclasses.replace(
        release,
        directions=np.ascontiguousarray(release.directions[:, chosen]),
        counts=np.ascontiguousarray(release.counts[:, :, chosen]),
    )


class HeldOut:
    """Withheld slices, ready to judge particles."""

    def __init__(self, fitted: Release, held: Release, reference: Array, labels: NDArray[np.int32]) -> None:
        """Prepares the slices.

        Args:
            fitted: class totals come from it: the other part of the release, or a noisy query itself.
            held: the withheld part, or the query.
            reference: particles [n, d] of the base run, for the weights.
            labels: their class blocks [n].
        """
        rounds = range(min(held.rounds, _MOST_ROUNDS))
        self._held = held
        self._slices = [_Slices.make(fitted, held, number, reference, labels) for number in rounds]

    def score(self, particles: Array, labels: NDArray[np.int32]) -> float:
        """Signed root of the estimated squared distance of particles [n, d] with class blocks [n].

        It is negative where noise makes the estimate so.
        """
        squared = float(np.mean([slices.squared(self._held, particles, labels) for slices in self._slices]))
        return math.copysign(math.sqrt(abs(squared)), squared)


@dataclass(frozen=True)
class _Slices:
    """Of one round: CDFs [C, K, bins - 1] at inner edges, weights like them, noise variances [C, bins - 1], shares."""

    number: int
    cdf: Array
    weights: Array
    variances: Array
    shares: Array

    @classmethod
    def make(
        cls, fitted: Release, held: Release, number: int, reference: Array, labels: NDArray[np.int32]
    ) -> _Slices:
        bins = held.grid.bins
        totals = (fitted.counts[number].astype(np.float64) / SCALE).sum(axis=2).mean(axis=1)  # [C]
        noise = held.cell_noise / SCALE
        seen = totals > 4 * noise * math.sqrt(bins / fitted.directions.shape[1])
        totals = np.where(seen, totals, 1.0)
        counts = held.counts[number].astype(np.float64) / SCALE / totals[:, None, None]
        level = np.arange(1, bins) / bins
        cumulated = np.cumsum(counts, axis=2)
        # The total is known: what it misses is noise, spread evenly (the least-squares estimate, a bridge).
        cdf = cumulated[:, :, :-1] - level * (cumulated[:, :, -1:] - 1.0)
        variances = (noise / totals[:, None]) ** 2 * bins * level * (1 - level)
        density = np.diff(_cdfs(held, number, reference, labels), axis=2, prepend=0.0, append=1.0)
        density = (density[:, :, :-1] + density[:, :, 1:]) / 2 / held.grid.width
        weights = held.grid.width / np.maximum(density, _FLOOR / 2)
        shares = np.where(seen, totals, 0.0)
        if not shares.any():
            shares = np.ones_like(shares)
        return cls(number, cdf, weights, variances, shares / shares.sum())

    def squared(self, held: Release, particles: Array, labels: NDArray[np.int32]) -> float:
        present = np.bincount(labels, minlength=held.blocks) > 0 if held.blocks > 1 else np.ones(1, bool)
        gaps = (_cdfs(held, self.number, particles, labels) - self.cdf) ** 2 - self.variances[:, None]
        by_class = (gaps * self.weights).sum(axis=2).mean(axis=1)
        return float((self.shares * np.where(present, by_class, 0.0)).sum())


def _cdfs(held: Release, number: int, particles: Array, labels: NDArray[np.int32]) -> Array:
    """Smoothed CDFs of particles at the inner edges: array of size [C, K, bins - 1]."""
    directions = held.directions[number]
    if held.blocks == 1:
        labels = np.zeros_like(labels)
    counts = np.zeros((held.blocks, len(directions), held.grid.bins), np.int64)
    grid: BinGrid = held.grid
    add_histograms(particles, labels, directions, grid, held.kernel, counts)
    totals = np.maximum(np.bincount(labels, minlength=held.blocks), 1)
    return np.asarray(np.cumsum(counts, axis=2)[:, :, :-1] / (SCALE * totals[:, None, None]))


class PublicScore:
    """Compares with public records; what it needs of them is computed once."""

    def __init__(self, measure: str, config: RunConfig, data: Dataset, encoder: Encoder) -> None:
        """Prepares the public side.

        Args:
            measure: as in `SelectionConfig.measure`.
            config: of the run: how many images and directions, and the public seed.
            data: the divided data set.
            encoder: of the run.

        Raises:
            UserError: a measure that needs classes or images where there are none.
        """
        self._measure, self._config, self._encoder = measure, config, encoder
        self._public = data.public()
        classes = data.info.classes
        if measure == "sliced_w2":
            self._latents = encoder.encode(self._public.values, self._public.labels)
            return
        if not classes or (measure == "fid" and encoder.schema.kind != "image"):
            needed = "images with classes" if measure == "fid" else "classes"
            raise UserError(f"selection.measure {measure} needs {needed}; choose sliced_w2.")
        if measure != "logreg":
            self._classifier = cached_classifier(
                public_values=self._public.values, public_labels=self._public.labels, classes=len(classes),
                schema=encoder.schema, seed=config.evaluation_seed, home=config.home,
            )  # fmt: skip
        if measure == "fid":
            self._features = self._classifier.features(self._public.values[: config.evaluation.images])

    def score(self, particles: Array, labels: NDArray[np.int32]) -> float:
        """Of particles [n, d] with class blocks [n]."""
        config = self._config
        if self._measure == "sliced_w2":
            return sliced_wasserstein(
                particles, self._latents, config.evaluation.directions, config.evaluation_seed
            )
        order = np.random.default_rng([config.seed, 0x5AFE]).permutation(len(labels))
        order = order[: config.evaluation.images]
        records: NDArray[Any] = self._encoder.decode(particles[order], labels[order])
        if self._measure == "fid":
            return frechet_distance(self._classifier.features(records), self._features)
        if self._measure == "intended":
            return intended_class_rate(self._classifier, records, labels[order])
        return logreg_accuracy(records, labels[order], self._public.values, self._public.labels)
