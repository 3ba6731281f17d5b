"""The population's data set: public and test part as in any run, and private records that users hold."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_manifest
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import Cluster
from dpsw_ray.data import Dataset
from dpsw_ray.data.split import read_info
from dpsw_ray.federated.config import FederatedConfig
from dpsw_ray.federated.population.generated import write_generated
from dpsw_ray.federated.population.ingest import ingest_users, natural_folder
from dpsw_ray.pipeline.division import divided_data
from dpsw_ray.pipeline.folder import at_terminal
from dpsw_ray.pipeline.plan import pin_division, pinned_division, protection
from dpsw_ray.privacy.ledger import Ledger

__all__ = ["population_data"]


def population_data(
    config: FederatedConfig, cluster: Cluster, progress: Progress, ledger: Ledger
) -> tuple[Dataset, int]:
    """The stored data set and the number of users, made now where it is not there yet, and pinned in the ledger.

    Under every relation the number of private *records* is protected: a user may have any number of them.

    Raises:
        UserError: the source is missing, damaged, or does not fit the config, or another division is pinned.
    """
    if config.data.source == "generated":
        return _generated(config), config.population.users
    if config.population.partition == "natural":
        folder = natural_folder(config)
        if not (folder / "dataset.json").exists():
            progress.say(
                f"Dividing the users of {config.data.account} into public, private and test users (once)"
            )
            with _locked(folder.with_name("account")):  # the lock of all divisions of these records
                if not (folder / "dataset.json").exists():
                    # That records are another data set's is for whoever owns both to read, and for no log of a job.
                    pinned = pinned_division(config, ledger)
                    cluster.run(ingest_users, config, folder, pinned, at_terminal())
        users = read_manifest(folder / "dataset.json")["users"]
        data = Dataset(read_info(folder))
        pin_division(config, ledger, data.info)
        progress.say(protection(config, data.info))
        return data, int(users)
    hidden = config.privacy.model_copy(update={"relation": "add_remove"})
    data = divided_data(config.model_copy(update={"privacy": hidden}), cluster, progress, ledger)
    return data, config.population.users


def _generated(config: FederatedConfig) -> Dataset:
    p = config.population
    if p.partition not in ("iid", "dirichlet"):
        raise UserError(
            f"population.partition must be iid or dirichlet for data.source generated, found {p.partition}."
        )
    law = f"{p.partition}-{p.alpha:g}-{p.classes}-{p.records}-{p.users}-{p.seed}-{config.encoder.latent_dim}"
    folder = config.home / "datasets" / "generated" / law
    if not (folder / "dataset.json").exists():
        with _locked(folder):
            if not (folder / "dataset.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                write_generated(folder, p, config.encoder.latent_dim)
    return Dataset(read_info(folder))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder that is made once, whoever else wants to make it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(
        folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
