"""From the scores of an attack in two worlds to a lower bound on mu that holds at a given confidence.

An attack sees one release and answers which of two neighbouring data sets it was made from: `alternative` where
its score exceeds a threshold, `null` elsewhere. Its rates are FPR = P(alternative | null) and FNR =
P(null | alternative).

Statement: `lower_bound(...).refuted` is True with probability at most 1 - confidence where the claim holds.

Proof. The threshold is a function of the first half of the runs, so given that half, the errors among the second
half are two binomial counts with the attack's true rates. Each rate lies above its one-sided Clopper-Pearson
bound at (1 - confidence) / 2 with at most that probability; by the union bound, which asks for no independence
between the worlds, FPR <= FPR_upper and FNR <= FNR_upper hold together with probability `confidence`. Let f be
the claimed trade-off function: FNR >= f(FPR) for every attack, f decreasing. Then FNR_upper >= FNR >= f(FPR) >=
f(FPR_upper). Refuted means FNR_upper < f(FPR_upper), hence a claim that is true is refuted with probability at
most 1 - confidence. In mu: with mu(a, b) = Phi^-1(1 - a) - Phi^-1(b), which decreases in b, refuted is
mu(FPR_upper, FNR_upper) > mu(FPR_upper, f(FPR_upper)); for a mu-GDP claim the right-hand side is mu everywhere.
Several audits made together divide 1 - confidence among them (Bonferroni, `shared_confidence`).

Sources: Clopper and Pearson 1934 (the intervals); Dong, Roth and Su 2022 (trade-off functions, mu-GDP); Jagielski,
Ullman and Oprea 2020 and Nasr et al. 2023 (audits by hypothesis tests, in epsilon and in mu).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.accountants import compose_mu
from dpsw_ray.privacy.curves import trade_off
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.relations import Relation

__all__ = ["CONFIDENCE", "Claim", "Curve", "LowerBound", "epsilon_lower", "lower_bound", "shared_confidence"]

Array = NDArray[np.float64]

CONFIDENCE = 0.9999
"""Of all audits made together."""

FEWEST_RUNS = 20  # fewer bound nothing
_LEVELS = ndtr(np.linspace(-4.2, 4.2, 421))  # of the scores' quantiles tried as thresholds, tails included


@dataclass(frozen=True)
class Claim:
    """What is promised of a list of events, as a trade-off function.

    Attributes:
        events: what was charged.
        relation: under which the two worlds are neighbours.
    """

    events: tuple[Event, ...]
    relation: Relation

    @property
    def mu(self) -> float | None:
        """Of the Gaussian trade-off function, None where the promise has another form."""
        return compose_mu(self.events, self.relation)

    def trade_off(self, fpr: Array) -> Array:
        """Smallest false negative rate promised to any attack with these false positive rates."""
        if self.mu is None:
            return trade_off(self.events, self.relation, fpr)
        return np.asarray(ndtr(-ndtri(fpr) - self.mu))

    def mu_at(self, fpr: Array) -> Array:
        """Phi^-1(1 - fpr) - Phi^-1(trade_off(fpr)): mu everywhere for a mu-GDP claim."""
        if self.mu is not None:
            return np.full(fpr.shape, self.mu)
        return _mu(fpr, self.trade_off(fpr))


@dataclass(frozen=True)
class Curve:
    """Error counts of an attack over thresholds, on the runs that choose nothing.

    Attributes:
        false_positives: array of size [thresholds], out of `runs`.
        false_negatives: array of size [thresholds], out of `runs`.
        runs: of each world.
        confidence: of each rate's bounds, point by point.
    """

    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    runs: int
    confidence: float

    @property
    def upper(self) -> tuple[Array, Array]:
        """Upper bounds of FPR and FNR."""
        return tuple(_upper(e, self.runs, self.confidence) for e in self._errors)  # type: ignore[return-value]

    @property
    def lower(self) -> tuple[Array, Array]:
        """Lower bounds of FPR and FNR."""
        return tuple(1 - _upper(self.runs - e, self.runs, self.confidence) for e in self._errors)  # type: ignore[return-value]

    @property
    def rates(self) -> tuple[Array, Array]:
        """Observed FPR and FNR."""
        return self.false_positives / self.runs, self.false_negatives / self.runs

    @property
    def _errors(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.false_positives, self.false_negatives


@dataclass(frozen=True)
class LowerBound:
    """What an attack proves, beside what is claimed at the same false positive rate.

    Attributes:
        mu: lower bound, 0 where the attack proves nothing.
        claimed_mu: what the claim allows at `fpr_upper`.
        fpr_upper: upper bound of the attack's false positive rate.
        fnr_upper: upper bound of its false negative rate.
        runs: of each world, the half that chose the threshold included.
        confidence: of this audit alone.
        curve: the attack at every threshold.
    """

    mu: float
    claimed_mu: float
    fpr_upper: float
    fnr_upper: float
    runs: int
    confidence: float
    curve: Curve = field(repr=False)

    @property
    def refuted(self) -> bool:
        """Whether the claim is false, at the confidence."""
        return self.mu > self.claimed_mu


def shared_confidence(confidence: float, audits: int) -> float:
    """Confidence of each of several audits, so that all of them together have `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / audits


def lower_bound(null: Array, alternative: Array, claim: Claim, confidence: float) -> LowerBound:
    """Bounds mu from below; see the module for the statement and its proof.

    Args:
        null: scores of independent runs in the first world, array of size [runs].
        alternative: the same of the second world, where scores are larger; runs of the two worlds may share
            their randomness.
        claim: held against the bound.
        confidence: of this audit, in (0, 1).

    Raises:
        UserError: too few runs.
        ValueError: a score that is not a number, or worlds of different size.
    """
    runs = len(null)
    if runs < FEWEST_RUNS:
        raise UserError(f"An audit needs at least {FEWEST_RUNS} runs of each world, found {runs}.")
    if alternative.shape != (runs,) or np.isnan(null).any() or np.isnan(alternative).any():
        raise ValueError("scores must be numbers, as many in one world as in the other")
    half = runs // 2
    thresholds = np.unique(np.quantile(np.concatenate([null[:half], alternative[:half]]), _LEVELS))
    chosen = _curve(null[:half], alternative[:half], thresholds, confidence)
    best = int(np.argmax(_excess(chosen, claim)))
    curve = _curve(null[half:], alternative[half:], thresholds, confidence)
    fpr, fnr = (rates[best : best + 1] for rates in curve.upper)
    proven = max(float(_mu(fpr, fnr)[0]), 0.0)
    return LowerBound(
        proven, float(claim.mu_at(fpr)[0]), float(fpr[0]), float(fnr[0]), runs, confidence, curve
    )


def epsilon_lower(fpr: float, fnr: float, delta: float, group: int = 1) -> float:
    """Largest epsilon that rates as small as these refute at `delta`, 0 where they refute none.

    Where one record is (epsilon, delta)-protected, `group` records are (E, D)-protected with E = group * epsilon
    and D = delta (e^E - 1) / (e^epsilon - 1), and every attack on them has FPR + e^E FNR >= 1 - D and FNR +
    e^E FPR >= 1 - D (Kairouz, Oh and Viswanath 2015).

    Args:
        fpr: upper bound of the false positive rate.
        fnr: upper bound of the false negative rate.
        delta: in (0, 1).
        group: number of records in which the worlds differ.
    """

    def refuted(epsilon: float) -> bool:
        grown = sum(math.exp(i * epsilon) for i in range(group))
        factor = math.exp(group * epsilon)
        return min(fpr + factor * fnr, fnr + factor * fpr) < 1 - delta * grown

    low, high = 0.0, 1.0 / group
    if not refuted(low):
        return 0.0
    while refuted(high) and high < 600 / group:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _curve(null: Array, alternative: Array, thresholds: Array, confidence: float) -> Curve:
    above = len(null) - np.searchsorted(np.sort(null), thresholds, side="right")
    below = np.searchsorted(np.sort(alternative), thresholds, side="right")
    return Curve(above.astype(np.int64), below.astype(np.int64), len(null), confidence)


def _excess(curve: Curve, claim: Claim) -> Array:
    fpr, fnr = curve.upper
    with np.errstate(invalid="ignore"):
        excess = _mu(fpr, fnr) - claim.mu_at(fpr)
    return np.where(np.isnan(excess) | (fpr >= 1), -np.inf, excess)


def _mu(fpr: Array, fnr: Array) -> Array:
    return np.asarray(-ndtri(fpr) - ndtri(fnr))


def _upper(errors: NDArray[np.int64], runs: int, confidence: float) -> Array:
    """One-sided Clopper-Pearson bound at half of what the confidence leaves."""
    inside = np.minimum(errors, runs - 1)
    bound = betaincinv(inside + 1, runs - inside, 1 - (1 - confidence) / 2)
    return np.asarray(np.where(errors == runs, 1.0, bound))
