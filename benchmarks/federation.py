"""One round of a federated run at scale: users a second, memory, and one actor against two.

    python benchmarks/federation.py --json federated.json
    python benchmarks/federation.py --million --json federated.json

Users hold 20 generated records each, in dimension 8, and send smoothed histograms over 256 directions, under trust
`distributed`. The work is what a round does on the private side: every user's message made, bounded, checked and added
up, the survivors' noise, and the masks between workers. Starting Ray and generating the users are shown, and are not
part of it. Memory is the sum over driver and workers of what is theirs alone (proportional set size).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, paired, parser, show
from numpy.typing import NDArray
from rivals.clock import family, processor_s
from rivals.work import Work, whole_rows

from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import WorkerGroup, open_cluster
from dpsw_ray.federated.cohort import Cohort
from dpsw_ray.federated.config import load_federated
from dpsw_ray.federated.data import population_data
from dpsw_ray.federated.kernel import PRESENT, add_users
from dpsw_ray.federated.plan import UserPlan, round_plan
from dpsw_ray.federated.world import spawn_users
from dpsw_ray.pipeline.steps import train_encoder
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.latents import bounded
from dpsw_ray.release.exchange import noisy_answer
from dpsw_ray.slicing.directions import LATTICE, haar_frames
from dpsw_ray.slicing.grid import PHASES, BinGrid

CONFIG = Path(__file__).parents[1] / "configs" / "federated" / "million.yaml"


@dataclass(frozen=True)
class Cohorts:
    """A population in place, and the plan of a round.

    Attributes:
        shards: the population's workers.
        plan: of the round.
        private: the data set's private folder, with the users' latents.
        start_s: seconds of starting Ray.
        prepare_s: seconds of generating the users.
    """

    shards: WorkerGroup
    plan: UserPlan
    private: Path
    start_s: float
    prepare_s: float

    def round(self) -> tuple[NDArray[np.int64], float]:
        """The server's modular sum, and the seconds that the round took."""
        start = time.perf_counter()
        total = noisy_answer(self.shards, self.plan, noise_seed=0)
        return total, time.perf_counter() - start


@contextmanager
def cohorts(home: Path, users: int, actors: int, conditional: bool) -> Iterator[Cohorts]:
    """Generated users on workers of a Ray of its own."""
    config = load_federated(
        CONFIG,
        (
            f"population.users={users}",
            f"cluster.actors={actors}",
            f"release.class_conditional={str(conditional).lower()}",
            f"paths.home={home}",
            "privacy.noise_seed=0",
            "privacy.delta=1e-7",
        ),
    )
    start = time.perf_counter()
    with open_cluster(config.cluster) as cluster:
        started = time.perf_counter() - start
        data, _ = population_data(config, cluster, Progress(quiet=True), Ledger(home / "ledger.sqlite"))
        encoder = train_encoder(config, data, home / f"encoder-{users}", Progress(quiet=True))
        shards = spawn_users(config, cluster, data, home / f"encoder-{users}", users)
        start = time.perf_counter()
        for step in ("encode", "arrange", "fill", "finish"):
            shards.call(step)
        prepared = time.perf_counter() - start
        cohort = Cohort.of(config, users, 0)
        plan = round_plan(config, encoder.latent_dim, len(data.info.classes), users, cohort, "benchmark")
        assert isinstance(plan, UserPlan)
        shards.call("prepare", (plan, 0))
        yield Cohorts(shards, plan, data.private_dir, started, prepared)


def once(home: Path, users: int, actors: int, conditional: bool, repeat: int) -> dict[str, Any]:
    """Seconds of a round, and what came out."""
    with cohorts(home, users, actors, conditional) as population:
        seconds, processor, total = [], [], np.zeros(0, np.int64)
        for _ in range(repeat + 1):  # the first loads compiled code
            used = processor_s(os.getpid())
            total, taken = population.round()
            seconds.append(taken)
            processor.append(processor_s(os.getpid()) - used)
        memory = sum(_proportional_mib(pid) for pid in family(os.getpid()))
        return {
            "users": users,
            "actors": actors,
            "class_conditional": conditional,
            "cells": int(np.prod(population.plan.cells)),
            "start_s": population.start_s,
            "prepare_s": population.prepare_s,
            "first_s": seconds[0],
            "round_s": min(seconds[1:]),
            "all_s": seconds[1:],
            "users_per_s": users / min(seconds[1:]),
            "processor_s": min(processor[1:]),
            "memory_mib": memory,
            "digest": hash(population.plan.counts(total).tobytes()),
        }


