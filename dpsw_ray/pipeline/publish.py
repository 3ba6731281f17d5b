"""What a run leaves behind: files, report, MLflow. Everything here comes from the release and from public records."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpsw_ray.base.files import write_bytes, write_manifest, write_text
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data.split import Dataset, DatasetInfo
from dpsw_ray.encoders import Encoder
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.report import ReportContext, ReportSection, render_report
from dpsw_ray.methods.registry import method_of
from dpsw_ray.pipeline.exhibits import (
    Results,
    components,
    encoder_exhibit,
    neighbours,
    samples_png,
    tables,
)
from dpsw_ray.pipeline.plan import charged_events, ledger_account
from dpsw_ray.pipeline.samples import write_particles, write_samples
from dpsw_ray.pipeline.tracking import Tracker
from dpsw_ray.privacy.accountants import account
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.statement import RunFacts, state
from dpsw_ray.release.moments import MomentsPlan
from dpsw_ray.release.place import weakest
from dpsw_ray.release.plan import Plan
from dpsw_ray.release.released import Released

__all__ = ["Results", "moments_manifest", "publish", "release_manifest", "show"]

_PRIVATE_ENCODER = (
    "First, noisy moments of the private records in a public basis, from which the encoder is computed; then what is "
    "released of its latents. "
)


def release_manifest(
    config: RunConfig, plan: Plan, info: DatasetInfo, encoder: Encoder, ledger: Ledger | None
) -> dict[str, Any]:
    """What a stored release says of itself beside its layout; `ledger` is None where it is not charged by itself."""
    p = config.privacy
    entry = None if ledger is None else ledger.find_charge(plan.release_id)
    method = method_of(config)
    classes = list(info.classes) if method.labelled(config) else []
    return {
        "release_id": plan.release_id,
        "method": config.method,
        "data": config.data.account,
        # Of the whole run: where the encoder is private too, no figure of the release alone is anybody's promise.
        "privacy": account([*charged_events(encoder, ledger), plan.event], p.relation, p.delta).to_dict(),
        "publishable": p.publishable,
        "reproducible_noise": p.noise_seed is not None,
        "ledger": {"account": ledger_account(config), "entry": entry.entry_hash if entry else None},
        **method.told(config, plan),
        "classes": classes,
        "class_names": list(info.class_names or info.classes) if classes else [],
        "private_records": info.private_count,
        "sphere": encoder.sphere,
        "encoder": dict(encoder.source),
        **_columns(info),
        "versions": _versions(),
        "created": _today(),
    }


def moments_manifest(
    config: RunConfig, plan: MomentsPlan, info: DatasetInfo, ledger: Ledger
) -> dict[str, Any]:
    """What the stored moments of a private encoder say of themselves beside their layout."""
    p, entry = config.privacy, ledger.find_charge(plan.release_id)
    return {
        "release_id": plan.release_id,
        "method": "DP-PCA",
        "data": config.data.account,
        "privacy": account([plan.event], p.relation, p.delta).to_dict(),
        "publishable": p.publishable,
        "reproducible_noise": p.noise_seed is not None,
        "ledger": {"account": ledger_account(config), "entry": entry.entry_hash if entry else None},
        "private_records": info.private_count,
        "versions": _versions(),
        "created": _today(),
    }


def _columns(info: DatasetInfo) -> dict[str, Any]:
    """What samples of a table are brought back to, from its public part; nothing for images."""
    if info.schema.kind != "table":
        return {}
    return {"columns": Columns.of(info.schema, Dataset(info).public().values).to_list()}


def publish(results: Results, folder: Path, ledger: Ledger, tracker: Tracker) -> dict[str, Any]:
    """Writes the run's files and records them in MLflow; returns what `privacy.json` holds."""
    privacy = _privacy(results, folder, ledger)
    write_manifest(folder / "privacy.json", privacy)
    write_particles(folder / "particles.arrow", results.points.particles, results.points.labels)
    schema, classes = results.encoder.schema, results.release.manifest["classes"]
    write_samples(
        folder / "samples.parquet", *results.samples, schema, classes, results.columns.whole,
        results.config.data.label,
    )  # fmt: skip
    show(results, privacy, folder, tracker)
    return privacy


def _privacy(results: Results, folder: Path, ledger: Ledger) -> dict[str, Any]:
    """What `privacy.json` holds."""
    config, release = results.config, results.release
    total = ledger.total(ledger_account(config))
    facts = RunFacts(
        dataset=config.account,
        reproducible_noise=config.privacy.noise_seed is not None,
        research=config.privacy.research,
        ledger=total.dataset.name,
        total_epsilon=total.epsilon.upper,
        charges=total.charges,
        trust=results.told.trust,
        computed_in=_computed_in(results, folder),
        uncounted=_uncounted(release),
        simulated=results.told.simulated,
        public_records=results.info.public_count,
        test_records=results.info.test_count,
    )
    return {
        **release.manifest["privacy"],
        "publishable": release.manifest["publishable"],
        "warnings": _warnings(config, release),
        "statement": state(release.manifest["privacy"], facts).to_dict(),
        "ledger": {
            "name": total.dataset.name,
            "total_epsilon": total.epsilon.upper,
            "charges": total.charges,
            "accountant": total.accountant,
            "date": facts.date,
            "entry": release.manifest["ledger"]["entry"],
        },
    }


