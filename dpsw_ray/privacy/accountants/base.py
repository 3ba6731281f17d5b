"""What accountants share: a list of events as losses under one relation, and the interface that counts them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from dpsw_ray.privacy.events import Event, common_unit, compose_costs
from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds, check_delta
from dpsw_ray.privacy.losses import Cost, Gaussian
from dpsw_ray.privacy.relations import Relation, check_relation

__all__ = ["LEAST_DELTA", "Accountant", "composed_costs", "gaussian_part", "is_unbounded"]


LEAST_DELTA = 1e-10
"""Smallest delta for accountants that compose by Fourier transform in double precision: their masses are off by some
1e-13, which at such a delta is still less than the errors they state."""


def composed_costs(events: Sequence[Event], relation: Relation) -> tuple[Cost, ...]:
    """What `events` cost together: the alternatives, one of which holds for any pair of neighbours.

    Raises:
        UserError: no events, mixed units, or an event without meaning under `relation`.
        AccountingError: too many alternatives to count.
    """
    check_relation(relation)
    common_unit(events)
    return compose_costs([event.costs(relation) for event in events])


def gaussian_part(cost: Cost) -> tuple[float, Cost]:
    """Mu of all Gaussian losses composed, sqrt(sum of mu_i^2) (Dong, Roth and Su 2022), and the other losses."""
    mus = [math.sqrt(times) * loss.mu for loss, times in cost.items() if isinstance(loss, Gaussian)]
    rest = Counter({loss: times for loss, times in cost.items() if not isinstance(loss, Gaussian)})
    return math.hypot(*mus), rest


def is_unbounded(cost: Cost) -> bool:
    """Whether something was released without noise."""
    return gaussian_part(cost)[0] == math.inf


class Accountant(ABC):
    """Composes events under one relation."""

    name: ClassVar[str]

    def epsilon(self, events: Sequence[Event], *, relation: Relation, delta: float) -> EpsilonBounds:
        """Epsilon of the composition of `events` at `delta`.

        Raises:
            UserError: no events, mixed units, an event without meaning under `relation`, delta outside (0, 1).
            AccountingError: this accountant cannot give a number to trust.
        """
        check_delta(delta)
        return self.worst(composed_costs(events, relation), delta)

    def worst(self, costs: Sequence[Cost], delta: float) -> EpsilonBounds:
        """Epsilon of the worst of several alternatives."""
        try:
            bounds = [self.cost_epsilon(cost, delta) for cost in costs]
        except (ArithmeticError, ValueError) as error:  # numbers beyond what floating point can work with
            raise AccountingError(f"{self.name} failed: {type(error).__name__}.") from error
        return EpsilonBounds(
            max(b.lower for b in bounds), max(b.estimate for b in bounds), max(b.upper for b in bounds)
        )

    @abstractmethod
    def applies(self, cost: Cost) -> bool:
        """Whether this accountant knows how to compose losses of these kinds at all."""

    @abstractmethod
    def cost_epsilon(self, cost: Cost, delta: float) -> EpsilonBounds:
        """Epsilon of one composition of losses that this accountant applies to.

        Raises:
            AccountingError: it cannot give a number to trust.
        """
