"""What a run leaves behind: files, report, MLflow. Everything here comes from the release and from public records."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config import RunConfig
from dpsw_ray.data.split import Dataset, DatasetInfo
from dpsw_ray.encoders import Encoder
from dpsw_ray.evaluation.features import nearest_rows
from dpsw_ray.evaluation.pictures import (
    curve_figure,
    image_grid,
    image_pairs,
    losses_figure,
    slices_figure,
)
from dpsw_ray.evaluation.report import EncoderSection, Metric, ReportContext, ReportSection, render_report
from dpsw_ray.files import write_bytes, write_json, write_text
from dpsw_ray.flow.solver import FlowResult
from dpsw_ray.plan import ledger_account
from dpsw_ray.privacy.accountants import account
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.statement import RunFacts, noise_kinds, state
from dpsw_ray.release import Release, ReleasePlan, RowPlan
from dpsw_ray.release.quantiles import Targets
from dpsw_ray.samples import write_particles, write_samples
from dpsw_ray.slicing.grid import SCALE
from dpsw_ray.tracking import Tracker

__all__ = ["Results", "publish", "release_manifest"]

_MECHANISMS = {
    "histograms": "Histograms of the private records' projections onto random directions, with noise added to every "
    "cell. The noise is drawn once; samples and figures are computed from the noisy histograms.",
    "rows": "Histograms of the private records' projections onto random directions, every projection with noise of "
    "its own before it is counted. That noise is drawn once; samples and figures are computed from these histograms.",
    "sampled": "A sequence of histograms, each of a secret random sample of the private records' projections onto "
    "random directions of its own, with noise added to every cell. Samples and noise are drawn once; everything else "
    "is computed from the noisy histograms.",
}
_PER_CLASS = 10
_PANELS = 8
_RECONSTRUCTIONS = 12
_NEIGHBOURS = 12


@dataclass(frozen=True)
class Results:
    """What the pipeline computed; nothing in it is private.

    `mechanism` and `sections` are what the report says of a release that is not made from one table of records;
    `trust` says who sees what during the run, `simulated` that users were made up.
    """

    config: RunConfig
    info: DatasetInfo
    encoder: Encoder
    release: Release
    rounds: Sequence[Targets]
    flow: FlowResult
    samples: tuple[NDArray[Any], NDArray[np.int32]]
    metrics: list[Metric]
    timings: dict[str, float]
    mechanism: str | None = None
    sections: Sequence[ReportSection] = ()
    trust: str = "central"
    simulated: bool = False


def release_manifest(
    config: RunConfig, plan: ReleasePlan, info: DatasetInfo, encoder: Encoder, ledger: Ledger | None
) -> dict[str, Any]:
    """What a stored release says of itself beside its layout; `ledger` is None where it is not charged by itself."""
    p = config.privacy
    entry = None if ledger is None else ledger.find_charge(plan.release_id)
    classes = list(info.classes) if plan.class_conditional else []
    return {
        "release_id": plan.release_id,
        "method": config.method,
        "data": config.data.account,
        "privacy": account([plan.event], p.relation, p.delta).to_dict(),
        "publishable": p.publishable,
        "reproducible_noise": p.noise_seed is not None,
        "ledger": {"account": ledger_account(config), "entry": entry.entry_hash if entry else None},
        # Independent directions follow from the random release id, frames from the public seed.
        "directions_seed": None if isinstance(plan, RowPlan) and plan.law == "iid" else config.seed,
        "classes": classes,
        "class_names": list(info.class_names or info.classes) if classes else [],
        "private_records": info.private_count,
        "sphere": encoder.sphere,
        "versions": _versions(),
        "created": _now(),
    }


def publish(results: Results, folder: Path, ledger: Ledger, tracker: Tracker) -> dict[str, Any]:
    """Writes the run's files and records them in MLflow; returns what `privacy.json` holds."""
    config, release, flow = results.config, results.release, results.flow
    records, labels = results.samples
    schema, names = results.encoder.schema, list(release.manifest["class_names"])
    total = ledger.total(ledger_account(config))
    facts = RunFacts(
        dataset=config.account,
        reproducible_noise=config.privacy.noise_seed is not None,
        research=config.privacy.research,
        ledger=total.dataset.name,
        total_epsilon=total.epsilon.upper,
        charges=total.charges,
        trust=results.trust,
        uncounted=_uncounted(release),
        simulated=results.simulated,
    )
    privacy = {
        **release.manifest["privacy"],
        "publishable": release.publishable,
        "warnings": _warnings(config, release),
        "statement": state(release.manifest["privacy"], facts).to_dict(),
        "ledger": {
            "name": total.dataset.name,
            "total_epsilon": total.epsilon.upper,
            "charges": total.charges,
            "accountant": total.accountant,
            "entry": release.manifest["ledger"]["entry"],
        },
    }
    steps = list(range(len(flow.distances)))
    samples_png = None
    if schema.kind == "image":
        assert schema.value_range is not None
        samples_png = image_grid(records, labels if names else None, names, _PER_CLASS, schema.value_range)
    slices_png = _slices(results)
    encoder_section = _encoder(results) if results.encoder.history else None
    curve_png = curve_figure(steps, flow.distances, "Convergence of the flow", "sliced W2 to the release")

    write_json(folder / "privacy.json", privacy)
    write_particles(folder / "particles.arrow", flow.particles, flow.labels)
    write_samples(folder / "samples.parquet", records, labels, schema, release.manifest["classes"])
    if samples_png is not None:
        write_bytes(folder / "samples.png", samples_png)
    figures = {
        metric.name: {
            "value": metric.value,
            "baselines": dict(metric.baselines),
            "explanation": metric.explanation,
        }
        for metric in results.metrics
    }
    flow_facts = {"steps": len(flow.distances), "stopped": flow.stopped, "distances": flow.distances}
    write_json(folder / "metrics.json", {"metrics": figures, "flow": flow_facts, "seconds": results.timings})
    context = ReportContext(
        name=config.name,
        publishable=release.publishable,
        reasons=privacy["warnings"],
        privacy=privacy,
        metrics=results.metrics,
        samples_png=samples_png,
        slices_png=slices_png,
        curve_png=curve_png,
        timings=results.timings,
        release=_facts(results),
        config_yaml=config.to_yaml(),
        versions=_versions(),
        created=_now(),
        mechanism=results.mechanism or _MECHANISMS[config.release_kind],
        encoder=encoder_section,
        sections=[*results.sections, *_neighbours(results)],
    )
    write_text(folder / "report.html", render_report(context))

    tracker.metrics({"epsilon": float(privacy["epsilon"]["upper"]), "delta": float(privacy["delta"])})
    tracker.metrics({metric.name: metric.value for metric in results.metrics})
    tracker.metrics({f"seconds/{phase}": seconds for phase, seconds in results.timings.items()})
    tracker.step_metrics({"flow/sliced W2 to the release": list(zip(steps, flow.distances, strict=True))})
    tracker.step_metrics(
        {
            f"encoder/{name}": [(i + 1, epoch[name]) for i, epoch in enumerate(results.encoder.history)]
            for name in ("train_loss", "holdout_loss")
        }
    )
    tracker.tags({"publishable": release.publishable, "relation": privacy["relation"], "folder": folder})
    for name in ("privacy.json", "metrics.json", "report.html", "config.yaml", "samples.png"):
        if (folder / name).exists():
            tracker.artifact(folder / name)
    tracker.artifact(folder / "release" / "manifest.json", "release")
    tracker.figure("slices", slices_png)
    tracker.figure("convergence", curve_png)
    if encoder_section is not None:
        tracker.figure("encoder losses", encoder_section.losses_png)
        if encoder_section.reconstructions_png is not None:
            tracker.figure("reconstructions", encoder_section.reconstructions_png)
    return privacy


