"""The particles' path, as a report shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.encoders import Encoder
from dpsw_ray.evaluation.pictures import film_strip, moving_grid
from dpsw_ray.evaluation.report import ReportSection
from dpsw_ray.evaluation.table_pictures import paths_figure
from dpsw_ray.evaluation.tables import marginals
from dpsw_ray.flow.film import Choice, Film, evenly, first_of_each
from dpsw_ray.methods.method import Learnt

__all__ = ["TITLE", "film_exhibit", "followed"]

TITLE = "The path of the particles"

_CLASSES = 12  # rows of a film
_FOLLOWED = 120  # images of a film's frame
_ACROSS = 24  # images in a row of its strip
_FOLLOWED_ROWS = 2_000  # a film's particles where they are rows of a table
_PATHS = 2  # columns of a table whose paths are shown


def followed(encoder: Encoder) -> Choice:
    """Whose path a run keeps: some particles of every class, or of a table's evenly from all."""
    if encoder.schema.kind == "table":
        return evenly(_FOLLOWED_ROWS)
    return first_of_each(_CLASSES, _FOLLOWED)


def film_exhibit(learnt: Learnt) -> ReportSection | None:
    """The particles' path: images as a strip and moving, for a table two of its columns; None where none was kept."""
    film = learnt.points.film
    if film is None:
        return None
    steps = film.steps.tolist()
    labels = np.tile(learnt.points.labels[film.rows], len(steps))
    decoded = learnt.encoder.decode(film.frames.reshape(-1, film.frames.shape[2]), labels)
    frames = learnt.columns.restore(decoded).reshape(*film.frames.shape[:2], *learnt.encoder.schema.shape)
    if learnt.encoder.schema.value_range is None:
        return _paths(learnt, steps, frames)
    grid, names = _by_class(learnt, film, frames)
    value_range = learnt.encoder.schema.value_range
    shown = grid[:, :, : max(1, _ACROSS // len(steps))]
    moving = moving_grid(grid, steps, value_range)
    return ReportSection(
        TITLE,
        "Where the same few particles are after so many steps of the flow, decoded: the first of every class, none was "
        "picked by hand. They start from noise, follow what was released, and never see a record.",
        picture_png=film_strip(shown, steps, names, value_range),
        more_png=() if moving is None else (moving,),
    )


def _by_class(learnt: Learnt, film: Film, frames: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    """Frames as grids [f, rows, k, h, w, c], a row for each class that has particles, and the rows' names."""
    names, labels = list(learnt.release.manifest["class_names"]), learnt.points.labels[film.rows]
    found = np.unique(labels)
    if len(found) == 1 and not names:
        rows = max(1, int(np.sqrt(len(labels))))
        return frames[:, : rows * (len(labels) // rows)].reshape(len(frames), rows, -1, *frames.shape[2:]), [
            ""
        ] * rows
    each = int(np.bincount(labels)[found].max())
    white = learnt.encoder.schema.value_range
    assert white is not None
    grid = np.full((len(frames), len(found), each, *frames.shape[2:]), white[1], frames.dtype)
    for row, label in enumerate(found):
        own = frames[:, labels == label]
        grid[:, row, : own.shape[1]] = own
    return grid, [names[label] if names else "" for label in found]


def _paths(learnt: Learnt, steps: list[int], frames: NDArray[Any]) -> ReportSection:
    """The columns of a table that move farthest."""
    names, real = learnt.encoder.schema.columns, learnt.test
    travelled = marginals(frames[0], frames[-1]).wasserstein
    chosen = np.sort(np.argsort(-np.nan_to_num(travelled), kind="stable")[:_PATHS])
    beside = "; the line is the test records'" if len(real) else ""
    return ReportSection(
        TITLE,
        f"Two columns after so many steps of the flow{beside}: those that change most from the start to the end.",
        picture_png=paths_figure(
            steps,
            list(frames[..., chosen]),
            real[:, chosen] if len(real) else None,
            [names[i] for i in chosen],
        ),
    )
