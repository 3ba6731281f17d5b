"""Pictures of tables as PNG bytes: columns, correlations, columns on their way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpsw_ray.encoders.scaling import column_statistics, standardised
from dpsw_ray.evaluation.pictures import DPI, PARTICLES, RELEASED, figure_png
from dpsw_ray.evaluation.tables import correlations

__all__ = ["columns_figure", "correlations_figure", "paths_figure"]

_BINS = 40
_EXTREME, _COARSE = 1e-100, 2.0**-40  # deviations that axes have no ticks for
_TICKS = 30  # columns whose names still fit along an axis


def columns_figure(real: NDArray[Any], synthetic: NDArray[Any], names: Sequence[str]) -> bytes:
    """One panel per column: real records [m, c] filled, synthetic ones [n, c] as a line."""
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(max(2.6 * across, 4.5), 2.0 * down + 0.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, x, y, name in zip(panels, real.T, synthetic.T, names, strict=False):
        (x, y), title = _drawable([x, y], name)
        edges = _edges(x, y)
        axes.stairs(_density(x, edges), edges, fill=True, color=RELEASED, alpha=0.35, label="test records")
        axes.stairs(_density(y, edges), edges, color=PARTICLES, linewidth=1.5, label="samples")
        _plain(axes, title)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure_png(figure)


def correlations_figure(real: NDArray[Any], synthetic: NDArray[Any], names: Sequence[str]) -> bytes:
    """Pearson correlations of the columns of real records [m, c], of synthetic ones [n, c], and what lies between."""
    of_real, of_synthetic = correlations(real), correlations(synthetic)
    figure = Figure(figsize=(11.0, 4.0 if len(names) <= _TICKS else 3.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ("test records", "samples", "difference")
    for axes, matrix, title in zip(
        panels, (of_real, of_synthetic, of_synthetic - of_real), titles, strict=True
    ):
        shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        if len(names) <= _TICKS:
            small = 8 if len(names) <= 12 else 5
            axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=small)
            axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=small)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        if axes is not panels[0]:
            axes.set_yticks([])
    figure.colorbar(shown, ax=panels, shrink=0.8)
    return figure_png(figure)


def paths_figure(
    steps: Sequence[int], frames: Sequence[NDArray[Any]], real: NDArray[Any] | None, names: Sequence[str]
) -> bytes:
    """One panel per column: its density after each of some steps, below each other from the start to the end.

    Args:
        steps: how many steps were taken, [f].
        frames: records after them, [f] arrays of size [n, c].
        real: records to compare with, array of size [m, c], or None.
        names: of the columns, [c].
    """
    figure = Figure(figsize=(4.6 * len(names), 0.55 * len(steps) + 1.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    shades = colormaps["viridis"](np.linspace(0.85, 0.1, len(steps)))
    for number, (axes, name) in enumerate(zip(panels, names, strict=True)):
        columns = [frame[:, number] for frame in frames]
        goals = [real[:, number]] if real is not None else []
        drawn, title = _drawable([*columns, *goals], name)
        edges = _edges(*drawn)
        densities = [_density(values, edges) for values in drawn]
        goal = densities.pop() if goals else None
        tallest = np.quantile([density.max() for density in densities], 0.75) or 1.0
        for level, density in enumerate(densities):
            base = float(len(steps) - 1 - level)
            height = np.minimum(density / tallest, 1.4) * 0.9
            axes.stairs(base + height, edges, baseline=base, fill=True, color=shades[level], alpha=0.75)
            if goal is not None:
                axes.stairs(
                    base + np.minimum(goal / tallest, 1.4) * 0.9, edges, baseline=None, color="0.25", lw=0.8
                )
        axes.set_yticks(range(len(steps)), [f"step {step}" for step in reversed(steps)], fontsize=8)
        axes.set_ylim(-0.05, len(steps) + 0.35)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(title, fontsize=10)
    return figure_png(figure)


def _drawable(columns: Sequence[NDArray[Any]], name: str) -> tuple[list[NDArray[Any]], str]:
    """Columns that axes can show, and a title: in units of their deviation where float64 ends, or is too coarse."""
    values = np.concatenate([column[np.isfinite(column)] for column in columns])
    if not len(values):
        return list(columns), _short(name)
    (shift,), (scale,) = column_statistics(values[:, None])
    size = float(np.abs(values).max())
    if not scale or (size < 1 / _EXTREME and scale > max(size * _COARSE, _EXTREME)):
        return list(columns), _short(name)
    scaled = [standardised(column[:, None], np.array([shift]), np.array([scale]))[:, 0] for column in columns]
    return scaled, f"{_short(name)} (standardised)"


def _density(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of all values, those beyond the edges included: nothing is left to divide by where all lie there."""
    shares = np.histogram(values, edges)[0] / max(len(values), 1)
    return np.asarray(shares / np.diff(edges))


def _edges(*columns: NDArray[Any]) -> NDArray[np.float64]:
    """Bins over all but the outermost values; around whole numbers where there are few of them."""
    values = np.concatenate([column[np.isfinite(column)] for column in columns])
    if not len(values):
        return np.linspace(-1.0, 1.0, _BINS + 1)
    low, high = np.quantile(values, [0.001, 0.999])
    if high == low:
        return np.linspace(low - 0.5, high + 0.5, _BINS + 1)
    if high - low < _BINS and np.array_equal(columns[-1], np.rint(columns[-1])):
        return np.arange(np.floor(low) - 0.5, np.ceil(high) + 1.0)
    return np.linspace(low, high, _BINS + 1)


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
