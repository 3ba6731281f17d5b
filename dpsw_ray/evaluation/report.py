"""The report of one run: a single HTML page that needs nothing else, for people who did not run it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING
from importlib import resources
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined

from dpsw_ray.rounding import format_number

__all__ = ["EncoderSection", "Metric", "ReportContext", "ReportSection", "render_report"]


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
class EncoderSection:
    """What the page shows of a trained encoder.

    Args:
        facts: name -> value.
        losses_png: training and hold-out loss by epoch.
        reconstructions_png: records above what is decoded from their latents, or None for tables.
        records: whose reconstructions these are, in words; never private records.
    """

    facts: Mapping[str, Any]
    losses_png: bytes
    reconstructions_png: bytes | None
    records: str


@dataclass(frozen=True)
class ReportSection:
    """A section that only some runs have.

    Args:
        title: its heading.
        text: what it shows, in a sentence.
        facts: name -> value.
        table: rows under a heading each, all of the same keys.
        picture_png: or None.
    """

    title: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    table: Sequence[Mapping[str, Any]] = ()
    picture_png: bytes | None = None


@dataclass(frozen=True)
class ReportContext:
    """All that the page shows; nothing in it may come from private records but through the release.

    Args:
        name: the run's.
        publishable: False puts a banner on top.
        reasons: why it must not be published; sentences.
        privacy: what `privacy.json` holds: epsilon {lower, estimate, upper}, delta, relation, unit, events,
            accountant, mu, checks, statement, and (optional) ledger {name, total_epsilon, charges}.
        metrics: the table's lines.
        samples_png: samples by class.
        slices_png: released slices and what the particles made of them.
        curve_png: convergence of the flow.
        timings: phase -> seconds.
        release: facts about the release, name -> value.
        config_yaml: the resolved config.
        versions: library -> version.
        created: when, as text.
        encoder: the encoder's training, or None where nothing was trained.
        sections: what only some runs have to show.
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
    mechanism: str
    encoder: EncoderSection | None = None
    sections: Sequence[ReportSection] = ()


def render_report(context: ReportContext) -> str:
    """Returns the page: inline style, embedded pictures, no script, no address it would load from."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": format_number,
        "at_most": lambda value: format_number(value, 5, ROUND_CEILING),
        "seconds": _seconds,
        "data_uri": lambda png: "data:image/png;base64," + base64.b64encode(png).decode(),
    }
    privacy = context.privacy
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        run=context,
        privacy=privacy,
        finite=math.isfinite(float(privacy["epsilon"]["upper"])),
        one_in=round(1.0 / float(privacy["delta"])),
        baselines=list(dict.fromkeys(name for metric in context.metrics for name in metric.baselines)),
    )


def _seconds(value: float) -> str:
    if value < 60.0:
        return f"{value:.2g} s" if value < 10.0 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
