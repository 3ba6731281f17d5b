"""The planner's choice beside the best of its grid, on measured runs.

    python benchmarks/planning.py --latents latents.npz --json planning.json

For every number of records and epsilon: release, denoising and flow for every candidate of the planner; what it would
have chosen over the best of them in sliced W2, and how close its prediction was. Ten classes, replace-one, 2,000
particles. `latents.npz` has arrays `latents` [n, d] in the unit ball and `labels` [n], which are drawn from without
replacement as far as they go; without it, latents are generated (three lumps per class, d = 8). `--fit` fits the
model's coefficients to what was measured and prints them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, mixture, parser, show
from numpy.typing import NDArray
from scipy.optimize import least_squares

from dpsw_ray.cluster import open_cluster
from dpsw_ray.config import ClusterConfig, FlowConfig
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.flow.solver import solve
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.latents import bounded
from dpsw_ray.private.mechanism import bound, noise
from dpsw_ray.release import HistogramPlan, Release
from dpsw_ray.release.planner import FRAMES, GRIDS, choose, noise_per_record
from dpsw_ray.release.quantiles import denoise

Array = NDArray[np.float64]
EPSILONS = (0.1, 0.2, 1.0, 5.0, 10.0, math.inf)
RECORDS = (1_000, 10_000, 100_000)
CLASSES, PARTICLES, JUDGED = 10, 2_000, 20_000


def drawn(path: Path | None, records: int) -> tuple[Array, NDArray[np.int32]]:
    """So many bounded latents and their labels."""
    if path is None:
        return bounded(*mixture(records, 8, CLASSES))
    with np.load(path) as stored:
        latents, labels = stored["latents"].astype(np.float64), stored["labels"].astype(np.int32)
    rng = np.random.default_rng(5)
    whole = rng.permutation(len(latents))[:records]
    more = rng.integers(0, len(latents), max(records - len(latents), 0))
    chosen = np.concatenate([whole, more])
    return bounded(latents[chosen], labels[chosen])


def measured(path: Path | None, numbers: tuple[int, ...], seeds: int) -> list[dict[str, Any]]:
    """A row for every cell and candidate, its distance the mean over the seeds."""
    rows: dict[tuple[Any, ...], list[float]] = {}
    with open_cluster(ClusterConfig(executor="local", actors=1)) as cluster:
        for records in numbers:
            latents, labels = drawn(path, records)
            for seed in range(seeds):
                for frames in FRAMES:
                    for number, grid in enumerate(GRIDS):
                        exact = None
                        for epsilon in EPSILONS:
                            plan = HistogramPlan.make(
                                release_id="benchmark", dim=latents.shape[1], frames=frames, grid=grid,
                                classes=CLASSES, class_conditional=True, relation="replace_one",
                                epsilon=epsilon, delta=1e-5, seed=seed,
                            )  # fmt: skip
                            exact = bound([(latents, labels)], plan) if exact is None else exact
                            table = exact + noise(NoiseKey.from_seed(seed), plan)
                            release = Release.from_plan(plan, table[None], {"publishable": False})
                            flow = solve(
                                denoise(release),
                                FlowConfig(particles=PARTICLES, kernel="numba", steps=100),
                                sphere=True,
                                seed=seed,
                                cluster=cluster,
                            )
                            distance = sliced_wasserstein(flow.particles, latents[:JUDGED], 128, 0)
                            rows.setdefault((records, epsilon, frames, number), []).append(distance)
    return [
        {"records": n, "epsilon": e, "frames": m, "grid": g, "distance": float(np.mean(found))}
        for (n, e, m, g), found in rows.items()
    ]


def fitted(rows: list[dict[str, Any]]) -> list[float]:
    """The model's coefficients, by robust least squares in logarithms."""
    nu = np.log([noise_per_record("replace_one", r["epsilon"], 1e-5, r["records"] / CLASSES) for r in rows])
    frames = np.log([r["frames"] for r in rows])
    sigma = np.log([GRIDS[r["grid"]].sigma for r in rows])
    target = np.log([r["distance"] for r in rows])
    weight = np.where(target > math.log(0.1), 0.2, 1.0)  # nothing but noise there

    def residual(p: Array) -> Array:
        a, b, c, e, f, g, h, i, j = p
        noisy = np.exp(a + b * nu + c * sigma + e * frames)
        model = noisy + np.exp(f + g * frames) + np.exp(h + i * sigma + j * nu)
        return np.asarray(weight * (0.5 * np.log(model) - target))

    starts = np.array([0, 1, -0.5, 0, -8, -1, -6, 2, 0]) + np.random.default_rng(0).normal(0, 0.5, (12, 9))
    fits = [least_squares(residual, start, loss="soft_l1", f_scale=0.1) for start in starts]
    return [float(v) for v in min(fits, key=lambda fit: float(fit.cost)).x]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--latents", type=Path, help="an .npz file with `latents` and `labels`")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--fit", action="store_true", help="also fit the model's coefficients")
    arguments = options.parse_args()
    numbers = (1_000,) if arguments.quick else RECORDS
    rows = measured(arguments.latents, numbers, 1 if arguments.quick else arguments.seeds)
    cells: list[dict[str, Any]] = []
    for records in numbers:
        for epsilon in EPSILONS:
            own = [r for r in rows if (r["records"], r["epsilon"]) == (records, epsilon)]
            choice = choose(
                records=records, classes=CLASSES, relation="replace_one", epsilon=epsilon, delta=1e-5
            )
            here = next(r for r in own if r["frames"] == choice.frames and GRIDS[r["grid"]] == choice.grid)
            best = min(own, key=lambda r: float(r["distance"]))
            cells.append({"chosen": here, "best": best, "predicted": choice.distance})
    show(
        "The planner's choice and the best of its grid: sliced W2",
        ["records, epsilon", "chosen", "sliced W2", "predicted", "best", "sliced W2", "over the best"],
        [
            [
                f"{c['chosen']['records']:,}, {c['chosen']['epsilon']:g}",
                _named(c["chosen"]),
                f"{c['chosen']['distance']:.4f}",
                f"{c['predicted']:.4f}",
                _named(c["best"]),
                f"{c['best']['distance']:.4f}",
                f"{c['chosen']['distance'] / c['best']['distance']:.2f}",
            ]
            for c in cells
        ],
    )
    coefficients = fitted(rows) if arguments.fit else None
    if coefficients is not None:
        print("coefficients:", ", ".join(f"{value:.3f}" for value in coefficients))
    finish(arguments, {"rows": rows, "cells": cells, "coefficients": coefficients})


def _named(row: dict[str, Any]) -> str:
    grid = GRIDS[row["grid"]]
    return f"{row['frames']} x {grid.bins}, {grid.smoothing:g}"


if __name__ == "__main__":
    main()
