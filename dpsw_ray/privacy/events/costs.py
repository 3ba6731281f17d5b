"""The elementary costs that events share."""

from __future__ import annotations

import math
from collections import Counter

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.losses import Cost, Gaussian, Loss, SampledGaussian, ZeroConcentrated
from dpsw_ray.privacy.relations import Relation, check_relation

__all__ = ["discrete_cost", "gaussian_cost", "one_loss", "sampled_cost"]


def one_loss(loss: Loss, times: int = 1) -> tuple[Cost, ...]:
    """The cost that is one loss, some times over."""
    return (Counter({loss: times}),)


def gaussian_cost(sensitivity: float, noise_std: float) -> tuple[Cost, ...]:
    """Of a Gaussian mechanism; infinite without noise."""
    if sensitivity == 0:
        return one_loss(Gaussian(0.0))
    return one_loss(Gaussian(sensitivity / noise_std if noise_std > 0 else math.inf))


def discrete_cost(sensitivity_sq: int, noise_std: float) -> tuple[Cost, ...]:
    """Of discrete Gaussian noise on integers: rho-zCDP with rho = `sensitivity_sq` / (2 `noise_std`^2)."""
    if sensitivity_sq == 0 or noise_std == 0:
        return gaussian_cost(math.sqrt(sensitivity_sq), noise_std)
    return one_loss(ZeroConcentrated(sensitivity_sq / (2 * noise_std**2) * (1 + 2.0**-50)))


def sampled_cost(
    sampling: float, sensitivity: float, noise_std: float, steps: int, relation: Relation, label: str
) -> tuple[Cost, ...]:
    """Of sums over Poisson samples; refused for a replaced record."""
    if check_relation(relation) == "replace_one":
        raise UserError(
            f"{label}: amplification by sampling is proved for one record more or less, not for a replaced one; it "
            "composes under zero_out and add_remove only."
        )
    if noise_std == 0 or sampling == 1:
        (cost,) = gaussian_cost(sensitivity, noise_std)
        return (Counter(dict.fromkeys(cost, steps)),)
    return one_loss(SampledGaussian(sensitivity / noise_std, sampling), steps)
