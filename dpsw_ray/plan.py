"""What a run would release, at what noise, and what it costs: from public facts alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpsw_ray.config import RunConfig
from dpsw_ray.data.division import check_pinned
from dpsw_ray.data.split import DatasetInfo, dataset_folder, read_info
from dpsw_ray.errors import UserError
from dpsw_ray.privacy.accountants import account, bound
from dpsw_ray.privacy.events import DpPcaEvent, Event
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.release.moments import LONGEST, STEPS, MomentsPlan, moments_event
from dpsw_ray.release.plan import HistogramPlan, ReleasePlan, SampledHistogramPlan
from dpsw_ray.release.planner import ASSUMED_RECORDS, Choice, choose, encoder_share
from dpsw_ray.release.rows import RowPlan
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.slicing.grid import SCALE, BinGrid

if TYPE_CHECKING:  # torch takes seconds, and `dpsw plan` needs none
    from dpsw_ray.encoders.base import Encoder

__all__ = [
    "charged_events",
    "describe_plan",
    "encoder_events",
    "ledger_account",
    "make_moments_plan",
    "make_plan",
    "pin_division",
    "pinned_division",
    "planned",
    "register_account",
    "run_events",
]


def ledger_account(config: RunConfig) -> str:
    """The ledger's entry that a run charges: the data set's own, or one of its research accounts."""
    if config.privacy.publishable:
        return config.account
    return f"{config.account} (research, {config.privacy.relation}, delta {config.privacy.delta:g})"


def register_account(config: RunConfig, ledger: Ledger) -> str:
    """Registers the account that a run charges; returns its name.

    Raises:
        UserError: it is registered with other promises.
    """
    p, name = config.privacy, ledger_account(config)
    ledger.register(name, p.relation, p.unit, p.delta, publishable=p.publishable)
    return name


def pinned_division(config: RunConfig, ledger: Ledger) -> Mapping[str, Any] | None:
    """The only division of its records that a run may have; None where it may have any."""
    return ledger.division(config.data.account) if config.privacy.publishable else None


def pin_division(config: RunConfig, ledger: Ledger, info: DatasetInfo) -> None:
    """Pins how the run's records are divided, before anything is computed from one of the parts.

    Raises:
        UserError: another division of them is pinned.
    """
    if config.privacy.publishable and info.division:
        account = config.data.account
        check_pinned(account, ledger.divide(account, info.division), info.division)


def encoder_events(config: RunConfig) -> tuple[Event, ...]:
    """What the run's encoder costs: nothing, unless it is computed from private records."""
    if config.encoder.kind != "dp_pca":
        return ()
    p = config.privacy
    return (moments_event(p.relation, p.epsilon, p.delta, _share(config)),)


def _share(config: RunConfig) -> float:
    """The moments' part of the squared mu: the config's, or the planner's where the config says `auto`."""
    if config.encoder.share != "auto":
        return config.encoder.share
    p, records = config.privacy, config.release.expected_records or ASSUMED_RECORDS
    return encoder_share(p.relation, p.epsilon, p.delta, records)


def run_events(config: RunConfig, plan: ReleasePlan) -> list[Event]:
    """Everything a run charges, in the order of the charges: the encoder's moments, and the release."""
    return [*encoder_events(config), plan.event]


def charged_events(encoder: Encoder, ledger: Ledger | None) -> tuple[Event, ...]:
    """What an encoder that was computed from a release did cost: as it was charged, whatever would be planned now.

    Raises:
        UserError: the ledger does not know it.
    """
    if not encoder.source:
        return ()
    entry = None if ledger is None else ledger.find_charge(encoder.source["release_id"])
    if entry is None:
        raise UserError("The release that the encoder was computed from is not charged in the run's ledger.")
    return entry.events


