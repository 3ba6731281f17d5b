"""The flow and the release at scale: time, memory and bytes for one actor and two, and how they grow.

    python benchmarks/scale.py --json scale.json
    python benchmarks/scale.py --only flow release

Every actor has one thread. Memory is the peak of an actor's process, its libraries and shared pages included. Growth is
fitted to processor time in this process. The release streams chunk files of the latent store through shards, as a run
does: 16 different ones under many names. Bytes are those of arrays in calls and answers, once for each worker that gets
them. Sections: flow, release, share, exchange, growth, gpu (where there is one).
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import finish, mixture, paired, parser, show
from numpy.typing import NDArray

from dpsw_ray.base.files import write_arrow
from dpsw_ray.cluster import Cluster, LocalCluster, WorkerGroup, open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.particles import initial
from dpsw_ray.flow.solver import solve
from dpsw_ray.methods.dpswflow_h.mechanism import bound
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.private.latents import CHUNK, LatentStore, bounded
from dpsw_ray.private.shard import Shard
from dpsw_ray.release.exchange import noisy_answer
from dpsw_ray.slicing.directions import haar_frames
from dpsw_ray.slicing.drift import Slices
from dpsw_ray.slicing.drift_numba import NumbaBlock
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.quantiles import Targets

GRID = BinGrid(32, 1.0)  # as in configs/fashion_mnist.yaml
FLOW_DIM, RELEASE_DIM = 48, 64
SECTIONS = ("flow", "release", "share", "exchange", "growth", "gpu")
LIMIT_MIB = 2048


def goal(directions: int, dim: int) -> Slices:
    """Targets that are hard enough to move towards: uniform in a smaller ball, one class."""
    frames = haar_frames(-(-directions // dim), dim, 0)[:directions]
    inner = np.clip((GRID.edges + 0.5) / 1.0, 0.0, 1.0)
    return Slices(frames, GRID, GRID.table, np.tile(inner, (1, directions, 1)))


class Probe:
    """Lives in an actor beside what is measured there."""

    def reset(self) -> None:
        """Forgets the peak so far: getrusage would inherit the parent's."""
        Path("/proc/self/clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """Since `reset`."""
        (line,) = [t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024

    def join(self, rank: int, size: int, port: int) -> None:
        """Meets the other actors of a gloo group."""
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)

    def reduce(self, numbers: int, times: int) -> float:
        """Seconds of one all-reduce of so many int64."""
        import torch.distributed as dist

        values = torch.ones(numbers, dtype=torch.int64)
        start = time.perf_counter()
        for _ in range(times):
            dist.all_reduce(values)
        return (time.perf_counter() - start) / times

    def swap(self, received: NDArray[np.int64]) -> NDArray[np.int64]:
        """What an exchange through the driver takes: everybody's sum comes in, one's own counts go out."""
        return received + 1


class Counting:
    """A cluster that counts the bytes of arrays on their way."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def spawn(self, *args: Any) -> WorkerGroup:
        """As the cluster's."""
        group = self._cluster.spawn(*args)
        call = group.call

        def counted(method: str, args: Any = (), *, retry: bool = False) -> list[Any]:
            results = call(method, args, retry=retry)
            self.bytes += size_of(args) * (group.size if isinstance(args, tuple) else 1) + size_of(results)
            return results

        group.call = counted  # type: ignore[method-assign]
        return group


def size_of(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


@contextmanager
def actors(number: int) -> Iterator[tuple[Cluster, WorkerGroup]]:
    with open_cluster(ClusterConfig(actors=number)) as cluster:
        yield cluster, cluster.spawn(Probe, [{}] * number)


def flow(quick: bool, wanted: int | None = None) -> dict[str, Any]:
    """A flow of many particles on one actor and on two."""
    particles, directions, steps = (20_000, 192, 12) if quick else (1_000_000, 4_096, 3)
    directions = wanted or directions
    sides = []
    for number in (1, 2):
        with actors(number) as (cluster, probe):
            small = Targets(goal(FLOW_DIM, FLOW_DIM), np.ones(1))
            keys = {"parallel": "particles", "patience": 1000, "kernel": "numba"}
            warm = FlowConfig.model_validate({"particles": 5_000, "steps": 2} | keys)
            solve([small], warm, sphere=True, seed=0, cluster=cluster)
            probe.call("reset")
            counting = Counting(cluster)
            marks: list[tuple[float, int]] = []
            made = solve(
                [Targets(goal(directions, FLOW_DIM), np.ones(1))],
                FlowConfig.model_validate({"particles": particles, "steps": steps} | keys),
                sphere=True,
                seed=0,
                cluster=counting,
                on_step=lambda distance, counting=counting, marks=marks: marks.append(  # type: ignore[misc]
                    (time.perf_counter(), counting.bytes)
                ),
            )
            peaks = probe.call("peak_mib")
        sides.append(
            {
                "actors": number,
                # The first step has the start in it; several small ones in one call are marked together.
                "step_s": (marks[-1][0] - marks[0][0]) / (steps - 1),
                "bytes_per_step": (marks[-1][1] - marks[0][1]) // (steps - 1),
                "peak_mib": max(peaks),
                "digest": hash(made.particles.tobytes()),
            }
        )
    same = len({side.pop("digest") for side in sides}) == 1
    ratio = sides[0]["step_s"] / sides[1]["step_s"]
    show(
        f"Flow, {particles:,} particles x {directions:,} directions, d = {FLOW_DIM}",
        ["actors", "s per step", "MB moved per step", "peak MiB per actor", "goal < 2 GiB"],
        [
            [str(s["actors"]), f"{s['step_s']:.2f}", f"{s['bytes_per_step'] / 1e6:.2f}", f"{s['peak_mib']:,.0f}",
             "met" if s["peak_mib"] < LIMIT_MIB else "not met"]
            for s in sides
        ],
    )  # fmt: skip
    print(f"Two actors are {ratio:.2f} times as fast as one (goal 1.7); same bits: {'yes' if same else 'NO'}")
    return {
        "particles": particles, "directions": directions, "dim": FLOW_DIM, "sides": sides, "ratio": ratio,
        "bit_identical": same,
    }  # fmt: skip


def plan(dim: int, directions: int) -> HistogramPlan:
    return HistogramPlan.make(
        release_id="benchmark", dim=dim, frames=directions // dim, grid=GRID, classes=1, class_conditional=False,
        relation="replace_one", epsilon=1.0, delta=1e-8, seed=0,
    )  # fmt: skip


def fill(folder: Path, records: int) -> LatentStore:
    """A store of so many latents: 16 different chunks, the others are links to them."""
    import pyarrow as pa

    store = LatentStore(folder / "private", "benchmark")
    store.folder.mkdir(parents=True)
    for number in range(-(-records // CHUNK)):
        path = store.folder / f"chunk-{number:06d}.arrow"
        rows = min(CHUNK, records - number * CHUNK)
        if number >= 16 and rows == CHUNK:
            os.link(store.folder / f"chunk-{number % 16:06d}.arrow", path)
            continue
        latents, labels = mixture(rows, RELEASE_DIM, seed=number)
        column = pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel()), RELEASE_DIM)
        write_arrow(path, pa.table({"latent": column, "label": pa.array(labels)}))
    (store.folder / "rows.json").write_text(json.dumps(records))
    return store


def release(quick: bool) -> dict[str, Any]:
    """Sums of many records on one actor and on two."""
    records = 200_000 if quick else 10_000_000
    wanted = plan(RELEASE_DIM, 256)
    sides = []
    with tempfile.TemporaryDirectory(prefix="dpsw-scale-") as name:
        folder = Path(name)
        fill(folder, records)
        fill(folder / "warm", CHUNK)
        for number in (1, 2):
            with actors(number) as (cluster, probe):

                def contribute(private: Path, cluster: Cluster = cluster, number: int = number) -> Any:
                    shards = cluster.spawn(
                        Shard,
                        [
                            {"rank": rank, "size": number, "private_dir": private, "receipts_dir": private / "receipts",
                             "encoder_dir": folder, "latents_key": "benchmark"}
                            for rank in range(number)
                        ],
                    )  # fmt: skip
                    shards.call("prepare", (wanted, 0))
                    return noisy_answer(shards, wanted, noise_seed=0)

                contribute(folder / "warm" / "private")
                probe.call("reset")
                start = time.perf_counter()
                total = contribute(folder / "private")
                seconds = time.perf_counter() - start
                peak = max(probe.call("peak_mib"))
            sides.append(
                {"actors": number, "s": seconds, "records_per_s": records / seconds, "peak_mib": peak,
                 "digest": hash(total.tobytes())}
            )  # fmt: skip
    same = len({side.pop("digest") for side in sides}) == 1
    ratio = sides[0]["s"] / sides[1]["s"]
    show(
        f"Release of {records:,} records, d = {RELEASE_DIM}, 256 directions",
        ["actors", "s", "records/s", "peak MiB per actor", "goal < 2 GiB"],
        [
            [str(s["actors"]), f"{s['s']:.1f}", f"{s['records_per_s']:,.0f}", f"{s['peak_mib']:,.0f}",
             "met" if s["peak_mib"] < LIMIT_MIB else "not met"]
            for s in sides
        ],
    )  # fmt: skip
    print(f"Two actors are {ratio:.2f} times as fast as one (goal 1.7); same bits: {'yes' if same else 'NO'}")
    return {"records": records, "sides": sides, "ratio": ratio, "bit_identical": same}


def share(quick: bool) -> dict[str, Any]:
    """What Ray costs a flow that is small: in this process, and as `auto` and others divide it between two actors."""
    particles, steps, rounds = (2_000, 20, 2) if quick else (10_000, 100, 5)
    targets = [Targets(goal(256, 8), np.ones(1))]
    said: list[str] = []

    def run(cluster: Cluster, parallel: str) -> None:
        config = FlowConfig.model_validate(
            {
                "particles": particles,
                "steps": steps,
                "patience": 1000,
                "kernel": "numba",
                "parallel": parallel,
            }
        )
        solve(targets, config, sphere=True, seed=0, cluster=cluster, say=said.append)

    with actors(2) as (cluster, _):
        sides: dict[str, Callable[[], object]] = {"in this process": lambda: run(LocalCluster(1), "classes")}
        for parallel in ("auto", "particles", "directions"):
            sides[parallel] = lambda parallel=parallel: run(cluster, parallel)  # type: ignore[misc]
        times = paired(sides, rounds, budget_s=0.0)
    best = {name: min(seconds) for name, seconds in times.items()}
    part = {name: 1.0 - best["in this process"] / seconds for name, seconds in best.items()}
    show(
        f"A flow of {steps} steps, {particles:,} particles x 256 directions, d = 8, on two actors",
        ["flow.parallel", "best s", "median s", "/ in this process"],
        [
            [name, f"{best[name]:.3f}", f"{statistics.median(times[name]):.3f}",
             f"{best[name] / best['in this process']:.2f}"]
            for name in times
        ],
    )  # fmt: skip
    print(f"auto says: {said[0] if said else 'nothing'}")
    met = part["auto"] < 0.2 or bool(said)
    print(f"Ray's share of auto's time: {part['auto']:.1%} (goal: under 20 %, or one actor, and why): "
          f"{'met' if met else 'not met'}")  # fmt: skip
    return {"best_s": best, "all_s": times, "share": part, "said": said[:1]}


def exchange(quick: bool) -> dict[str, Any]:
    """Adding up two actors' histograms: through the object store and the driver, or by gloo between the actors."""
    rows = []
    with actors(2) as (_, probe), socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        held.close()
        probe.call("join", [(0, 2, port), (1, 2, port)])
        for directions in (256, 4_096):
            numbers = 2 * directions * GRID.bins
            times = 5 if quick else 50
            stored, direct = [], []
            answer = np.zeros(numbers, np.int64)
            for _ in range(3):
                start = time.perf_counter()
                for _ in range(times):
                    answer = sum(probe.call("swap", (answer,)))
                stored.append((time.perf_counter() - start) / times)
                direct.append(max(probe.call("reduce", (numbers, times))))
            rows.append({"directions": directions, "bytes": 8 * numbers, "object_store_s": min(stored),
                         "gloo_s": min(direct)})  # fmt: skip
    show(
        "Adding up the histograms of two actors once",
        ["directions", "MB", "object store and driver, ms", "gloo, ms"],
        [
            [f"{r['directions']:,}", f"{r['bytes'] / 1e6:.2f}", f"{1e3 * r['object_store_s']:.2f}",
             f"{1e3 * r['gloo_s']:.2f}"]
            for r in rows
        ],
    )  # fmt: skip
    return {"sizes": rows}


def growth(quick: bool) -> dict[str, Any]:
    """Processor time against particles, directions and records, and the exponents that fit."""

    def drift(particles: int, directions: int) -> Callable[[], object]:
        block = NumbaBlock(initial(particles, FLOW_DIM, True, 0), np.array([0, particles]))
        slices = goal(directions, FLOW_DIM)
        return lambda: block.drift(slices)

    def records(number: int) -> Callable[[], object]:
        latents, labels = bounded(*mixture(number, RELEASE_DIM))
        wanted = plan(RELEASE_DIM, 256)
        return lambda: bound([(latents, labels)], wanted)

    small = 2_000 if quick else 50_000
    series = {
        "particles": [(n, drift(n, 96)) for n in (small, 2 * small, 4 * small, 8 * small)],
        "directions": [(k, drift(small, k)) for k in (96, 192, 384, 768)],
        "records": [(n, records(n)) for n in (small // 2, small, 2 * small, 4 * small)],
    }
    figures: dict[str, dict[str, Any]] = {}
    for name, points in series.items():
        for _, work in points:
            work()
        seconds = [min(processor(work) for _ in range(3)) for _, work in points]
        slope = float(np.polyfit(np.log([n for n, _ in points]), np.log(seconds), 1)[0])
        figures[name] = {"sizes": [n for n, _ in points], "processor_s": seconds, "exponent": slope}
    show(
        "Growth: processor time of one core is proportional to size ^ exponent",
        ["", "sizes", "s", "exponent"],
        [
            [name, ", ".join(f"{n:,}" for n in f["sizes"]), ", ".join(f"{s:.3f}" for s in f["processor_s"]),
             f"{f['exponent']:.2f}"]
            for name, f in figures.items()
        ],
    )  # fmt: skip
    return figures


def processor(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def gpu(quick: bool) -> dict[str, Any]:
    """The drift on CUDA: time, the share of the memory's measured bandwidth, and two cores beside it."""
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here")
        return {}
    from dpsw_ray.slicing.drift_torch import TorchBlock

    particles, directions = (20_000, 192) if quick else (1_000_000, 4_096)
    slices = goal(directions, FLOW_DIM)
    start = initial(particles, FLOW_DIM, True, 0)
    block = TorchBlock(start, np.array([0, particles]), "cuda")

    def timed(work: Callable[[], object]) -> float:
        work()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    seconds = timed(lambda: block.drift(slices))
    source = torch.empty(1 << 28, dtype=torch.float64, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / timed(lambda: target.copy_(source))
    # What has to pass through memory: for each group of 16 directions the particles once, their projections there and
    # back, and the sums of displacements there and back.
    moved = directions / 16 * particles * (8 * FLOW_DIM + 2 * 8 * 16 + 16 * FLOW_DIM)
    part = particles // 20
    few = NumbaBlock(start[:part], np.array([0, part]), threads=2)
    few.drift(slices)
    begin = time.perf_counter()
    few.drift(slices)
    cores = (time.perf_counter() - begin) * particles / part
    show(
        f"Drift on {torch.cuda.get_device_name()}, {particles:,} particles x {directions:,} directions, d = {FLOW_DIM}",
        ["s", "GB that must move", "measured GB/s", "share of bandwidth", "2 cores s", "ratio"],
        [[f"{seconds:.3f}", f"{moved / 1e9:.0f}", f"{bandwidth / 1e9:,.0f}", f"{moved / seconds / bandwidth:.1%}",
          f"{cores:.1f}", f"{cores / seconds:.0f}"]],
    )  # fmt: skip
    return {"s": seconds, "bytes": moved, "bandwidth": bandwidth, "share": moved / seconds / bandwidth,
            "two_cores_s": cores, "ratio": cores / seconds}  # fmt: skip


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="some sections")
    options.add_argument("--directions", type=int, default=None, help="of the flow, in place of 4,096")
    arguments = options.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sections: dict[str, Callable[[bool], dict[str, Any]]] = {
        "flow": lambda quick: flow(quick, arguments.directions),
        "release": release,
        "share": share,
        "exchange": exchange,
        "growth": growth,
        "gpu": gpu,
    }
    figures = {name: sections[name](arguments.quick) for name in SECTIONS if name in arguments.only}
    finish(arguments, figures)


if __name__ == "__main__":
    main()
