"""What an audit found, beside what was claimed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR
from typing import Any

from dpsw_ray.audit.attack import Attack, Randomness
from dpsw_ray.audit.bounds import Claim, LowerBound, epsilon_lower, lower_bound
from dpsw_ray.base.rounding import format_number
from dpsw_ray.privacy.accountants import bound
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.relations import Relation

__all__ = ["AuditResult", "audit"]


@dataclass(frozen=True)
class AuditResult:
    """One audit, finished. Figures are for one unit, also where the attack was on a group of them.

    Attributes:
        name: of the mechanism or the run.
        events: what was charged for one unit.
        relation: of the pair.
        delta: at which both epsilons hold.
        claim: held against the attack; of the whole group.
        found: what the attack proves, for the whole group.
        group: number of units in which the worlds differ.
        epsilon: the accountants' upper bound.
        seconds: taken by the runs; None where it would tell a protected number of records.
    """

    name: str
    events: tuple[Event, ...]
    relation: Relation
    delta: float
    claim: Claim
    found: LowerBound
    group: int
    epsilon: float
    seconds: float | None

    @property
    def mu_lower(self) -> float:
        """Lower bound on mu: a mu-GDP mechanism is (group * mu)-GDP for a group (Dong, Roth and Su 2022, Thm 2.14)."""
        return self.found.mu / self.group

    @property
    def claimed_mu(self) -> float:
        """What is promised: mu, or where the promise is of another form, what it comes to at `found.fpr_upper`."""
        return self.found.claimed_mu / self.group

    @property
    def epsilon_lower(self) -> float:
        """Lower bound on epsilon at `delta`."""
        return epsilon_lower(self.found.fpr_upper, self.found.fnr_upper, self.delta, self.group)

    @property
    def refuted(self) -> bool:
        """Whether the claim is false, at the confidence."""
        return self.found.refuted

    @property
    def sentence(self) -> str:
        """The verdict for people."""
        mu, claimed = (
            format_number(self.mu_lower, 4, ROUND_FLOOR),
            format_number(self.claimed_mu, 4, ROUND_CEILING),
        )
        at = f"confidence {100 * self.found.confidence:.6g} %"
        if self.refuted:
            return f"{self.name}: the claim is false at {at}: mu is at least {mu}, and {claimed} is claimed."
        return f"{self.name}: no contradiction at {at}: mu is at least {mu}, and {claimed} is claimed."

    def to_dict(self) -> dict[str, Any]:
        """Plain values; thresholds, which may tell of a private table, are not among them."""
        return {
            "name": self.name,
            "relation": self.relation,
            "delta": self.delta,
            "events": [event.to_dict() for event in self.events],
            "runs": self.found.runs,
            "group": self.group,
            "confidence": self.found.confidence,
            "mu": {"claimed": self.claimed_mu, "lower": self.mu_lower},
            "epsilon": {"claimed": self.epsilon, "lower": self.epsilon_lower},
            "fpr_upper": self.found.fpr_upper,
            "fnr_upper": self.found.fnr_upper,
            "refuted": self.refuted,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
        }


def audit(attack: Attack, runs: int, confidence: float, delta: float, seed: int | None = None) -> AuditResult:
    """Makes the runs of an attack and holds them against the accountants' claim.

    Args:
        attack: on one unit.
        runs: of each world.
        confidence: of this audit alone.
        delta: at which epsilon is given.
        seed: repeats the audit, but for exact discrete noise; None for fresh randomness.
    """
    start = time.perf_counter()
    null, alternative = attack.scores(runs, Randomness.make(seed, attack.name))
    seconds = time.perf_counter() - start
    claim = Claim(attack.events, attack.relation)
    return AuditResult(
        name=attack.name,
        events=attack.events,
        relation=attack.relation,
        delta=delta,
        claim=claim,
        found=lower_bound(null, alternative, claim, confidence),
        group=1,
        epsilon=bound(attack.events, attack.relation, delta).epsilon.upper,
        seconds=seconds,
    )
