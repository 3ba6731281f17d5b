"""From a list of events to an epsilon: a closed form, a numerical check on it, and the account of a run.

The upper bound is what gets reported: an estimate may lie below the truth.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dpsw_ray.errors import UserError
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds, check_delta, gaussian_epsilon
from dpsw_ray.privacy.relations import Relation, Unit, check_relation

__all__ = [
    "Account",
    "Accountant",
    "AccountingError",
    "EpsilonBounds",
    "GaussianAccountant",
    "PrvAccountant",
    "account",
    "common_unit",
    "compose_mu",
]

_LARGEST_GRID = 2**22  # points of a PRV grid: some hundred MiB and a second or two


def common_unit(events: Sequence[Event]) -> Unit:
    """The one unit that all events protect.

    Raises:
        UserError: no events, or events of different units, which do not compose.
    """
    units = {event.unit for event in events}
    if len(units) != 1:
        found = ", ".join(f"{event.label} ({event.unit})" for event in events) or "none"
        raise UserError(f"Privacy events compose only where all protect the same unit, found: {found}.")
    return units.pop()


def _gaussian_mus(events: Sequence[Event], relation: Relation) -> list[float]:
    check_relation(relation)
    common_unit(events)
    mus = []
    for event in events:
        mu = event.gaussian_mu(relation)
        if mu is None:
            raise AccountingError(
                f"{event.label} is no Gaussian mechanism, and no accountant here composes it."
            )
        if not mu >= 0:
            raise AccountingError(f"{event.label} has mu = {mu!r} under {relation}, which is no cost.")
        mus.append(mu)
    return mus


def compose_mu(events: Sequence[Event], relation: Relation) -> float:
    """Mu of the adaptive composition of Gaussian events: sqrt(sum of mu_i^2), infinity included.

    Raises:
        UserError: mixed units, or an event without meaning under `relation`.
        AccountingError: an event that is no Gaussian mechanism.
    """
    return math.hypot(*_gaussian_mus(events, relation))


class Accountant(ABC):
    """Composes events under one relation."""

    name: ClassVar[str]

    @abstractmethod
    def epsilon(self, events: Sequence[Event], *, relation: Relation, delta: float) -> EpsilonBounds:
        """Epsilon of the composition of `events` at `delta`.

        Raises:
            UserError: mixed units, an event without meaning under `relation`, delta outside (0, 1).
            AccountingError: this accountant cannot give a number to trust.
        """


class GaussianAccountant(Accountant):
    """Closed form for compositions of Gaussian mechanisms; see `dpsw_ray.privacy.gaussian`."""

    name = "analytic Gaussian"

    def epsilon(self, events: Sequence[Event], *, relation: Relation, delta: float) -> EpsilonBounds:
        """Epsilon by the analytic Gaussian formula, bounds included."""
        return gaussian_epsilon(compose_mu(events, relation), delta)


class PrvAccountant(Accountant):
    """Numerical composition of privacy random variables (Gopi, Lee and Wutschitz 2021)."""

    name = "PRV"

    def epsilon(self, events: Sequence[Event], *, relation: Relation, delta: float) -> EpsilonBounds:
        """Epsilon by `prv_accountant`, with errors of 0.005 epsilon in epsilon and 0.001 delta in delta."""
        check_delta(delta)
        mus = [mu for mu in _gaussian_mus(events, relation) if mu > 0]
        expected = gaussian_epsilon(math.hypot(*mus), delta).upper
        if not 0 < expected < math.inf:
            raise AccountingError(f"PRV needs a positive finite epsilon, found {expected}.")
        counts = Counter(mus)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter(
                "ignore"
            )  # an overflow shows as a non-finite result, which is refused below
            try:
                found = _prv_epsilon(counts, delta, eps_error=0.005 * expected, delta_error=1e-3 * delta)
            except AccountingError:
                raise
            except Exception as error:
                reason = str(error).rstrip(".") or type(error).__name__
                raise AccountingError(f"PRV failed: {reason}.") from error
        bounds = EpsilonBounds(max(found[0], 0.0), found[1], found[2])
        if not all(map(math.isfinite, found)) or not bounds.lower <= bounds.estimate <= bounds.upper:
            raise AccountingError(f"PRV gave {found}, which bounds nothing.")
        return bounds


def _prv_epsilon(
    counts: Mapping[float, int], delta: float, *, eps_error: float, delta_error: float
) -> tuple[float, float, float]:
    from prv_accountant import GaussianMechanism, PRVAccountant  # a second of imports, needed by few
    from prv_accountant.accountant import compute_safe_domain_size

    prvs = [GaussianMechanism(noise_multiplier=1 / mu) for mu in counts]
    repeats = list(counts.values())
    reach = compute_safe_domain_size(prvs, repeats, eps_error=eps_error, delta_error=delta_error)
    mesh = eps_error / math.sqrt(sum(repeats) / 2 * math.log(12 / delta_error))
    points = 2 * reach / mesh * len(prvs)
    if not points <= _LARGEST_GRID:
        raise AccountingError(f"PRV would need a grid of {points:.1e} points, more than {_LARGEST_GRID:.1e}.")
    accountant = PRVAccountant(
        prvs=prvs, max_self_compositions=repeats, eps_error=eps_error, delta_error=delta_error
    )
    lower, estimate, upper = accountant.compute_epsilon(delta, repeats)
    return lower, estimate, upper


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
        checks: what other accountants gave, or why they gave nothing.
    """

    epsilon: EpsilonBounds
    delta: float
    relation: Relation
    unit: Unit
    events: tuple[Event, ...]
    accountant: str
    mu: float | None
    checks: Mapping[str, EpsilonBounds | str]

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
    """Counts `events` by the closed form and checks the figure with the PRV accountant.

    The closed form is a bound by itself, so a check that cannot be done (grid too large, delta too small
    for its arithmetic) is recorded as not available. A check that contradicts it stops the run.

    Args:
        events: everything a run did to one data set, at least one.
        relation: the data set's.
        delta: the data set's, in (0, 1).

    Raises:
        UserError: no events, mixed units, an event without meaning under `relation`, delta outside (0, 1).
        AccountingError: no number to trust: the two disagree, or an event is not Gaussian.
    """
    mu = compose_mu(events, relation)
    epsilon = GaussianAccountant().epsilon(events, relation=relation, delta=delta)
    if mu < math.inf and not math.isfinite(epsilon.upper):
        raise AccountingError(f"The {GaussianAccountant.name} formula gave {epsilon} for mu = {mu}.")
    check: EpsilonBounds | str
    try:
        check = PrvAccountant().epsilon(events, relation=relation, delta=delta)
    except AccountingError as error:
        check = f"not available: {error}"
    else:
        if check.upper < epsilon.lower or epsilon.upper < check.lower:
            raise AccountingError(
                f"Accountants disagree: {GaussianAccountant.name} gives epsilon in [{epsilon.lower}, "
                f"{epsilon.upper}], {PrvAccountant.name} in [{check.lower}, {check.upper}]; neither is used."
            )
    return Account(
        epsilon=epsilon,
        delta=delta,
        relation=relation,
        unit=common_unit(events),
        events=tuple(events),
        accountant=GaussianAccountant.name,
        mu=mu,
        checks={PrvAccountant.name: check},
    )
