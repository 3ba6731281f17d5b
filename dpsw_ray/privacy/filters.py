"""Caps as privacy filters: what may still be charged where a charge may depend on the releases before it.

A total worked out for one plan that was fixed in advance (PRV, PLD) does not cover a plan made while looking at
earlier releases. Two sums do, stopped before they pass a bound that was fixed beforehand:

* `gaussian`: mu^2. Gaussian mechanisms chosen adaptively, the mu_i included, with sum of mu_i^2 <= mu^2 are together
  no worse than one Gaussian mechanism of parameter mu (Smith and Thakurta 2022). It admits nothing else.
* `renyi`: the RDP at one order (Feldman and Zrnic 2021; Lecuyer 2021). It admits every event.

The renyi filter uses one order, a function of cap and delta alone. To look at many orders and keep whichever is
best in the end would be a certificate picked after the fact, which needs a union bound over the orders.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.privacy.accountants import compose_mu, rdp_budget, rdp_curve
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.gaussian import AccountingError, gaussian_epsilon
from dpsw_ray.privacy.relations import Relation

__all__ = ["FILTERS", "Cap", "Filter", "Spending", "check_cap", "check_countable", "check_filter", "make_cap"]

Filter = Literal["gaussian", "renyi"]
FILTERS: tuple[Filter, ...] = get_args(Filter)

_SMALLEST, _LARGEST = 1e-9, 1e9  # what lies beyond caps nothing, and nothing can be worked out with it
_ROUNDING = 1e-12  # relative, of a sum of RDP: more than float64 loses over a million charges
_ORDERS = np.unique(
    np.concatenate([np.linspace(1.05, 2.0, 20), np.rint(np.geomspace(2.0, 1e6, 600))])
)  # whole from 2 on, where the bound of Skellam noise holds


@dataclass(frozen=True)
class Cap:
    """What all charges together may reach.

    Args:
        epsilon: at the data set's delta.
        filter: which sum is held under it.
        order: of the RDP, where the filter is `renyi`.
    """

    epsilon: float
    filter: Filter = "gaussian"
    order: float | None = None

    def __str__(self) -> str:
        at = "" if self.order is None else f", order {self.order:g}"
        return f"epsilon {self.epsilon:g} (filter {self.filter}{at})"


def check_filter(name: str) -> Filter:
    """Returns `name` where it is a filter.

    Raises:
        UserError: it is none.
    """
    for known in FILTERS:
        if name == known:
            return known
    raise UserError(f"filter must be one of {', '.join(FILTERS)}, found {shown(name)}.")


def check_cap(cap: Cap) -> Cap:
    """Returns a stored cap where `make_cap` could have made it.

    Raises:
        ValueError: it could not.
    """
    numbers = (cap.epsilon,) if cap.order is None else (cap.epsilon, cap.order)
    plain = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not plain or not _SMALLEST <= cap.epsilon <= _LARGEST or cap.filter not in FILTERS:
        raise ValueError("this is no cap")
    if (cap.order is None) != (cap.filter == "gaussian") or (cap.order is not None and cap.order <= 1):
        raise ValueError("this is no cap")
    return cap


def make_cap(epsilon: float, delta: float, filter: Filter, order: float | None = None) -> Cap:
    """A cap with its certificate fixed.

    Args:
        epsilon: positive and finite.
        delta: of the data set.
        filter: which sum is held under it.
        order: of an earlier renyi cap that this one goes on from; None chooses the order at which one Gaussian
            release may be largest.

    Raises:
        UserError: epsilon out of range, an unknown filter, or no order that could certify so small an epsilon.
    """
    if not 0 < epsilon < math.inf:
        raise UserError(f"A cap must be a positive finite epsilon, found {shown(epsilon)}.")
    if not _SMALLEST <= epsilon <= _LARGEST:
        raise UserError(f"A cap must lie between epsilon {_SMALLEST:g} and {_LARGEST:g}, found {epsilon:g}.")
    if check_filter(filter) == "gaussian":
        return Cap(float(epsilon))
    if order is None:
        budgets = np.array([rdp_budget(epsilon, delta, float(candidate)) for candidate in _ORDERS])
        best = int(np.argmax(budgets / _ORDERS))  # a Gaussian has RDP order * mu^2 / 2
        if not budgets[best] > 0:
            raise UserError(
                f"No RDP of any order certifies epsilon {epsilon:g} at delta {delta:g}: raise one of them, or "
                "use the filter gaussian."
            )
        order = float(_ORDERS[best])
    return Cap(float(epsilon), "renyi", order)


def check_countable(events: Sequence[Event], relation: Relation) -> None:
    """Refuses events that no accountant could count together, cap or not.

    Raises:
        UserError: mixed units, or an event without meaning under `relation`.
        AccountingError: a composition without a cost.
    """
    if math.isnan(_rdp(events, relation, 2.0)):
        raise AccountingError(f"{events[-1].label} has no cost under {relation} that could be counted.")


@dataclass(frozen=True)
class Spending:
    """What was charged so far against a cap.

    Args:
        dataset: its name, for sentences.
        cap: what it may reach.
        relation: of the data set.
        delta: of the data set.
        events: of all charges, oldest first.
    """

    dataset: str
    cap: Cap
    relation: Relation
    delta: float
    events: Sequence[Event]

    def check_admitted(self) -> None:
        """Refuses the cap where its filter cannot count what was charged before it.

        Raises:
            UserError: naming the event.
        """
        if self.cap.filter == "gaussian" and (label := self._not_gaussian(self.events)):
            raise UserError(
                f"Data set {self.dataset} was charged for {label}, which is no Gaussian mechanism: the filter "
                "gaussian cannot count it; use --filter renyi."
            )

    def check(self, events: Sequence[Event]) -> None:
        """Refuses a charge that the filter does not admit, or that would pass the cap.

        Raises:
            UserError: with what is left and what would fit.
        """
        if self.cap.filter == "gaussian":
            self._check_gaussian(events)
        else:
            self._check_renyi(events)

    def remaining(self) -> float:
        """Epsilon of one further Gaussian release that fits, a hair less than the most."""
        mu = self._mu_left()
        if mu == math.inf:
            return self.cap.epsilon
        return gaussian_epsilon(mu * (1 - 1e-9), self.delta).lower if mu > 0 else 0.0

    def _check_gaussian(self, events: Sequence[Event]) -> None:
        mu = compose_mu([*self.events, *events], self.relation)
        if mu is None:
            raise UserError(
                f"{self._not_gaussian(events)} is no Gaussian mechanism, and the cap of data set {self.dataset} "
                f"(filter gaussian) admits no other: {self._way_to_renyi()}. Nothing was charged."
            )
        total = gaussian_epsilon(mu, self.delta).upper
        if not total <= self.cap.epsilon:
            alone, so_far = compose_mu(events, self.relation), self._mu()
            assert alone is not None
            asked = gaussian_epsilon(alone, self.delta).upper
            spent = gaussian_epsilon(so_far, self.delta).upper
            raise self._refusal(
                f"epsilon {spent:.6g} is spent, and this charge of epsilon {asked:.6g} would bring it to {total:.6g}"
            )

    def _check_renyi(self, events: Sequence[Event]) -> None:
        asked, spent, budget = self._spent(events), self._spent(self.events), self._budget()
        if not (spent + asked) * (1 + _ROUNDING) <= budget:
            left = max(budget - spent, 0.0)
            raise self._refusal(
                f"its renyi filter (order {self.cap.order:g}) has RDP {_floor(left)} of {budget:.6g} left, and "
                f"this charge takes {asked:.6g}"
            )

    def _refusal(self, why: str) -> UserError:
        left = self.remaining()
        fits = (
            f"One Gaussian release of epsilon at most {_floor(left)} still fits"
            if left
            else "Nothing more fits"
        )
        return UserError(
            f"The budget of data set {self.dataset} is epsilon {self.cap.epsilon:g} at delta {self.delta:g}: {why}. "
            f"{fits}. Nothing was charged."
        )

    def _way_to_renyi(self) -> str:
        cap = f"dpsw ledger cap '{self.dataset}'"
        if not self.events:
            return f"set it anew with `{cap} {self.cap.epsilon:g} --filter renyi`"
        return (
            f"its filter cannot change after charges; `{cap} none --raise` gives the cap and its promise up, and "
            f"`{cap} EPS --filter renyi` then sets one that admits every mechanism"
        )

    def _not_gaussian(self, events: Sequence[Event]) -> str | None:
        return next((event.label for event in events if compose_mu([event], self.relation) is None), None)

    def _mu(self) -> float:
        mu = compose_mu(self.events, self.relation) if self.events else 0.0
        assert mu is not None, "check_admitted came before the cap"
        return mu

    def _mu_left(self) -> float:
        """Mu of the largest Gaussian release that fits; infinity for the whole of a gaussian cap."""
        if self.cap.filter == "gaussian":
            budget, used = calibrate_gaussian_mu(self.cap.epsilon, self.delta), self._mu()
            if used == 0:
                return math.inf
            return math.sqrt((budget - used) * (budget + used)) if used < budget else 0.0
        assert self.cap.order is not None
        left = self._budget() - self._spent(self.events) * (1 + _ROUNDING)
        return math.sqrt(2 * left / self.cap.order) if left > 0 else 0.0

    def _budget(self) -> float:
        assert self.cap.order is not None
        return rdp_budget(self.cap.epsilon, self.delta, self.cap.order)

    def _spent(self, events: Sequence[Event]) -> float:
        assert self.cap.order is not None
        return _rdp(events, self.relation, self.cap.order) if events else 0.0


def _rdp(events: Sequence[Event], relation: Relation, order: float) -> float:
    return float(rdp_curve(events, relation, np.array([order]))[0])


def _floor(value: float) -> str:
    """`value` to six digits, rounded down: what is offered must fit."""
    return f"{decimal.Context(prec=6, rounding=decimal.ROUND_FLOOR).create_decimal_from_float(value):f}"
