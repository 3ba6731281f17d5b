"""Pictures of a sweep as PNG bytes: scores against parameters, parallel coordinates, learning curves, top trials."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpsw_ray.base.files import read_arrays
from dpsw_ray.base.rounding import format_number
from dpsw_ray.encoders import load_encoder
from dpsw_ray.experiment.pictures import COLUMNS, DPI, strip_figure
from dpsw_ray.tune.prepare import Group
from dpsw_ray.tune.results import Result, TrialResult
from dpsw_ray.tune.space import Distribution

__all__ = ["curves_figure", "frontier_figure", "parallel_figure", "scatter_figure", "top_strip"]

_BEST, _BASE, _OTHER = "#d9822b", "#3c8d5a", "#1f4e79"
_MOST_CURVES = 60


def scatter_figure(result: Result) -> bytes:
    """One panel per key: the score of every trial that has one against the key's value; best and base run marked."""
    scored = [r for r in result.trials if r.outcome.score is not None]
    keys = result.plan.space.distributions
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, distribution in zip(panels, keys, strict=False):
        _scatter(axes, distribution, scored, result)
        axes.set_ylabel(result.plan.score.name, fontsize=8)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    return _png(figure)


def _scatter(axes: Axes, distribution: Distribution, scored: Sequence[TrialResult], result: Result) -> None:
    own = [r for r in scored if distribution.key in r.trial.point]
    ticks = {format_number(value): n for n, value in enumerate(distribution.values)}
    for r in own:
        value = r.trial.point[distribution.key]
        place = ticks[format_number(value)] if distribution.listed else float(value)
        if distribution.listed:  # a little aside, or equal values hide each other
            place += 0.25 * (((r.trial.number * 0.618) % 1) - 0.5)
        best = r is result.best
        finished = r.outcome.status == "finished"
        axes.plot(
            place, float(r.outcome.score or 0.0), "*" if best else "o", markersize=12 if best else 4,
            color=_BEST if best else _OTHER, alpha=1.0 if best else 0.7 if finished else 0.25,
        )  # fmt: skip
    if result.base is not None and result.base.outcome.score is not None:
        axes.axhline(result.base.outcome.score, color=_BASE, linewidth=1, linestyle="--")
    if distribution.listed:
        axes.set_xticks(list(ticks.values()), list(ticks), fontsize=8)
    elif distribution.kind == "loguniform":
        axes.set_xscale("log")
    axes.set_xlabel(distribution.key)
    _plain(axes)


