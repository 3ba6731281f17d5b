"""What the report of a table shows: its columns beside the test records', and how they hang together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.evaluation.references import CEILING, RANDOM
from dpsw_ray.evaluation.report import Metric, ReportSection
from dpsw_ray.evaluation.table_pictures import columns_figure, correlations_figure
from dpsw_ray.evaluation.tables import marginals

__all__ = ["table_sections"]

_PANELS = 16


def table_sections(
    samples: NDArray[Any], test: NDArray[Any], names: Sequence[str], metrics: Sequence[Metric]
) -> list[ReportSection]:
    """Sections on columns and correlations.

    Args:
        samples: synthetic records [n, c].
        test: test records [m, c], without missing values; nothing is shown where there are none.
        names: of the columns.
        metrics: of the run; their parts are the columns' figures.
    """
    if not len(test) or not len(samples):
        return []
    worst = np.argsort(-marginals(samples, test).wasserstein, kind="stable")[:_PANELS]
    panels = columns_figure(test[:, worst], samples[:, worst], [names[i] for i in worst])
    kept = f"the {_PANELS} that are farthest off, " if len(names) > _PANELS else ""
    found = [
        ReportSection(
            "Columns",
            f"Each column of the samples beside the test records': {kept}the farthest first. Distances are in units of "
            "the test column's standard deviation.",
            table=_rows(names, metrics),
            picture_png=panels,
        )
    ]
    if len(names) > 1:
        found.append(
            ReportSection(
                "Correlations",
                "Pearson correlations of all pairs of columns, and the samples' less the test records'.",
                picture_png=correlations_figure(test, samples, names),
            )
        )
    return found


def _rows(names: Sequence[str], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"column": name} for name in names]
    for short in ("W1", "KS"):
        for metric in metrics:
            if metric.name == f"marginal {short}, mean":
                for row in rows:
                    of = metric.parts[row["column"]]
                    row |= {short: of["this run"], f"{short}, {CEILING}": of.get(CEILING)}
                    row |= {f"{short}, {RANDOM}": of.get(RANDOM)}
    return rows if len(rows[0]) > 1 else []