def _computed_in(results: Results, folder: Path) -> str:
    """Where the run's releases were made, whichever attempt made them: the moments of a private encoder are one."""
    places = [results.release.manifest.get("computed_in")]
    if results.config.encoder.kind == "dp_pca":
        moments = json.loads((folder / "release" / "encoder" / "manifest.json").read_text())
        places.append(moments.get("computed_in"))
    return weakest(places)


def show(results: Results, privacy: Mapping[str, Any], folder: Path, tracker: Tracker) -> None:
    """Writes what is seen of a run: pictures, `metrics.json` and the report; records them in MLflow.

    Args:
        results: of the run.
        privacy: what `privacy.json` holds.
        folder: the run's.
        tracker: of MLflow.
    """
    config, method = results.config, method_of(results.config)
    shown = method.exhibits(results)
    strip, moving = _film_pictures(shown.film)
    pictures = {"samples.png": samples_png(results), "film.png": strip, "film.apng": moving}
    for name, png in pictures.items():
        if png is not None:
            write_bytes(folder / name, png)
    encoder_section = encoder_exhibit(results)
    write_manifest(folder / "metrics.json", _figures(results), ["particles.arrow", "samples.parquet"])
    context = ReportContext(
        name=config.name,
        publishable=privacy["publishable"],
        reasons=privacy["warnings"],
        privacy=privacy,
        metrics=results.metrics,
        samples_png=pictures["samples.png"],
        slices_png=shown.slices_png,
        curve_png=shown.curve_png,
        timings=results.timings,
        release={"method": config.method, **shown.facts},
        config_yaml=config.to_yaml(),
        versions=_versions(),
        created=_now(),
        mechanism=(_PRIVATE_ENCODER if config.encoder.kind == "dp_pca" else "")
        + (results.told.mechanism or method.statement(config)),
        encoder=encoder_section,
        unprotected=results.info.unprotected,
        film=shown.film,
        sections=[
            *shown.sections,
            *tables(results),
            *results.told.sections,
            *components(results),
            *neighbours(results),
        ],
    )
    write_text(folder / "report.html", render_report(context))

    tracker.metrics({"epsilon": float(privacy["epsilon"]["upper"]), "delta": float(privacy["delta"])})
    tracker.metrics({metric.name: metric.value for metric in results.metrics})
    tracker.metrics(
        {
            f"{metric.name}/{name}": value
            for metric in results.metrics
            for name, value in metric.baselines.items()
        }
    )
    tracker.metrics({f"seconds/{phase}": seconds for phase, seconds in results.timings.items()})
    tracker.step_metrics({name: list(enumerate(values)) for name, values in shown.curves.items()})
    tracker.step_metrics(
        {
            f"encoder/{name}": [(i + 1, epoch[name]) for i, epoch in enumerate(results.encoder.history)]
            for name in ("train_loss", "holdout_loss")
        }
    )
    tracker.tags({"publishable": privacy["publishable"], "relation": privacy["relation"], "folder": folder})
    for name in ("privacy.json", "metrics.json", "report.html", "config.yaml", *pictures):
        if (folder / name).exists():
            tracker.artifact(folder / name)
    tracker.artifact(folder / "release" / "manifest.json", "release")
    for name, png in (("slices", shown.slices_png), ("convergence", shown.curve_png)):
        if png is not None:
            tracker.figure(name, png)
    if encoder_section is not None:
        tracker.figure("encoder losses", encoder_section.losses_png)
        if encoder_section.reconstructions_png is not None:
            tracker.figure("reconstructions", encoder_section.reconstructions_png)


def _film_pictures(film: ReportSection | None) -> tuple[bytes | None, bytes | None]:
    """The strip, and the moving picture."""
    if film is None:
        return None, None
    return film.picture_png, next(iter(film.more_png), None)


def _figures(results: Results) -> dict[str, Any]:
    """What `metrics.json` holds."""
    points = results.points
    figures = {
        metric.name: {
            "value": metric.value,
            "baselines": dict(metric.baselines),
            "explanation": metric.explanation,
            **(
                {"parts": {name: dict(values) for name, values in metric.parts.items()}}
                if metric.parts
                else {}
            ),
        }
        for metric in results.metrics
    }
    flow_facts = {"steps": len(points.distances), "stopped": points.stopped, "distances": points.distances}
    return {"metrics": figures, "flow": flow_facts, "seconds": results.timings}


def _uncounted(release: Released[Any]) -> bool:
    """Whether the release was chosen among several in a sweep that did not count the choice."""
    return bool(release.manifest.get("selection") == "nonprivate")


def _warnings(config: RunConfig, release: Released[Any]) -> list[str]:
    p, found = config.privacy, []
    if _uncounted(release):
        found.append(
            "The release was chosen among several by looking at all of them, which was not counted: epsilon is "
            "infinite."
        )
    if p.epsilon == float("inf"):
        found.append("privacy.epsilon is infinite: no noise was added, and there is no privacy.")
    if p.noise_seed is not None:
        found.append("privacy.noise_seed is set: whoever knows the seed can take the noise away again.")
    if p.research:
        found.append(
            "privacy.research is set: the release was charged to a research account, not to the data set's own."
        )
    return found


def _versions() -> dict[str, str]:
    names = ("dpsw-ray", "numpy", "torch", "ray", "numba", "prv-accountant", "mlflow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _today() -> str:
    """Not the time: how long after the encoder's moments a release was made may depend on what the records are."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
