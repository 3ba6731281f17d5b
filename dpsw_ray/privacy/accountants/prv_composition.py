"""Privacy random variables of the losses here, and their composition on grids by `prv_accountant`."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prv_accountant import GaussianMechanism
from prv_accountant.accountant import compute_safe_domain_size
from prv_accountant.composers import Heterogeneous
from prv_accountant.discretisers import CellCentred
from prv_accountant.domain import Domain
from prv_accountant.privacy_random_variables import PrivacyRandomVariable, PrivacyRandomVariableTruncated
from scipy.special import ndtr

from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds
from dpsw_ray.privacy.losses import Cost, Gaussian, Loss, SampledGaussian, SlicedGaussian
from dpsw_ray.privacy.mixture import GaussianMixture, mixture

__all__ = ["composed_bounds"]

_LARGEST_GRID = 2**22  # points of all grids: some hundred MiB and a few seconds
_EPSILON_ERROR = 3e-3  # as a part of epsilon
_DELTA_ERROR = 1e-3  # as a part of delta
_ATOMS = 512  # of the law of the directions
_BLOCK = 1024  # points worked out at a time, to stay in the processor's cache


def composed_bounds(cost: Cost, delta: float, expected: float, added: bool) -> EpsilonBounds:
    """Epsilon of a composition at `delta`, by fast Fourier transform.

    Args:
        cost: the losses, none of them nothing.
        delta: the probability beside epsilon.
        expected: about how large epsilon is, which the grid's errors are a part of.
        added: whether the record is in the second data set in place of the first.

    Raises:
        AccountingError: the grid would be too large, or the library fails.
    """

    def composed(below: bool) -> EpsilonBounds:
        variables = [_variable(loss, delta, added=added, below=below) for loss in cost]
        return _compose(variables, list(cost.values()), delta, expected)

    above = composed(False)
    if not any(isinstance(loss, SlicedGaussian) for loss in cost):
        return above
    return EpsilonBounds(composed(True).lower, above.estimate, above.upper)


def _compose(
    variables: list[PrivacyRandomVariable], repeats: list[int], delta: float, expected: float
) -> EpsilonBounds:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # an overflow shows as a non-finite result, which is refused below
        try:
            found = _prv_epsilon(variables, repeats, delta, _EPSILON_ERROR * expected, _DELTA_ERROR * delta)
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
    variables: list[PrivacyRandomVariable],
    repeats: list[int],
    delta: float,
    eps_error: float,
    delta_error: float,
) -> tuple[float, float, float]:
    reach = compute_safe_domain_size(variables, repeats, eps_error=eps_error, delta_error=delta_error)
    mesh = eps_error / math.sqrt(sum(repeats) / 2 * math.log(12 / delta_error))
    points = 2 * reach / mesh * len(variables)
    if not points <= _LARGEST_GRID:
        raise AccountingError(f"PRV would need a grid of {points:.1e} points, more than {_LARGEST_GRID:.1e}.")
    domain = Domain.create_aligned(-reach, reach, mesh)
    laws = [
        CellCentred().discretise(_Truncated(variable, domain.t_min(), domain.t_max()), domain)
        for variable in variables
    ]
    total = Heterogeneous(laws).compute_composition(repeats)
    lower, estimate, upper = total.compute_epsilon(delta, delta_error, eps_error)
    return lower, estimate, upper


def _variable(loss: Loss, delta: float, *, added: bool, below: bool) -> PrivacyRandomVariable:
    if isinstance(loss, Gaussian):
        return _Gaussian(loss.mu)
    if isinstance(loss, SampledGaussian):
        return _Sampled(loss, added=added)
    assert isinstance(loss, SlicedGaussian)
    return _sliced(loss, delta, below)


@functools.lru_cache(maxsize=4)
def _sliced(loss: SlicedGaussian, delta: float, below: bool) -> _Sliced:
    return _Sliced(loss, mixture(0.0, {loss: 1}, _DELTA_ERROR / 10 * delta, _ATOMS), below=below)


class _Truncated(PrivacyRandomVariableTruncated):  # type: ignore[misc]
    """Takes the mean, which a grid is shifted to, from the variable.

    The library integrates it between fixed points and may miss where a law begins: 0.0018 for q = 0.1 and mu = 2.5,
    which hundreds of compositions make 0.4 of epsilon. What is cut off does not matter: its chance is part of delta's
    error.
    """

    def mean(self) -> float:
        return float(self.prv.mean())


class _Gaussian(GaussianMechanism):  # type: ignore[misc]
    """The library's, with its mean."""

    def __init__(self, mu: float) -> None:
        super().__init__(noise_multiplier=1 / mu)
        self.mu = mu

    def mean(self) -> float:
        return self.mu**2 / 2


