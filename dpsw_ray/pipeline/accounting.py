"""`dpsw account` in numbers: what a run, or any list of events, costs by each accountant."""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsw_ray.base.errors import UserError, named, shown
from dpsw_ray.base.numerals import EXAMPLES, plain_number
from dpsw_ray.config.file import read_values
from dpsw_ray.methods.registry import load_config
from dpsw_ray.pipeline.plan import planned, run_events
from dpsw_ray.privacy.accountants import Account, account, bound
from dpsw_ray.privacy.calibration import calibrate_noise
from dpsw_ray.privacy.events import Event, SlicedGaussianEvent, event_from_dict
from dpsw_ray.privacy.gaussian import AccountingError, check_delta
from dpsw_ray.privacy.literature import literature_figures
from dpsw_ray.privacy.relations import Relation, check_relation

__all__ = [
    "AccountRequest",
    "describe_account",
    "load_request",
    "privacy_figure",
    "sweep_delta",
    "sweep_epsilon",
]

_KEYS = ("relation", "delta", "events")
_TEXTS = ("kind", "label", "law", "noise", "unit", "assignment")
_CURVE = np.geomspace(1e-10, 1e-2, 17)


@dataclass(frozen=True)
class AccountRequest:
    """What to count: events under a relation at a delta."""

    name: str
    events: tuple[Event, ...]
    relation: Relation
    delta: float


def load_request(path: Path, overrides: Sequence[str] = ()) -> AccountRequest:
    """Reads a run's config, or a list of events with its relation and delta.

    Raises:
        UserError: a wrong key or value, in one sentence.
    """
    values, where, _ = read_values(path, overrides)
    if "events" not in values:
        config = load_config(path, overrides)
        plan, _ = planned(config)
        return AccountRequest(
            where, tuple(run_events(config, plan)), config.privacy.relation, config.privacy.delta
        )
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(key[:80], _KEYS, n=1)
            hint = f"did you mean {close[0]}" if close else f"a list of events has {', '.join(_KEYS)}"
            raise UserError(f"{where}: {named(key)} is an unknown key; {hint}.")
    events = values["events"]
    if not isinstance(events, list) or not events or not all(isinstance(event, dict) for event in events):
        raise UserError(
            f"{where}: events must be a list of at least one section with a kind, found {shown(events)}."
        )
    delta = _numbers(values.get("delta", 1e-5))
    if not isinstance(delta, int | float) or isinstance(delta, bool):
        raise UserError(f"{where}: delta must be a number between 0 and 1, found {shown(delta)}; {EXAMPLES}.")
    delta = check_delta(float(delta))
    relation = check_relation(str(values.get("relation", "replace_one")))
    parsed = []
    for number, event in enumerate(events, 1):
        try:
            parsed.append(event_from_dict({"label": str(event.get("kind")), **_numbers(event)}))
        except UserError as error:
            raise UserError(f"{where}: event {number}: {error}") from None
    return AccountRequest(where, tuple(parsed), relation, delta)


