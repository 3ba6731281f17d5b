"""What a federated run's report says beside a usual one's: the population, the rounds, the traffic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dpsw_ray.evaluation.report import ReportSection
from dpsw_ray.federated.config import FederatedConfig
from dpsw_ray.federated.rounds import Rounds
from dpsw_ray.federated.traffic import LITERATURE, encoder_bytes

__all__ = ["mechanism", "sections", "summary"]

_NOISE = {
    "central": "the server adds the users' averages up and adds noise to every cell, once.",
    "distributed": "adds its share of the noise, and sends it masked, so that the server sees the noisy sum of all and "
    "no user's part.",
    "local": "adds noise to all of it on the device, and only then sends it.",
}


def mechanism(config: FederatedConfig) -> str:
    """What was released, in a sentence or two."""
    sampled = " Who is in a round's sample is drawn in secret." if config.sampled else ""
    joint = "; " if config.trust == "central" else ", "
    return (
        f"{config.sent}{joint}{_NOISE[config.trust]}{sampled} Samples and figures are computed from the noisy "
        "sums. Nobody counts for more than anybody else, however many records they have."
    )


def sections(config: FederatedConfig, rounds: Rounds, users: int, encoder: Path) -> list[ReportSection]:
    """The report's sections; nothing in them depends on a record."""
    p, traffic = config.population, traffic_facts(config, rounds, encoder)
    laws: dict[str, dict[str, Any]] = {
        "shards": {"shards per user": p.shards},
        "dirichlet": {"alpha": p.alpha},
        "power_law": {"exponent": p.exponent},
        "natural": {"user": p.user or "as in the files"},
    }
    population: dict[str, Any] = {
        "users": users,
        "partition": p.partition,
        **laws.get(p.partition, {}),
        "trust": config.trust,
        "full weight at records": p.full_weight_at,
        "simulated dropout": config.dropout.rate,
    }
    if rounds.plan.modulus_bits is not None:
        population |= {
            "threshold of survivors, of those asked": config.secagg.threshold,
            "tolerated corrupted users": config.secagg.corrupted,
            "bits of the modulus": rounds.plan.modulus_bits,
        }
    if rounds.refused:
        population["messages refused"] = ", ".join(f"{n} {why}" for why, n in sorted(rounds.refused.items()))
    table = [
        {
            "round": record.number + 1,
            "outcome": record.outcome,
            "asked": record.asked,
            "away": record.away,
            "late": record.late,
            "refused": record.refused,
            "survivors": record.survivors,
            "needed": record.threshold,
            "epsilon so far": record.epsilon,
            "simulated time, s": record.seconds,
            "bytes up": record.up,
            "bytes down": record.down,
        }
        for record in rounds.records
    ]
    return [
        ReportSection(
            "Population",
            "Who took part. How many records a user has, and which, is protected and not shown.",
            population,
        ),
        ReportSection(
            "Rounds",
            "Who answered is simulated and does not depend on any record; the cost follows what happened.",
            table=table,
        ),
        ReportSection("Traffic", "Bytes for one user, packed as on a wire.", traffic),
    ]


def traffic_facts(config: FederatedConfig, rounds: Rounds, encoder: Path) -> dict[str, Any]:
    """Bytes by user, and what the literature's systems send."""
    one, done = rounds.traffic, [record for record in rounds.records if record.outcome != "stopped"]
    total = sum(record.up + record.down for record in done)
    return {
        "message": one.message,
        "up in a round": one.up,
        "down in a round": one.down,
        "encoder, once": encoder_bytes(encoder),
        "rounds": len(done),
        "all rounds": total,
        "all users, all rounds": sum((record.up + record.down) * record.asked for record in done),
        **{f"{name}, one exchange (literature)": figure for name, figure in LITERATURE.items()},
        **{f"one message over {name}'s exchange": one.up / figure for name, figure in LITERATURE.items()},
    }


def summary(config: FederatedConfig, rounds: Rounds, users: int, encoder: Path) -> dict[str, Any]:
    """What `rounds.json` holds."""
    return {
        "trust": config.trust,
        "users": users,
        "partition": config.population.partition,
        "refused": rounds.refused,
        "rounds": [dataclasses.asdict(record) for record in rounds.records],
        "traffic": traffic_facts(config, rounds, encoder),
    }
