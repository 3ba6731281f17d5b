"""Privacy loss distributions (`dp_accounting`): a second implementation, with buckets rounded up and down."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from dpsw_ray.privacy.accountants.base import LEAST_DELTA, Accountant, gaussian_part, is_unbounded
from dpsw_ray.privacy.accountants.rdp import RdpAccountant
from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds
from dpsw_ray.privacy.losses import Cost, Gaussian, Loss, SampledGaussian, SlicedGaussian
from dpsw_ray.privacy.mixture import mixture

__all__ = ["PldAccountant", "pld_delta"]

_RESOLUTION = 1e-3  # of epsilon: how far rounding may move the composed loss
_LARGEST_GRID = 2**21
_ATOMS = 1024
_TRUNCATION = 1e-4  # mass cut off, as a part of delta


class PldAccountant(Accountant):
    """`dp_accounting`'s distributions; both orders of a pair of neighbours are counted and the worse one given.

    Conventions: an unsampled Gaussian enters as noise over the relation's sensitivity under
    ADD_OR_REMOVE_ONE; REPLACE_ONE would double the shift once more.
    """

    name = "PLD"

    def applies(self, cost: Cost) -> bool:
        """True for losses that have a distribution here."""
        return all(isinstance(loss, Gaussian | SampledGaussian | SlicedGaussian) for loss in cost)

    def cost_epsilon(self, cost: Cost, delta: float) -> EpsilonBounds:
        """Epsilon by rounding losses up (`upper`) and down (`lower`)."""
        if is_unbounded(cost):
            return EpsilonBounds(math.inf, math.inf, math.inf)
        if delta < LEAST_DELTA:
            raise AccountingError(f"{self.name} is too coarse for delta {delta:g}, below {LEAST_DELTA:g}.")
        try:
            upper, lower = (
                float(_composed(cost, delta, pessimistic).get_epsilon_for_delta(delta))
                for pessimistic in (True, False)
            )
        except AccountingError:
            raise
        except Exception as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise AccountingError(f"PLD failed: {reason}.") from error
        if not 0 <= lower <= upper < math.inf:
            raise AccountingError(f"PLD gave [{lower}, {upper}], which bounds nothing.")
        return EpsilonBounds(lower, (lower + upper) / 2, upper)


def pld_delta(cost: Cost, epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper bound on delta at each of the sorted `epsilons`; rounding in the transforms is added."""
    found = _composed(cost, LEAST_DELTA, True).get_delta_for_epsilon(epsilons)
    deltas: NDArray[np.float64] = np.asarray(found) + LEAST_DELTA
    return deltas


def _composed(cost: Cost, delta: float, pessimistic: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    mu, rest = gaussian_part(cost)
    losses = rest + (Cost({Gaussian(mu): 1}) if mu > 0 else Cost())
    reach = RdpAccountant().cost_epsilon(losses, _TRUNCATION * delta).upper
    expected = RdpAccountant().cost_epsilon(losses, delta).upper
    # Rounding moves each loss by one bucket at most; connecting the dots, the upper bound moves far less.
    interval = _RESOLUTION * max(expected, 1e-6) / math.sqrt(sum(losses.values()))
    if 2 * reach / interval > _LARGEST_GRID:
        raise AccountingError(
            f"PLD would need {2 * reach / interval:.1e} buckets, more than {_LARGEST_GRID:.1e}."
        )
    cut = _TRUNCATION * delta / max(len(losses), 1)
    total = None
    for loss, times in losses.items():
        one = _distribution(loss, interval, delta, pessimistic)
        many = one.self_compose(times, cut) if times > 1 else one
        total = many if total is None else total.compose(many, cut)
    return pld.identity(interval) if total is None else total


def _distribution(loss: Loss, interval: float, delta: float, pessimistic: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    if isinstance(loss, SlicedGaussian):
        return _sliced(loss, interval, delta, pessimistic)
    assert isinstance(loss, Gaussian | SampledGaussian)
    return pld.from_gaussian_mechanism(
        1 / loss.mu,
        sampling_prob=loss.sampling if isinstance(loss, SampledGaussian) else 1.0,
        pessimistic_estimate=pessimistic,
        value_discretization_interval=interval,
        log_mass_truncation_bound=math.log(_TRUNCATION * delta) - math.log(1000),
        use_connect_dots=pessimistic,
    )


def _sliced(loss: SlicedGaussian, interval: float, delta: float, pessimistic: bool) -> Any:
    """The law of the loss from that of mu^2: rounded up with the law above, down with the law below."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    law = mixture(0.0, {loss: 1}, _TRUNCATION * delta, _ATOMS)
    mu_squared = law.mu_squared if pessimistic else np.maximum(law.mu_squared - law.spread, 0.0)
    reach = float(mu_squared[-1]) / 2 + 10 * math.sqrt(float(mu_squared[-1]))
    first = math.floor(-10 * math.sqrt(float(mu_squared[-1])) / interval)
    count = math.ceil(reach / interval) - first
    if count > _LARGEST_GRID:
        raise AccountingError(f"PLD would need {count:.1e} buckets, more than {_LARGEST_GRID:.1e}.")
    edges = (first + np.arange(count + 1)) * interval
    cdf = np.zeros(count + 1)
    for mu, weight in zip(np.sqrt(mu_squared), law.weights, strict=True):
        cdf += weight * (ndtr(edges / mu - mu / 2) if mu > 0 else edges >= 0)
    masses = np.diff(cdf)
    above = max(1.0 - float(cdf[-1]), 0.0) + law.slack
    shift = 1 if pessimistic else 0
    buckets = {first + i + shift: float(mass) for i, mass in enumerate(masses) if mass > 0}
    return pld.PrivacyLossDistribution.create_from_rounded_probability(
        buckets, above if pessimistic else 0.0, interval, pessimistic_estimate=pessimistic
    )
