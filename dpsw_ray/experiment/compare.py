"""A comparison: a grid of trials made on a cluster, its table and page rewritten whenever one has ended."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from dpsw_ray.base.files import write_json, write_text
from dpsw_ray.base.progress import Progress
from dpsw_ray.base.rounding import format_number
from dpsw_ray.cluster import open_cluster
from dpsw_ray.experiment.execute import execute, look_up
from dpsw_ray.experiment.folder import ExperimentFolder
from dpsw_ray.experiment.grid import Grid
from dpsw_ray.experiment.measures import Measure
from dpsw_ray.experiment.page import render_comparison
from dpsw_ray.experiment.record import Recorder
from dpsw_ray.experiment.table import Table, make_table
from dpsw_ray.experiment.trial import TrialResult
from dpsw_ray.pipeline.plan import stored_protection

__all__ = ["compare"]


def compare(
    grid: Grid, measures: Mapping[str, Measure], output: Path, jobs: int, progress: Progress
) -> Table:
    """Makes the trials that `output` does not hold yet; table and page show those of this grid.

    Args:
        grid: what is compared.
        measures: the table's columns.
        output: absolute; the comparison's folder, old or new.
        jobs: trials at a time.
        progress: where to report.

    Raises:
        UserError: the folder holds something else, or the cluster or the tracking store cannot be used. A trial
            that fails is a line of the table.
    """
    with ExperimentFolder(output, "compare") as folder:
        results = look_up(grid.trials, folder)
        begun = [result for result in results.values() if result.status == "pending"]
        progress.say(
            f"{len(results)} trials: {len(results) - len(begun)} finished before, {len(begun)} to do, "
            f"{jobs} at a time; what each of them says is in {folder.path / 'logs'}"
        )
        if begun:
            progress.say(stored_protection(grid.config))
        with Recorder(grid.config.tracking, folder, grid.config.name) as recorder:
            recorder.begin(_facts(grid))
            for result in results.values():
                if result.status == "finished":
                    recorder.trial(result)
            table = _write(grid, results, measures, folder)
            if begun:
                cluster = grid.config.cluster.model_copy(update={"actors": jobs})
                seconds: list[float] = []
                with open_cluster(cluster) as workers:
                    for result in execute(begun, folder, workers):
                        results[result.trial.name] = result
                        table = _write(grid, results, measures, folder)
                        recorder.trial(result)
                        if result.status == "finished":
                            seconds.append(result.figures.values["seconds"])
                        progress.say(_line(result, table, seconds, jobs))
            recorder.counts({status: table.count(status) for status in ("finished", "failed", "pending")})
    return table


def _write(
    grid: Grid, results: Mapping[str, TrialResult], measures: Mapping[str, Measure], folder: ExperimentFolder
) -> Table:
    table = make_table(list(results.values()), measures)
    write_json(folder / "table.json", table.to_dict())
    write_text(folder / "table.csv", table.to_csv())
    write_text(folder / "table.md", table.to_markdown())
    table.to_parquet(folder / "table.parquet")
    write_text(folder / "compare.html", render_comparison(grid, table, folder))
    return table


def _facts(grid: Grid) -> dict[str, str]:
    return {
        "methods": ", ".join(grid.methods),
        "epsilons": ", ".join(f"{epsilon:g}" for epsilon in grid.epsilons),
        "seeds": ", ".join(map(str, grid.seeds)),
    }


def _line(result: TrialResult, table: Table, seconds: list[float], jobs: int) -> str:
    """What became of a trial, its figures, and when the others will have ended."""
    left = table.count("pending")
    figures = ", ".join(
        f"{name} {format_number(result.figures.values[name])}"
        for name in table.measures
        if name in result.figures.values
    )
    parts = [f"{len(table.results) - left} of {len(table.results)}  {result.trial.name}"]
    parts.append(f"FAILED: {result.error}" if result.error else figures)
    if left and seconds:  # the median: the first trial may have trained the encoder
        minutes = statistics.median(seconds) * left / jobs / 60
        parts.append(f"about {max(1, round(minutes))} min left")
    return "  ".join(parts)
