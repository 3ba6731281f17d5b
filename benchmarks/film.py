"""What keeping the path of a few particles costs a flow: the same flow with it and without, in turns.

    python benchmarks/film.py

Processor time of this process, which others on the machine do not change much; the report's decoding is not part of it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import finish, mixture, parser, show

from dpsw_ray.cluster import LocalCluster
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.film import Choice, evenly, first_of_each
from dpsw_ray.flow.points import Points
from dpsw_ray.flow.solver import solve
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.private.latents import CHUNK, bounded
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.quantiles import Targets, denoise
from dpsw_ray.tables.release import Release

DIM, CLASSES = 8, 10


def released(records: int, frames: int) -> list[Targets]:
    """Targets of generated latents, without noise."""
    latents, labels = mixture(records, DIM, CLASSES)
    plan = HistogramPlan.make(
        release_id="benchmark", dim=DIM, frames=frames, grid=BinGrid(32, 1.0), classes=CLASSES,
        class_conditional=True, relation="replace_one", epsilon=float("inf"), delta=1e-5, seed=0,
    )  # fmt: skip
    chunks = (bounded(latents[i : i + CHUNK], labels[i : i + CHUNK]) for i in range(0, records, CHUNK))
    return denoise(Release.from_plan(plan, bound(chunks, plan)[None], {"publishable": False}))


def once(
    rounds: list[Targets], config: FlowConfig, follow: Choice | None, folder: Path
) -> tuple[float, Points]:
    """Processor seconds of a flow with its checkpoints, and what came out."""
    path = folder / "flow.npz"
    path.unlink(missing_ok=True)
    start = time.process_time()
    result = solve(
        rounds, config, sphere=True, seed=0, cluster=LocalCluster(1), checkpoint=path, follow=follow
    )
    return time.process_time() - start, result


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument(
        "--repeat", type=int, default=9, help="rounds of each, in turns; the median of their ratios"
    )
    arguments = options.parse_args()
    records, particles, frames = (3_000, 1_000, 4) if arguments.quick else (30_000, 10_000, 32)
    rounds = released(records, frames)
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for parallel in ("particles", "directions"):
            config = FlowConfig.model_validate(
                {
                    "particles": particles,
                    "steps": 100,
                    "patience": 100,
                    "kernel": "numba",
                    "parallel": parallel,
                }
            )
            once(rounds, config, None, Path(folder))  # loads compiled code
            for name, follow in (
                ("images: 120 of them", first_of_each(12, 120)),
                ("rows: 2,000 of them", evenly(2_000)),
            ):
                pairs = []
                for _ in range(arguments.repeat):
                    plain, with_film = (
                        once(rounds, config, choice, Path(folder)) for choice in (None, follow)
                    )
                    assert np.array_equal(plain[1].particles, with_film[1].particles)
                    pairs.append((plain[0], with_film[0]))
                ratio = statistics.median(after / before for before, after in pairs)
                figures[f"{parallel}, {name}"] = {"ratio": ratio, "seconds": pairs}
                rows.append([parallel, name, f"{min(before for before, _ in pairs):.2f} s", f"{ratio:.3f}"])
    show(
        f"{particles:,} particles, {frames * DIM} directions, 100 steps: the flow with a film over the flow without",
        ["divided by", "followed", "without", "ratio"],
        rows,
    )
    finish(arguments, figures)


if __name__ == "__main__":
    main()
