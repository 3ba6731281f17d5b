"""Pictures of an experiment as PNG bytes: figures against epsilon, and samples of many runs below each other."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpsw_ray.base.files import read_manifest
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.evaluation.pictures import image_grid
from dpsw_ray.experiment.table import Table

__all__ = ["curves_figure", "sample_images", "strip_figure"]

DPI = 130
COLUMNS = 20
_COLOURS = ("#1f4e79", "#d9822b", "#3c8d5a", "#a03b6f", "#6a5acd", "#7a6a4f")
_MARKERS = "osD^vP"
_BASELINES = (("#2e7d32", "--"), ("#888888", ":"), ("#444444", "-."))
_SIDES = ((0.01, "left"), (0.99, "right"), (0.5, "center"))
_LOOK_AT = 2_048
"""Samples are shuffled: the first ones do."""


def curves_figure(table: Table, factor: str, by: str) -> bytes:
    """One panel per measure: its mean over the levels of one factor, a line for each level of another.

    Bars are the 95 % confidence intervals of the means over seeds; dashed lines are baselines; an infinite level stands
    apart at the right.

    Args:
        table: of the experiment.
        factor: positive numbers, along a logarithmic axis.
        by: the lines.
    """
    columns = min(3, len(table.measures))
    rows = -(-len(table.measures) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    levels = sorted({float(cell.point[factor]) for cell in table.cells})
    places = _places(levels)
    lines = list(dict.fromkeys(str(cell.point[by]) for cell in table.cells))
    for axes, (name, measure) in zip(panels, table.measures.items(), strict=False):
        for number, line in enumerate(lines):
            cells = [cell for cell in table.cells if str(cell.point[by]) == line and name in cell.figures]
            _line(
                axes,
                [(places[float(cell.point[factor])], cell.figures[name]) for cell in cells],
                line,
                number,
            )
        for number, (baseline, value) in enumerate(table.baselines.get(name, {}).items()):
            colour, style = _BASELINES[number % len(_BASELINES)]
            axes.axhline(value, color=colour, linestyle=style, linewidth=1)
            place, side = _SIDES[
                number % len(_SIDES)
            ]  # beside each other: ceiling and real records may be alike
            axes.annotate(
                baseline, (place, value), xycoords=("axes fraction", "data"), ha=side, va="bottom", fontsize=7,
                color=colour, xytext=(0, 1), textcoords="offset points",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(list(places.values()), ["∞" if math.isinf(x) else f"{x:g}" for x in places])
        axes.minorticks_off()
        axes.set_xlabel(factor)
        axes.set_title(f"{measure.title}\n({measure.better} is better)", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(table.measures) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _places(levels: Sequence[float]) -> dict[float, float]:
    finite = [level for level in levels if math.isfinite(level)]
    beyond = 3 * finite[-1] if finite else 1.0
    return {level: level if math.isfinite(level) else beyond for level in levels}


def _line(axes: Axes, points: Sequence[tuple[float, Any]], label: str, number: int) -> None:
    points = sorted(points, key=lambda point: point[0])
    axes.errorbar(
        [place for place, _ in points],
        [spread.mean for _, spread in points],
        yerr=[spread.half or 0.0 for _, spread in points],
        color=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)], markersize=4,
        linewidth=1.5, capsize=3, label=label,
    )  # fmt: skip


@functools.lru_cache(maxsize=4_096)
def sample_images(folder: Path) -> NDArray[np.float64] | None:
    """The first samples of a run, in the classes' order, or None where they are no images.

    Args:
        folder: of a finished run, whose files do not change any more.

    Returns:
        Array of size [20, h, w, c], from 0 (black) to 1; a sample that a class lacks is white.
    """
    schema = RecordSchema.from_dict(read_manifest(folder / "encoder" / "encoder.json")["schema"])
    batch = next(pq.ParquetFile(folder / "samples.parquet").iter_batches(_LOOK_AT))
    if schema.value_range is None:
        return None
    low, high = schema.value_range
    images = (batch.column("pixels").flatten().to_numpy().reshape(-1, *schema.shape) - low) / (high - low)
    chosen = np.ones((COLUMNS, *schema.shape))
    named = [name for name in batch.schema.names if name != "pixels"]
    if not named:
        chosen[: len(images)] = images[:COLUMNS]
        return chosen
    labels = np.asarray(batch.column(named[0]).to_pylist(), dtype=object)
    classes = batch.column(named[0]).dictionary.to_pylist()
    each = max(1, COLUMNS // len(classes))
    for number, name in enumerate(classes[:COLUMNS]):
        own = images[labels == name][:each]
        chosen[number * each : number * each + len(own)] = own
    return chosen


def strip_figure(rows: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Rows of images, as `sample_images` gives them, below each other, each with its name."""
    images = np.concatenate(list(rows.values()))
    numbers = np.repeat(np.arange(len(rows)), COLUMNS)
    return image_grid(images, numbers, list(rows), COLUMNS, (0, 1))
