"""`dpsw data import | show`: the division of a data set, made before a run, and what everybody may know of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated

import typer

from dpsw_ray.base.errors import UserError
from dpsw_ray.commands.options import ConfigArgument, JsonOption, SetOption, whole
from dpsw_ray.commands.show import show
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.registry import load_config

__all__ = ["data"]

ProcessesOption = Annotated[
    int | None,
    typer.Option(
        parser=whole(1, 1024), help="processes that read at a time; default: one for each processor"
    ),
]

AgainOption = Annotated[
    bool,
    typer.Option(
        "--again",
        help="the source has been corrected: divide it anew under the same account; what was private stays private, "
        "what was charged stays charged",
    ),
]

data = typer.Typer(
    help="Divide a data set into public, private and test parts ahead of a run; show what is public of it.",
    add_completion=False,
)


@data.command(name="import")
def import_(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    processes: ProcessesOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read the records of a config's `data` section once and store their division, in bounded memory.

    A run does the same where it is not done yet, in one process. Row groups of a Parquet file, record batches of an
    Arrow file and images are read by several processes; the division does not depend on their number.
    """
    from dpsw_ray.cluster import LocalCluster
    from dpsw_ray.cluster.head_ledger import open_ledger
    from dpsw_ray.data import open_dataset
    from dpsw_ray.pipeline.division import changed_source, check_receipts, check_relation
    from dpsw_ray.pipeline.folder import at_terminal, resolve_output
    from dpsw_ray.pipeline.plan import ledger_account, pin_division, pinned_division, register_account
    from dpsw_ray.private.ingest import ingest, source_changed

    run = load_config(config, set_)
    resolve_output(run, None)  # a submitted job's own folder is no place for a home or a ledger
    with _head(run):
        ledger = open_ledger(run.ledger_path)
        check_relation(run, ledger)  # before a record is read: the division would tell a protected N
        p = run.privacy
        ledger.check(ledger_account(run), p.relation, unit=p.unit, delta=p.delta, publishable=p.publishable)
        check_receipts(run, LocalCluster(1), ledger)
        pinned = pinned_division(run, ledger)
        relation = p.relation
        # Facts about private records, for whoever owns them and sits at this terminal.
        told = at_terminal()
        stored = not again and open_dataset(run.data, run.home, relation) is not None
        info = ingest(
            run.data, run.home, relation, processes or os.cpu_count() or 1, pinned, again=again, told=told
        )
        # Once there is a division, so that no run may ask for another relation than the one that it keeps.
        register_account(run, ledger)
        pin_division(run, ledger, info)
        if told and source_changed(run.data, run.home, relation):
            typer.echo(changed_source(run.data.account), err=True)
        elif stored and not told:
            typer.echo(
                f"{run.data.account} was divided before, and the stored division is used. Whether its source has "
                "changed since is told at a terminal only: run this command there.",
                err=True,
            )
    show({"data set": run.data.account, "relation": run.privacy.relation, **info.to_dict()}, as_json)


@data.command(name="show")
def show_(
    config: ConfigArgument,
    set_: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Show what is public of a stored division: schema, classes, parts; never a private count under add_remove."""
    from dpsw_ray.cluster.head_ledger import open_ledger
    from dpsw_ray.data import open_dataset
    from dpsw_ray.pipeline.division import check_relation

    run = load_config(config, set_)
    with _head(run):
        check_relation(
            run, open_ledger(run.ledger_path)
        )  # a division made before tells what is protected now
    stored = open_dataset(run.data, run.home, run.privacy.relation)
    if stored is None:
        raise UserError(
            f"Data set {run.data.account} is not divided yet under {run.home} (privacy.relation "
            f"{run.privacy.relation}), with these data.* keys: `dpsw data import` does it, or the first run."
        )
    show({"data set": run.data.account, "relation": run.privacy.relation, **stored.info.to_dict()}, as_json)


@contextlib.contextmanager
def _head(run: RunConfig) -> Iterator[None]:
    """Connected to the cluster that a run would use, if there is one: the ledger is on its head."""
    if run.cluster.executor != "ray" or not (run.cluster.address or os.environ.get("RAY_ADDRESS")):
        yield
        return
    from dpsw_ray.cluster import connect

    stop = connect(run.cluster)[1]
    try:
        yield
    finally:
        stop()
