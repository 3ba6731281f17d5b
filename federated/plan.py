"""What a round is going to release, under each trust model: public, decided before a private record is read.

Statement (unit: user; K directions; messages as in `dpsw_ray.federated.message`, whose bounds are on the integers sent)
    central: the server adds N(0, s^2) to the sum. The event of sliced histograms, or, with a secret Poisson sample of
        the users in every round (`zero_out`), of sums over secret samples.
    distributed: every survivor adds Skellam(v) to its message, inside secure aggregation, v = s^2 / (t - 1 - c). With
        n >= t survivors, c of whom tell the server theirs, the noise that hides one user's message has variance
        (n - 1 - c) v >= s^2: its own share changes with it under `zero_out`, and is left out. Who takes part is seen:
        no amplification.
    local: every message has Skellam(s^2) of its own, for a user replaced by any other. Rows: N(0, s^2) on each of a
        user's c padded rows of K projections, which a replaced user changes by at most 2 sqrt(c K / d).
    Source: Agarwal, Kairouz and Liu 2021 for the integer sums with shares; otherwise as in `docs/privacy.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.federated.cohort import Cohort
from dpsw_ray.federated.config import FederatedConfig, Trust
from dpsw_ray.federated.shares import centred, modulus_bits, share_variance, wrap_probability
from dpsw_ray.methods.dpswflow.plan import RowPlan, row_change, row_grid
from dpsw_ray.privacy.calibration import calibrate_noise
from dpsw_ray.privacy.discrete import MAX_DRAWN
from dpsw_ray.privacy.events import (
    Event,
    GaussianEvent,
    NoiseKind,
    SampledGaussianEvent,
    SequentialEvent,
    SkellamEvent,
    SlicedHistogramEvent,
)
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.release.form import Form
from dpsw_ray.release.plan import checked_std
from dpsw_ray.slicing.directions import LATTICE, haar_frames
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.tables.plan import SlicesPlan

__all__ = ["RoundPlan", "UserPlan", "UserRowPlan", "needed_survivors", "round_plan"]

_WRAP = 1e-9  # chance of a wrong cell that a chosen modulus may have
_LEAST_DELTA = 1e-12  # Skellam numbers are drawn from uniforms of 53 bits
_NUMBER = 32  # bits of a noisy projection
_NO_COHORT = Cohort(0, 0, 0)


@dataclass(frozen=True)
class UserPlan(SlicesPlan):
    """One round of users' messages.

    Attributes:
        cohort: who takes part.
        trust: who adds the noise.
        survivors: how many messages are added up; 0 under a secret sample.
        full_weight_at: records from which on a user has full weight.
        precision: bits of a user's whole mass, in the integers that are sent.
        rate: chance of a user to be in the secret sample.
        share: variance of one user's noise, in the units that are sent; 0 under `central`.
        corrupted: users who may tell the server their noise.
        bits: of the modulus, or of a noisy cell on the wire.
    """

    cohort: Cohort = _NO_COHORT
    trust: Trust = "central"
    survivors: int = 0
    full_weight_at: int = 1
    precision: int = 16
    rate: float = 1.0
    share: float = 0.0
    corrupted: int = 0
    bits: int = 17

    @property
    def mechanism(self) -> str:
        """Of sums of messages."""
        return "dpsw_ray.federated.mechanism"

    @property
    def form(self) -> Form:
        """What a message must look like: the bounds that the event below counts on."""
        shift = 16 - self.precision
        return Form(self.cells[1:], self._row_norm_sq >> 2 * shift, SCALE >> shift, axis=1)

    @property
    def event(self) -> Event:
        """What the round costs, as it happened."""
        directions, form = self.directions.shape[1], self.form
        if self.trust == "distributed":
            return _skellam(
                directions, form, max(self.survivors - 1 - self.corrupted, 0) * self.share, self.trust
            )
        if self.trust == "local":
            return _skellam(directions, form, self.share, self.trust)
        assert self.noise != "skellam"
        return _central(directions, form.norm_sq, self.noise_std, self.noise, self.rate)

    @property
    def message_bits(self) -> int:
        """Of one user's message, as it would be packed."""
        bits = self.form.mass.bit_length() if self.trust == "central" else self.bits
        return math.prod(self.cells) * bits

    @property
    def modulus_bits(self) -> int | None:
        """Of secure aggregation; None without it."""
        return self.bits if self.trust == "distributed" else None

    def counts(self, totals: NDArray[np.int64]) -> NDArray[np.int64]:
        """The released counts: out of the modulus, in units of `SCALE` a user."""
        if self.trust == "distributed":
            totals = centred(totals, self.bits, self.survivors, self.precision)
        return totals << (16 - self.precision)

    def _more(self) -> tuple[object, ...]:
        own = (self.cohort, self.trust, self.survivors, self.full_weight_at, self.precision)
        return (*own, self.rate.hex(), self.share.hex(), self.corrupted, self.bits)


