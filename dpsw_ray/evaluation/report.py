"""The report of one run: a single HTML page that needs nothing else, for people who did not run it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context
from importlib import resources
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined
from scipy.special import ndtr, ndtri

__all__ = ["Attacker", "Metric", "ReportContext", "attacker", "format_number", "render_report"]

_NEIGHBOURS = {
    "replace_one": "one {unit} of the private part is replaced by any other {unit}, its class included; "
    "how many {unit}s there are is public",
    "zero_out": "one {unit} of the private part is replaced by an empty one that contributes nothing; "
    "how many {unit}s there are is public",
    "add_remove": "one {unit} is added to the private part or removed from it; how many {unit}s there are is "
    "protected too",
}
_PROTECTED = {
    "replace_one": "what any one {unit} of the private part is",
    "zero_out": "whether any one {unit} of the private part is there, and what it is",
    "add_remove": "whether any one {unit} of the private part is there, and what it is",
}


@dataclass(frozen=True)
class Metric:
    """One line of the metrics table.

    Args:
        name: as in the literature.
        value: of this run.
        baselines: name -> the same figure of something to compare with.
        explanation: one sentence: what is measured, on which records.
        better: which way is better, if one is.
    """

    name: str
    value: float
    baselines: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""
    better: Literal["lower", "higher"] | None = None


@dataclass(frozen=True)
class ReportContext:
    """All that the page shows; nothing in it may come from private records but through the release.

    Args:
        name: the run's.
        publishable: False puts a banner on top.
        reasons: why it must not be published; sentences.
        privacy: what `privacy.json` holds: epsilon {lower, estimate, upper}, delta, relation, unit, events,
            accountant, mu, checks, and (optional) ledger {name, total_epsilon, charges}.
        metrics: the table's lines.
        samples_png: samples by class.
        slices_png: released slices and what the particles made of them.
        curve_png: convergence of the flow.
        timings: phase -> seconds.
        release: facts about the release, name -> value.
        config_yaml: the resolved config.
        versions: library -> version.
        created: when, as text.
        mechanism: what was released, in a sentence.
    """

    name: str
    publishable: bool
    reasons: Sequence[str]
    privacy: Mapping[str, Any]
    metrics: Sequence[Metric]
    samples_png: bytes | None
    slices_png: bytes | None
    curve_png: bytes | None
    timings: Mapping[str, float]
    release: Mapping[str, Any]
    config_yaml: str
    versions: Mapping[str, str]
    created: str
    mechanism: str = (
        "Histograms of the private records' projections onto random directions, with Gaussian noise added to "
        "every cell. The noise is drawn once; samples and figures are computed from the noisy histograms."
    )


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

    With mu, by the trade-off of Gaussian differential privacy: power Phi(Phi^-1(FPR) + mu), advantage
    2 Phi(mu/2) - 1 (Dong, Roth, Su 2022, eq. 6). Otherwise by epsilon and delta (Kairouz, Oh, Viswanath
    2015): the power is at most e^epsilon FPR + delta, and at most 1 - e^-epsilon (1 - delta - FPR).
    """
    rate = 0.01
    if privacy.get("mu") is not None:
        mu = float(privacy["mu"])
        power, advantage = float(ndtr(ndtri(rate) + mu)), float(2.0 * ndtr(mu / 2.0) - 1.0)
    else:
        epsilon, delta = float(privacy["epsilon"]["upper"]), float(privacy["delta"])
        shrunk = math.exp(-epsilon)
        power = 1.0 - shrunk * (1.0 - delta - rate)
        if epsilon < 50.0:
            power = min(power, math.exp(epsilon) * rate + delta)
        advantage = (1.0 - shrunk + 2.0 * delta * shrunk) / (1.0 + shrunk)
    return Attacker(advantage=advantage, power=power, correct=(1.0 + advantage) / 2.0)


def render_report(context: ReportContext) -> str:
    """Returns the page: inline style, embedded pictures, no script, no address it would load from."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": format_number,
        "at_most": lambda value: format_number(value, 5, ROUND_CEILING),
        "at_least": lambda value: format_number(value, 5, ROUND_FLOOR),
        "percent": lambda value: f"{math.ceil(value * 1000.0 - 1e-9) / 10.0:g} %",
        "seconds": _seconds,
        "data_uri": lambda png: "data:image/png;base64," + base64.b64encode(png).decode(),
    }
    privacy = context.privacy
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    upper = float(privacy["epsilon"]["upper"])
    return environment.from_string(template).render(
        run=context,
        privacy=privacy,
        finite=math.isfinite(upper),
        factor=format_number(math.exp(upper), 5, ROUND_CEILING)
        if upper < 20.0
        else "e to the power of epsilon",
        one_in=round(1.0 / float(privacy["delta"])),
        neighbours=_NEIGHBOURS[privacy["relation"]].format(unit=privacy["unit"]),
        protected=_PROTECTED[privacy["relation"]].format(unit=privacy["unit"]),
        attacker=attacker(privacy),
        baselines=list(dict.fromkeys(name for metric in context.metrics for name in metric.baselines)),
    )


def format_number(value: Any, digits: int = 4, rounding: str = ROUND_HALF_EVEN) -> str:
    """Formats a number to some significant digits, bounds rounded to the safe side; other things as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        if value.removeprefix("-") != "inf":
            return value
        value = float(value)
    if value is None or value != value:
        return "–"
    if not isinstance(value, int | float):
        return (
            ", ".join(format_number(item) for item in value)
            if isinstance(value, list | tuple)
            else str(value)
        )
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int):
        return f"{value:,}"
    rounded = float(Context(prec=digits, rounding=rounding).create_decimal(repr(value)))
    return (
        f"{rounded:,.{digits}g}"
        if 1e-4 <= abs(rounded) < 10**digits or not rounded
        else _big_or_small(rounded, digits)
    )


def _big_or_small(value: float, digits: int) -> str:
    return f"{value:,.0f}" if 1.0 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def _seconds(value: float) -> str:
    if value < 60.0:
        return f"{value:.2g} s" if value < 10.0 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
