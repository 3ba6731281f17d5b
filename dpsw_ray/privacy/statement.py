"""What a run's figures mean in plain words: who is protected, against whom, how far, and what is left out."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from dpsw_ray.base.rounding import format_number
from dpsw_ray.privacy.accountants import ACCOUNTANTS
from dpsw_ray.privacy.curves import delta_curve, trade_off
from dpsw_ray.privacy.events import event_from_dict
from dpsw_ray.privacy.gaussian import gaussian_epsilon

__all__ = ["Attacker", "RunFacts", "Statement", "attacker", "noise_kinds", "state"]

_NEIGHBOURS = {
    "replace_one": "one {unit} of the private part is replaced by any other {unit} that is in neither the public nor "
    "the test part, its class included; how many {unit}s there are is public",
    "zero_out": "one {unit} of the private part is replaced by an empty one that contributes nothing; how many "
    "{unit}s there are is public",
    "add_remove": "one {unit} is added to the private part or removed from it; how many {unit}s there are is "
    "protected too",
}
_HIDDEN = {
    "replace_one": "what it is",
    "zero_out": "whether it is there and what it is",
    "add_remove": "whether it is there and what it is",
}


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


_RATE = 0.01  # of false alarms, where an attacker's power is quoted
_EPSILONS = np.concatenate([[0.0], np.geomspace(1e-2, 100, 200)])


@dataclass(frozen=True)
class Attacker:
    """The most that anybody can do who wants to tell two neighbouring data sets apart.

    Args:
        advantage: largest true positive rate minus false positive rate.
        power: largest true positive rate at a false positive rate of 1 %.
        correct: largest chance of a right guess when both are equally likely.
    """

    advantage: float
    power: float
    correct: float


def attacker(privacy: Mapping[str, Any]) -> Attacker:
    """Bounds every attack by the privacy account.

    With mu, by the trade-off function of Gaussian differential privacy: power Phi(Phi^-1(FPR) + mu), advantage
    2 Phi(mu/2) - 1 (Dong, Roth and Su 2022, equation 6). Otherwise by the whole privacy curve: the power by
    `trade_off`, the advantage as the least over epsilon of (e^epsilon - 1 + 2 delta) / (e^epsilon + 1) (Kairouz,
    Oh and Viswanath 2015).

    Args:
        privacy: `Account.to_dict()`.
    """
    if privacy["mu"] is not None:
        mu = float(privacy["mu"])
        power, advantage = float(ndtr(ndtri(_RATE) + mu)), float(2 * ndtr(mu / 2) - 1)
    else:
        events, relation = [event_from_dict(event) for event in privacy["events"]], privacy["relation"]
        power = 1 - float(trade_off(events, relation, np.array([_RATE]))[0])
        deltas = delta_curve(events, relation, _EPSILONS)
        advantage = min(float(np.min(np.tanh(_EPSILONS / 2) + 2 * deltas / (np.exp(_EPSILONS) + 1))), 1.0)
    return Attacker(advantage=advantage, power=power, correct=(1 + advantage) / 2)


@dataclass(frozen=True)
class RunFacts:
    """What the account does not know of the run that it belongs to.

    Args:
        dataset: name of the data set whose private part was released.
        reproducible_noise: the noise came from a seed.
        research: the release was charged to a research account.
        ledger: name of the account that was charged.
        total_epsilon: upper bound of all charges to it.
        charges: how many there are.
        trust: who sees what during the run: `central`, `distributed` or `local` (federated runs).
        computed_in: where private records were summed: by the `driver`, in one `worker`, in several `workers`
            under masks, or `unknown`.
        uncounted: the release was chosen among several, and the choice was not counted.
        simulated: the users are made up, and records were dealt out to them (federated runs).
        public_records: how many there are, None where that is not known here.
        test_records: likewise.
        date: of the total and the number of charges, as text.
    """

    dataset: str
    reproducible_noise: bool
    research: bool
    ledger: str
    total_epsilon: float
    charges: int
    trust: str = "central"
    computed_in: str = "unknown"
    uncounted: bool = False
    simulated: bool = False
    public_records: int | None = None
    test_records: int | None = None
    date: str = field(default_factory=_today)


@dataclass(frozen=True)
class Statement:
    """A run's privacy in words: lists of sentences.

    Args:
        protects: whom, and what a neighbouring data set is.
        against: whom.
        promise: epsilon, delta, and the most that an attacker can do.
        not_covered: what the promise says nothing of.
        counted_by: which accountant gave the figure, what the others gave.
    """

    protects: tuple[str, ...]
    against: tuple[str, ...]
    promise: tuple[str, ...]
    not_covered: tuple[str, ...]
    counted_by: tuple[str, ...]

    def to_dict(self) -> dict[str, list[str]]:
        """The lists by name, for `privacy.json`."""
        return {item.name: list(getattr(self, item.name)) for item in dataclasses.fields(self)}


def state(privacy: Mapping[str, Any], facts: RunFacts) -> Statement:
    """Puts one run's account into words. Upper bounds are rounded up, lower bounds down.

    Args:
        privacy: `Account.to_dict()`, infinities as such or as the text "inf".
        facts: of the run.
    """
    if facts.uncounted:
        return Statement(
            protects=(f"Nobody: no record of the private part of {facts.dataset} is protected.",),
            against=(),
            promise=(
                "Nothing: the release was chosen among several by looking at all of them, and the choice was not "
                "counted, so epsilon is infinite.",
            ),
            not_covered=("Everything. Neither the release nor anything computed from it may be published.",),
            counted_by=(
                "Nothing was counted: the ledger's research account has what each release costs by itself.",
            ),
        )
    if math.isinf(float(privacy["epsilon"]["upper"])):
        return Statement(
            protects=(f"Nobody: no record of the private part of {facts.dataset} is protected.",),
            against=(),
            promise=(
                "Nothing: no noise was added, so epsilon is infinite, and an attacker may be right every time.",
            ),
            not_covered=("Everything. Neither the release nor anything computed from it may be published.",),
            counted_by=("Nothing was counted: something was released without noise.",),
        )
    return Statement(
        protects=_protects(privacy, facts),
        against=_against(privacy, facts),
        promise=_promise(privacy, facts),
        not_covered=_not_covered(privacy, facts),
        counted_by=_counted_by(privacy),
    )


def _protects(privacy: Mapping[str, Any], facts: RunFacts) -> tuple[str, ...]:
    unit, relation = privacy["unit"], privacy["relation"]
    simulated = (
        "Users are simulated: records were dealt out to them by a public seed. Nothing is promised to whoever is "
        "behind a record; what follows is what the same run would promise to real users.",
    )
    return (
        f"Each {unit} of the private part of {facts.dataset}: {_HIDDEN[relation]}.",
        f"Two data sets are neighbours if {_NEIGHBOURS[relation].format(unit=unit)} ({relation}). The promise is that "
        "neighbours are hard to tell apart.",
        *(simulated if facts.simulated else ()),
    )


_RELEASING = {
    "driver": "While the release was made, the driver held the private records and their sums without noise in its own "
    "process (cluster.executor local): it is trusted, with the machine and the account that it ran under. Its logs "
    "have the noisy total only.",
    "worker": "While the release was made, one worker summed the private records and added the noise: that process is "
    "trusted. The driver and its logs saw the noisy total, which needs no mask, and a hash of the exact sum under a "
    "key that stays on the private side.",
    "workers": "While the release was made, the driver and its logs saw masked sums and the noisy total, and "
    "hashes of the exact sums under a key that stays on the private side. The masks "
    "hold against a driver that is curious but runs this program, not against one that was changed.",
    "unknown": "The stored release does not say which process summed the private records: the driver is to be trusted, "
    "with the machine and the account that it ran under.",
}
_DEVICES = {
    "driver": "That is the promise to real devices. Here the driver simulated them in its own process "
    "(cluster.executor local), with all users' records: it is trusted, with the machine and the account that it ran "
    "under.",
    "worker": "That is the promise to real devices. Here one worker simulated them, with all users' records: that "
    "process is trusted. The driver and its logs saw the noisy total, and a hash of the exact sum under a key "
    "that stays on the private side.",
    "workers": "That is the promise to real devices. Here workers simulated them, each with its users' records: these "
    "processes are trusted. The driver and its logs saw masked sums and the noisy total, and hashes of the exact "
    "sums under a key that stays on the private side.",
    "unknown": "That is the promise to real devices. Here they were simulated, and the stored release does not say by "
    "which process: the driver is to be trusted, with the machine and the account that it ran under.",
}
_DURING = {
    "selection": "During the run, the process that makes the trials is trusted, with the machine that it runs on: it "
    "reads the private records itself and sees every trial. What it keeps until the best is known lies in a folder "
    "that its owner alone can read.",
    "central": "During the run, the server is trusted: it adds the users' messages up and then adds the noise. Nothing "
    "without noise leaves it.",
    "distributed": "The server too, during the run, as long as it follows the protocol and no more users work together "
    "than were allowed for: it sees who takes part, and of their messages the noisy sum only.",
    "local": "The server too, whatever it does during the run: every message is noisy when it leaves its device.",
}


def _against(privacy: Mapping[str, Any], facts: RunFacts) -> tuple[str, ...]:
    return (
        "Whoever sees the release, the synthetic data, this statement, or anything made from them: any number of "
        "samples, any later computation.",
        "It holds whatever they know besides: the method, its code, the config, the public seeds, all other records.",
        "They may compute what they like, short of breaking the cryptographic generators that noise and masks come "
        "from.",
        *_during(privacy, facts),
    )


def _during(privacy: Mapping[str, Any], facts: RunFacts) -> tuple[str, ...]:
    if any(event["kind"] == "private_selection" for event in privacy["events"]):
        return (_DURING["selection"],)
    if privacy["unit"] == "record":
        return (_RELEASING[facts.computed_in],)
    return _DURING[facts.trust], _DEVICES[facts.computed_in]


def _promise(privacy: Mapping[str, Any], facts: RunFacts) -> tuple[str, ...]:
    upper, delta = float(privacy["epsilon"]["upper"]), format_number(privacy["delta"])
    factor = _at_most(math.exp(upper)) if upper < 20 else "e^epsilon"
    most = attacker(privacy)
    said = _reservations(facts)
    said.append(
        f"Epsilon is at most {_at_most(upper)} at delta = {delta}: any outcome is at most {factor} times as likely "
        f"with one data set as with its neighbour, plus a probability of {delta}."
    )
    if privacy["mu"] is not None:
        mu = _at_most(float(privacy["mu"]))
        said.append(
            f"Mu is at most {mu}: telling neighbours apart is no easier than telling from one number whether it was "
            f"drawn from a normal law around 0 or around {mu}, both of standard deviation 1."
        )
    said.append(
        f"Whoever accepts a false alarm in 1 % of the cases detects at most {_percent(most.power)} of the true ones. "
        "Without any release it is 1 %."
    )
    said.append(
        f"Whoever guesses between two equally likely neighbours is right at most {_percent(most.correct)} of the "
        "time. Without any release it is 50 %."
    )
    return tuple(said)


def _reservations(facts: RunFacts) -> list[str]:
    said = []
    if facts.reproducible_noise:
        said.append(
            "Nothing is promised for this run: whoever knows privacy.noise_seed can take the noise away again. What "
            "follows would hold for noise that is fresh and secret."
        )
    if facts.research:
        said.append(
            "Nothing is promised for this run: it was charged to a research account, so the total of the data set's "
            "own account leaves it out. What follows is its cost alone."
        )
    return said


_RECORDS = (
    "Releases from the same records that protect single records. They are charged to another account of the data set, "
    "and the two accounts do not add up to one promise.",
)


_ENCODER = {
    "public": "An encoder that is trained learns from public records only",
    "none": "No encoder was trained",
    "dp_pca": "The encoder was computed from noisy moments of the private part, which are one of the events that "
    "epsilon counts",
}


def _unprotected(privacy: Mapping[str, Any], facts: RunFacts) -> str:
    test, public = facts.test_records, facts.public_records
    encoder = "none" if public == 0 else "public"
    if any(event["kind"] == "dp_pca" for event in privacy["events"]):
        encoder = "dp_pca"
    who = "Public and test records."
    if test is not None and public is not None:
        who = f"{_some(test, 'test record')} and {_some(public, 'public record')} are not protected."
    return f"{who} {_ENCODER[encoder]}; metrics compare with public and test records, where there are any."


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _not_covered(privacy: Mapping[str, Any], facts: RunFacts) -> tuple[str, ...]:
    unit = privacy["unit"]
    times = "charge" if facts.charges == 1 else "charges"
    said = [
        _unprotected(privacy, facts),
        "What the config says: the class list, bounds of columns, the public seed. It is taken to be public.",
        f"Further releases from the same records. Costs add up: epsilon is at most {_at_most(facts.total_epsilon)} "
        f"over {facts.charges} {times} to {facts.ledger} as of {facts.date}. What is not in the ledger is not in that "
        "figure.",
        *(_RECORDS if unit == "user" else ()),
        _group(privacy),
        f"What is true of many {unit}s. It is meant to show, even where it lets somebody guess about one of them.",
        "Side channels: running times and memory, and the machines, disks and accounts that hold the private part.",
        "The folder research/ of a run: its figures come from private records without noise.",
    ]
    kinds = noise_kinds(privacy["events"])
    if "skellam" in kinds:
        said.append(
            "Finite arithmetic. Skellam noise is whole numbers, drawn by rejection with chances computed in double "
            "precision; the proof is for the ideal law."
        )
    if "gaussian" in kinds:
        said.append(
            "Finite arithmetic. Gaussian noise is computed in double precision and rounded to integers. What its low "
            "bits may tell is paid for by more noise than is charged; that it follows the normal law in everything "
            "else is an assumption, which privacy.noise discrete_gaussian does not need."
        )
    return tuple(said)


def _group(privacy: Mapping[str, Any]) -> str:
    unit, delta = privacy["unit"], float(privacy["delta"])
    said = f"Groups. Several {unit}s of one person, or {unit}s that tell of each other, are protected less: "
    if privacy["mu"] is None:
        return said + (
            "for g of them epsilon is at most g times as large, at a delta that is larger by the factor "
            "(e^(g epsilon) - 1) / (e^epsilon - 1)."
        )
    pair = _at_most(gaussian_epsilon(2 * float(privacy["mu"]), delta).upper)
    return said + f"mu is multiplied by their number, so that for two of them epsilon is at most {pair}."


def noise_kinds(events: list[Mapping[str, Any]]) -> set[str]:
    """How the released numbers were made noisy; events that do not say are Gaussian or the kind they name."""
    kinds: set[str] = set()
    for event in events:
        if "parts" in event:
            kinds |= noise_kinds(event["parts"])
        elif event["kind"] in ("discrete_gaussian", "skellam"):
            kinds.add(event["kind"])
        else:
            kinds.add(event.get("noise", "gaussian"))
    return kinds


def _counted_by(privacy: Mapping[str, Any]) -> tuple[str, ...]:
    claimed, checks = privacy["accountant"], privacy["checks"]
    interval = _interval(privacy["epsilon"])
    said = [f"The figure is from the accountant {claimed}: {interval}. The upper bound is the claim."]
    before = True
    for name in (accountant.name for accountant in ACCOUNTANTS):
        if name == claimed:
            before = False
        elif isinstance(checks[name], Mapping):
            said.append(f"{name}, as a check: {_interval(checks[name])}.")
        elif before and checks[name].startswith("not available"):
            said.append(
                f"{name}, asked before it, gave no figure, so the next one's bound is used; {checks[name]}"
            )
        else:
            said.append(f"{name}: {checks[name]}")
    return tuple(said)


def _interval(bounds: Mapping[str, Any]) -> str:
    lower, upper = float(bounds["lower"]), _at_most(float(bounds["upper"]))
    if lower == 0:
        return f"epsilon at most {upper}"
    return f"epsilon between {format_number(lower, 5, ROUND_FLOOR)} and {upper}"


def _at_most(value: float) -> str:
    return format_number(value, 5, ROUND_CEILING)


def _percent(share: float) -> str:
    return f"{math.ceil(share * 1000 - 1e-9) / 10:g} %"