@dataclass(frozen=True)
class UserRowPlan(RowPlan):
    """One round of noisy rows, the same number from every user (DPSWflow on the devices).

    Attributes:
        cohort: who takes part.
        rows: c, of every user.
        survivors: how many users' rows are counted.
    """

    cohort: Cohort = _NO_COHORT
    rows: int = 1
    survivors: int = 0

    @property
    def mechanism(self) -> str:
        """Of padded rows."""
        return "dpsw_ray.federated.row_mechanism"

    @property
    def event(self) -> Event:
        """A Gaussian mechanism: all of a replaced user's rows change, each by at most 2 sqrt(K / d)."""
        _, directions, dim = self.directions.shape
        change = math.sqrt(self.rows) * row_change(directions, dim, "replace_one")
        return GaussianEvent(
            "noisy rows on the devices", {"replace_one": change}, self.noise_std * LATTICE, unit="user"
        )

    @property
    def message_bits(self) -> int:
        """Of one user's message, as it would be packed."""
        directions: int = self.directions.shape[1]
        return self.rows * directions * _NUMBER

    @property
    def modulus_bits(self) -> None:
        """None: every row has noise of its own, and none is masked."""
        return None

    def _more(self) -> tuple[object, ...]:
        return (*super()._more(), self.cohort, self.rows, self.survivors)


RoundPlan: TypeAlias = UserPlan | UserRowPlan


def needed_survivors(config: FederatedConfig, asked: int) -> int:
    """The threshold t of a round in users: fewer answers, and it is aborted.

    Args:
        config: the run.
        asked: users whom the server asks in the round, which is public.

    Raises:
        UserError: a threshold that leaves nobody to hide among.
    """
    if config.trust != "distributed":
        return 1
    threshold = math.ceil(config.secagg.threshold * asked)
    if threshold < config.secagg.corrupted + 2:
        raise UserError(
            f"secagg.threshold {config.secagg.threshold:g} of the {asked} users asked in a round is {threshold}: it "
            f"must exceed secagg.corrupted {config.secagg.corrupted} by two, or nobody's noise is left."
        )
    return threshold


def round_plan(
    config: FederatedConfig, dim: int, classes: int, users: int, cohort: Cohort, release_id: str
) -> RoundPlan:
    """The plan of one round, once it is known who answers.

    Args:
        config: the run.
        dim: d, of the latents.
        classes: length of the public class list, 0 without labels.
        users: in the population, each of whom may be asked.
        cohort: of the round.
        release_id: its random name.

    Raises:
        UserError: noise beyond what fits, or a modulus that is too small.
    """
    asked, p = config.slices, config.privacy
    survivors = int(cohort.survivors().sum())
    if rows := config.sent_rows:
        one = RowPlan.make(
            release_id=release_id, dim=dim, directions=asked.frames * dim, law="haar", epochs=1, batches=1,
            relation=p.relation, epsilon=p.epsilon, delta=p.delta, seed=config.seed,
        )  # fmt: skip
        root = math.sqrt(rows)
        change = root * row_change(asked.frames * dim, dim, p.relation) / LATTICE
        std = checked_std(root * one.noise_std, change, rows * asked.frames * dim, p.epsilon)
        grid = row_grid(std * LATTICE)
        return UserRowPlan(
            release_id, one.directions, grid, grid.table, 1, False, std, unit="user",
            cohort=cohort, rows=rows, survivors=survivors,
        )  # fmt: skip
    conditional = asked.labelled and classes > 0
    grid = BinGrid(asked.bins, asked.smoothing)
    directions = _directions(asked.frames, config.rounds, dim, config.seed)[cohort.number][None]
    plan = UserPlan(
        release_id, directions, grid, grid.table, classes if conditional else 1, conditional, 0.0, p.noise, "user",
        cohort, config.trust, 0 if config.sampled else survivors, config.population.full_weight_at,
    )  # fmt: skip
    return _with_noise(plan, config, users)


