"""Privacy curves: epsilon against delta, and the trade-off between the two errors of any attack."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from dpsw_ray.privacy.accountants.account import compose_mu
from dpsw_ray.privacy.accountants.analytic import GaussianAccountant, conditional, skellam_losses
from dpsw_ray.privacy.accountants.base import composed_costs, gaussian_part, is_unbounded
from dpsw_ray.privacy.accountants.pld import PldAccountant, pld_delta
from dpsw_ray.privacy.accountants.rdp import rdp_delta
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.gaussian import AccountingError
from dpsw_ray.privacy.losses import Cost
from dpsw_ray.privacy.near_gaussian import near_gaussian_delta
from dpsw_ray.privacy.relations import Relation

__all__ = ["delta_curve", "trade_off"]

_TAIL = 1e-12
_EPSILONS = np.concatenate([[0.0], np.geomspace(1e-3, 500, 600)])


def delta_curve(
    events: Sequence[Event], relation: Relation, epsilons: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Upper bound on delta at each epsilon.

    Args:
        events: at least one.
        relation: the data set's.
        epsilons: array of size [n], not negative, in ascending order.

    Returns:
        Array of size [n], between 0 and 1.

    Raises:
        UserError: no events, mixed units, or an event without meaning under `relation`.
    """
    epsilons = np.asarray(epsilons, np.float64)
    curves = [_cost_delta(cost, epsilons) for cost in composed_costs(events, relation)]
    worst: NDArray[np.float64] = np.clip(np.max(curves, axis=0), 0.0, 1.0)
    return worst


def trade_off(
    events: Sequence[Event], relation: Relation, false_positive: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Promised smallest false-negative rate of any attack, at each false-positive rate.

    For Gaussian mechanisms Phi(Phi^-1(1 - a) - mu) exactly (Dong, Roth and Su 2022, equation 6); otherwise the
    upper envelope of the two lines that each (epsilon, delta) draws (Proposition 6 there), a valid lower bound.

    Args:
        events: at least one.
        relation: the data set's.
        false_positive: array of size [n], in [0, 1].

    Returns:
        Array of size [n].

    Raises:
        UserError: no events, mixed units, or an event without meaning under `relation`.
    """
    rates = np.asarray(false_positive, np.float64)
    mu = compose_mu(events, relation)
    if mu is not None:
        promised: NDArray[np.float64] = ndtr(-ndtri(rates) - mu)
        return promised
    deltas = delta_curve(events, relation, _EPSILONS)
    steep = 1 - deltas[:, None] - np.exp(_EPSILONS)[:, None] * rates
    flat = np.exp(-_EPSILONS)[:, None] * (1 - deltas[:, None] - rates)
    envelope: NDArray[np.float64] = np.maximum(np.maximum(steep, flat).max(axis=0), 0.0)
    return envelope


def _cost_delta(cost: Cost, epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    if is_unbounded(cost):
        return np.ones_like(epsilons)
    known, noises = GaussianAccountant().applies(cost), skellam_losses(cost)
    if known and not noises:
        law = conditional(cost, _TAIL)
        return np.array([law.delta_upper(float(epsilon)) for epsilon in epsilons])
    deltas = rdp_delta(cost, epsilons)
    if known:
        return np.minimum(deltas, near_gaussian_delta(gaussian_part(cost)[0] ** 2, noises, epsilons))
    if PldAccountant().applies(cost):
        with contextlib.suppress(AccountingError):  # Renyi's bound is valid as well, if wider
            deltas = np.minimum(deltas, pld_delta(cost, epsilons))
    return deltas