def make_moments_plan(config: RunConfig, dim: int, release_id: str) -> MomentsPlan:
    """The moments that a run's private encoder is computed from.

    Args:
        config: the run, of encoder `dp_pca`.
        dim: p, of the records in their public basis.
        release_id: its random name.
    """
    (event,) = encoder_events(config)
    assert isinstance(event, DpPcaEvent)
    return MomentsPlan(release_id, dim, event.noise_std)


def make_plan(
    config: RunConfig,
    dim: int,
    classes: int,
    records: int | None,
    release_id: str,
    beside: Sequence[Event] | None = None,
) -> ReleasePlan:
    """The release of a run.

    Args:
        config: the run.
        dim: dimension d of the latents.
        classes: length of the public class list, 0 without labels.
        records: number of private records where it is public.
        release_id: its random name.
        beside: what the run's encoder was charged for, under the same epsilon; default: what it would be.

    Raises:
        UserError: noise beyond what fits, or batches of records whose number nothing public tells yet.
    """
    r, p = config.release, config.privacy
    conditional = r.class_conditional and classes > 0
    shape = _shape(config, dim, classes if conditional else 1, records)
    common: dict[str, Any] = {
        "release_id": release_id,
        "dim": dim,
        "relation": p.relation,
        "epsilon": p.epsilon,
        "delta": p.delta,
        "seed": config.seed,
    }
    if config.release_kind == "rows":
        wanted = r.directions or shape.frames * dim
        repeated = config.method != "dpswflow"
        return RowPlan.make(
            **common,
            directions=wanted if r.law == "iid" else -(-wanted // dim) * dim,
            law=r.law,
            epochs=r.epochs if repeated else 1,
            batches=_batches(records, r.batch) if repeated else 1,
        )
    common |= {
        "frames": shape.frames,
        "grid": shape.grid,
        "classes": classes if conditional else 1,
        "class_conditional": conditional,
    }
    if config.release_kind == "sampled":
        return SampledHistogramPlan.make(**common, rounds=r.rounds, rate=r.rate)
    return HistogramPlan.make(
        **common, noise=p.noise, beside=encoder_events(config) if beside is None else beside
    )


def _shape(config: RunConfig, dim: int, classes: int, records: int | None) -> Choice:
    """Frames and grid: the config's, or the planner's where the config says `auto`; with the predicted distance."""
    r, p = config.release, config.privacy
    frames = None if r.frames == "auto" else r.frames
    bins = None if r.bins == "auto" else r.bins
    smoothing = None if r.smoothing == "auto" else r.smoothing
    if config.release_kind != "histograms":  # the model is of one table
        return Choice(frames or 16, BinGrid(bins or 32, 1.0 if smoothing is None else smoothing), math.nan)
    return choose(
        records=records or r.expected_records or ASSUMED_RECORDS,
        classes=classes,
        dim=dim,
        relation=p.relation,
        epsilon=p.epsilon,
        delta=p.delta,
        frames=frames,
        bins=bins,
        smoothing=smoothing,
    )


def _batches(records: int | None, batch: int) -> int:
    if records is None:
        raise UserError(
            "release.batch divides records whose number is not known before the data set is divided: `dpsw data "
            "import` does it, at no cost."
        )
    return max(records // batch, 1)


def planned(config: RunConfig) -> tuple[ReleasePlan, DatasetInfo | None]:
    """The release a run would make, and what is public about its data, if they are divided already.

    Raises:
        UserError: the latent dimension is that of a table which nothing public describes yet.
    """
    folder = dataset_folder(config.data, config.home, config.privacy.relation)
    info = read_info(folder) if (folder / "dataset.json").exists() else None
    classes = len(info.classes) if info is not None else len(config.data.classes or ())
    records = info.private_count if info is not None else None
    return make_plan(config, _dim(config, info), classes, records, "plan"), info


def describe_plan(config: RunConfig) -> dict[str, Any]:
    """The plan in numbers: opens the stored split's public manifest and the ledger, never a record.

    Raises:
        UserError: the latent dimension is that of a table which nothing public describes yet.
    """
    plan, info = planned(config)
    events = run_events(config, plan)
    spent = account(events, config.privacy.relation, config.privacy.delta)
    rounds, blocks, directions, bins = plan.cells
    known = info is not None or config.data.classes is not None
    described: dict[str, Any] = {
        "method": config.method,
        "release": {
            "rounds": rounds,
            "directions": f"{directions}, in dimension {plan.directions.shape[2]}",
            "bins": bins,
            "smoothing": f"{plan.grid.smoothing:.4g} bin widths (sigma {plan.grid.sigma:.4g})",
            "classes": blocks
            if known
            else "not known before the data set is divided; they do not change the cost",
            "cells": rounds * blocks * directions * bins
            if known
            else f"{rounds * directions * bins} per class",
            **_predicted(config, plan.directions.shape[2], blocks, info),
        },
        "noise": _noise(plan),
        **_encoder(config, info),
        "privacy": spent.to_dict(),
        "private records": _count(info, config),
    }
    ledger = Ledger(config.ledger_path)
    name = ledger_account(config)
    if any(entry.name == name for entry in ledger.datasets()):
        before = ledger.total(name)
        after = bound(
            [event for entry in ledger.entries(name) for event in entry.events] + events,
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


def _predicted(config: RunConfig, dim: int, classes: int, info: DatasetInfo | None) -> dict[str, Any]:
    """How close the planner expects the particles to come, and what it chose by."""
    if config.release_kind != "histograms":
        return {}
    r = config.release
    records = None if info is None else info.private_count
    choice = _shape(config, dim, classes, records)
    told = "chosen" if "auto" in (r.frames, r.bins, r.smoothing) else "predicted"
    number = records or r.expected_records or ASSUMED_RECORDS
    return {
        "predicted sliced W2": f"{choice.distance:.2g}, between particles and private latents",
        told: f"for {number:,} records in {classes} class{'es' if classes > 1 else ''}"
        + ("" if records else " (assumed: release.expected_records)"),
    }


def _noise(plan: ReleasePlan) -> dict[str, Any]:
    if isinstance(plan, RowPlan):
        return {"kind": plan.noise, "standard deviation per projection": plan.noise_std * LATTICE}
    per_cell = plan.noise_std / SCALE
    return {
        "kind": plan.noise,
        "beta": plan.grid.beta,
        "standard deviation per cell, in records": per_cell,
        "standard deviation per direction and class, in records": per_cell * plan.grid.bins**0.5,
    }


def _encoder(config: RunConfig, info: DatasetInfo | None) -> dict[str, Any]:
    """What a private encoder is computed from, and at what noise."""
    for event in encoder_events(config):
        assert isinstance(event, DpPcaEvent)
        records = None if info is None else info.private_count
        number = records or config.release.expected_records or ASSUMED_RECORDS
        return {
            "encoder": {
                "kind": "DP-PCA: noisy second moments of the private records in a public basis",
                "share of squared mu": _share(config),
                "longest extended record, in lattice units": LONGEST,
                "standard deviation on the diagonal": event.noise_std,
                "standard deviation of an entry of the covariance": event.noise_std
                * math.sqrt(0.5)
                / (STEPS**2 * number),
                "of": f"{number:,} records" + ("" if records else " (assumed: release.expected_records)"),
            }
        }
    return {}


def _dim(config: RunConfig, info: DatasetInfo | None) -> int:
    if config.encoder.kind != "identity":
        return config.encoder.latent_dim
    if info is not None:
        return info.schema.size
    if config.data.columns is not None:
        return len(config.data.columns)
    raise UserError(
        "How many numbers a record has is not known before the data set is divided: run `dpsw data import`, or name a "
        "table's columns in data.columns."
    )


def _count(info: DatasetInfo | None, config: RunConfig) -> str:
    if config.privacy.relation == "add_remove":
        return "protected (relation add_remove)"
    if info is None or info.private_count is None:
        return "not known before the data set is divided"
    return f"{info.private_count:,}"
