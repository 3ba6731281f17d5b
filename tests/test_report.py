from __future__ import annotations

import base64
import dataclasses
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from dpsw_ray.evaluation.report import EncoderSection, Metric, ReportContext, render_report
from dpsw_ray.privacy.statement import RunFacts, state

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ACCOUNT: dict[str, Any] = {
    "epsilon": {"lower": 0.99991234, "estimate": 0.99995, "upper": 0.99999123},
    "delta": 1e-5,
    "relation": "replace_one",
    "unit": "record",
    "events": [
        {"kind": "sliced_histogram", "label": "sliced histograms", "directions": 128, "noise_std": 81.25}
    ],
    "accountant": "analytic Gaussian",
    "mu": 0.2681,
    "checks": {
        "PRV": {"lower": 0.991, "estimate": 0.996, "upper": 1.0041},
        "PLD": "not available: too many buckets.",
        "RDP": {"lower": 0.0, "estimate": 1.2, "upper": 1.2},
    },
}
FACTS = RunFacts(
    "digits", reproducible_noise=False, research=False, ledger="digits", total_epsilon=2.71, charges=3
)


def stated(account: dict[str, Any] = ACCOUNT, **facts: Any) -> dict[str, Any]:
    told = dataclasses.replace(FACTS, **facts)
    return account | {
        "statement": state(account, told).to_dict(),
        "ledger": {"name": told.ledger, "total_epsilon": told.total_epsilon, "charges": told.charges},
    }


CONTEXT = ReportContext(
    name="digits",
    publishable=True,
    reasons=(),
    privacy=stated(),
    metrics=[
        Metric("SW2", 0.01234567, {"no noise": 0.009}, "Sliced distance to the test records.", "lower"),
        Metric("Accuracy", 0.773, {"real data": 0.889}, "A CNN trained on samples.", "higher"),
    ],
    samples_png=PNG,
    slices_png=PNG,
    curve_png=None,
    timings={"encoder": 83.0, "flow": 0.61},
    release={"directions": 128, "bins": 32, "haar": True},
    config_yaml="name: digits\nprivacy:\n  epsilon: 1.0\n",
    versions={"numpy": "2.2.1"},
    created="2026-01-01 12:00 UTC",
    mechanism="Histograms with noise.",
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.classes: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [
            values[name] or "" for name in ("src", "href", "srcset", "data", "action") if name in values
        ]
        self.classes += (values.get("class") or "").split()
        assert tag not in ("script", "link", "iframe")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def page(**changes: Any) -> Page:
    return Page(render_report(dataclasses.replace(CONTEXT, **changes)))


def test_the_page_is_self_contained() -> None:
    html = render_report(CONTEXT)
    assert not re.search(r"(https?:)?//[a-z]", html) and "url(" not in html and "@import" not in html
    sources = Page(html).sources
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert base64.b64decode(sources[0].partition(",")[2]) == PNG


def test_the_page_holds_the_numbers() -> None:
    text = page().text
    for part in (
        "between 0.99991 and 1.",
        "1 in 100,000",
        "analytic Gaussian",
        "between 0.991 and 1.0041",
        "noise std 81.25",
        "too many buckets",
        "2.71",
        "0.01235",
        "no noise",
        "A CNN trained on samples. Higher is better.",
        "1 min 23 s",
        "0.61 s",
        "2.2.1",
        "epsilon: 1.0",
    ):
        assert part in text, part


def test_bounds_are_rounded_to_the_safe_side() -> None:
    wide = ACCOUNT | {"epsilon": {"lower": 1.23456789, "estimate": 2.0, "upper": 3.00001}}
    shown = page(privacy=stated(wide, total_epsilon=4.00001))
    assert "between 1.2345 and 3.0001." in shown.text
    assert "epsilon, at most3.0001" in shown.text and "spent in total4.0001" in shown.text


def test_every_sentence_of_the_statement_is_shown() -> None:
    text = page().text
    for sentences in stated()["statement"].values():
        assert sentences
        for sentence in sentences:
            assert sentence in text, sentence


@pytest.mark.parametrize("publishable", [True, False])
def test_the_banner_is_there_exactly_when_it_must_be(publishable: bool) -> None:
    shown = page(
        publishable=publishable,
        reasons=() if publishable else ("The noise can be computed again.",),
        privacy=stated(reproducible_noise=not publishable),
    )
    assert ("banner" in shown.classes) is not publishable
    for text in ("must NOT be published", "The noise can be computed again.", "Nothing is promised"):
        assert (text in shown.text) is not publishable
    if not publishable:
        lines = [line for line in shown.text.splitlines() if line.strip()]
        assert "must NOT be published" in "".join(lines[:2])


def test_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    html = render_report(
        dataclasses.replace(
            CONTEXT,
            name=evil,
            config_yaml=evil,
            metrics=[Metric(evil, 1.0, {evil: 2.0}, evil)],
            privacy=stated(dataset=evil, ledger=evil),
        )
    )
    assert "<script" not in html and "&lt;script&gt;" in html


def test_a_run_without_noise_says_so() -> None:
    for infinite in (math.inf, "inf"):
        account = ACCOUNT | {
            "epsilon": dict.fromkeys(("lower", "estimate", "upper"), infinite),
            "mu": infinite,
        }
        text = page(
            privacy=stated(account) | {"ledger": None}, publishable=False, reasons=("No noise.",)
        ).text
        assert "no privacy" in text and "epsilon is infinite" in text and "∞" in text
        assert "Against" not in text and "noise added" not in text


def test_the_encoder_is_shown_where_one_was_trained() -> None:
    section = EncoderSection({"epochs trained": 17}, PNG, PNG, "The first records of the test part")
    shown = page(encoder=section)
    assert "Encoder" in shown.text and "epochs trained17" in shown.text
    assert "The first records of the test part, in the order they came" in shown.text
    assert len(shown.sources) == len(page().sources) + 2
    table = page(encoder=dataclasses.replace(section, reconstructions_png=None))
    assert "Reconstructions" not in table.text and len(table.sources) == len(page().sources) + 1
    assert "Trained on public records only" not in page().text


def test_an_empty_report_still_renders() -> None:
    shown = page(metrics=[], samples_png=None, slices_png=None, timings={}, release={}, versions={})
    assert "Metrics" not in shown.text and "Samples" not in shown.text