def _uncounted(release: Release) -> bool:
    """Whether the release was chosen among several in a sweep that did not count the choice."""
    return bool(release.manifest.get("selection") == "nonprivate")


def _warnings(config: RunConfig, release: Release) -> list[str]:
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


def _slices(results: Results) -> bytes:
    """Released and particles' densities along the first directions, over all classes, both smoothed."""
    targets = results.rounds[0]
    slices = targets.slices
    count = min(_PANELS, len(slices.directions))
    released = np.einsum("c,cjb->jb", targets.weights, np.diff(slices.cdf[:, :count], axis=2))
    rng = np.random.default_rng(0)
    projections = results.flow.particles @ slices.directions[:count].T
    smoothed = projections + slices.grid.sigma * rng.standard_normal(projections.shape)
    return slices_figure(slices.grid.edges, released, smoothed.T)


def _encoder(results: Results) -> EncoderSection:
    """The training of the encoder, and what it makes of the first test records, of public ones without a test part."""
    encoder, config, data = results.encoder, results.config.encoder, Dataset(results.info)
    losses = [epoch["holdout_loss"] for epoch in encoder.history]
    kept = int(np.nanargmin(losses))
    facts = {
        "kind": config.kind,
        "latent dimension": encoder.latent_dim,
        "loss": config.loss,
        "epochs trained": len(losses),
        "weights of epoch": kept + 1,
        "training loss then": encoder.history[kept]["train_loss"],
        "hold-out loss then": losses[kept],
    }
    reconstructions_png, part = None, "test" if results.info.test_count else "public"
    if encoder.schema.kind == "image":
        assert encoder.schema.value_range is not None
        shown = data.test() if part == "test" else data.public()
        records, labels = shown.values[:_RECONSTRUCTIONS], shown.labels[:_RECONSTRUCTIONS]
        decoded = encoder.decode(encoder.encode(records, labels), labels)
        reconstructions_png = image_pairs(
            records, decoded, ("original", "decoded"), encoder.schema.value_range
        )
    return EncoderSection(
        facts, losses_figure(encoder.history), reconstructions_png, f"The first records of the {part} part"
    )


