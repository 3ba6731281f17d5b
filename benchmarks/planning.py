"""The planner's choice beside the best of a grid, on measured runs.

    python benchmarks/planning.py --latents latents.npz --rows rows.jsonl --json planning.json

For every number of records and epsilon: release, denoising and flow for every candidate; what the planner chooses over
the best of them in sliced W2, with the standard error of that ratio over the noise seeds, and how close its prediction
is. The best of noisy means is partly luck, so that a ratio a little above one is expected. Ten classes, replace-one,
2,500 particles, at most 100 steps: few, but they change all candidates alike. `latents.npz` has arrays `latents` [n, d]
in the unit ball and `labels` [n], which are drawn from without replacement as far as they go; without it, latents are
generated (three lumps per class, `--dim`). `--rows` keeps every measured row, and the same command goes on after an
interruption. `--fit` fits the model's coefficients to what was measured and prints them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, mixture, parser, show
from numpy.typing import NDArray
from scipy.optimize import least_squares

from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.solver import solve
from dpsw_ray.methods.dpswflow_h.mechanism import bound, noise
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.latents import bounded
from dpsw_ray.tables.planner import GRIDS, choose, noise_per_record, squared_distance
from dpsw_ray.tables.quantiles import denoise
from dpsw_ray.tables.release import Release

Array = NDArray[np.float64]
EPSILONS = (0.1, 0.2, 1.0, 5.0, 10.0, math.inf)
RECORDS = (1_000, 10_000, 100_000)
FRAMES = (4, 8, 16, 32)  # the planner's and fewer
CLASSES, PARTICLES, DIRECTIONS = 10, 2_500, 128
_KEYS = ("records", "epsilon", "frames", "grid", "seed")
NOISY = 0.02
"""Noise per record of a class above which distances scatter by a quarter from seed to seed: three times the seeds."""


def drawn(path: Path | None, records: int, dim: int) -> tuple[Array, NDArray[np.int32]]:
    """So many bounded latents and their labels."""
    if path is None:
        return bounded(*mixture(records, dim, CLASSES))
    with np.load(path) as stored:
        latents, labels = stored["latents"].astype(np.float64), stored["labels"].astype(np.int32)
    rng = np.random.default_rng(5)
    whole = rng.permutation(len(latents))[:records]
    more = rng.integers(0, len(latents), max(records - len(latents), 0))
    chosen = np.concatenate([whole, more])
    return bounded(latents[chosen], labels[chosen])


class Judge:
    """Sliced W2 to the same records again and again: their projections are sorted once."""

    def __init__(self, latents: Array) -> None:
        thetas = np.random.default_rng(0).standard_normal((DIRECTIONS, latents.shape[1]))
        self._thetas = thetas / np.linalg.norm(thetas, axis=1, keepdims=True)
        self._sorted = np.sort((self._thetas @ latents.T).astype(np.float32), axis=1)

    def distance(self, particles: Array) -> float:
        """Both samples are repeated up to the least common multiple of their sizes, where ranks face ranks."""
        whole = math.lcm(len(particles), self._sorted.shape[1])
        total = 0.0
        for theta, records in zip(self._thetas, self._sorted, strict=True):
            near = np.sort((particles @ theta).astype(np.float32))
            gap = np.repeat(near, whole // len(near)) - np.repeat(records, whole // len(records))
            total += float(np.mean(np.square(gap), dtype=np.float64))
        return math.sqrt(total / DIRECTIONS)


def noise_of(row: dict[str, Any]) -> float:
    """`noise_per_record` of a row."""
    return noise_per_record("replace_one", row["epsilon"], 1e-5, row["records"] / CLASSES)


def wanted(numbers: tuple[int, ...], seeds: int) -> list[dict[str, Any]]:
    """Every run of the benchmark, the first seed's first."""
    rows = [
        {"records": n, "epsilon": e, "frames": m, "grid": g, "seed": seed}
        for seed in range(3 * seeds)
        for n in numbers
        for m in FRAMES
        for g in range(len(GRIDS))
        for e in EPSILONS
    ]
    return [row for row in rows if row["seed"] < seeds or noise_of(row) > NOISY]


