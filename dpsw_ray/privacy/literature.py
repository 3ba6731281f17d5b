"""The literature's accounting of projections on random directions, for comparison beside the exact figure.

Rakotomamonjy and Ralaivola (2021) bound the squared length of a unit vector's projections on K uniform directions
by a w that holds with high probability, and then treat it as fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri

from dpsw_ray.privacy.events import SlicedGaussianEvent
from dpsw_ray.privacy.gaussian import check_delta, gaussian_epsilon
from dpsw_ray.privacy.relations import Relation

__all__ = ["LiteratureFigure", "bernstein_width", "clt_width", "literature_figures"]


def bernstein_width(directions: int, dim: int, delta: float) -> float:
    """W that the squared length passes with probability at most `delta`, by Bernstein's inequality."""
    log = math.log(1 / check_delta(delta))
    return directions / dim + 2 / 3 * log + 2 / dim * math.sqrt(directions * (dim - 1) / (dim + 2) * log)


def clt_width(directions: int, dim: int, delta: float) -> float:
    """The same if the squared length were normal, which its tail is not."""
    spread = math.sqrt(2 * directions * (dim - 1) / (dim + 2)) / dim
    return directions / dim - float(ndtri(check_delta(delta))) * spread


@dataclass(frozen=True)
class LiteratureFigure:
    """One figure, and what it is worth."""

    name: str
    epsilon: float
    remark: str


def literature_figures(
    event: SlicedGaussianEvent, relation: Relation, delta: float
) -> tuple[LiteratureFigure, ...]:
    """Epsilon of one release of noisy projections on iid directions as the literature has it.

    Half of delta pays for the directions, half for the noise. The classical formula for Gaussian noise,
    sqrt(2 ln(1.25 / delta)) sensitivity / noise (Dwork and Roth 2014, Theorem A.1), is proved for epsilon below 1.

    Args:
        event: with `law` iid and some noise.
        relation: `replace_one` or `zero_out`.
        delta: in (0, 1).
    """
    half = delta / 2
    change = event.radius * (2 if relation == "replace_one" else 1)
    widths = {
        "Bernstein": bernstein_width(event.directions, event.dim, half),
        "CLT": clt_width(event.directions, event.dim, half),
    }
    mus = {name: change * math.sqrt(width) / event.noise_std for name, width in widths.items()}
    return (
        LiteratureFigure(
            "Bernstein, analytic Gaussian",
            gaussian_epsilon(mus["Bernstein"], half).upper,
            "a bound, because half of delta is spent on the directions; wider than the exact figure",
        ),
        LiteratureFigure(
            "CLT, analytic Gaussian",
            gaussian_epsilon(mus["CLT"], half).upper,
            "not a guarantee: the true tail of the directions' law is heavier than a normal one",
        ),
        LiteratureFigure(
            "CLT, classical formula",
            math.sqrt(2 * math.log(1.25 / half)) * mus["CLT"],
            "not a guarantee: the normal tail, and a formula proved for epsilon below 1 only",
        ),
    )