def _with_noise(plan: UserPlan, config: FederatedConfig, users: int) -> UserPlan:
    p, directions, cells = config.privacy, plan.directions.shape[1], math.prod(plan.cells)
    calibrated = (config.rounds, p.relation, p.epsilon, p.delta)
    if plan.trust == "central":
        rate = config.slices.rate if config.sampled else 1.0
        std = _central_std(directions, plan.form.norm_sq, p.noise, rate, *calibrated)
        if p.noise == "discrete_gaussian" and cells > MAX_DRAWN:
            raise UserError(
                f"privacy.noise discrete_gaussian draws at most {MAX_DRAWN:,} cells, the plan has {cells:,}: choose "
                f"fewer release.frames or release.bins, or privacy.noise gaussian."
            )
        checked = checked_std(std, _change(plan, p.relation), cells, p.epsilon, p.noise, exact=rate == 1)
        return replace(plan, noise_std=checked, rate=rate)
    if p.delta < _LEAST_DELTA:
        raise UserError(
            f"privacy.delta must be at least {_LEAST_DELTA:g} under trust {plan.trust}, found {p.delta:g}: the tails "
            "of Skellam noise are drawn no further."
        )
    secagg = config.secagg
    plan = replace(plan, noise="skellam", precision=secagg.precision)
    unit = 2.0 ** (16 - secagg.precision)
    variance = _skellam_std(directions, plan.form, plan.trust, *calibrated) ** 2
    asked = int(plan.cohort.asked().sum())
    threshold = needed_survivors(config, asked)
    distributed = plan.trust == "distributed"
    share = share_variance(variance, threshold, secagg.corrupted) if distributed else variance
    total = plan.survivors * share
    # Of what is drawn at once: all the noise of a sum that nobody sees the parts of, or that of one message.
    drawn = math.sqrt(total if distributed else share)
    checked_std(drawn, _change(plan, p.relation), cells, p.epsilon)
    plan = replace(
        plan, noise_std=math.sqrt(total) * unit, share=share, corrupted=secagg.corrupted if distributed else 0
    )
    if not distributed:
        return replace(plan, bits=modulus_bits(1, secagg.precision, share, cells * users))
    # By what all who are asked could send, so that it is known before they answer.
    largest = asked * share
    if secagg.bits is None:
        return replace(plan, bits=modulus_bits(asked, secagg.precision, largest, cells * config.rounds))
    if wrap_probability(secagg.bits, asked, secagg.precision, largest, cells * config.rounds) > _WRAP:
        enough = modulus_bits(asked, secagg.precision, largest, cells * config.rounds)
        raise UserError(
            f"secagg.bits {secagg.bits} cannot hold the sum of {asked:,} users' messages and the noise: cells would "
            f"wrap around; choose at least {enough}, or a smaller secagg.precision."
        )
    return replace(plan, bits=secagg.bits)


def _change(plan: UserPlan, relation: Relation) -> float:
    """How far a user's message moves the sum, in the units that are sent."""
    changed = 2 if relation == "replace_one" else 1
    return math.sqrt(changed * plan.directions.shape[1] * plan.form.norm_sq)


@lru_cache(maxsize=8)
def _directions(frames: int, rounds: int, dim: int, seed: int) -> NDArray[np.float64]:
    """Array of size [T, K, d]: those of one round are those of a run with one round."""
    return haar_frames(frames * rounds, dim, seed).reshape(rounds, frames * dim, dim)


def _central(directions: int, row_norm_sq: int, std: float, noise: NoiseKind, rate: float) -> Event:
    if rate < 1:
        return SampledGaussianEvent(
            sampling=rate, sensitivity=math.sqrt(directions * row_norm_sq), noise_std=std, unit="user",
            label="sliced histograms of secret samples of users",
        )  # fmt: skip
    return SlicedHistogramEvent(directions, row_norm_sq, std, noise, "user", "sliced histograms of users")


def _skellam(directions: int, form: Form, variance: float, trust: Trust) -> SkellamEvent:
    squared, absolute = directions * form.norm_sq, directions * form.mass
    by_relation: dict[Relation, int] = {"replace_one": 2 * squared}
    by_relation_l1: dict[Relation, int] = {"replace_one": 2 * absolute}
    if trust == "distributed":
        by_relation |= {"zero_out": squared}
        by_relation_l1 |= {"zero_out": absolute}
    label = "noisy messages of users" if trust == "local" else "sliced histograms of users, noise in shares"
    return SkellamEvent(label, by_relation, by_relation_l1, variance, math.prod(form.shape), "user")


@lru_cache(maxsize=64)
def _central_std(
    directions: int, row_norm_sq: int, noise: NoiseKind, rate: float, rounds: int,
    relation: Relation, epsilon: float, delta: float,
) -> float:  # fmt: skip
    scale = math.sqrt(directions * row_norm_sq)
    return scale * _level(
        lambda level: _central(directions, row_norm_sq, level * scale, noise, rate),
        rounds, relation, epsilon, delta,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _skellam_std(
    directions: int, form: Form, trust: Trust, rounds: int,
    relation: Relation, epsilon: float, delta: float,
) -> float:  # fmt: skip
    scale = math.sqrt(directions * form.norm_sq)
    return scale * _level(
        lambda level: _skellam(directions, form, (level * scale) ** 2, trust),
        rounds,
        relation,
        epsilon,
        delta,
    )


def _level(
    once: Callable[[float], Event], rounds: int, relation: Relation, epsilon: float, delta: float
) -> float:
    """The noise level at which all rounds together stay within (epsilon, delta)."""
    return calibrate_noise(
        lambda level: [SequentialEvent((once(level),), rounds) if rounds > 1 else once(level)],
        relation, epsilon, delta,
    )  # fmt: skip
