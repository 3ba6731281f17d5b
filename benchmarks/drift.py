"""One step's drift: ours, the published step of DPSWflow, the gradient of POT's sliced distance, the bare product.

    python benchmarks/drift.py --json drift.json

All sides run in one process, in turn, with the same number of threads: one, then two.

Goals are judged on the best time of each side. On a machine that is shared, a library whose threads meet at barriers
(OpenMP, OpenBLAS) waits for whole time slices whenever a core is taken, and a median would compare schedulers: the
table shows median / best, and what is far above 1 was disturbed. One thread meets no barrier and is the safest figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import ot
import torch
from harness import finish, mixture, paired, parser, show
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from dpsw_ray.slicing.directions import haar_frames, round_to_lattice
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.drift_numba import drift_numba
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.slicing.histogram import add_histograms

DIM = 8
GRID = BinGrid(bins=32, smoothing=1.0)  # as in configs/fashion_mnist.yaml
PUBLISHED_DIRECTIONS = 25  # of 70 released ones
PUBLISHED_PERCENTILES = 30_000


def target(latents: NDArray[np.float64], directions: NDArray[np.float64]) -> Slices:
    """Slices of these latents, without noise."""
    counts = np.zeros((1, len(directions), GRID.bins), dtype=np.int64)
    labels = np.zeros(len(latents), dtype=np.int32)
    add_histograms(round_to_lattice(latents * (1 - 1e-6)), labels, directions, GRID, GRID.table, counts)
    cdf = np.zeros((1, len(directions), GRID.bins + 1))
    np.cumsum(counts / (SCALE * len(latents)), axis=2, out=cdf[..., 1:])
    return Slices(directions, GRID, GRID.table, cdf)


def interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation row by row: `x` [k, n] at rising `knots` [k, m] with `values` [k, m]."""
    above = torch.searchsorted(knots, x).clamp(1, knots.shape[1] - 1)
    x0, x1 = knots.gather(1, above - 1), knots.gather(1, above)
    y0, y1 = values.gather(1, above - 1), values.gather(1, above)
    share = ((x - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)
    return y0 + share * (y1 - y0)


def published_step(particles: Tensor, projections: Tensor, directions: Tensor, sigma: float) -> Tensor:
    """The drift of DPSWflow as described: both CDFs from noisy projections at fixed percentiles.

    Args:
        particles: array of size [n, d].
        projections: array of size [k, N], the private records' projections.
        directions: array of size [k, d].
        sigma: standard deviation of the noise on both sides.
    """
    levels = torch.linspace(0, 1, PUBLISHED_PERCENTILES).expand(len(directions), -1).contiguous()
    z = directions @ particles.T
    z = z + sigma * torch.randn_like(z)
    y = projections + sigma * torch.randn_like(projections)
    source = torch.quantile(z, levels[0], dim=1).T.contiguous()
    goal = torch.quantile(y, levels[0], dim=1).T.contiguous()
    moved = interpolate(interpolate(z, source, levels), levels, goal)
    return ((z - moved)[:, :, None] * directions[:, None, :]).mean(0)


def pot_gradient(particles: Tensor, targets: Tensor, projections: Tensor) -> Tensor:
    """Gradient of POT's sliced distance with respect to the particles."""
    x = particles.clone().requires_grad_()
    distance = ot.sliced_wasserstein_distance(x, targets, projections=projections)
    (gradient,) = torch.autograd.grad(distance, x)
    return gradient


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="for every side; each in turn"
    )
    options.add_argument("--rounds", type=int, default=None)
    arguments = options.parse_args()
    particles, records, frames = (1_000, 3_000, 4) if arguments.quick else (10_000, 30_000, 32)
    rounds = arguments.rounds or (2 if arguments.quick else 3)

    directions = haar_frames(frames, DIM, seed=0)
    latents, _ = mixture(records, DIM)
    slices = target(latents, directions)
    rng = np.random.default_rng(1)
    start = rng.standard_normal((particles, DIM))
    x = round_to_lattice(start / np.linalg.norm(start, axis=1, keepdims=True) * (1 - 1e-6))
    offsets = np.array([0, particles])

    x32, y32 = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(latents, dtype=torch.float32)
    theta32 = torch.as_tensor(directions, dtype=torch.float32)
    few = theta32[:PUBLISHED_DIRECTIONS]
    projections = few @ y32.T
    columns = theta32.T.contiguous()
    # Written to memory that is there already: fresh pages would cost more than the product.
    out32, out64 = torch.empty(particles, len(directions)), np.empty((particles, len(directions)))
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: drift_numba(x, offsets, slices, threads=torch.get_num_threads()),
        "published": lambda: published_step(x32, projections, few, GRID.sigma),
        "pot": lambda: pot_gradient(x32, y32[:particles], columns),
        "pot_records": lambda: pot_gradient(x32, y32, columns),
        "product32": lambda: torch.mm(x32, columns, out=out32),
        "product64": lambda: np.matmul(x, directions.T, out=out64),
    }
    names = {
        "ours": f"ours (drift_numba, float64), {particles:,} particles",
        "published": f"published step, {records:,} projections, {PUBLISHED_PERCENTILES:,} percentiles",
        "pot": f"POT's gradient (float32), {particles:,} targets",
        "pot_records": f"POT's gradient (float32), {records:,} targets",
        "product32": "bare product, Torch float32",
        "product64": "bare product, NumPy float64",
    }
    runs = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            times = paired(sides, rounds)
        widths = {name: len(few) if name == "published" else len(directions) for name in sides}
        runs.append({"threads": threads, **report(names, times, widths, threads)})
    finish(arguments, {"particles": particles, "records": records, "rounds": rounds, "runs": runs})