def _neighbours(results: Results) -> list[ReportSection]:
    """Samples above the public images that they are nearest to."""
    schema, samples = results.encoder.schema, results.samples[0][:_NEIGHBOURS]
    if schema.kind != "image" or not results.info.public_count:
        return []
    assert schema.value_range is not None
    public = Dataset(results.info).public().values
    nearest = nearest_rows(samples, public)
    return [
        ReportSection(
            "Nearest public records",
            "The first samples, each above the public image with the smallest squared distance to it: what the "
            "decoder, which was trained on public images, gives back as it was is no news about the private ones.",
            picture_png=image_pairs(samples, public[nearest], ("sample", "public"), schema.value_range),
        )
    ]


def _facts(results: Results) -> dict[str, Any]:
    release = results.release
    return {
        "method": results.config.method,
        "rounds": release.rounds,
        "directions": release.directions.shape[1],
        "latent dimension": release.dim,
        "bins": release.grid.bins,
        "smoothing sigma": release.grid.sigma,
        "classes": release.blocks,
        "noise": ", ".join(sorted(noise_kinds(release.manifest["privacy"]["events"]))),
        **_noise(release),
        "private records": release.manifest["private_records"],
        "particles": len(results.flow.particles),
        "flow": results.flow.stopped,
    }


def _noise(release: Release) -> dict[str, float]:
    if release.cell_noise or not release.grid.smoothing:
        return {"noise per cell, in records": release.cell_noise / SCALE}
    return {"noise per projection": release.grid.sigma}


def _versions() -> dict[str, str]:
    names = ("dpsw-ray", "numpy", "torch", "ray", "numba", "prv-accountant", "mlflow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
