"""From noisy tables to CDFs: the default beside simpler ways, in sliced W2 of what comes out.

    python benchmarks/denoising.py --json denoising.json

Generated latents (three lumps per class, ten classes, d = 8), 16 frames of 32 bins, replace-one, delta 1e-5: `slices`
is the root mean square W2 distance between fitted and exact slices of a class, `classes` and `all` are the distances
between particles and records, class by class (root mean square) and of all together. `--pulls 0.3 3.33` adds other
values of flow.denoising; 3.33 is what Stein's estimate finds best for the slices one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from harness import finish, mixture, parser, show
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.solver import solve
from dpsw_ray.methods.dpswflow_h.mechanism import bound, noise
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.latents import bounded
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.tables.quantiles import Targets, denoise, smoothing_matrix
from dpsw_ray.tables.release import Release
from dpsw_ray.tables.shape import references
from dpsw_ray.tables.simplex import mirror_descent, simplex_least_squares

Array = NDArray[np.float64]
DIM, CLASSES, FRAMES, GRID = 8, 10, 16, BinGrid(32, 1.0)
KERNEL = smoothing_matrix(GRID)
EPSILONS = (0.1, 0.2, 1.0, 10.0)
LEVELS = (np.arange(500) + 0.5) / 500

Fit = Callable[[Array, Array, Array], Array]
"""Histograms [C, K, bins] of mass one, noise [C] and directions [K, d] to densities [C, K, bins]."""


def clipped(y: Array, noise: Array, directions: Array) -> Array:
    """Negative counts set to zero."""
    return np.maximum(y, 0.0)


def isotonic(y: Array, noise: Array, directions: Array) -> Array:
    """The nearest monotone CDF, slice by slice."""
    rows = np.cumsum(y, axis=2).reshape(-1, y.shape[2])
    fitted = np.array([np.clip(isotonic_regression(row).x, 0.0, None) for row in rows])
    return np.diff(fitted, axis=1, prepend=0.0).reshape(y.shape)


def alone(y: Array, noise: Array, directions: Array) -> Array:
    """The nearest density behind the smoothing, slice by slice."""
    rows = simplex_least_squares(y.reshape(-1, y.shape[2]), KERNEL)
    return np.asarray(rows @ KERNEL.T).reshape(y.shape)


def one_shape(y: Array, noise: Array, directions: Array) -> Array:
    """Towards the class's mean shape, moved to each direction's mean, by the discrepancy principle."""
    centres = (np.arange(KERNEL.shape[1]) - (KERNEL.shape[1] - 1) / 2) * GRID.width
    fits = []
    for table, s in zip(y, noise, strict=True):
        first = simplex_least_squares(table, KERNEL)
        offsets = directions @ np.linalg.lstsq(directions, first @ centres, rcond=None)[0]
        shape = np.mean(
            [np.interp(centres + m, centres, row) for m, row in zip(offsets, first, strict=True)], axis=0
        )
        reference = np.array([np.interp(centres - m, centres, shape) for m in offsets]) + 1e-6
        reference /= reference.sum(axis=1, keepdims=True)
        low, high = 0.0, 14.0
        for _ in range(8):
            middle = (low + high) / 2
            fit = mirror_descent(table, KERNEL, reference, float(s), float(np.exp(middle))) @ KERNEL.T
            fits_data = float(np.mean((table - fit) ** 2)) < float(s) ** 2
            low, high = (middle, high) if fits_data else (low, middle)
        fits.append(fit)
    return np.array(fits)


def shared(y: Array, noise: Array, directions: Array) -> Array:
    """What all slices share, and nothing of the single slice."""
    return np.asarray(references(y, noise, GRID, KERNEL, directions) @ KERNEL.T)


SIMPLE: dict[str, Fit] = {
    "clipped": clipped,
    "isotonic CDF": isotonic,
    "each slice alone": alone,
    "one shape, moved": one_shape,
    "shared moments alone": shared,
}


def targets(release: Release, fit: Fit) -> list[Targets]:
    """Targets of a release by one of the simple ways."""
    counts = release.counts[0] / SCALE
    level = release.cell_noise / SCALE
    totals = np.maximum(counts.sum(axis=2).mean(axis=1), 4 * level * np.sqrt(GRID.bins / counts.shape[1]))
    y = counts / totals[:, None, None]
    density = fit(y, level / totals, release.directions[0]) + 1e-12
    cdf = np.concatenate([np.zeros((*y.shape[:2], 1)), np.cumsum(density, axis=2)], axis=2)
    cdf /= cdf[..., -1:]
    return [Targets(Slices(release.directions[0], GRID, release.kernel, cdf), totals / totals.sum())]


def slice_distance(found: Array, exact: Array) -> float:
    """Root mean square W2 between CDFs [C, K, bins + 1] and exact tables [C, K, bins]."""
    cdf = np.cumsum(exact / exact.sum(axis=2, keepdims=True), axis=2)
    cdf = np.concatenate([np.zeros((*cdf.shape[:2], 1)), cdf], axis=2).reshape(-1, GRID.bins + 1)
    pairs = zip(found.reshape(-1, GRID.bins + 1), cdf, strict=True)
    squared = [
        np.mean((np.interp(LEVELS, a, GRID.edges) - np.interp(LEVELS, b, GRID.edges)) ** 2) for a, b in pairs
    ]
    return float(np.sqrt(np.mean(squared)))


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument(
        "--pulls", type=float, nargs="*", default=[], help="values of flow.denoising beside 1"
    )
    arguments = options.parse_args()
    records, particles = (3_000, 500) if arguments.quick else (30_000, 5_000)
    seeds = 1 if arguments.quick else arguments.seeds
    latents, labels = bounded(*mixture(records, DIM, CLASSES))
    found: dict[str, dict[str, list[list[float]]]] = {}
    with open_cluster(ClusterConfig(executor="local", actors=1)) as cluster:
        for seed in range(seeds):
            for epsilon in EPSILONS:
                plan = HistogramPlan.make(
                    release_id="benchmark", dim=DIM, frames=FRAMES, grid=GRID, classes=CLASSES,
                    class_conditional=True, relation="replace_one", epsilon=epsilon, delta=1e-5, seed=seed,
                )  # fmt: skip
                exact = bound([(latents, labels)], plan)
                release = Release.from_plan(
                    plan, (exact + noise(NoiseKey.from_seed(seed), plan))[None], {"publishable": False}
                )
                ways: dict[str, list[Targets]] = {name: targets(release, fit) for name, fit in SIMPLE.items()}
                ways["the default"] = denoise(release)
                ways |= {f"flow.denoising {pull:g}": denoise(release, pull) for pull in arguments.pulls}
                for name, rounds in ways.items():
                    flow = solve(
                        rounds,
                        FlowConfig(particles=particles, kernel="numba", steps=150),
                        sphere=True,
                        seed=seed,
                        cluster=cluster,
                    )
                    groups = [
                        (flow.particles[flow.labels == c], latents[labels == c]) for c in range(CLASSES)
                    ]
                    squares = [sliced_wasserstein(a, b, 128, 0) ** 2 for a, b in groups if len(a)]
                    row = [
                        slice_distance(rounds[0].slices.cdf, exact / SCALE),
                        float(np.sqrt(np.mean(squares))),
                        sliced_wasserstein(flow.particles, latents, 128, 0),
                    ]
                    found.setdefault(name, {}).setdefault(f"{epsilon:g}", []).append(row)
    figures: dict[str, dict[str, Any]] = {
        name: {
            epsilon: dict(zip(("slices", "classes", "all"), np.mean(rows, axis=0).tolist(), strict=True))
            for epsilon, rows in by_epsilon.items()
        }
        for name, by_epsilon in found.items()
    }
    for measure in ("slices", "classes", "all"):
        show(
            f"{measure}: {records:,} records, means of {seeds} seeds",
            ["", *(f"epsilon {epsilon:g}" for epsilon in EPSILONS)],
            [
                [name, *(f"{by_epsilon[f'{epsilon:g}'][measure]:.4f}" for epsilon in EPSILONS)]
                for name, by_epsilon in figures.items()
            ],
        )
    finish(arguments, {"ways": figures, "records": records, "seeds": seeds})


if __name__ == "__main__":
    main()