class _Sampled(PrivacyRandomVariable):  # type: ignore[misc]
    """Loss of P = (1 - q) N(0, 1) + q N(mu, 1) against Q = N(0, 1), or of Q against P where the record is added.

    The library has the first of the two, in long doubles, whose transforms take several times as long.
    """

    def __init__(self, loss: SampledGaussian, *, added: bool) -> None:
        self.loss = loss
        self.added = added

    def cdf(self, t: Any) -> Any:
        return self._tails(np.asarray(t, np.float64))[0]

    def probability(self, a: Any, b: Any) -> Any:
        """From the tail that is the smaller one: differences of numbers near 1 would lose it."""
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        (below_a, above_a), (below_b, above_b) = self._tails(a), self._tails(b)
        return np.where(a > 0, above_a - above_b, below_b - below_a)

    def mean(self) -> float:
        """By the trapezoidal rule over x, as in `losses.SampledGaussian`."""
        q, mu = self.loss.sampling, self.loss.mu
        step = min(0.05, 0.4 / mu)
        x = np.arange(-12.0, mu + 12, step)
        loss = np.logaddexp(math.log1p(-q), math.log(q) + mu * x - mu**2 / 2)
        null, alternative = np.exp(-(x**2) / 2), np.exp(-((x - mu) ** 2) / 2)
        mean = -loss @ null if self.added else loss @ ((1 - q) * null + q * alternative)
        return float(mean) * step / math.sqrt(2 * math.pi)

    def rdp(self, alpha: float) -> float:
        return float(self.loss.rdp(np.array([alpha]))[0])  # holds in both orders

    def _tails(self, t: NDArray[np.float64]) -> tuple[Any, Any]:
        """Chances of a loss at most `t`, and above it.

        The loss of P against Q at x is L(x) = ln(1 - q + q exp(mu x - mu^2 / 2)), increasing in x and above ln(1 - q).
        """
        q, mu = self.loss.sampling, self.loss.mu
        level = -t if self.added else t
        reached = level > math.log1p(-q)
        level = np.where(reached, level, 0.0)
        # ln(e^t - 1 + q), without overflow
        excess = np.where(level > 1, level + np.log1p(-(1 - q) * np.exp(-np.abs(level))), 0.0)
        excess = np.where(level > 1, excess, np.log(np.expm1(np.minimum(level, 1.0)) + q))
        x = np.where(reached, (excess - math.log(q)) / mu + mu / 2, -np.inf)
        if self.added:  # of Q against P: -L under Q
            return ndtr(-x), ndtr(x)
        return (1 - q) * ndtr(x) + q * ndtr(x - mu), (1 - q) * ndtr(-x) + q * ndtr(mu - x)


class _Sliced(PrivacyRandomVariable):  # type: ignore[misc]
    """Loss on public random directions: Gaussian losses mixed over a law of mu^2, above the true one or below."""

    def __init__(self, loss: SlicedGaussian, law: GaussianMixture, *, below: bool) -> None:
        self.loss = loss
        mu_squared = np.maximum(law.mu_squared - law.spread, 0.0) if below else law.mu_squared
        kept = law.weights > law.slack / len(law.weights)  # what is dropped is no more than the slack again
        mu_squared, weights = mu_squared[kept], law.weights[kept] / law.weights[kept].sum()
        self.mus, self.weights = np.sqrt(mu_squared[mu_squared > 0]), weights[mu_squared > 0]
        self.nothing = float(weights[mu_squared == 0].sum())
        self.slack = 0.0 if below else 2 * law.slack
        self.cells: tuple[tuple[float, float, int], Any] | None = None

    def mean(self) -> float:
        return float(self.mus**2 @ self.weights) / 2

    def cdf(self, t: Any) -> Any:
        points = np.asarray(t, np.float64)
        flat = points.reshape(-1, 1)
        total = np.concatenate(
            [
                ndtr(part / self.mus - self.mus / 2) @ self.weights
                for part in np.split(flat, range(_BLOCK, len(flat), _BLOCK))
            ]
        )
        return total.reshape(points.shape) + self.nothing * (points >= 0)

    def probability(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> Any:
        """Of cells side by side: each edge is worked out once, and the same cells are asked for again."""
        cells = (float(a[0]), float(b[-1]), len(a))
        if self.cells is None or self.cells[0] != cells:
            self.cells = cells, np.diff(self.cdf(np.append(a, b[-1])))
        return self.cells[1]

    def rdp(self, alpha: float) -> float:
        return float(self.loss.rdp(np.array([alpha]))[0])

    @property
    def pm_inf(self) -> float:
        return self.slack
