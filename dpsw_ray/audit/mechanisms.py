"""Attacks on every mechanism, each on a worst-case pair of synthetic neighbours, with the best score there is.

A likelihood ratio is the most powerful score (Neyman and Pearson 1933); each function names the one it uses. Where
the product has the mechanism (the releases, lattice noise, the discrete sampler), its own code is run; the others
are simulated as their event states them. What is claimed is never written here: it is the accountants' answer to
the event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

from dpsw_ray.audit.attack import Attack, Randomness, Scores
from dpsw_ray.audit.low_bits import discrete_parity, gaussian_grid, gaussian_parity, moments_parity
from dpsw_ray.audit.releases import (
    histogram_plan,
    mixture_ratio,
    moments_plan,
    noisy_moments,
    noisy_projections,
    row_plan,
    sampled_histograms,
    sampled_plan,
    sliced_histogram,
)
from dpsw_ray.privacy.calibration import calibrate_noise
from dpsw_ray.privacy.discrete import discrete_gaussian as sample_discrete
from dpsw_ray.privacy.events import (
    DiscreteGaussianEvent,
    DpSgdEvent,
    GaussianEvent,
    NoisyCountEvent,
    ParallelEvent,
    SequentialEvent,
    SkellamEvent,
)
from dpsw_ray.privacy.noise import lattice_gaussian
from dpsw_ray.privacy.relations import RELATIONS, Relation

__all__ = [
    "MECHANISMS",
    "Mechanism",
    "discrete_gaussian",
    "dp_sgd",
    "gaussian",
    "noisy_count",
    "parallel",
    "sequential",
    "skellam",
]

N = TypeVar("N", int, float)

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

_NUMBERS = 1 << 21  # drawn at a time, to bound the memory
_FIXED_COUNT: tuple[Relation, ...] = ("replace_one", "zero_out")
_SUBSAMPLED: tuple[Relation, ...] = ("zero_out", "add_remove")


@dataclass(frozen=True)
class Mechanism:
    """A mechanism that can be audited by its name.

    Attributes:
        relations: it has a meaning under; the first is the default.
        attack: from a relation and a noise level, to which all its noise is proportional.
        runs: of each world, by default.
    """

    relations: tuple[Relation, ...]
    attack: Callable[[Relation, float], Attack]
    runs: int = 100_000

    def calibrated(self, relation: Relation, epsilon: float, delta: float) -> Attack:
        """The attack at the smallest noise that is charged at most (epsilon, delta)."""
        level = calibrate_noise(lambda noise: self.attack(relation, noise).events, relation, epsilon, delta)
        return self.attack(relation, level)


def gaussian(event: GaussianEvent, relation: Relation) -> Attack:
    """A vector of four integers with lattice noise. Score: likelihood ratio, but for the rounding.

    Pair: vectors as far apart as the sensitivity under `relation` allows.
    """
    step = round(event.sensitivity[relation] / 2)  # in each coordinate

    def scores(runs: int, source: Randomness) -> Scores:
        drawn = lattice_gaussian(source.key, event.noise_std, 0, 8 * runs).reshape(2, runs, 4)
        return drawn[0].sum(axis=1) * 1.0, (drawn[1] + step).sum(axis=1) * 1.0

    return Attack("gaussian", (event,), relation, scores)


def noisy_count(event: NoisyCountEvent, relation: Relation) -> Attack:
    """A count of 7 or 8 records with Gaussian noise. Score: the count, as good as the likelihood ratio."""

    def scores(runs: int, source: Randomness) -> Scores:
        counts = source.rng.normal([[7.0], [8.0]], event.noise_std, (2, runs))
        return counts[0], counts[1]

    return Attack("noisy_count", (event,), relation, scores)


def dp_sgd(event: DpSgdEvent, relation: Relation) -> Attack:
    """Clipped, sampled, noised gradient steps of a small linear regression, every iterate shown.

    Pair: with and without a canary whose gradient, before clipping, is huge and always along the last coordinate,
    where the other records have none (the white-box canaries of Nasr et al. 2023). Score: likelihood ratio of
    the mixture in the steps of that coordinate.
    """
    features = np.array([[1.0, 0.5, 0.0], [-0.3, 2.0, 0.0], [0.7, -0.4, 0.0]])
    targets = np.array([1.0, -1.0, 0.5])
    canary, rate = np.array([0.0, 0.0, 1e3]), 0.1

    def world(present: bool, runs: int, rng: np.random.Generator) -> Array:
        weights, score = np.zeros((runs, 3)), np.zeros(runs)
        for _ in range(event.steps):
            gradients = (weights @ features.T - targets)[:, :, None] * features
            if present:
                gradients = np.concatenate([gradients, np.broadcast_to(canary, (runs, 1, 3))], axis=1)
            norms = np.linalg.norm(gradients, axis=2, keepdims=True)
            clipped = gradients / np.maximum(norms, 1.0)
            mask = rng.random(clipped.shape[:2]) < event.sampling
            total = np.einsum("rnd,rn->rd", clipped, mask) + rng.normal(0, event.noise_multiplier, (runs, 3))
            moved = weights - rate * total
            shown = (weights - moved)[:, 2] / rate
            score += mixture_ratio(shown, event.sampling, 1.0, event.noise_multiplier)
            weights = moved
        return score

    def scores(runs: int, source: Randomness) -> Scores:
        return _joined([
            (world(False, count, source.rng), world(True, count, source.rng)) for count in _portions(runs, 40)
        ])  # fmt: skip

    return Attack("dp_sgd", (event,), relation, scores)


def discrete_gaussian(event: DiscreteGaussianEvent, relation: Relation) -> Attack:
    """Integer tables under the exact discrete sampler. Score: likelihood ratio (linear, as the Gaussian's).

    The sampler is slow, so both worlds of a run see the same noise.
    """
    first, second = _integer_pair(relation)
    change = (second - first).astype(np.float64)

    def scores(runs: int, source: Randomness) -> Scores:
        drawn = sample_discrete(event.noise_std, runs * len(first)).reshape(runs, -1)
        return (first + drawn) @ change, (second + drawn) @ change

    return Attack("discrete_gaussian", (event,), relation, scores)


def skellam(event: SkellamEvent, relation: Relation) -> Attack:
    """Integer tables with Skellam noise. Score: exact likelihood ratio.

    P(k) = exp(-v) I_|k|(v) for the difference of two Poisson numbers of mean v / 2 (Skellam 1946).
    """
    first, second = _integer_pair(relation)

    def scores(runs: int, source: Randomness) -> Scores:
        poisson = source.rng.poisson(event.variance / 2, (2, 2, runs, len(first)))
        drawn = poisson[0] - poisson[1]
        shown = first + drawn[0], second + drawn[1]
        reach = int(max(np.abs(x).max() for x in shown)) + int(second.max())
        log_mass = np.log(ive(np.arange(reach + 1), event.variance))
        null, alternative = (
            (log_mass[np.abs(x - second)] - log_mass[np.abs(x - first)]).sum(axis=1) for x in shown
        )
        return null, alternative

    return Attack("skellam", (event,), relation, scores)


def _integer_pair(relation: Relation) -> tuple[Integers, Integers]:
    """One record of 16 in the first of two cells, against one in the second or none."""
    table = np.array([16, 0])
    return (table[::-1] if relation == "replace_one" else 0 * table), table


def sequential(event: SequentialEvent, relation: Relation) -> Attack:
    """Several rounds of a Gaussian vector and a noisy count, asked adaptively. Score: likelihood ratios, added.

    The vector's sign in each round is chosen by the noisy count of the round before.

    Args:
        event: of parts (`GaussianEvent`, `NoisyCountEvent`).
        relation: of the pair.
    """
    vector, count = event.parts
    assert isinstance(vector, GaussianEvent) and isinstance(count, NoisyCountEvent)
    step = vector.sensitivity[relation]

    def world(present: float, runs: int, rng: np.random.Generator) -> Array:
        score, sign = np.zeros(runs), np.ones(runs)
        for _ in range(event.times):
            shown = present * sign * step + rng.normal(0, vector.noise_std, runs)
            counted = present + rng.normal(0, count.noise_std, runs)
            score += (sign * shown * step - step**2 / 2) / vector.noise_std**2
            score += (counted - 0.5) / count.noise_std**2
            sign = np.where(counted > 0.5, 1.0, -1.0)
        return score

    def scores(runs: int, source: Randomness) -> Scores:
        return world(0.0, runs, source.rng), world(1.0, runs, source.rng)

    return Attack("sequential", (event,), relation, scores)


def parallel(event: ParallelEvent, relation: Relation) -> Attack:
    """Sums of two disjoint parts, the part chosen by the record's own value. Score: likelihood ratio.

    Pair: the replaced record leaves the first part and enters the second; under the other relations it is in the
    first part or in none.

    Args:
        event: of parts (`GaussianEvent`, `GaussianEvent`), both of sensitivity 1 for one record more.
        relation: of the pair.
    """
    stds = np.array([part.noise_std for part in event.parts if isinstance(part, GaussianEvent)])
    first = np.array([1.0, 0.0])
    second = np.array([0.0, 1.0]) if relation == "replace_one" else np.zeros(2)

    def scores(runs: int, source: Randomness) -> Scores:
        drawn = source.rng.normal(0, 1, (2, runs, 2)) * stds
        change = (second - first) / stds**2
        return (first + drawn[0]) @ change, (second + drawn[1]) @ change

    return Attack("parallel", (event,), relation, scores)


def _portions(runs: int, numbers: int) -> Iterator[int]:
    """Splits `runs`, each of so many numbers, into portions that fit the memory."""
    size = max(_NUMBERS // numbers, 1)
    for start in range(0, runs, size):
        yield min(size, runs - start)


def _joined(parts: list[Scores]) -> Scores:
    nulls, alternatives = zip(*parts, strict=True)
    return np.concatenate(nulls), np.concatenate(alternatives)


def _gaussian_at(relation: Relation, level: float) -> Attack:
    sensitivity = _by_relation(2.0**17, 2.0**18)
    return gaussian(GaussianEvent("vector", sensitivity, sensitivity[relation] * level), relation)


def _discrete_at(relation: Relation, level: float) -> Attack:
    squared = _by_relation(256, 512)
    event = DiscreteGaussianEvent("integer table", squared, math.sqrt(squared[relation]) * level)
    return discrete_gaussian(event, relation)


def _skellam_at(relation: Relation, level: float) -> Attack:
    squared = _by_relation(256, 512)
    event = SkellamEvent("integer table", squared, _by_relation(16, 32), squared[relation] * level**2)
    return skellam(event, relation)


def _sequential_at(relation: Relation, level: float) -> Attack:
    sensitivity = _by_relation(1.0, 2.0)
    vector = GaussianEvent("vector", sensitivity, sensitivity[relation] * level)
    return sequential(SequentialEvent((vector, NoisyCountEvent(level)), times=3), relation)


def _parallel_at(relation: Relation, level: float) -> Attack:
    part = GaussianEvent("sum", _by_relation(1.0, 1.0), level)
    return parallel(ParallelEvent((part, part), "by_value"), relation)


def _by_relation(record: N, replaced: N) -> dict[Relation, N]:
    return {relation: replaced if relation == "replace_one" else record for relation in RELATIONS}


MECHANISMS: dict[str, Mechanism] = {
    "sliced_histogram": Mechanism(RELATIONS, lambda r, level: sliced_histogram(histogram_plan(r, level), r)),
    "sliced_histogram_discrete": Mechanism(
        RELATIONS,
        lambda r, level: sliced_histogram(histogram_plan(r, level, "discrete_gaussian"), r),
        runs=10_000,
    ),
    "noisy_projections_haar": Mechanism(
        _FIXED_COUNT, lambda r, level: noisy_projections(row_plan("haar", level), r), runs=20_000
    ),
    "noisy_projections_iid": Mechanism(
        _FIXED_COUNT, lambda r, level: noisy_projections(row_plan("iid", level), r), runs=20_000
    ),
    "sampled_histograms": Mechanism(
        _SUBSAMPLED, lambda r, level: sampled_histograms(sampled_plan(level), r), runs=20_000
    ),
    "gaussian": Mechanism(RELATIONS, _gaussian_at),
    "noisy_count": Mechanism(RELATIONS, lambda r, level: noisy_count(NoisyCountEvent(level), r)),
    "dp_sgd": Mechanism(_SUBSAMPLED, lambda r, level: dp_sgd(DpSgdEvent(0.1, level, 20), r)),
    "dp_pca": Mechanism(RELATIONS, lambda r, level: noisy_moments(moments_plan(r, level), r), runs=20_000),
    "skellam": Mechanism(RELATIONS, _skellam_at),
    "discrete_gaussian": Mechanism(RELATIONS, _discrete_at, runs=50_000),
    "sequential": Mechanism(RELATIONS, _sequential_at),
    "parallel": Mechanism(RELATIONS, _parallel_at),
    "gaussian_parity": Mechanism(RELATIONS, gaussian_parity, runs=1_000),
    "gaussian_grid": Mechanism(RELATIONS, gaussian_grid, runs=500),
    "dp_pca_parity": Mechanism(RELATIONS, moments_parity, runs=2_000),
    "discrete_parity": Mechanism(RELATIONS, discrete_parity, runs=500),
}
"""By name on the command line."""
