"""What a run would release, at what noise, and what it costs: from public facts alone."""

from __future__ import annotations

from typing import Any

from dpsw_ray.config import RunConfig
from dpsw_ray.data.split import DatasetInfo, dataset_folder, read_info
from dpsw_ray.errors import UserError
from dpsw_ray.privacy.accountants import account, bound
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.release.plan import ReleasePlan
from dpsw_ray.slicing.grid import SCALE, BinGrid

__all__ = ["describe_plan", "ledger_account", "make_plan", "planned"]


def ledger_account(config: RunConfig) -> str:
    """The ledger's entry that a run charges: the data set's own, or one of its research accounts."""
    if config.privacy.publishable:
        return config.data.account
    return f"{config.data.account} (research, {config.privacy.relation}, delta {config.privacy.delta:g})"


def make_plan(config: RunConfig, dim: int, classes: int, release_id: str) -> ReleasePlan:
    """The release of a run.

    Args:
        config: the run.
        dim: dimension d of the latents.
        classes: length of the public class list, 0 without labels.
        release_id: its random name.
    """
    conditional = config.release.class_conditional and classes > 0
    return ReleasePlan.make(
        release_id=release_id,
        dim=dim,
        frames=config.release.frames,
        grid=BinGrid(config.release.bins, config.release.smoothing),
        classes=classes if conditional else 1,
        class_conditional=conditional,
        relation=config.privacy.relation,
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        seed=config.seed,
        noise=config.privacy.noise,
    )


def planned(config: RunConfig) -> tuple[ReleasePlan, DatasetInfo | None]:
    """The release a run would make, and what is public about its data, if they are divided already.

    Raises:
        UserError: the latent dimension is that of a table which nothing public describes yet.
    """
    folder = dataset_folder(config.data, config.home, config.privacy.relation)
    info = read_info(folder) if (folder / "dataset.json").exists() else None
    classes = len(info.classes) if info is not None else len(config.data.classes or ())
    return make_plan(config, _dim(config, info), classes, "plan"), info


def describe_plan(config: RunConfig) -> dict[str, Any]:
    """The plan in numbers: opens the stored split's public manifest and the ledger, never a record.

    Raises:
        UserError: the latent dimension is that of a table which nothing public describes yet.
    """
    plan, info = planned(config)
    spent = account([plan.event], config.privacy.relation, config.privacy.delta)
    blocks, directions, bins = plan.cells
    known = info is not None or config.data.classes is not None
    described: dict[str, Any] = {
        "method": config.method,
        "release": {
            "directions": f"{directions} ({config.release.frames} frames of dimension {plan.directions.shape[1]})",
            "bins": bins,
            "smoothing": f"{plan.grid.smoothing:g} bin widths (sigma {plan.grid.sigma:.4g})",
            "classes": blocks
            if known
            else "not known before the data set is divided; they do not change the cost",
            "cells": blocks * directions * bins if known else f"{directions * bins} per class",
        },
        "noise": {
            "kind": plan.noise,
            "beta": plan.grid.beta,
            "standard deviation per cell, in records": plan.noise_std / SCALE,
            "standard deviation per direction and class, in records": plan.noise_std / SCALE * bins**0.5,
        },
        "privacy": spent.to_dict(),
        "private records": _count(info, config),
    }
    ledger = Ledger(config.ledger_path)
    name = ledger_account(config)
    if any(entry.name == name for entry in ledger.datasets()):
        before = ledger.total(name)
        after = bound(
            [event for entry in ledger.entries(name) for event in entry.events] + [plan.event],
            config.privacy.relation,
            config.privacy.delta,
        )
        described["ledger"] = {
            "account": name,
            "charges": before.charges,
            "epsilon so far": before.epsilon.upper,
            "epsilon with this run": after.epsilon.upper,
        }
    else:
        described["ledger"] = {"account": name, "charges": 0, "epsilon with this run": spent.epsilon.upper}
    return described


def _dim(config: RunConfig, info: DatasetInfo | None) -> int:
    if config.encoder.kind != "identity":
        return config.encoder.latent_dim
    if info is not None:
        return info.schema.size
    if config.data.columns is not None:
        return len(config.data.columns)
    raise UserError(
        "The table's columns are not known before it is divided: name them in data.columns, or run `dpsw flow` once."
    )


def _count(info: DatasetInfo | None, config: RunConfig) -> str:
    if config.privacy.relation == "add_remove":
        return "protected (relation add_remove)"
    if info is None or info.private_count is None:
        return "not known before the data set is divided"
    return f"{info.private_count:,}"