def report(
    names: dict[str, str], times: dict[str, list[float]], widths: dict[str, int], threads: int
) -> dict[str, Any]:
    """Prints the tables of one number of threads; returns their figures."""
    best = {name: min(seconds) for name, seconds in times.items()}
    each = {name: best[name] / widths[name] for name in times}
    sides = {
        name: {
            "what": names[name],
            "directions": widths[name],
            "calls": len(seconds),
            "best_s": best[name],
            "median_s": statistics.median(seconds),
            "best_per_direction_s": each[name],
            "per_direction_over_ours": each[name] / each["ours"],
        }
        for name, seconds in times.items()
    }
    show(
        f"Drift of one step, {threads} thread(s): d = {DIM}, {GRID.bins} bins",
        ["", "directions", "best ms", "median / best", "us per direction", "/ ours"],
        [
            [
                names[name],
                str(widths[name]),
                f"{best[name] * 1e3:.2f}",
                f"{statistics.median(seconds) / best[name]:.2f}",
                f"{each[name] * 1e6:.1f}",
                f"{each[name] / each['ours']:.3g}",
            ]
            for name, seconds in times.items()
        ],
    )
    goals = [
        ("published step / ours, per direction", each["published"] / each["ours"], ">=", 100.0),
        ("POT's gradient / ours, as many targets", best["pot"] / best["ours"], ">=", 100.0),
        ("POT's gradient / ours, all records", best["pot_records"] / best["ours"], ">=", 100.0),
        ("ours / bare float32 product", best["ours"] / best["product32"], "<=", 4.0),
        ("ours / bare float64 product", best["ours"] / best["product64"], "<=", 4.0),
    ]
    met = [value >= goal if sign == ">=" else value <= goal for _, value, sign, goal in goals]
    show(
        f"Goals, {threads} thread(s)",
        ["", "measured", "goal", ""],
        [
            [name, f"{value:.3g}", f"{sign} {goal:g}", "met" if reached else "not met"]
            for (name, value, sign, goal), reached in zip(goals, met, strict=True)
        ],
    )
    return {
        "sides": sides,
        "goals": [
            {"what": name, "measured": value, "goal": f"{sign} {goal:g}", "met": reached}
            for (name, value, sign, goal), reached in zip(goals, met, strict=True)
        ],
    }


if __name__ == "__main__":
    main()
