"""Random lists of privacy events: accountants agree, calibration meets its target, composition is monotone.

    python benchmarks/accounting.py --lists 1000 --json accounting.json

Each list has one to four events of random kinds and noise under a random relation. A failure is printed with the
list that shows it and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dpsw_ray.privacy.accountants import EpsilonBounds, account, bound
from dpsw_ray.privacy.calibration import calibrate_noise
from dpsw_ray.privacy.events import (
    DiscreteGaussianEvent,
    DpPcaEvent,
    DpSgdEvent,
    Event,
    GaussianEvent,
    NoisyCountEvent,
    ParallelEvent,
    SampledGaussianEvent,
    SequentialEvent,
    SkellamEvent,
    SlicedGaussianEvent,
    SlicedHistogramEvent,
)
from dpsw_ray.privacy.relations import RELATIONS, Relation


@dataclass(frozen=True)
class Findings:
    """What one list showed.

    Args:
        kinds: of its events.
        relation: under which they were counted.
        accountant: which one gave the figure.
        upper: the figure.
        spread: width of its bounds, as a part of it.
        overshoot: calibrated upper bound over its target, at most 1.
        faults: broken properties, in words.
        seconds: time taken.
    """

    kinds: tuple[str, ...]
    relation: str
    accountant: str
    upper: float
    spread: float
    overshoot: float
    faults: tuple[str, ...]
    seconds: float


def random_events(rng: np.random.Generator) -> tuple[list[Event], Relation, float]:
    """One to four events that have a meaning under a random relation, and a delta."""
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    kinds = list(_MAKERS)
    if relation == "add_remove":
        kinds.remove("rows")
    if relation == "replace_one":
        kinds.remove("sampled")
        kinds.remove("dp_sgd")
    events = [_MAKERS[kinds[rng.integers(len(kinds))]](rng) for _ in range(rng.integers(1, 5))]
    return events, relation, float(10 ** rng.uniform(-9, -3))


def _noise(rng: np.random.Generator, sensitivity: float = 1.0) -> float:
    return sensitivity / float(10 ** rng.uniform(-1.3, 0.3))


def _gaussian(rng: np.random.Generator) -> Event:
    return GaussianEvent("gaussian", dict.fromkeys(RELATIONS, 1.0), _noise(rng))


def _histogram(rng: np.random.Generator) -> Event:
    directions, norm = int(rng.integers(1, 500)), int(rng.integers(1, 10**9))
    return SlicedHistogramEvent(directions, norm, _noise(rng, math.sqrt(2 * directions * norm)))


def _rows(rng: np.random.Generator) -> Event:
    dim, frames = int(rng.integers(2, 65)), int(rng.integers(1, 12))
    law: Literal["haar", "iid"] = "haar" if rng.random() < 0.3 else "iid"
    return SlicedGaussianEvent(dim * frames, dim, _noise(rng, 2 * math.sqrt(frames)), law)


def _sampled(rng: np.random.Generator) -> Event:
    return SampledGaussianEvent(
        float(10 ** rng.uniform(-3, -0.1)), 1.0, float(rng.uniform(0.8, 5)), int(rng.integers(1, 200))
    )


def _dp_sgd(rng: np.random.Generator) -> Event:
    return DpSgdEvent(float(10 ** rng.uniform(-3, -1)), float(rng.uniform(0.8, 3)), int(rng.integers(1, 500)))


def _pca(rng: np.random.Generator) -> Event:
    return DpPcaEvent(_noise(rng))


def _count(rng: np.random.Generator) -> Event:
    return NoisyCountEvent(_noise(rng))


def _discrete(rng: np.random.Generator) -> Event:
    squared = int(rng.integers(1, 10**6))
    return DiscreteGaussianEvent(
        "discrete", dict.fromkeys(RELATIONS, squared), _noise(rng, math.sqrt(squared))
    )


def _skellam(rng: np.random.Generator) -> Event:
    squared = int(rng.integers(1, 10**6))
    return SkellamEvent(
        "skellam",
        dict.fromkeys(RELATIONS, squared),
        dict.fromkeys(RELATIONS, int(rng.integers(math.isqrt(squared) + 1, squared + 2))),
        _noise(rng, math.sqrt(squared)) ** 2,
    )


def _parallel(rng: np.random.Generator) -> Event:
    parts = tuple(_MAKERS[kind](rng) for kind in rng.choice(["gaussian", "pca", "count"], 3))
    return ParallelEvent(parts, "by_value" if rng.random() < 0.5 else "fixed")


def _sequential(rng: np.random.Generator) -> Event:
    return SequentialEvent((_gaussian(rng), _count(rng)), int(rng.integers(1, 4)))


_MAKERS: dict[str, Callable[[np.random.Generator], Event]] = {
    "gaussian": _gaussian,
    "histogram": _histogram,
    "rows": _rows,
    "sampled": _sampled,
    "dp_sgd": _dp_sgd,
    "pca": _pca,
    "count": _count,
    "discrete": _discrete,
    "skellam": _skellam,
    "parallel": _parallel,
    "sequential": _sequential,
}


def examine(rng: np.random.Generator) -> tuple[list[Event], Findings]:
    """One random list, and everything that must hold for it."""
    start = time.perf_counter()
    events, relation, delta = random_events(rng)
    found = account(events, relation, delta)  # raises where two accountants exclude each other
    faults = []
    prv = found.epsilon if found.accountant == "PRV" else found.checks.get("PRV")
    pld = found.checks.get("PLD")
    exact = found.accountant in ("analytic Gaussian", "PRV")
    if exact and isinstance(prv, EpsilonBounds) and isinstance(pld, EpsilonBounds):
        if prv.upper < pld.lower or pld.upper < prv.lower:
            faults.append(f"PRV {prv} and PLD {pld} do not overlap")
    elif exact and found.epsilon.upper > 0:
        faults.append(f"PRV or PLD is missing: {prv}, {pld}")
    faults += _monotone(events, relation, delta, found.epsilon)
    target = float(10 ** rng.uniform(-1, 1))
    overshoot = 1.0
    level = calibrate_noise(lambda level: [event.scaled(level) for event in events], relation, target, delta)
    reached = bound([event.scaled(level) for event in events], relation, delta)
    overshoot = reached.epsilon.upper / target
    if overshoot > 1:
        faults.append(f"calibrated to {target}, the upper bound is {reached.epsilon.upper}")
    if reached.accountant in ("analytic Gaussian", "PRV") and overshoot < 0.995:
        faults.append(f"calibrated to {target}, the upper bound is only {reached.epsilon.upper}")
    return events, Findings(
        kinds=tuple(event.kind for event in events),
        relation=relation,
        accountant=found.accountant,
        upper=found.epsilon.upper,
        spread=(found.epsilon.upper - found.epsilon.lower) / max(found.epsilon.upper, 1e-12),
        overshoot=overshoot,
        faults=tuple(faults),
        seconds=time.perf_counter() - start,
    )


def _monotone(events: list[Event], relation: Relation, delta: float, whole: EpsilonBounds) -> list[str]:
    faults = []
    smaller = {
        "fewer events": (events[1:], delta),
        "more noise": ([event.scaled(1.5) for event in events], delta),
        "a larger delta": (events, min(10 * delta, 0.5)),
    }
    for name, (list_, at) in smaller.items():
        if list_ and (less := bound(list_, relation, at).epsilon).lower > whole.upper:
            faults.append(f"{name} cost more: {less} after {whole}")
    return faults


def main() -> int:
    """Examines the lists and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--lists", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    findings = []
    for number in range(options.lists):
        events, one = examine(np.random.default_rng([options.seed, number]))
        findings.append(one)
        for fault in one.faults:
            print(f"list {number} ({one.relation}): {fault}\n  {[event.to_dict() for event in events]}")
    by_name = {
        name: [f for f in findings if f.accountant == name] for name in {f.accountant for f in findings}
    }
    summary = {
        "lists": len(findings),
        "faults": sum(len(f.faults) for f in findings),
        "by accountant": {
            name: {
                "lists": len(group),
                "widest bounds, as a part of epsilon": max(f.spread for f in group),
                "least calibrated upper bound over target": min(f.overshoot for f in group),
                "largest calibrated upper bound over target": max(f.overshoot for f in group),
                "median seconds": float(np.median([f.seconds for f in group])),
            }
            for name, group in sorted(by_name.items())
        },
    }
    print(json.dumps(summary, indent=2))
    if options.json:
        options.json.write_text(json.dumps({"summary": summary, "findings": [asdict(f) for f in findings]}))
    return 1 if summary["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
