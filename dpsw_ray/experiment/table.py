"""The table of an experiment: every trial, and mean and confidence interval over seeds at every point."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t

from dpsw_ray.base.files import atomic_path
from dpsw_ray.base.rounding import format_number
from dpsw_ray.experiment.measures import Measure
from dpsw_ray.experiment.trial import Factor, Privacy, TrialResult

__all__ = ["CONFIDENCE", "Cell", "Spread", "Table", "make_table"]

CONFIDENCE = 0.95
"""That the interval which is given for a mean over seeds holds the mean over all seeds."""


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: over the finished trials.
        std: with n - 1; None for one trial.
        n: how many trials gave the figure.
    """

    mean: float
    std: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the 95 % confidence interval of the mean over seeds (Student's t, n - 1 degrees of freedom); or None.

        Seeds are taken to be independent and their figures to be about normal.
        """
        if self.std is None:
            return None
        return float(t.ppf(0.5 + CONFIDENCE / 2, self.n - 1)) * self.std / math.sqrt(self.n)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the interval's ends among them; None for one trial."""
        half = self.half
        ends = None if half is None else [self.mean - half, self.mean + half]
        return {"mean": self.mean, "std": self.std, "n": self.n, "ci": ends}

    def __str__(self) -> str:
        spread = f" ± {format_number(self.half, 2)}" if self.half is not None else ""
        return f"{format_number(self.mean)}{spread}"


@dataclass(frozen=True)
class Cell:
    """All trials at one point.

    Attributes:
        point: factor -> level.
        counts: trials by status.
        figures: measure -> spread; what no trial measured is missing.
        privacy: of the trial with the largest epsilon, None before the first has finished.
    """

    point: Mapping[str, Factor]
    counts: Mapping[str, int]
    figures: Mapping[str, Spread]
    privacy: Privacy | None

    @property
    def seeds(self) -> str:
        """Finished trials of all, and what became of the others."""
        total, done = sum(self.counts.values()), self.counts.get("finished", 0)
        others = ", ".join(
            f"{self.counts[status]} {status}" for status in ("failed", "pending") if self.counts.get(status)
        )
        return str(done) if done == total else f"{done} of {total} ({others})"


@dataclass(frozen=True)
class Table:
    """Trials and cells, in the order of the trials.

    Attributes:
        measures: the columns, by short name.
        results: every trial's.
        cells: every point's.
        baselines: measure -> what the trials were measured against -> mean figure.
    """

    measures: Mapping[str, Measure]
    results: Sequence[TrialResult]
    cells: Sequence[Cell]
    baselines: Mapping[str, Mapping[str, float]]

    def count(self, status: str) -> int:
        """Trials with this status."""
        return sum(result.status == status for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "measures": {name: asdict(measure) for name, measure in self.measures.items()},
            "spread": self.spread,
            "finished": self.count("finished"),
            "failed": self.count("failed"),
            "pending": self.count("pending"),
            "cells": [
                {
                    **cell.point,
                    "trials": dict(cell.counts),
                    "figures": {name: spread.to_dict() for name, spread in cell.figures.items()},
                    "privacy": asdict(cell.privacy) if cell.privacy else None,
                }
                for cell in self.cells
            ],
            "baselines": self.baselines,
            "trials": [
                {
                    "name": result.trial.name,
                    **result.trial.point,
                    "seed": result.trial.seed,
                    "status": result.status,
                    "error": result.error,
                    "figures": {name: result.figures.values.get(name) for name in self.measures},
                    "privacy": asdict(result.privacy) if result.privacy else None,
                }
                for result in self.results
            ],
        }

    def to_csv(self) -> str:
        """One line per trial; what is not known stays empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        factors = list(self.results[0].trial.point)
        promised = ("epsilon_upper", "delta", "relation", "accountant")
        writer.writerow([*factors, "seed", "status", *self.measures, *promised, "error"])
        for result in self.results:
            p = result.privacy
            writer.writerow(
                [
                    *result.trial.point.values(),
                    result.trial.seed,
                    result.status,
                    *(result.figures.values.get(name, "") for name in self.measures),
                    *((p.epsilon, p.delta, p.relation, p.accountant) if p else ("",) * len(promised)),
                    result.error,
                ]
            )
        return text.getvalue()

    def to_markdown(self) -> str:
        """One line per cell: mean over seeds and its confidence interval, and what that is."""
        lines = ["| " + " | ".join(row) + " |" for row in self.rows()]
        rule = "|" + "|".join([" --- "] * len(self.heads)) + "|"
        failures = [f"* {result.trial.name}: {result.error}" for result in self.results if result.error]
        below = ["", self.spread, *(["", "Failed:", "", *failures] if failures else [])]
        return "\n".join([lines[0], rule, *lines[1:], *below]) + "\n"

    def to_parquet(self, path: Path) -> None:
        """Writes a row for every cell and measure: the cell's levels, `measure`, and what `Spread.to_dict` says.

        Baselines are rows without levels, with what they are under `baseline`.
        """
        rows: list[dict[str, Any]] = []
        for cell in self.cells:
            for name, spread in cell.figures.items():
                low, high = spread.to_dict()["ci"] or (None, None)
                figures = {
                    "mean": spread.mean,
                    "std": spread.std,
                    "n": spread.n,
                    "ci_low": low,
                    "ci_high": high,
                }
                rows.append({**cell.point, "measure": name, "baseline": None, **figures})
        for name, baselines in self.baselines.items():
            rows += [
                {"measure": name, "baseline": which, "mean": value} for which, value in baselines.items()
            ]
        schema = [
            *(
                (name, pa.string() if isinstance(level, str) else pa.float64())
                for name, level in self.cells[0].point.items()
            ),
            ("measure", pa.string()),
            ("baseline", pa.string()),
            ("n", pa.int64()),
            *((name, pa.float64()) for name in ("mean", "std", "ci_low", "ci_high")),
        ]
        with atomic_path(path) as aside:
            pq.write_table(pa.Table.from_pylist(rows, pa.schema(schema)), aside)

    @property
    def spread(self) -> str:
        """What stands behind a mean, in a sentence."""
        most = max((spread.n for cell in self.cells for spread in cell.figures.values()), default=0)
        if most < 2:
            return "One seed each: no confidence interval can be given."
        return (
            f"± is half the {100 * CONFIDENCE:g} % confidence interval of the mean over seeds (Student's t): what "
            "fresh particles, directions and noise change. All seeds share the division of the data, the encoder and "
            "the judges, whose choice the interval does not cover; a mean of a single seed has none."
        )

    @property
    def heads(self) -> list[str]:
        """Of the columns for people."""
        return [*self.cells[0].point, "epsilon at most", "delta", *self.measures, "seeds"]

    def rows(self) -> list[list[str]]:
        """The cells for people, heads first: upper bounds are never rounded down, what is missing is a dash."""
        return [self.heads, *(self._row(cell) for cell in self.cells)]

    def _row(self, cell: Cell) -> list[str]:
        p = cell.privacy
        return [
            *(format_number(level) for level in cell.point.values()),
            format_number(p.epsilon, 4, ROUND_CEILING) if p else "–",
            format_number(p.delta) if p else "–",
            *(str(cell.figures[name]) if name in cell.figures else "–" for name in self.measures),
            cell.seeds,
        ]


def make_table(results: Sequence[TrialResult], measures: Mapping[str, Measure]) -> Table:
    """Tabulates results (at least one)."""
    groups: dict[tuple[Factor, ...], list[TrialResult]] = {}
    for result in results:
        groups.setdefault(tuple(result.trial.point.values()), []).append(result)
    return Table(
        measures,
        results,
        [_cell(group, measures) for group in groups.values()],
        {name: _baselines(name, results) for name in measures},
    )


def _cell(group: Sequence[TrialResult], measures: Mapping[str, Measure]) -> Cell:
    statuses = [result.status for result in group]
    promises = [result.privacy for result in group if result.privacy is not None]
    figures = {}
    for name in measures:
        values = [result.figures.values[name] for result in group if name in result.figures.values]
        if values:
            std = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
            figures[name] = Spread(statistics.fmean(values), std, len(values))
    return Cell(
        group[0].trial.point,
        {status: statuses.count(status) for status in dict.fromkeys(statuses)},
        figures,
        max(promises, key=lambda promise: promise.epsilon, default=None),
    )


def _baselines(measure: str, results: Sequence[TrialResult]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.figures.baselines.get(measure, {}).items():
            found.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}