def _numbers(value: Any) -> Any:
    """YAML reads `1e3` (no dot) as text; people write it all the time."""
    if isinstance(value, dict):
        return {key: item if key in _TEXTS else _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    number = plain_number(value) if isinstance(value, str) else None
    return value if number is None else number


def describe_account(request: AccountRequest) -> dict[str, Any]:
    """The account in plain values: events, mu, epsilon by each accountant with the time it took."""
    spent = account(request.events, request.relation, request.delta)
    claimed = {**spent.epsilon.to_dict(), "seconds": spent.seconds[spent.accountant]}
    by_accountant: dict[str, Any] = {spent.accountant: claimed}
    for name, check in spent.checks.items():
        by_accountant[name] = (
            check if isinstance(check, str) else {**check.to_dict(), "seconds": spent.seconds[name]}
        )
    described: dict[str, Any] = {
        "relation": spent.relation,
        "unit": spent.unit,
        "delta": spent.delta,
        "events": [event.to_dict() for event in spent.events],
        "mu": "no Gaussian mechanism" if spent.mu is None else spent.mu,
        "epsilon": spent.epsilon.to_dict(),
        "accountant": spent.accountant,
        "by accountant": by_accountant,
    }
    if literature := _literature(request):
        described["literature, for comparison"] = literature
    return described


def _literature(request: AccountRequest) -> dict[str, Any]:
    if len(request.events) != 1:
        return {}
    (event,) = request.events
    if not isinstance(event, SlicedGaussianEvent) or event.law != "iid" or event.noise_std == 0:
        return {}
    return {
        figure.name: {"epsilon": figure.epsilon, "worth": figure.remark}
        for figure in literature_figures(event, request.relation, request.delta)
    }


def sweep_delta(request: AccountRequest, deltas: Sequence[float]) -> list[dict[str, Any]]:
    """Epsilon at each delta, the noise as it is.

    Raises:
        UserError: a delta outside (0, 1).
        AccountingError: no accountant has a figure at one of them.
    """
    rows = []
    for delta in deltas:
        found = bound(request.events, request.relation, check_delta(delta))
        rows.append({"delta": delta, **found.epsilon.to_dict(), "accountant": found.accountant})
    return rows


def sweep_epsilon(request: AccountRequest, epsilons: Sequence[float]) -> list[dict[str, Any]]:
    """The noise each epsilon takes: every noise of the list times one level, the smallest that meets the target.

    Raises:
        UserError: an epsilon that is not positive and finite, or a list without any noise to scale.
        AccountingError: no level meets the target.
    """
    if all(event.scaled(2.0) == event for event in request.events):
        raise UserError(f"{request.name} has no noise to scale: give its events a noise_std above 0.")
    rows = []
    for epsilon in epsilons:
        if not 0 < epsilon < math.inf:
            raise UserError(f"--epsilon takes positive finite numbers, found {shown(epsilon)}.")
        level = calibrate_noise(
            lambda level: [event.scaled(level) for event in request.events],
            request.relation,
            epsilon,
            request.delta,
        )
        events = [event.scaled(level) for event in request.events]
        found = bound(events, request.relation, request.delta)
        rows.append(
            {
                "epsilon": epsilon,
                "noise level": level,
                "noise": [_noise(event) for event in events],
                **found.epsilon.to_dict(),
                "accountant": found.accountant,
            }
        )
    return rows


def _noise(event: Event) -> Any:
    values = event.to_dict()
    for name in ("noise_std", "noise_multiplier", "variance"):
        if name in values:
            return values[name]
    return [_noise(part) for part in getattr(event, "parts", ())]


def privacy_figure(request: AccountRequest, spent: Account | None = None) -> bytes:
    """The privacy curve as a PNG: epsilon against delta by each accountant, the literature's figures beside it."""
    from matplotlib.figure import Figure

    from dpsw_ray.privacy.accountants import ACCOUNTANTS

    figure = Figure(figsize=(7.0, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    styles = iter(("-", "--", ":", "-."))
    for accountant in ACCOUNTANTS:
        points = []
        for delta in _CURVE:
            try:
                points.append(
                    accountant.epsilon(request.events, relation=request.relation, delta=float(delta)).upper
                )
            except AccountingError:
                points.append(math.nan)
        style = next(styles)
        if np.isfinite(points).any():
            axes.plot(_CURVE, points, style, linewidth=1.8, label=accountant.name)
    for name, figures in _literature_curves(request).items():
        axes.plot(_CURVE, figures, color="0.6", linewidth=1.0, linestyle=(0, (1, 3)))
        axes.annotate(name, (_CURVE[0], figures[0]), fontsize=7, color="0.4", va="bottom")
    axes.axvline(request.delta, color="0.85", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("delta")
    axes.set_ylabel("epsilon, upper bound")
    axes.set_title(f"Privacy curve, {request.relation}", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _literature_curves(request: AccountRequest) -> dict[str, list[float]]:
    curves: dict[str, list[float]] = {}
    for delta in _CURVE:
        for name, values in _literature(dataclasses.replace(request, delta=float(delta))).items():
            curves.setdefault(name, []).append(values["epsilon"])
    return curves
