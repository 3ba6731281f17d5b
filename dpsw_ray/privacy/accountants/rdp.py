"""Renyi differential privacy: a valid upper bound for every loss, seldom the tightest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.privacy.accountants.base import Accountant, composed_costs, is_unbounded
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds, check_delta
from dpsw_ray.privacy.losses import Cost
from dpsw_ray.privacy.relations import Relation

__all__ = ["ORDERS", "RdpAccountant", "cost_rdp", "rdp_budget", "rdp_curve", "rdp_delta"]

ORDERS: NDArray[np.float64] = np.unique(
    np.concatenate([1 + np.geomspace(0.012, 63, 120), np.arange(2, 65), np.geomspace(64, 65536, 41).round()])
)
_MARGIN = 1e-10  # relative: rounding in the sums over orders and events


def cost_rdp(cost: Cost, orders: NDArray[np.float64]) -> NDArray[np.float64]:
    """Renyi bound of a composition at each order: the losses' bounds add up (Mironov 2017, Proposition 1)."""
    total = np.zeros_like(orders)
    for loss, times in cost.items():
        total += times * loss.rdp(orders)
    return total * (1 + _MARGIN)


def rdp_curve(
    events: Sequence[Event], relation: Relation, orders: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Renyi bound of the composition of `events` at each order, whichever neighbours they are.

    Args:
        events: at least one.
        relation: the data set's.
        orders: array of size [n], each above 1.

    Returns:
        Array of size [n]; infinity where something was released without noise.

    Raises:
        UserError: no events, mixed units, or an event without meaning under `relation`.
    """
    orders = np.asarray(orders, np.float64)
    curves = [
        np.full_like(orders, math.inf) if is_unbounded(cost) else cost_rdp(cost, orders)
        for cost in composed_costs(events, relation)
    ]
    worst: NDArray[np.float64] = np.max(curves, axis=0)
    return worst


def rdp_budget(epsilon: float, delta: float, order: float) -> float:
    """Largest Renyi bound at `order` that converts to at most `epsilon` at `delta`.

    Source: Canonne, Kamath and Steinke (2020), Proposition 12.

    Returns:
        The bound; negative where even no loss at all would not do at this order.
    """
    check_delta(delta)
    return epsilon - math.log1p(-1 / order) + (math.log(delta) + math.log(order)) / (order - 1)


def rdp_delta(cost: Cost, epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper bound on delta at each epsilon, by the same conversion the other way round."""
    curve = cost_rdp(cost, ORDERS)
    exponent = (ORDERS - 1) * (curve - epsilons[:, None] + np.log1p(-1 / ORDERS)) - np.log(ORDERS)
    deltas: NDArray[np.float64] = np.exp(np.minimum(exponent.min(axis=1), 0.0)) * (1 + _MARGIN)
    return np.minimum(deltas, 1.0)


class RdpAccountant(Accountant):
    """Renyi bounds converted to epsilon by `dp_accounting`; gives an upper bound and no lower one."""

    name = "RDP"

    def applies(self, cost: Cost) -> bool:
        """True: every loss has Renyi bounds."""
        return True

    def cost_epsilon(self, cost: Cost, delta: float) -> EpsilonBounds:
        """Epsilon from the best of `ORDERS`; `lower` is 0."""
        from dp_accounting.rdp import compute_epsilon

        if is_unbounded(cost):
            return EpsilonBounds(math.inf, math.inf, math.inf)
        with np.errstate(all="ignore"):
            curve = cost_rdp(cost, ORDERS)
        usable = np.isfinite(curve)
        if not usable.any():
            raise AccountingError("RDP has no finite bound at any order.")
        upper = float(compute_epsilon(ORDERS[usable], curve[usable], delta)[0]) * (1 + _MARGIN)
        if not 0 <= upper < math.inf:
            raise AccountingError(f"RDP gave {upper}, which bounds nothing.")
        return EpsilonBounds(0.0, upper, upper)
