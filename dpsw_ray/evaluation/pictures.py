"""Pictures as PNG bytes: grids of samples, slices of a release, curves over steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

__all__ = [
    "curve_figure",
    "figure_png",
    "image_grid",
    "image_pairs",
    "losses_figure",
    "slices_figure",
]

RELEASED, PARTICLES = "#1f4e79", "#d9822b"
DPI = 100


def image_grid(
    images: NDArray[Any],
    labels: NDArray[np.integer[Any]] | None,
    classes: Sequence[str],
    per_class: int,
    value_range: tuple[float, float] = (0, 255),
) -> bytes:
    """The first `per_class` images of every class in a row of its own, its name beside it.

    Args:
        images: [n, h, w, c] with c 1 or 3.
        labels: [n] class numbers, or None (as all -1) for a plain grid of at most `per_class`^2 images.
        classes: the classes' names by number.
        per_class: images per row.
        value_range: values shown as black and white.
    """
    if labels is None or not (labels >= 0).any():
        rows = [images[i : i + per_class] for i in range(0, min(len(images), per_class**2), per_class)]
        names: Sequence[str] = [""] * len(rows)
    else:
        rows = [images[labels == number][:per_class] for number in range(len(classes))]
        names = classes
    rows = rows or [images]
    height, width = images.shape[1:3]
    zoom = max(1, -(-48 // height))
    gap = 1
    mosaic = np.ones((len(rows) * (height + gap) - gap, per_class * (width + gap) - gap, 3))
    low, high = value_range
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            mosaic[top : top + height, left : left + width] = np.clip((image - low) / (high - low), 0, 1)
    margin = 12 + 8 * max((len(name) for name in names), default=0) if any(names) else 4
    pixels_high, pixels_wide = zoom * mosaic.shape[0], zoom * mosaic.shape[1]
    total_wide, total_high = margin + pixels_wide + 4, pixels_high + 8
    figure = Figure(figsize=(total_wide / DPI, total_high / DPI), dpi=DPI)
    axes = figure.add_axes(
        (margin / total_wide, 4 / total_high, pixels_wide / total_wide, pixels_high / total_high)
    )
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.set_yticks([i * (height + gap) + height / 2 for i in range(len(rows))], names, fontsize=10)
    axes.tick_params(left=False)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    return figure_png(figure)


def image_pairs(
    above: NDArray[Any],
    below: NDArray[Any],
    names: tuple[str, str],
    value_range: tuple[float, float] = (0, 255),
) -> bytes:
    """Images [n, h, w, c] above others [n, h, w, c] that belong to them, and what the two rows are."""
    rows = np.repeat(np.arange(2, dtype=np.int32), len(above))
    return image_grid(np.concatenate([above, below]), rows, names, len(above), value_range)


def slices_figure(
    edges: NDArray[np.floating[Any]],
    released: NDArray[np.floating[Any]],
    projections: NDArray[np.floating[Any]],
    titles: Sequence[str] = (),
) -> bytes:
    """One panel per direction: the density that was released and the particles' along the same direction.

    Args:
        edges: bin edges [b + 1].
        released: released masses [k, b] of k directions, each row summing to about 1.
        projections: the particles' projections [k, n] onto the same directions.
        titles: the panels' titles [k], or none.
    """
    columns = min(4, len(released))
    rows = -(-len(released) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.3 * rows + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    widths = np.diff(edges)
    for k, axes in enumerate(panels):
        if k >= len(released):
            axes.set_visible(False)
            continue
        counts = np.histogram(projections[k], edges)[0]
        axes.stairs(
            counts / (max(len(projections[k]), 1) * widths), edges, fill=True, color=PARTICLES, alpha=0.45
        )
        axes.stairs(released[k] / widths, edges, color=RELEASED, linewidth=1.4)
        axes.set_title(titles[k] if k < len(titles) else f"direction {k}", fontsize=9)
        axes.set_yticks([])
        axes.tick_params(labelbottom=True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].stairs([], [0], color=RELEASED, label="released")
    panels[0].stairs([], [0], fill=True, color=PARTICLES, alpha=0.45, label="particles")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure_png(figure)


def curve_figure(
    steps: Sequence[float] | NDArray[Any],
    values: Sequence[float] | NDArray[Any],
    title: str,
    ylabel: str,
    log: bool = True,
) -> bytes:
    """A curve [n] over steps [n]; on a logarithmic axis where `log` is set and some value is positive."""
    figure = Figure(figsize=(6.4, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, values, color=RELEASED, linewidth=1.6, marker="o" if len(values) < 3 else None)
    if log and np.any(np.asarray(values, dtype=np.float64) > 0):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure_png(figure)


def losses_figure(history: Sequence[Mapping[str, float]]) -> bytes:
    """Training and hold-out loss of every epoch, and the epoch whose weights were kept.

    Args:
        history: `train_loss` and `holdout_loss` of at least one epoch.
    """
    epochs = np.arange(1, len(history) + 1)
    figure = Figure(figsize=(6.4, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(history) < 3 else None
    for name, label, colour in (
        ("train_loss", "training records", RELEASED),
        ("holdout_loss", "held-out records", PARTICLES),
    ):
        losses = [epoch[name] for epoch in history]
        axes.plot(epochs, losses, color=colour, linewidth=1.6, marker=marker, label=label)
    kept = int(np.nanargmin([epoch["holdout_loss"] for epoch in history])) + 1
    axes.axvline(kept, color="0.5", linewidth=1.0, linestyle=":", label="weights kept")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_title("Training of the encoder", fontsize=11)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure_png(figure)


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
