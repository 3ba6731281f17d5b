"""What a run would release, at what noise, and what it costs: from public facts alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.family import has_key
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data.division import check_pinned
from dpsw_ray.data.split import DatasetInfo, dataset_folder, read_info
from dpsw_ray.methods.method import Facts
from dpsw_ray.methods.registry import method_of
from dpsw_ray.pipeline.memory import check_memory
from dpsw_ray.privacy.accountants import account, bound
from dpsw_ray.privacy.events import DpPcaEvent, Event
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.release.moments import Lattice, MomentsPlan, moments_event
from dpsw_ray.release.plan import Plan
from dpsw_ray.tables.planner import ASSUMED_RECORDS, encoder_share

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
    "protection",
    "register_account",
    "run_events",
    "stored_protection",
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


def protection(config: RunConfig, info: DatasetInfo | None) -> str:
    """Which records a run protects and which it does not, in a sentence; without `info`, as the config asks for."""
    unit = config.privacy.unit
    if info is None:
        data = config.data
        rest = [f"a share of {data.public_fraction:g} (public records)"] if data.public_fraction else []
        if data.source not in ("digits", "table"):
            rest.append("the source's own test records")
        elif data.test_fraction:
            rest.append(f"a share of {data.test_fraction:g} (test records)")
        who = "all other records" if rest else "all records"
    else:
        rest = [
            f"{count:,} {part} record{'' if count == 1 else 's'}" for part, count in info.unprotected.items()
        ]
        count = None if config.privacy.relation == "add_remove" else info.private_count
        who = "the private records, and how many there are" if count is None else f"{count:,} records"
    if unit == "user":
        who = "the users who hold the private records"
    kept = ""
    if info is not None and info.public_count and not config.data.public_fraction:
        kept = " These records were public before, and stay so."
    return f"Protected: {who}. Not protected: {' and '.join(rest) or 'none'}.{kept}"


def stored_protection(config: RunConfig) -> str:
    """The same, of the stored division where there is one."""
    folder = dataset_folder(config.data, config.home, config.privacy.relation)
    return protection(config, read_info(folder) if os.path.lexists(folder / "dataset.json") else None)


def encoder_events(config: RunConfig) -> tuple[Event, ...]:
    """What the run's encoder costs: nothing, unless it is computed from private records."""
    if config.encoder.kind != "dp_pca":
        return ()
    p = config.privacy
    # A table keeps all its columns, which have bounds, or no private encoder.
    dim = len(config.data.bounds or ()) if config.data.source == "table" else config.encoder.basis
    return (moments_event(p.relation, p.epsilon, p.delta, _share(config), dim, p.noise),)


def _share(config: RunConfig) -> float:
    """The moments' part of the squared mu: the config's, or the planner's where the config says `auto`."""
    if config.encoder.share != "auto":
        return config.encoder.share
    p, records = config.privacy, config.expected_records or ASSUMED_RECORDS
    return encoder_share(p.relation, p.epsilon, p.delta, records)


def run_events(config: RunConfig, plan: Plan) -> list[Event]:
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
    return MomentsPlan.of(event, dim, release_id)


def make_plan(
    config: RunConfig,
    dim: int,
    classes: int,
    records: int | None,
    release_id: str,
    beside: Sequence[Event] | None = None,
) -> Plan:
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
    events = encoder_events(config) if beside is None else tuple(beside)
    return method_of(config).plan(config, Facts(dim, classes, records, events), release_id)


def planned(config: RunConfig) -> tuple[Plan, DatasetInfo | None]:
    """The release a run would make, and what is public about its data, if they are divided already.

    Raises:
        UserError: it does not fit this machine, or the latent dimension is that of a table which nothing public
            describes yet.
    """
    check_memory(config)
    folder = dataset_folder(config.data, config.home, config.privacy.relation)
    info = read_info(folder) if os.path.lexists(folder / "dataset.json") else None
    return make_plan(config, *_sizes(config, info), "plan"), info


def _sizes(config: RunConfig, info: DatasetInfo | None) -> tuple[int, int, int | None]:
    """Dimension of the latents, length of the class list, number of private records: as far as they are known."""
    if info is None:
        return _dim(config, info), len(config.data.classes or ()), None
    return _dim(config, info), len(info.classes), info.private_count


def describe_plan(config: RunConfig) -> dict[str, Any]:
    """The plan in numbers: opens the stored split's public manifest and the ledger, never a record.

    Raises:
        UserError: the latent dimension is that of a table which nothing public describes yet.
    """
    plan, info = planned(config)
    events = run_events(config, plan)
    spent = account(events, config.privacy.relation, config.privacy.delta)
    facts = Facts(*_sizes(config, info), encoder_events(config))
    described: dict[str, Any] = {
        "method": config.method,
        **method_of(config).describe(
            config, plan, facts, info is not None or config.data.classes is not None
        ),
        **_encoder(config, info),
        "privacy": spent.to_dict(),
        "private records": _count(info, config),
        "protection": protection(config, info),
    }
    name = ledger_account(config)
    # Asking makes no ledger.
    ledger = Ledger(config.ledger_path, create=False) if config.ledger_path.exists() else None
    if ledger is not None and any(entry.name == name for entry in ledger.datasets()):
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


def _encoder(config: RunConfig, info: DatasetInfo | None) -> dict[str, Any]:
    """What a private encoder is computed from, and at what noise."""
    for event in encoder_events(config):
        assert isinstance(event, DpPcaEvent)
        lattice = Lattice.of(event)
        records = None if info is None else info.private_count
        number = records or config.expected_records or ASSUMED_RECORDS
        named = ": release.expected_records" if has_key(type(config), "release.expected_records") else ""
        return {
            "encoder": {
                "kind": "DP-PCA: noisy second moments of the private records in a public basis",
                "share of squared mu": _share(config),
                "longest extended record, in lattice units": lattice.longest,
                "standard deviation on the diagonal": event.noise_std,
                "standard deviation of an entry of the covariance": event.noise_std
                * math.sqrt(0.5)
                / (lattice.steps**2 * number),
                "of": f"{number:,} records" + ("" if records else f" (assumed{named})"),
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
