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

from dpsw_ray.base.rounding import format_number

__all__ = ["REFERENCES", "EncoderSection", "Metric", "ReportContext", "ReportSection", "render_report"]

REFERENCES: Mapping[str, str] = {
    "ceiling": "real records through the encoder and back, as many as there are samples or all. With this encoder, a "
    "release that told the latents' law exactly would end about there. Public records, those held out of the "
    "encoder's training first (fewer than samples: distances come out somewhat larger); where a classifier that "
    "was trained on them judges, test records.",
    "random latents": "decoded random points, with labels in the public part's shares: nothing was learnt.",
    "real records": "the same records as for the ceiling, as they are: for models, what is reached by training on "
    "public records.",
}
"""What the runs' baselines are, by name, in the order they are shown."""


@dataclass(frozen=True)
class Metric:
    """One line of the metrics table.

    Args:
        name: as in the literature.
        value: of this run.
        baselines: name -> the same figure of something to compare with.
        explanation: one sentence: what is measured, on which records.
        better: which way is better, if one is.
        parts: what a mean is taken over, such as a table's columns -> `this run` and the baselines' names -> figure.
    """

    name: str
    value: float
    baselines: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""
    better: Literal["lower", "higher"] | None = None
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


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
        more_png: further pictures, below it.
    """

    title: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    table: Sequence[Mapping[str, Any]] = ()
    picture_png: bytes | None = None
    more_png: Sequence[bytes] = ()


@dataclass(frozen=True)
class ReportContext:
    """All that the page shows; nothing in it may come from private records but through the release.

    Args:
        name: the run's.
        publishable: False puts a banner on top.
        reasons: why it must not be published; sentences.
        privacy: what `privacy.json` holds: epsilon {lower, estimate, upper}, delta, relation, unit, events,
            accountant, mu, checks, statement, and (optional) ledger {name, total_epsilon, charges} with
            (optional) the date that these are from.
        metrics: the table's lines.
        samples_png: samples by class.
        slices_png: released slices and what the particles made of them.
        curve_png: convergence of the flow.
        film: the particles' path, or None.
        timings: phase -> seconds.
        release: facts about the release, name -> value.
        config_yaml: the resolved config.
        versions: library -> version.
        created: when, as text.
        encoder: the encoder's training, or None where nothing was trained.
        sections: what only some runs have to show.
        mechanism: what was released, in a sentence.
        unprotected: records by part that nothing protects, or None where that is not known.
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
    film: ReportSection | None = None
    unprotected: Mapping[str, int] | None = None
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
    baselines = list(dict.fromkeys(name for metric in context.metrics for name in metric.baselines))
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        run=context,
        privacy=privacy,
        finite=math.isfinite(float(privacy["epsilon"]["upper"])),
        one_in=round(1.0 / float(privacy["delta"])),
        baselines=baselines,
        references={name: REFERENCES[name] for name in baselines if name in REFERENCES},
    )


def _seconds(value: float) -> str:
    if value < 60.0:
        return f"{value:.2g} s" if value < 10.0 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