def against_numpy(users: int, repeat: int) -> dict[str, Any]:
    """The kernel and a NumPy loop over users on the same work, in turn, in this process with one thread."""
    rng = np.random.default_rng(0)
    grid, directions, each = BinGrid(32, 1.0), haar_frames(32, 8, 0), 20
    latents, _ = bounded(rng.standard_normal((users * each, 8)), np.zeros(users * each, np.int32))
    lattice, labels = np.rint(latents / LATTICE).astype(np.int32), np.zeros(users * each, np.int32)
    offsets, present = np.arange(users + 1) * each, np.full(users, PRESENT, np.uint8)
    sums = {name: np.zeros((1, len(directions), grid.bins), np.int64) for name in ("ours", "NumPy")}

    def ours() -> None:
        sums["ours"][:] = 0
        add_users(
            lattice, labels, offsets, present, directions, grid, grid.table, sums["ours"],
            largest_norm_sq=grid.row_norm_sq,
        )  # fmt: skip

    work = Work(
        latents.reshape(users, each, -1), directions, whole_rows(grid.table, grid.bins), grid.low,
        PHASES / grid.width, 1 / each, bound=0.0, noise=0.0,
    )  # fmt: skip

    def loop() -> None:
        total = np.zeros((len(directions), grid.bins), np.float32)
        sums["NumPy"][:] = 0
        for user, records in enumerate(work.latents):
            total += work.message(records)
            if user % 100 == 99:  # single precision holds whole numbers up to 2^24
                sums["NumPy"][0] += total.astype(np.int64)
                total[:] = 0
        sums["NumPy"][0] += total.astype(np.int64)

    times = paired({"ours": ours, "NumPy": loop}, repeat)
    best = {name: min(seconds) for name, seconds in times.items()}
    return {
        "users": users,
        "users_per_s": {name: users / seconds for name, seconds in best.items()},
        "ratio": best["NumPy"] / best["ours"],
        "same": bool(np.array_equal(sums["ours"], sums["NumPy"])),
    }


def _proportional_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    # Pages of the memory-mapped users can be dropped at any time: they are the disk's cache, not memory in use.
    return (sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)) / 1024


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--million", action="store_true", help="also a million users (0.8 GB on disk)")
    options.add_argument("--repeat", type=int, default=3, help="rounds of each; the fastest counts")
    arguments = options.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    users = 5_000 if arguments.quick else 100_000
    single = against_numpy(200 if arguments.quick else 1_000, arguments.repeat)
    cases = [(users, actors, conditional) for conditional in (False, True) for actors in (1, 2)]
    if arguments.million:
        cases.append((1_000_000, 2, False))
    with tempfile.TemporaryDirectory(prefix="dpsw-federated-") as home:
        os.environ["DPSW_HOME"] = home
        results = [once(Path(home), *case, arguments.repeat) for case in cases]
    show(
        "One round, 20 records a user, d = 8, 256 directions of 32 bins: seconds",
        [
            "users",
            "actors",
            "classes",
            "round",
            "processor",
            "users/s",
            "memory, MiB",
            "first",
            "prepare",
            "Ray",
        ],
        [
            [
                f"{r['users']:,}",
                str(r["actors"]),
                "10" if r["class_conditional"] else "1",
                f"{r['round_s']:.2f}",
                f"{r['processor_s']:.2f}",
                f"{r['users_per_s']:,.0f}",
                f"{r['memory_mib']:,.0f}",
                f"{r['first_s']:.2f}",
                f"{r['prepare_s']:.1f}",
                f"{r['start_s']:.1f}",
            ]
            for r in results
        ],
    )
    pairs = list(zip(results[0:4:2], results[1:4:2], strict=True))
    for one, two in pairs:
        kind = "10 classes" if one["class_conditional"] else "1 class"
        print(f"{kind}: two actors are {one['round_s'] / two['round_s']:.2f} times as fast as one")
    same = all(one.pop("digest") == two.pop("digest") for one, two in pairs)
    for result in results[4:]:
        result.pop("digest")
    print(
        f"One thread, one class: {single['users_per_s']['ours']:,.0f} users/s, a NumPy loop over users "
        f"{single['users_per_s']['NumPy']:,.0f}: {single['ratio']:.1f} times, sums "
        f"{'the same' if single['same'] else 'DIFFERENT'}"
    )
    print(f"Sums bit-identical for one and two actors: {'yes' if same else 'NO'}")
    finish(arguments, {"rounds": results, "one_thread": single, "bit_identical": same})


if __name__ == "__main__":
    main()