def measure(
    path: Path | None, dim: int, rows: list[dict[str, Any]], store: Path | None
) -> list[dict[str, Any]]:
    """The rows with their distances; those that `store` holds are read from it, the others added to it."""
    known: dict[tuple[Any, ...], float] = {}
    if store is not None and store.exists():
        for line in store.read_text().splitlines():
            done = json.loads(line)
            known[tuple(done[key] for key in _KEYS)] = done["distance"]
    latents, judge, exact, last, shape = np.empty((0, dim)), None, None, None, None
    labels = np.empty(0, np.int32)
    with open_cluster(ClusterConfig(executor="local", actors=1)) as cluster:
        for row in rows:
            key = tuple(row[name] for name in _KEYS)
            if key not in known:
                if judge is None or last != row["records"]:
                    latents, labels = drawn(path, row["records"], dim)
                    judge, last, shape = Judge(latents), row["records"], None
                plan = HistogramPlan.make(
                    release_id="benchmark", dim=latents.shape[1], frames=row["frames"], grid=GRIDS[row["grid"]],
                    classes=CLASSES, class_conditional=True, relation="replace_one", epsilon=row["epsilon"],
                    delta=1e-5, seed=row["seed"],
                )  # fmt: skip
                if shape != (row["frames"], row["grid"], row["seed"]):
                    exact, shape = bound([(latents, labels)], plan), (row["frames"], row["grid"], row["seed"])
                assert exact is not None
                table = exact + noise(NoiseKey.from_seed(row["seed"]), plan)
                flow = solve(
                    denoise(Release.from_plan(plan, table[None], {"publishable": False})),
                    FlowConfig(particles=PARTICLES, kernel="numba", steps=100),
                    sphere=True,
                    seed=row["seed"],
                    cluster=cluster,
                )
                known[key] = judge.distance(flow.particles)
                if store is not None:
                    with store.open("a") as stream:
                        stream.write(json.dumps(row | {"distance": known[key]}) + "\n")
    return [row | {"distance": known[tuple(row[name] for name in _KEYS)]} for row in rows]


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every cell and candidate, with the mean of its distances and the distances by seed."""
    found: dict[tuple[Any, ...], dict[int, float]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in _KEYS[:-1]), {})[row["seed"]] = row["distance"]
    return [
        dict(zip(_KEYS, key, strict=False))
        | {"seeds": seeds, "distance": float(np.mean(list(seeds.values())))}
        for key, seeds in found.items()
    ]


def fitted(rows: list[dict[str, Any]], dim: int) -> list[float]:
    """The model's coefficients, by robust least squares in logarithms."""
    target = np.log([row["distance"] for row in rows])
    weight = np.where(target > math.log(0.1), 0.3, 1.0)  # hardly anything but noise there
    levels = [noise_of(row) for row in rows]

    def residual(p: Array) -> Array:
        model = [
            squared_distance(
                p.tolist(), nu, row["records"] / CLASSES, dim, row["frames"], GRIDS[row["grid"]].sigma
            )
            for nu, row in zip(levels, rows, strict=True)
        ]
        return np.asarray(weight * (0.5 * np.log(model) - target))

    low = np.array([-12, -2, -1.5, -6, -2, -14, 0, -4, -16])
    high = np.array([3, 8, 0, 6, 3, 2, 6, 2, -2])
    starts = np.array([-3, 3, -0.5, 0, 0, -6, 2, -0.5, -7]) + np.random.default_rng(0).normal(0, 0.6, (8, 9))
    fits = [
        least_squares(
            residual,
            np.clip(start, low + 0.01, high - 0.01),
            bounds=(low, high),
            loss="soft_l1",
            f_scale=0.1,
            max_nfev=60,
        )
        for start in starts
    ]
    return [float(v) for v in min(fits, key=lambda fit: float(fit.cost)).x]


def judged(rows: list[dict[str, Any]], dim: int) -> list[dict[str, Any]]:
    """Every cell with the planner's choice and the best of the grid, and how sure their ratio is."""
    cells = []
    for records, epsilon in dict.fromkeys((row["records"], row["epsilon"]) for row in rows):
        own = [row for row in rows if (row["records"], row["epsilon"]) == (records, epsilon)]
        choice = choose(
            records=records, classes=CLASSES, dim=dim, relation="replace_one", epsilon=epsilon, delta=1e-5
        )
        here = next(r for r in own if r["frames"] == choice.frames and GRIDS[r["grid"]] == choice.grid)
        best = min(own, key=lambda r: float(r["distance"]))
        gaps = np.array([here["seeds"][seed] - best["seeds"][seed] for seed in here["seeds"]])
        error = float(np.std(gaps, ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else math.nan
        cells.append(
            {
                "chosen": here,
                "best": best,
                "predicted": choice.distance,
                "ratio": here["distance"] / best["distance"],
                "error": error / best["distance"],
            }
        )
    return cells


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--latents", type=Path, help="an .npz file with `latents` and `labels`")
    options.add_argument("--dim", type=int, default=8, help="of generated latents")
    options.add_argument("--seeds", type=int, default=3, help="three times as many where there is much noise")
    options.add_argument(
        "--rows", type=Path, metavar="FILE", help="go on with what was measured into this file"
    )
    options.add_argument("--fit", action="store_true", help="also fit the model's coefficients")
    arguments = options.parse_args()
    numbers = (1_000,) if arguments.quick else RECORDS
    seeds = 1 if arguments.quick else arguments.seeds
    dim = arguments.dim if arguments.latents is None else _dim(arguments.latents)
    rows = means(measure(arguments.latents, dim, wanted(numbers, seeds), arguments.rows))
    cells = judged(rows, dim)
    show(
        "The planner's choice and the best of the grid: sliced W2",
        [
            "records, epsilon",
            "chosen",
            "sliced W2",
            "predicted",
            "best",
            "sliced W2",
            "over the best",
            "seeds",
        ],
        [
            [
                f"{c['chosen']['records']:,}, {c['chosen']['epsilon']:g}",
                _named(c["chosen"]),
                f"{c['chosen']['distance']:.4f}",
                f"{c['predicted']:.4f}",
                _named(c["best"]),
                f"{c['best']['distance']:.4f}",
                f"{c['ratio']:.2f} ± {c['error']:.2f}",
                str(len(c["chosen"]["seeds"])),
            ]
            for c in cells
        ],
    )
    print(f"within 10 % of the best: {sum(c['ratio'] <= 1.1 for c in cells)} of {len(cells)} cells")
    coefficients = fitted(rows, dim) if arguments.fit else None
    if coefficients is not None:
        print("coefficients:", ", ".join(f"{value:.3f}" for value in coefficients))
    finish(arguments, {"rows": rows, "cells": cells, "coefficients": coefficients})


def _dim(path: Path) -> int:
    with np.load(path) as stored:
        return int(stored["latents"].shape[1])


def _named(row: dict[str, Any]) -> str:
    grid = GRIDS[row["grid"]]
    return f"{row['frames']} x {grid.bins}, {grid.smoothing:g}"


if __name__ == "__main__":
    main()
