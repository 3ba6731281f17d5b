"""Sums of smoothed sliced histograms: records per second on one core, and memory when millions stream through.

python benchmarks/release.py --json release.json
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import finish, mixture, paired, parser, show
from numpy.typing import NDArray

from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.private.latents import CHUNK, bounded
from dpsw_ray.slicing.grid import BinGrid

DIM = 8
Batch = tuple[NDArray[np.float64], NDArray[np.int32]]


def make_plan(classes: int, frames: int = 32) -> HistogramPlan:
    """A release as in configs/fashion_mnist.yaml, with 256 directions."""
    return HistogramPlan.make(
        release_id="benchmark", dim=DIM, frames=frames, grid=BinGrid(32, 1.0), classes=classes,
        class_conditional=classes > 1, relation="replace_one", epsilon=1.0, delta=1e-5, seed=0,
    )  # fmt: skip


def batches(latents: NDArray[np.float64], labels: NDArray[np.int32]) -> Iterator[Batch]:
    """Chunks as the latent store yields them: bounding the records is part of the time."""
    for first in range(0, len(latents), CHUNK):
        yield bounded(latents[first : first + CHUNK], labels[first : first + CHUNK])


def stream(records: int) -> tuple[float, float]:
    """Memory in MiB before, and at its peak while, `records` generated records pass through a chunk at a time."""
    plan = make_plan(10)
    latents, labels = mixture(CHUNK, DIM)
    bound(batches(latents, labels), plan)  # compiled code and tables are there before
    # Not getrusage: its peak is inherited from the parent, across exec, and hides anything below.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    whole, rest = divmod(records, CHUNK)
    bound((bounded(latents[: CHUNK if i < whole else rest], labels[: CHUNK if i < whole else rest])
           for i in range(whole + (rest > 0))), plan)  # fmt: skip
    return before, _memory("VmHWM")


def _memory(field: str) -> float:
    """A field of this process's status, in MiB (Linux)."""
    (line,) = [t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith(field + ":")]
    return int(line.split()[1]) / 1024


def main() -> None:
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    records, streamed = (3_000, 50_000) if arguments.quick else (30_000, 2_000_000)
    latents, labels = mixture(records, DIM)
    plans = {"one class": make_plan(1), "10 classes": make_plan(10)}
    times = paired(
        {name: lambda plan=plan: bound(batches(latents, labels), plan) for name, plan in plans.items()},  # type: ignore[misc]
        rounds=3,
    )
    show(
        f"Release of {records:,} records, 256 directions, 32 bins, one core",
        ["", "best s", "median s", "records/s", "goal < 1 s"],
        [
            [name, f"{min(t):.3f}", f"{statistics.median(t):.3f}", f"{records / min(t):,.0f}",
             "met" if min(t) < 1 else "not met"]
            for name, t in times.items()
        ],
    )  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process whose peak is its own
        before, after = pool.apply(stream, (streamed,))
    show(
        f"Memory, {streamed:,} records in chunks of {CHUNK:,}, 10 classes",
        ["before MiB", "peak MiB", "grown MiB", "the records at once, MiB"],
        [[f"{before:.0f}", f"{after:.0f}", f"{after - before:.1f}", f"{streamed * DIM * 8 / 2**20:.0f}"]],
    )
    figures = {
        name: {"best_s": min(t), "median_s": statistics.median(t), "records_per_s": records / min(t)}
        for name, t in times.items()
    }
    memory = {"records": streamed, "before_mib": before, "peak_mib": after}
    finish(arguments, {"records": records, "directions": 256, "release": figures, "memory": memory})


if __name__ == "__main__":
    main()
