"""`dpsw federated`: runs over a simulated population, which protect users."""

from __future__ import annotations

from dpsw_ray.commands.options import ConfigArgument, OutputOption, QuietOption, SetOption
from dpsw_ray.commands.runs import report_result

__all__ = ["federated"]


def federated(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    output: OutputOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make a federated run: users' records in, a private release, particles, pictures, a report.

    The same command with the same config and folder goes on with a run that was interrupted: stored rounds are read
    back and cost nothing.
    """
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.federated.config import load_federated
    from dpsw_ray.federated.world import Users
    from dpsw_ray.pipeline.run import run

    progress = Progress(quiet=quiet)
    report_result(run(load_federated(config, set_), output, progress, world=Users), progress)
