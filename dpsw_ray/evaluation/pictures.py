"""Pictures as PNG bytes: grids of samples, particles on their way, slices of a release, curves over steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

__all__ = [
    "SliceMasses",
    "curve_figure",
    "figure_png",
    "film_strip",
    "image_grid",
    "image_pairs",
    "losses_figure",
    "moving_grid",
    "slices_figure",
]

RELEASED, PARTICLES = "#1f4e79", "#d9822b"
DPI = 100
_WIDEST = 700  # pixels of an animation


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


def film_strip(
    frames: NDArray[Any],
    steps: Sequence[int],
    names: Sequence[str],
    value_range: tuple[float, float] = (0, 255),
) -> bytes:
    """Images on their way: a row for each name, the same few images side by side for every step.

    Args:
        frames: array of size [f, r, k, h, w, c], c 1 or 3; of r rows with k images.
        steps: the frames' steps [f].
        names: the rows' names [r], perhaps empty ones.
        value_range: values shown as black and white.
    """
    count, rows, each, height, width, _ = frames.shape
    gap, between = 1, max(2, width // 4)
    wide = each * (width + gap) - gap
    mosaic = np.ones((rows * (height + gap) - gap, count * (wide + between) - between, 3))
    low, high = value_range
    for i, j, k in np.ndindex(count, rows, each):
        top, left = j * (height + gap), i * (wide + between) + k * (width + gap)
        mosaic[top : top + height, left : left + width] = np.clip(
            (frames[i, j, k] - low) / (high - low), 0, 1
        )
    zoom = max(1.0, 900 / mosaic.shape[1])
    margin = 12 + 8 * max(len(name) for name in names) if any(names) else 4
    high_px, wide_px = zoom * mosaic.shape[0], zoom * mosaic.shape[1]
    total_wide, total_high = margin + wide_px + 4, high_px + 28
    figure = Figure(figsize=(total_wide / DPI, total_high / DPI), dpi=DPI)
    axes = figure.add_axes((margin / total_wide, 4 / total_high, wide_px / total_wide, high_px / total_high))
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.xaxis.tick_top()
    axes.set_xticks(
        [i * (wide + between) + wide / 2 for i in range(count)],
        [f"step {step}" if i == 0 else str(step) for i, step in enumerate(steps)],
    )
    axes.set_yticks([j * (height + gap) + height / 2 for j in range(rows)], names, fontsize=10)
    axes.tick_params(left=False, top=False)
    axes.spines[:].set_visible(False)
    return figure_png(figure)


def moving_grid(
    frames: NDArray[Any],
    steps: Sequence[int],
    value_range: tuple[float, float] = (0, 255),
    most: int = 1_000_000,
) -> bytes | None:
    """An animated PNG: a grid of images at each step, the step's number above; None where it would be too large.

    Args:
        frames: array of size [f, r, k, h, w, c], c 1 or 3.
        steps: the frames' steps [f].
        value_range: values shown as black and white.
        most: bytes.
    """
    from PIL import Image, ImageDraw

    low, high = value_range
    grey = np.clip((frames - low) / (high - low), 0, 1) * 255
    count, rows, each, height, width, depth = frames.shape
    tiles = np.full((count, rows, each, height + 1, width + 1, depth), 255, np.uint8)
    tiles[..., :height, :width, :] = np.rint(grey)
    grids = tiles.swapaxes(2, 3).reshape(count, rows * (height + 1), each * (width + 1), depth)
    for zoom in (6, 5, 4, 3, 2, 1):
        if zoom > 1 and zoom * grids.shape[2] > _WIDEST:
            continue
        pages = []
        for grid, step in zip(grids, steps, strict=True):
            image = Image.fromarray(grid[..., 0] if depth == 1 else grid)
            image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
            page = Image.new(image.mode, (image.width, image.height + 16), 255 if depth == 1 else (255,) * 3)
            page.paste(image, (0, 16))
            ImageDraw.Draw(page).text((2, 2), f"step {step}", fill=0 if depth == 1 else (0, 0, 0))
            pages.append(page)
        buffer = io.BytesIO()
        duration = [700] * (count - 1) + [2_500]
        pages[0].save(buffer, "PNG", save_all=True, append_images=pages[1:], duration=duration, loop=0)
        if len(buffer.getvalue()) <= most:
            return buffer.getvalue()
    return None


@dataclass(frozen=True)
class SliceMasses:
    """Masses in the bins of k directions, arrays of size [k, b].

    Attributes:
        noisy: as they were released; some may be negative.
        denoised: what is made of them.
        start: the particles' before the first step, or None.
        end: the particles' after the last one.
    """

    noisy: NDArray[np.float64]
    denoised: NDArray[np.float64]
    start: NDArray[np.float64] | None
    end: NDArray[np.float64]


def slices_figure(
    edges: NDArray[np.floating[Any]], masses: SliceMasses, private: NDArray[np.float64] | None = None
) -> bytes:
    """For each direction its density, and below it the distribution function.

    Args:
        edges: bin edges [b + 1].
        masses: of k directions.
        private: RESEARCH: the private records' masses [k, b].
    """
    noisy, start = masses.noisy, masses.start
    count, widths = len(noisy), np.diff(edges)
    figure = Figure(figsize=(max(3.4 * count, 4.5), 5.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, count, squeeze=False, sharex=True)
    for k in range(count):
        above, below = panels[:, k]
        above.stairs(noisy[k] / widths, edges, fill=True, color="0.82", label="released, noisy")
        lines = [
            ("released, noise taken away", masses.denoised[k], RELEASED, "-"),
            ("particles at the end", masses.end[k], PARTICLES, "-"),
        ]
        if start is not None:
            lines.insert(1, ("particles at the start", start[k], PARTICLES, ":"))
        if private is not None:
            lines.append(("private records (research)", private[k], "black", "--"))
        for label, mass, colour, style in lines:
            above.stairs(
                mass / widths,
                edges,
                baseline=None,
                color=colour,
                linestyle=style,
                linewidth=1.5,
                label=label,
            )
            below.plot(edges, np.append(0.0, np.cumsum(mass)), color=colour, linestyle=style, linewidth=1.5)
        below.plot(edges, np.append(0.0, np.cumsum(noisy[k])), color="0.7", linewidth=1.0, zorder=0)
        above.axhline(0.0, color="0.4", linewidth=0.6)
        above.set_title(f"direction {k}", fontsize=10)
        above.set_yticks([])
        below.set_yticks([0, 0.5, 1] if k == 0 else [])
        below.set_ylim(-0.15, 1.15)
        for axes in (above, below):
            axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0, 0].set_ylabel("density")
    panels[1, 0].set_ylabel("distribution function")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=9,
    )
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
