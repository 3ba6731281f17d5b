"""How a run's records are divided, made once and pinned, and what is checked before one of them is read."""

from __future__ import annotations

import sys

import numpy as np

from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import Cluster
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset, open_dataset
from dpsw_ray.data.division import check_bounds
from dpsw_ray.data.split import check_count_secret
from dpsw_ray.pipeline.folder import at_terminal
from dpsw_ray.pipeline.plan import ledger_account, pin_division, pinned_division, protection
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.ingest import ingest, source_changed
from dpsw_ray.private.receipts import stored_receipts

__all__ = ["changed_source", "check_receipts", "check_relation", "divided_data"]


def check_relation(config: RunConfig, ledger: Ledger) -> None:
    """Refuses what would tell a protected number of records: before one is read, as dividing the data set tells it.

    Raises:
        UserError: the data set is registered under `add_remove` and the run is not, or the run is, and a division made
            under another relation has told the number already.
    """
    own = next((entry for entry in ledger.datasets() if entry.name == config.data.account), None)
    if own is not None and own.relation == "add_remove":  # a research account hides N no less
        ledger.check(own.name, config.privacy.relation)
    if config.privacy.relation == "add_remove" and config.privacy.publishable:
        check_count_secret(config.data, config.home)


def divided_data(config: RunConfig, cluster: Cluster, progress: Progress, ledger: Ledger) -> Dataset:
    """The stored division of the run's data set, made now where it is not there yet, and pinned in the ledger.

    Says which records are protected and which are not.

    Args:
        config: the run.
        cluster: on whose private side the source is read.
        progress: where to report.
        ledger: that is going to be charged.

    Raises:
        UserError: the source is missing, damaged, or does not fit the config, or another division is pinned.
    """
    data = open_dataset(config.data, config.home, config.privacy.relation)
    if data is None:
        progress.say(f"Dividing {config.data.account} into public, private and test parts (once)")
        pinned = pinned_division(config, ledger)
        cluster.run(ingest, config.data, config.home, config.privacy.relation, 1, pinned)
        data = open_dataset(config.data, config.home, config.privacy.relation)
        assert data is not None
    elif at_terminal() and cluster.run(
        source_changed, config.data, config.home, config.privacy.relation
    ):  # a fact about private records
        print(changed_source(config.data.account), file=sys.stderr)
    for part in (data.public, data.test):  # damaged ones are refused before anything is written
        part()
    if data.info.schema.kind == "table":
        check_bounds(config.data, data.info.schema.columns, data.info.public_count > 0)
    pin_division(config, ledger, data.info)
    progress.say(protection(config, data.info))
    _say_public_classes(config, data, progress)
    return data


def _say_public_classes(config: RunConfig, data: Dataset, progress: Progress) -> None:
    """Holds a given class list against the labels of public records, which cost nothing."""
    if not config.data.classes or not data.info.public_count:
        return
    labels = data.public().labels
    share, found = float((labels >= 0).mean()), set(np.unique(labels).tolist())
    lacking = [name for code, name in enumerate(data.info.classes) if code not in found]
    if share < 0.5:
        progress.say(
            f"WARNING: {share:.0%} of the public records have a label of data.classes, the others none"
        )
    if lacking:
        progress.say(
            f"WARNING: no public record has a label of data.classes called {', '.join(lacking[:20])}"
        )


def changed_source(account: str) -> str:
    """What is said where a stored division is used although its source holds something else by now."""
    return (
        f"The source of {account} has changed since it was divided: the stored division is used "
        "(`dpsw data import --again` divides corrected data anew)"
    )


def check_receipts(config: RunConfig, cluster: Cluster, ledger: Ledger) -> None:
    """Refuses a ledger that lacks a charge to the run's account, before records are divided and anything is computed.

    Such a ledger may have forgotten a relation under which nobody is to learn how many records there are.

    Raises:
        UserError: the private side has a receipt of such a charge.
    """
    folder = config.home / "datasets" / config.data.account / ".receipts"
    ledger.check_receipts(cluster.run(stored_receipts, folder, ledger_account(config)))
