"""Numerical composition of privacy random variables (Gopi, Lee and Wutschitz 2021)."""

from __future__ import annotations

import math

from dpsw_ray.privacy.accountants.base import LEAST_DELTA, Accountant, gaussian_part
from dpsw_ray.privacy.accountants.rdp import RdpAccountant
from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds
from dpsw_ray.privacy.losses import Cost, Gaussian, SampledGaussian, SlicedGaussian

__all__ = ["PrvAccountant"]


class PrvAccountant(Accountant):
    """`prv_accountant`, with errors of at most 0.003 epsilon in epsilon and 0.001 delta in delta.

    A sampled mechanism loses differently when a record is added than when it is removed; both orders are
    composed and the worse one counts.
    """

    name = "PRV"

    def applies(self, cost: Cost) -> bool:
        """True for losses that have a random variable here."""
        return all(isinstance(loss, Gaussian | SampledGaussian | SlicedGaussian) for loss in cost)

    def cost_epsilon(self, cost: Cost, delta: float) -> EpsilonBounds:
        """Epsilon of the composition, by fast Fourier transform."""
        if delta < LEAST_DELTA:
            raise AccountingError(f"{self.name} is too coarse for delta {delta:g}, below {LEAST_DELTA:g}.")
        mu, rest = gaussian_part(cost)
        if rest:
            # Composing the Gaussian losses first is exact and saves grids. A purely Gaussian list stays as it is:
            # here it is a check on the closed form.
            cost = rest + (Cost({Gaussian(mu): 1}) if mu > 0 else Cost())
        cost = Cost({loss: times for loss, times in cost.items() if loss != Gaussian(0.0)})
        expected = RdpAccountant().cost_epsilon(cost, delta).upper
        if not 0 < expected < math.inf:
            raise AccountingError(f"PRV needs a positive finite epsilon, found {expected}.")
        # Every worker imports this module, and none composes: the library is loaded by who does.
        from dpsw_ray.privacy.accountants.prv_composition import composed_bounds

        sampled = any(isinstance(loss, SampledGaussian) for loss in cost)
        orders = (False, True) if sampled else (False,)
        bounds = [composed_bounds(cost, delta, expected, added) for added in orders]
        return EpsilonBounds(
            max(b.lower for b in bounds), max(b.estimate for b in bounds), max(b.upper for b in bounds)
        )
