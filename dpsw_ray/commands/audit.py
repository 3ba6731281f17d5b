"""`dpsw audit`: attacks on mechanisms and on whole pipelines, held against what is claimed."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpsw_ray.base.errors import UserError, named
from dpsw_ray.base.paths import path_mistake
from dpsw_ray.commands.options import JsonOption, QuietOption, SetOption, place, real, whole
from dpsw_ray.config.fields import MOST_SEED
from dpsw_ray.config.file import shipped_config

if TYPE_CHECKING:
    from dpsw_ray.audit.result import AuditResult
    from dpsw_ray.base.progress import Progress

__all__ = ["audit"]

_EPSILON, _DELTA = 1.0, 1e-5


def audit(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MECHANISM|CONFIG|all", help="a mechanism's name, all of them, or a run's config"
        ),
    ],
    runs: Annotated[
        int | None, typer.Option(parser=whole(20, 10**8), help="runs of each of the two worlds")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(parser=real, help="mechanisms: what the noise is calibrated to; default 1"),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(parser=real, help="mechanisms: at which epsilon holds; default 1e-5")
    ] = None,
    relation: Annotated[
        str | None, typer.Option(help="mechanisms: replace_one, zero_out or add_remove")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(parser=whole(0, MOST_SEED), help="mechanisms: repeat the same audit")
    ] = None,
    canaries: Annotated[
        int | None, typer.Option(parser=whole(1, 10**9), help="configs: records the two worlds differ in")
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer reads it)
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", parser=place, help="the PNG file to draw the attacks in"),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Attack a mechanism, all of them, or a whole pipeline, and hold what is proven against what is claimed.

    Exit code 0 where no claim is contradicted, 1 where one is false at 99.99 % confidence, of all audits together.
    """
    from dpsw_ray.audit.mechanisms import MECHANISMS
    from dpsw_ray.base.progress import Progress
    from dpsw_ray.pipeline.destination import out_file

    if plot is not None:
        plot = out_file("--plot", plot, (".png",))
    progress = Progress(quiet=quiet or as_json)
    names = list(MECHANISMS) if target == "all" else [target] if target in MECHANISMS else []
    if names:
        _refuse(
            {"--canaries": canaries, "--set": set_ or None}, f"is for configs, and {target} names mechanisms"
        )
        results = _mechanisms(
            names, runs, _or(epsilon, _EPSILON), _or(delta, _DELTA), relation, seed, progress
        )
    elif _is_config(target):
        own = {"--epsilon": epsilon, "--delta": delta, "--relation": relation}
        _refuse(own, f"is for mechanisms: {target} has a key for it, such as --set privacy.epsilon=1")
        _refuse({"--seed": seed}, "is for mechanisms: the noise of a pipeline comes from fresh keys")
        results = [_pipeline(target, set_, runs, canaries, progress)]
    else:
        raise UserError(
            f"{named(target)} is neither a mechanism nor a config: the mechanisms are all, {', '.join(MECHANISMS)}; a "
            "config is a YAML file or the name of a shipped one."
        )
    _show(results, as_json, quiet)
    if plot is not None:
        from dpsw_ray.audit.plots import audit_figure
        from dpsw_ray.base.files import write_bytes

        write_bytes(plot, audit_figure(results))
        progress.say(f"Picture: {plot}")
    if any(result.refuted for result in results):
        sys.exit(1)


def _mechanisms(
    names: Sequence[str],
    runs: int | None,
    epsilon: float,
    delta: float,
    relation: str | None,
    seed: int | None,
    progress: Progress,
) -> list[AuditResult]:
    from dpsw_ray.audit.bounds import CONFIDENCE, shared_confidence
    from dpsw_ray.audit.mechanisms import MECHANISMS
    from dpsw_ray.audit.result import audit as audit_attack
    from dpsw_ray.privacy.gaussian import check_delta
    from dpsw_ray.privacy.relations import check_relation

    if not 0 < epsilon < math.inf:
        raise UserError(
            f"--epsilon must be positive and finite, found {epsilon}: nothing else is a claim to audit."
        )
    check_delta(delta)
    wanted = None if relation is None else check_relation(relation)
    chosen = [name for name in names if wanted in (None, *MECHANISMS[name].relations)]
    if not chosen:
        known = ", ".join(MECHANISMS[names[0]].relations)
        raise UserError(f"{names[0]} has no meaning under relation {wanted}: use {known}.")
    confidence, results = shared_confidence(CONFIDENCE, len(chosen)), []
    with progress.task("Attacking", len(chosen)) as task:
        for name in chosen:
            mechanism = MECHANISMS[name]
            attack = mechanism.calibrated(wanted or mechanism.relations[0], epsilon, delta)
            results.append(audit_attack(attack, runs or mechanism.runs, confidence, delta, seed))
            task.advance(1, name)
    return results


def _pipeline(
    target: str, overrides: Sequence[str], runs: int | None, canaries: int | None, progress: Progress
) -> AuditResult:
    from dpsw_ray.audit.bounds import CONFIDENCE
    from dpsw_ray.audit.pipeline import RUNS, audit_pipeline
    from dpsw_ray.methods.registry import load_config

    config = load_config(target, overrides)
    return audit_pipeline(
        config, confidence=CONFIDENCE, runs=runs or RUNS, canaries=canaries, progress=progress
    )


def _is_config(target: str) -> bool:
    if target.endswith((".yaml", ".yml")) or shipped_config(Path(target)):
        return True
    return path_mistake(target) is None and Path(target).expanduser().exists()


def _refuse(options: Mapping[str, object], why: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{name} {why}.")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _show(results: Sequence[AuditResult], as_json: bool, quiet: bool) -> None:
    from dpsw_ray.audit.bounds import CONFIDENCE

    if as_json:
        from dpsw_ray.base.files import to_json

        refuted = any(result.refuted for result in results)
        print(to_json({"refuted": refuted, "audits": [result.to_dict() for result in results]}))
    elif not quiet:
        print(_table(results))
        if len(results) > 1:
            print(f"Confidence {100 * CONFIDENCE:g} %, of all {len(results)} audits together.")
    if not as_json:
        for result in results:
            if result.refuted or (len(results) == 1 and not quiet):
                print(result.sentence)


def _table(results: Sequence[AuditResult]) -> str:
    from dpsw_ray.base.rounding import format_number

    def low(value: float) -> str:
        return format_number(value, 4, ROUND_FLOOR)

    def high(value: float) -> str:
        return format_number(value, 4, ROUND_CEILING)

    heads = (
        "",
        "relation",
        "runs",
        "claimed mu",
        "mu at least",
        "claimed epsilon",
        "epsilon at least",
        "verdict",
    )
    rows = [
        (
            result.name, result.relation, f"2 x {result.found.runs:,}", high(result.claimed_mu), low(result.mu_lower),
            high(result.epsilon), low(result.epsilon_lower), "FALSE" if result.refuted else "stands",
        )
        for result in results
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (heads, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
