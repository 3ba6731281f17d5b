"""The page of a comparison: a single HTML file that needs nothing else."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from dpsw_ray.base.rounding import format_number
from dpsw_ray.evaluation.report import REFERENCES
from dpsw_ray.experiment.folder import ExperimentFolder
from dpsw_ray.experiment.grid import Grid
from dpsw_ray.experiment.pictures import curves_figure, sample_images, strip_figure
from dpsw_ray.experiment.table import Table

__all__ = ["render_comparison", "render_page"]


@dataclass(frozen=True)
class _Promise:
    """A line of the table of promises: what a cell's trials really cost."""

    point: Sequence[str]
    epsilon: str
    delta: str
    relation: str
    unit: str
    accountant: str
    events: str


def render_comparison(grid: Grid, table: Table, folder: ExperimentFolder) -> str:
    """Returns the page: inline style, embedded pictures, no script, no address it would load from."""
    return render_page(
        "dpsw_ray.experiment",
        "compare.html.j2",
        grid=grid,
        table=table,
        rows=table.rows(),
        curves=curves_figure(table, "epsilon", "method") if table.count("finished") else None,
        strips=_strips(table, folder),
        promises=_promises(table),
        private=[measure.title for measure in table.measures.values() if measure.private],
        references={
            name: text
            for name, text in REFERENCES.items()
            if any(name in baselines for baselines in table.baselines.values())
        },
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def render_page(package: str, template: str, **values: Any) -> str:
    """Renders a page's template in the style of all experiments' pages, which it takes as `style`.

    Args:
        package: that the template is a file of.
        template: its name.
        values: what it uses.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": format_number,
        "data_uri": lambda png: "data:image/png;base64," + base64.b64encode(png).decode(),
    }
    text = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = resources.files("dpsw_ray.experiment").joinpath("page.css").read_text(encoding="utf-8")
    return environment.from_string(text).render(style=Markup(style), **values)


def _strips(table: Table, folder: ExperimentFolder) -> Mapping[str, bytes]:
    """By epsilon: a row of samples of every method, from its first seed that has finished."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for result in table.results:
        if result.status != "finished":
            continue
        epsilon, method = format_number(result.trial.point["epsilon"]), str(result.trial.point["method"])
        if method not in found.setdefault(epsilon, {}):
            images = sample_images(folder.trial(result.trial.name))
            if images is not None:
                found[epsilon][method] = images
    return {epsilon: strip_figure(rows) for epsilon, rows in found.items() if rows}


def _promises(table: Table) -> list[_Promise]:
    return [
        _Promise(
            [format_number(level) for level in cell.point.values()],
            format_number(cell.privacy.epsilon, 5, ROUND_CEILING),
            format_number(cell.privacy.delta),
            cell.privacy.relation,
            cell.privacy.unit,
            cell.privacy.accountant,
            ", ".join(dict.fromkeys(cell.privacy.events)),
        )
        for cell in table.cells
        if cell.privacy is not None
    ]
