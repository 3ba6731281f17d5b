"""`dpsw compare`: methods side by side over epsilons and seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpsw_ray.base.errors import UserError
from dpsw_ray.commands.options import (
    ConfigArgument,
    JsonOption,
    QuietOption,
    SetOption,
    place,
    reals,
    whole,
)
from dpsw_ray.config.fields import MOST_SEED

__all__ = ["compare"]


def compare(
    config: ConfigArgument,
    methods: Annotated[str, typer.Option(help="comma-separated, such as dpswflow-h")],
    epsilon: Annotated[str, typer.Option(help="comma-separated, such as 0.2,1,5,inf; inf is without noise")],
    output: Annotated[
        Path,
        typer.Option(metavar="FOLDER", parser=place, help="the comparison's folder, new or to go on with"),
    ],
    seeds: Annotated[
        int,
        typer.Option(
            parser=whole(1, MOST_SEED), help="trials of each pair; they count up from the config's seed"
        ),
    ] = 3,
    metrics: Annotated[
        str,
        typer.Option(
            help="comma-separated: sliced_w2, sliced_w2_test, fid, kid, precision, recall, density, coverage, "
            "inception, intended, logreg, mlp, cnn, boosted, pseudo_logreg (classes by the public classifier), w1, ks, "
            "pearson, spearman (tables), membership, seconds"
        ),
    ] = "sliced_w2,fid,logreg,pseudo_logreg",
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    own: Annotated[
        list[str],
        typer.Option("--for", metavar="METHOD:KEY=VALUE", help="override a key for one method alone"),
    ] = [],  # noqa: B006
    jobs: Annotated[
        int | None,
        typer.Option(parser=whole(1, 10_000), help="trials at a time; default cluster.actors, 1 without Ray"),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare methods: a run for every method, epsilon and seed, on the same data, split and encoder.

    The same command goes on with a comparison that was interrupted; a larger grid in the same folder adds what is
    missing. The runs are research: they charge research accounts of the ledger and must not be published.
    Exit code 1 where a trial failed.
    """
    from dpsw_ray.base.files import to_json
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.experiment.compare import compare as make
    from dpsw_ray.experiment.grid import make_grid, parse_methods, parse_own
    from dpsw_ray.experiment.measures import MODELS, choose_measures
    from dpsw_ray.pipeline.folder import resolve_output

    measures = choose_measures(metrics)
    trained = [name for name in measures if name in MODELS]
    if trained and not any(override.strip().startswith("evaluation.models") for override in set_):
        set_ = [*set_, f"evaluation.models=[{', '.join(trained)}]"]
    epsilons = reals("--epsilon", epsilon, infinite=True)
    grid = make_grid(config, set_, parse_methods(methods), epsilons, seeds, parse_own(own))
    if grid.config.cluster.executor == "local" and jobs not in (None, 1):
        raise UserError(
            f"--jobs {jobs} needs cluster.executor ray, found local, which does one trial at a time."
        )
    if jobs is None:
        jobs = 1 if grid.config.cluster.executor == "local" else grid.config.cluster.actors
    folder = resolve_output(grid.config, output)
    progress = Progress(quiet=quiet or as_json)
    table = make(grid, measures, folder, min(jobs, len(grid.trials)), progress)
    if as_json:
        print(to_json(table.to_dict()))
    progress.say(f"\n{table.to_markdown()}\nPage: {folder / 'compare.html'}")
    if table.count("failed"):
        sys.exit(1)
