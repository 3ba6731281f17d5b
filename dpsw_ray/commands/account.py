"""`dpsw account`: what a run or a list of events costs, by each accountant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpsw_ray.commands.options import ConfigArgument, JsonOption, SetOption, place, reals
from dpsw_ray.commands.show import show

__all__ = ["account"]


def account(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    epsilon: Annotated[
        str, typer.Option(metavar="E,E,…", help="also: the noise that each of these epsilons takes")
    ] = "",
    delta: Annotated[str, typer.Option(metavar="D,D,…", help="also: epsilon at each of these deltas")] = "",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", parser=place, help="also: draw epsilon against delta"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run costs, or a YAML list of privacy events, by each accountant; opens no private file."""
    from dpsw_ray.base.files import write_bytes
    from dpsw_ray.pipeline.accounting import (
        describe_account,
        load_request,
        privacy_figure,
        sweep_delta,
        sweep_epsilon,
    )
    from dpsw_ray.pipeline.destination import out_file

    request = load_request(config, set_)
    epsilons = reals("--epsilon", epsilon) if epsilon else []
    deltas = reals("--delta", delta) if delta else []
    if plot is not None:
        plot = out_file("--plot", plot, (".png",))
    described = describe_account(request)
    if epsilons:
        described["noise by epsilon"] = sweep_epsilon(request, epsilons)
    if deltas:
        described["epsilon by delta"] = sweep_delta(request, deltas)
    if plot is not None:
        write_bytes(plot, privacy_figure(request))
        described["plot"] = str(plot)
    show(described, as_json)
