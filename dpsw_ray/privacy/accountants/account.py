"""The account of a list of events: one figure to claim, by the first accountant that can give it, and its checks."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpsw_ray.privacy.accountants.analytic import GaussianAccountant
from dpsw_ray.privacy.accountants.base import Accountant, composed_costs, gaussian_part, is_unbounded
from dpsw_ray.privacy.accountants.pld import PldAccountant
from dpsw_ray.privacy.accountants.prv import PrvAccountant
from dpsw_ray.privacy.accountants.rdp import RdpAccountant
from dpsw_ray.privacy.events import Event, common_unit
from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds, check_delta
from dpsw_ray.privacy.losses import Cost
from dpsw_ray.privacy.relations import Relation, Unit

__all__ = ["ACCOUNTANTS", "Account", "Bound", "account", "bound", "compose_mu"]

ACCOUNTANTS: tuple[Accountant, ...] = (
    GaussianAccountant(),
    PrvAccountant(),
    PldAccountant(),
    RdpAccountant(),
)
"""In the order of trust: the first that can give a figure gives it, the others check it."""


def compose_mu(events: Sequence[Event], relation: Relation) -> float | None:
    """Mu of the adaptive composition of Gaussian events: sqrt(sum of mu_i^2), infinity included.

    Returns:
        Mu of the worst alternative; None where some event is no Gaussian mechanism.

    Raises:
        UserError: no events, mixed units, or an event without meaning under `relation`.
    """
    parts = [gaussian_part(cost) for cost in composed_costs(events, relation)]
    return None if any(rest for _, rest in parts) else max(mu for mu, _ in parts)


@dataclass(frozen=True)
class Bound:
    """A figure and who gave it.

    Args:
        epsilon: bounds; `epsilon.upper` is the claim.
        accountant: its name.
        failed: accountants that come before it and could have given a figure, with the reason why they did not.
    """

    epsilon: EpsilonBounds
    accountant: str
    failed: Mapping[str, str] = field(default_factory=dict)


def bound(events: Sequence[Event], relation: Relation, delta: float) -> Bound:
    """Epsilon of `events` at `delta` by the first accountant that can give it, unchecked.

    Raises:
        UserError: no events, mixed units, an event without meaning under `relation`, delta outside (0, 1).
        AccountingError: no accountant gives a number to trust.
    """
    check_delta(delta)
    costs = composed_costs(events, relation)
    failed: dict[str, str] = {}
    for accountant in ACCOUNTANTS:
        if not _applies(accountant, costs):
            continue
        try:
            return Bound(accountant.worst(costs, delta), accountant.name, failed)
        except AccountingError as error:
            failed[accountant.name] = str(error)
    reasons = " ".join(failed.values())
    raise AccountingError(f"No accountant gives an epsilon to trust, so nothing may be released: {reasons}")


def _applies(accountant: Accountant, costs: Sequence[Cost]) -> bool:
    return all(accountant.applies(cost) for cost in costs)


@dataclass(frozen=True)
class Account:
    """What a list of events costs.

    Args:
        epsilon: bounds at `delta`; `epsilon.upper` is the claim.
        delta: at which epsilon holds.
        relation: between neighbouring data sets.
        unit: in which they differ.
        events: what was composed.
        accountant: which one gave `epsilon`.
        mu: of the equivalent Gaussian mechanism, None where there is none.
        checks: what the other accountants gave, or why they gave nothing.
        seconds: how long each accountant took; not part of what is published.
    """

    epsilon: EpsilonBounds
    delta: float
    relation: Relation
    unit: Unit
    events: tuple[Event, ...]
    accountant: str
    mu: float | None
    checks: Mapping[str, EpsilonBounds | str]
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `privacy.json`."""
        return {
            "epsilon": self.epsilon.to_dict(),
            "delta": self.delta,
            "relation": self.relation,
            "unit": self.unit,
            "events": [event.to_dict() for event in self.events],
            "accountant": self.accountant,
            "mu": self.mu,
            "checks": {
                name: check if isinstance(check, str) else check.to_dict()
                for name, check in self.checks.items()
            },
        }


def account(events: Sequence[Event], relation: Relation, delta: float) -> Account:
    """Counts `events`, and checks the figure with every other accountant that knows their losses.

    The figure is a bound by itself, so a check that cannot be done (grid too large, delta too small for its
    arithmetic) is recorded as not available. A check that contradicts it stops the run.

    Args:
        events: everything a run did to one data set, at least one.
        relation: the data set's.
        delta: the data set's, in (0, 1).

    Raises:
        UserError: no events, mixed units, an event without meaning under `relation`, delta outside (0, 1).
        AccountingError: no number to trust, or two accountants whose bounds exclude each other.
    """
    return _account(tuple(events), relation, delta)


@functools.lru_cache(maxsize=64)
def _account(events: tuple[Event, ...], relation: Relation, delta: float) -> Account:
    check_delta(delta)
    costs = composed_costs(events, relation)
    mu = compose_mu(events, relation)
    found: dict[str, EpsilonBounds] = {}
    missing: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for accountant in ACCOUNTANTS:
        start = time.perf_counter()
        if not _applies(accountant, costs):
            missing[accountant.name] = "not applicable: it does not know all of these mechanisms."
            continue
        try:
            found[accountant.name] = accountant.worst(costs, delta)
        except AccountingError as error:
            missing[accountant.name] = f"not available: {error}"
        seconds[accountant.name] = round(time.perf_counter() - start, 4)
    if not found:
        bound(events, relation, delta)  # raises, with the reasons
    claimed = next(iter(found))
    highest = max(found, key=lambda name: found[name].lower)
    lowest = min(found, key=lambda name: found[name].upper)
    if found[lowest].upper < found[highest].lower:
        raise AccountingError(
            f"Accountants disagree: {lowest} gives epsilon in [{found[lowest].lower}, {found[lowest].upper}], "
            f"{highest} in [{found[highest].lower}, {found[highest].upper}]; neither is used."
        )
    if not math.isfinite(found[claimed].upper) and not any(map(is_unbounded, costs)):
        raise AccountingError(f"{claimed} gave {found[claimed]}, which is no epsilon to promise.")
    return Account(
        epsilon=found[claimed],
        delta=delta,
        relation=relation,
        unit=common_unit(events),
        events=events,
        accountant=claimed,
        mu=mu,
        checks={a.name: found.get(a.name) or missing[a.name] for a in ACCOUNTANTS if a.name != claimed},
        seconds=seconds,
    )