def parallel_figure(result: Result) -> bytes:
    """Every trial a line over the keys, coloured by its score's rank; the last axis is the score."""
    scored = [r for r in result.trials if r.outcome.score is not None]
    keys = result.plan.space.distributions
    figure = Figure(figsize=(max(6.0, 1.9 * (len(keys) + 1)), 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    scores = np.array([float(r.outcome.score or 0.0) for r in scored]) * result.plan.score.sign
    ranks = np.argsort(np.argsort(scores)) / max(1, len(scores) - 1)
    low, high = scores.min(), scores.max()
    for n in np.argsort(-ranks):
        r = scored[n]
        heights = [_height(distribution, r.trial.point) for distribution in keys]
        heights.append(1 - float((scores[n] - low) / (high - low)) if high > low else 0.5)
        best = r is result.best
        axes.plot(
            range(len(heights)), heights, linewidth=2.5 if best else 0.9, alpha=1.0 if best else 0.6,
            color=_BEST if best else colormaps["viridis"](1 - float(ranks[n])), zorder=3 if best else 2,
        )  # fmt: skip
    names = [*(distribution.key.replace(".", ".\n") for distribution in keys), "score\n(better up)"]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    for n, distribution in enumerate(keys):
        for end in (0, -1):
            value = distribution.values[end]
            axes.annotate(
                format_number(value, 3),
                (n, _height(distribution, {distribution.key: value})),
                xytext=(0, 3 if end else -3), textcoords="offset points",
                ha="center", va="bottom" if end else "top", fontsize=7, color="0.3",
            )  # fmt: skip
        axes.axvline(n, color="0.8", linewidth=0.8, zorder=1)
    axes.set_yticks([])
    axes.set_ylim(-0.12, 1.12)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return _png(figure)


def _height(distribution: Distribution, point: Mapping[str, Any]) -> float:
    """Of a value on its axis, between 0 and 1; what is not in use lies below."""
    if distribution.key not in point:
        return -0.08
    value = point[distribution.key]
    if distribution.listed:
        return distribution.values.index(value) / max(1, len(distribution.values) - 1)
    low, high = (float(end) for end in distribution.values)
    if distribution.kind == "loguniform":
        return float(np.log(float(value) / low) / np.log(high / low))
    return (float(value) - low) / (high - low)


def curves_figure(result: Result) -> bytes:
    """Learning curves: the distance to the slices of the flow by step, and the score where it was looked at."""
    shown = [r for r in result.trials if r.outcome.distances or len(r.outcome.curve) > 1][:_MOST_CURVES]
    looks = any(len(r.outcome.curve) > 1 for r in shown)
    figure = Figure(figsize=(10.0 if looks else 6.0, 3.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2 if looks else 1, squeeze=False).ravel()
    for r in shown:
        best = r is result.best
        style: dict[str, Any] = {
            "color": _BEST if best else _OTHER, "alpha": 1.0 if best else 0.35,
            "linewidth": 2.0 if best else 0.8, "zorder": 3 if best else 2,
        }  # fmt: skip
        panels[0].plot(r.outcome.distances, **style)
        if looks and r.outcome.curve:
            steps, scores = zip(*r.outcome.curve, strict=True)
            panels[1].plot(steps, scores, marker=".", markersize=3, **style)
    panels[0].set_yscale("log")
    panels[0].set_ylabel("sliced W2 to the slices of the flow", fontsize=8)
    if looks:
        panels[1].set_ylabel(result.plan.score.name, fontsize=8)
    for axes in panels:
        axes.set_xlabel("flow step")
        _plain(axes)
    return _png(figure)


def top_strip(results: Sequence[TrialResult], groups: Sequence[Group], folder: Path) -> bytes | None:
    """A row of images for each trial, in the classes' order; None where records are no images.

    Args:
        results: finished trials.
        groups: of the sweep.
        folder: of the trials.
    """
    rows: dict[str, NDArray[np.float64]] = {}
    for result in results:
        encoder = load_encoder(groups[result.trial.group].encoder)
        path = folder / result.trial.name / "points.npz"
        if encoder.schema.value_range is None or not path.exists():
            continue
        stored = read_arrays(path)
        particles, labels = stored["particles"], stored["labels"]
        low, high = encoder.schema.value_range
        images = (encoder.decode(particles, labels).astype(np.float64) - low) / (high - low)
        shape = images.shape[1:] if images.ndim == 4 else (*images.shape[1:], 1)
        images = images.reshape(len(images), *shape)
        classes = int(labels.max()) + 1
        each = max(1, COLUMNS // classes)
        chosen = np.ones((COLUMNS, *shape))
        for number in range(min(classes, COLUMNS)):
            own = images[labels == number][:each]
            chosen[number * each : number * each + len(own)] = own
        rows[f"{result.trial.number}"] = chosen
    return strip_figure(rows) if rows else None


def frontier_figure(points: Sequence[Mapping[str, Any]], measures: Mapping[str, tuple[str, str]]) -> bytes:
    """Quality against epsilon: the best trial's run and the base's, a panel per measure.

    Args:
        points: for each epsilon `epsilon`, `best` and perhaps `base`, the latter two measure -> figure.
        measures: name -> title, and which way is better.
    """
    figure = Figure(figsize=(4.2 * len(measures), 3.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False).ravel()
    for axes, (name, (title, better)) in zip(panels, measures.items(), strict=True):
        for which, colour, marker in (("base", _BASE, "s"), ("best", _BEST, "o")):
            line = [(p["epsilon"], p[which][name]) for p in points if name in p.get(which, {})]
            if line:
                label = "best of the sweep" if which == "best" else "base run"
                axes.plot(*zip(*sorted(line), strict=True), marker=marker, color=colour, label=label)
        axes.set_xscale("log")
        axes.set_xticks([p["epsilon"] for p in points], [f"{p['epsilon']:g}" for p in points])
        axes.minorticks_off()
        axes.set_xlabel("epsilon")
        axes.set_title(f"{title}\n({better} is better)", fontsize=9)
        _plain(axes)
    panels[0].legend(frameon=False, fontsize=8)
    return _png(figure)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
