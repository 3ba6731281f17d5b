"""A sweep under `reuse`: seconds by phase, and what a trial costs beyond its flow steps.

    python benchmarks/sweep.py --json sweep.json

A hundred trials of 10,000 particles from one release with 256 directions of Fashion-MNIST's latents (its encoder is
trained, or found in the cache, before the clock runs). The overhead of a trial is what the workers were held for
beyond flow steps: the trials' wall clock times the workers, less all flow steps, over the number of trials.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from harness import finish, parser, show

from dpsw_ray.base.progress import Progress
from dpsw_ray.tune.config import SweepConfig
from dpsw_ray.tune.plan import plan_sweep
from dpsw_ray.tune.sweep import run_sweep


def main() -> None:
    options = parser(__doc__ or "")
    arguments = options.parse_args()
    quick, workers = arguments.quick, min(2, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        sweep = SweepConfig.model_validate(
            {
                "name": "benchmark",
                "base": "digits" if quick else "fashion_mnist",
                "set": {
                    "release.frames": 4 if quick else 32,
                    "flow.steps": 60,
                    "privacy.research": True,
                    "evaluation.enabled": False,
                    "paths.ledger": f"{scratch}/ledger.sqlite",
                },
                "space": {
                    "flow.step_size": {"loguniform": [2.0, 16.0]},
                    "flow.schedule": {"choice": ["constant", "cosine"]},
                },
                "search": {"trials": 8 if quick else 100},
                "trials": {"at_once": workers},
            }
        )
        start = time.perf_counter()
        run_sweep(plan_sweep(sweep, "benchmark"), Path(scratch, "sweep"), False, Progress())
        total = time.perf_counter() - start
        seconds = json.loads(Path(scratch, "sweep", "timings.json").read_text())
        rows = pq.read_table(Path(scratch, "sweep", "trials.parquet")).to_pylist()
    count = len(rows)
    phases = {
        name: sum(row[f"seconds.{name}"] for row in rows) for name in ("inputs", "flow", "score", "points")
    }
    overhead = (seconds["trials"] * workers - phases["flow"]) / count
    known = sum(value for name, value in seconds.items() if not name.startswith("MLflow, beside"))
    show(
        f"{count} trials, {workers} workers: {total:.1f} s in all",
        ["phase", "s", "s a trial"],
        [
            ["data, encoder, latents, release", f"{total - known:.1f}", ""],
            ["trials, wall clock", f"{seconds['trials']:.1f}", f"{seconds['trials'] / count:.2f}"],
            *([f"  {name}, all workers", f"{value:.1f}", f"{value / count:.3f}"] for name, value in phases.items()),
            ["  overhead beyond flow steps, per worker", "", f"{overhead:.2f}"],
            ["MLflow, beside the trials", f"{seconds['MLflow, beside the trials']:.1f}",
             f"{seconds['MLflow, beside the trials'] / count:.3f}"],
            ["MLflow, after them", f"{seconds['MLflow, after them']:.1f}", ""],
            ["best run and report", f"{seconds['best run and report']:.1f}", ""],
        ],
    )  # fmt: skip
    finish(
        arguments,
        {
            "total": total,
            "trials": count,
            "workers": workers,
            "overhead": overhead,
            "phases": phases,
            **seconds,
        },
    )


if __name__ == "__main__":
    main()
