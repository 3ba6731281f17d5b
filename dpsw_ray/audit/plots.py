"""Attacks against promises, as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import ndtri

from dpsw_ray.audit.result import AuditResult

__all__ = ["audit_figure"]

PROMISED, ATTACK, PROVEN = "#1f4e79", "#d9822b", "#b22222"
_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_FPR = np.concatenate(
    [np.geomspace(1e-6, 0.02, 60), np.linspace(0.021, 0.98, 120), 1 - np.geomspace(0.02, 1e-4, 30)]
)


def audit_figure(results: Sequence[AuditResult]) -> bytes:
    """One audit: its trade-off curve on logarithmic axes, and mu at every rate. Several: the latter for each.

    Bands are Clopper-Pearson bounds of each rate, point by point, at the audit's confidence. The proof is the one
    point marked; the curve around it shows how the attack does elsewhere.
    """
    if len(results) == 1:
        figure = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
        left, right = figure.subplots(1, 2)
        _rates(left, results[0])
        _mus(right, results[0])
        left.legend(fontsize=8, loc="lower left")
        figure.suptitle(
            f"{results[0].name} ({results[0].relation}, {results[0].found.runs:,} runs of each world)"
        )
    else:
        columns = min(4, len(results))
        rows = -(-len(results) // columns)
        figure = Figure(figsize=(3.3 * columns, 2.7 * rows), dpi=100, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, result in zip(panels, results, strict=False):
            _mus(axes, result)
            axes.set_title(result.name + (" FALSE" if result.refuted else ""), fontsize=9)
        for axes in panels[len(results) :]:
            axes.set_axis_off()
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _rates(axes: Axes, result: AuditResult) -> None:
    curve = result.found.curve
    (fpr, fnr), (fpr_low, fnr_low), (fpr_high, fnr_high) = curve.rates, curve.lower, curve.upper
    floor = 1 / curve.runs  # below it the runs say nothing
    promised = np.maximum(result.claim.trade_off(_FPR), floor)
    axes.fill_between(
        _FPR, floor, promised, color=PROMISED, alpha=0.12, lw=0, label="promised: no attack gets here"
    )
    axes.plot(_FPR, promised, color=PROMISED)
    axes.fill(
        np.concatenate([fpr_low, fpr_high[::-1]]).clip(floor), np.concatenate([fnr_low, fnr_high[::-1]]).clip(floor),
        color=ATTACK, alpha=0.3, lw=0,
    )  # fmt: skip
    axes.plot(fpr.clip(floor), fnr.clip(floor), color=ATTACK, label="the attack, with its confidence band")
    axes.plot(result.found.fpr_upper, result.found.fnr_upper, "o", color=PROVEN, ms=5, label="what is proven")
    axes.set(
        xscale="log", yscale="log", xlim=(floor, 1.1), ylim=(floor, 1.1),
        xlabel="false positive rate", ylabel="false negative rate",
    )  # fmt: skip


def _mus(axes: Axes, result: AuditResult) -> None:
    curve, group = result.found.curve, result.group
    (fpr, fnr), (fpr_low, fnr_low), (fpr_high, fnr_high) = curve.rates, curve.lower, curve.upper
    with np.errstate(divide="ignore", invalid="ignore"):
        seen, low, high = (
            -ndtri(a) - ndtri(b) for a, b in ((fpr, fnr), (fpr_high, fnr_high), (fpr_low, fnr_low))
        )
        promised = result.claim.mu_at(_FPR)
    # Where a rate is a handful of errors its mu is noise: the band says so, the line would not.
    shown = (
        (np.minimum(curve.false_positives, curve.false_negatives) > 1) & np.isfinite(low) & np.isfinite(high)
    )
    axes.plot(_FPR, promised / group, color=PROMISED, label="promised: at most")
    axes.fill_between(fpr[shown], low[shown] / group, high[shown] / group, color=ATTACK, alpha=0.3, lw=0)
    axes.plot(fpr[shown], seen[shown] / group, color=ATTACK, label="the attack, with its confidence band")
    axes.plot(
        result.found.fpr_upper, result.mu_lower, "o", color=PROVEN, ms=5, label="what is proven: at least"
    )
    top = max(result.claimed_mu if math.isfinite(result.claimed_mu) else 0.0, result.mu_lower)
    axes.set(
        xscale="logit", xlim=(1e-3, 0.999), ylim=(0, 2 * top or 1), xlabel="false positive rate", ylabel="mu"
    )
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS], fontsize=7)
    axes.set_xticks([], minor=True)
