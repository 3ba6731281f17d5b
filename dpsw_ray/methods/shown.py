"""A few released slices, as a report shows them, and what it says of a release of slices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.evaluation.pictures import SliceMasses
from dpsw_ray.evaluation.report import ReportSection
from dpsw_ray.methods.method import Learnt, ShownSlices
from dpsw_ray.privacy.statement import noise_kinds
from dpsw_ray.slicing.grid import SCALE
from dpsw_ray.tables.classes import ReleasedClasses
from dpsw_ray.tables.release import Release

__all__ = ["classes_section", "release_facts", "shown_slices"]

_SLICES = 4  # directions that are shown


def shown_slices(learnt: Learnt, start: NDArray[np.float64] | None) -> ShownSlices:
    """The first directions, over all classes.

    Args:
        learnt: the run.
        start: where the points began, array of size [n, d]; None where they did not move.
    """
    release, targets = learnt.release, learnt.targets[0]
    counts = release.counts[0, :, :_SLICES].sum(axis=0).astype(np.float64)
    total = float(counts.sum(axis=1).mean())
    densities = np.diff(targets.slices.cdf[:, :_SLICES], axis=2)
    directions = targets.slices.directions[:_SLICES]
    masses = SliceMasses(
        noisy=counts / total if total > 0 else counts,
        denoised=np.einsum("c,cjb->jb", targets.weights, densities),
        start=None if start is None else _masses(start, directions, release),
        end=_masses(learnt.points.particles, directions, release),
    )
    return ShownSlices(directions, release.grid, release.kernel, masses)


def _masses(
    particles: NDArray[np.float64], directions: NDArray[np.float64], release: Release
) -> NDArray[np.float64]:
    """The particles' masses [k, bins] along directions [k, d], smoothed as the released ones are."""
    rng = np.random.default_rng(0)
    projections = particles @ directions.T
    smoothed = projections + release.grid.sigma * rng.standard_normal(projections.shape)
    edges = release.grid.edges
    return np.stack([np.histogram(along, edges)[0] for along in smoothed.T]) / max(len(particles), 1)


def classes_section(found: ReleasedClasses | None) -> list[ReportSection]:
    """What the release shows of the classes, and whether most records are in none."""
    if found is None:
        return []
    text = "About how many private records are in each class, by the released table and with its noise."
    rows = [
        {"class": name, "records": float(round(records)), "share": f"{share:.1%}"}
        for name, records, share in zip(found.names, found.records, found.shares, strict=True)
    ]
    facts = {"in some class": float(round(found.total)), "noise on each (standard deviation)": found.noise}
    return [ReportSection("Classes", f"{text} {found.warning or ''}".strip(), facts, rows)]


def release_facts(release: Release) -> dict[str, Any]:
    """What the report says of a release of slices."""
    return {
        "rounds": release.rounds,
        "directions": release.directions.shape[1],
        "latent dimension": release.dim,
        "bins": release.grid.bins,
        "smoothing sigma": release.grid.sigma,
        "classes": release.blocks,
        "noise": ", ".join(sorted(noise_kinds(release.manifest["privacy"]["events"]))),
        **_noise(release),
    }


def _noise(release: Release) -> dict[str, float]:
    if release.cell_noise or not release.grid.smoothing:
        return {"noise per cell, in records": release.cell_noise / SCALE}
    return {"noise per projection": release.grid.sigma}
