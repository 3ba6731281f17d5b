"""How close a synthetic table is to a real one: column by column, and pair by pair of columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, rankdata, wasserstein_distance

from dpsw_ray.encoders.scaling import column_statistics, standardised

__all__ = ["Marginals", "correlation_gaps", "correlations", "marginals"]


@dataclass(frozen=True)
class Marginals:
    """How far each column's distribution is from the real one.

    Attributes:
        wasserstein: array of size [c], Wasserstein-1 distances in units of the real column's standard deviation (in the
            column's own units where that is 0).
        kolmogorov: array of size [c], the largest gaps between the two distribution functions.
    """

    wasserstein: NDArray[np.float64]
    kolmogorov: NDArray[np.float64]


def marginals(synthetic: NDArray[Any], real: NDArray[Any]) -> Marginals:
    """Compares tables [n, c] and [m, c] column by column; values that are not finite are left out."""
    distances, gaps = np.full((2, real.shape[1]), np.nan)
    for i, (x, y) in enumerate(zip(synthetic.T, real.T, strict=True)):
        x, y = x[np.isfinite(x)], y[np.isfinite(y)]
        if len(x) and len(y):
            distances[i] = _wasserstein(x, y)
            gaps[i] = ks_2samp(x, y, method="asymp").statistic
    return Marginals(distances, gaps)


def correlations(records: NDArray[Any], ranks: bool = False) -> NDArray[np.float64]:
    """Correlations of the columns of a table [n, c]: array of size [c, c].

    Rows with a value that is not finite are left out. A constant column is taken to be correlated with nothing.

    Args:
        records: the table.
        ranks: Spearman's (of the ranks) in place of Pearson's.
    """
    rows = records[np.isfinite(records).all(axis=1)].astype(np.float64)
    if len(rows) < 2:
        return np.full((records.shape[1],) * 2, np.nan)
    if ranks:
        rows = rankdata(rows, axis=0)
    scaled = standardised(rows, *column_statistics(rows))  # a constant column to 0
    norms = np.linalg.norm(scaled, axis=0)
    unit = scaled / np.where(norms > 0, norms, 1.0)
    found = np.clip(unit.T @ unit, -1.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return np.asarray(found)


def correlation_gaps(synthetic: NDArray[Any], real: NDArray[Any], ranks: bool = False) -> tuple[float, float]:
    """Largest and root mean square difference of the correlations of all pairs of columns; nan for one column."""
    pairs = np.triu_indices(real.shape[1], 1)
    gaps = (correlations(synthetic, ranks) - correlations(real, ranks))[pairs]
    if not len(gaps):
        return float("nan"), float("nan")
    return float(np.abs(gaps).max()), float(np.sqrt(np.mean(gaps**2)))


def _wasserstein(x: NDArray[Any], y: NDArray[Any]) -> float:
    """In units of the deviation of y, or of the column itself where that is 0."""
    shift, scale = column_statistics(y[:, None])
    if scale[0]:
        return float(
            wasserstein_distance(*(standardised(part[:, None], shift, scale)[:, 0] for part in (x, y)))
        )
    unit = max(float(np.abs(x).max()), abs(float(y[0]))) or 1.0  # no sum overflows
    return float(wasserstein_distance(x / unit, y / unit)) * unit
