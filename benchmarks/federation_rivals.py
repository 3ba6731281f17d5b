"""One cohort through this project, through pfl's simulation and through Flower's, side by side.

    python benchmarks/federation_rivals.py --json rivals.json

The work is the same for all: every user has 20 records in dimension 8 and sends the histograms of their projections
onto 256 directions, 32 bins each: 8,192 numbers. All users are asked in every round. The three must arrive at the same
sum, before noise. Each runs in an environment of its own, which is built once in a cache (`--environments`; about 6 GB
with Torch), with one thread a process, once with one process at work and once with two. Starting up, reading data and a
first round count for nobody; settings run in turn, and the fastest round of each counts. Processor time is that of all
processes of a setting, over all rounds: on a busy machine it is the figure to look at.

The rivals' users work in NumPy (`rivals/work.py`), this project's in its compiled kernel. `rivals/` says where each
setting comes from.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from federation import Cohorts, cohorts
from harness import finish, parser, show
from numpy.typing import NDArray
from rivals.clock import family, processor_s
from rivals.work import Work, whole_rows

from dpsw_ray.federated.plan import UserPlan
from dpsw_ray.federated.shares import skellam
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.slicing.grid import PHASES

RIVALS = Path(__file__).with_name("rivals")
PACKAGES = {
    "pfl": ("pfl[pytorch]==0.6.0", "torch==2.15.0", "numpy==2.4.6"),
    "flower": ("flwr[simulation]==1.41.0", "ray==2.55.1", "numpy==2.4.6"),
}
RECORDS = 20
MISSING = {
    "dpsw_ray": "whole numbers modulo 2^b, noise in shares of the devices (Skellam), drawn from a cryptographic "
    "stream; the form of every message is checked. The masks between users are left out, because they cancel.",
    "pfl": "adds floats up (in float32 between processes), clips the norm, noise of the server from NumPy's or Torch's "
    "generator; no secure aggregation, and sums depend on the number of processes where they exceed 2^24. NumPy arrays "
    "in two processes do not start in this version (a circular import), so two processes work with Torch's tensors.",
    "Flower": "adds up what it is sent, as it is set up here: no bound, no noise, no secure aggregation.",
}


@dataclass(frozen=True)
class Setting:
    """One way of running the cohort.

    Attributes:
        who: the system.
        how: its setting, in words.
        processes: that work on users.
        command: from the folder, a name and the number of rounds to what is executed; None for this project.
    """

    who: str
    how: str
    processes: int
    command: Callable[[Path, str, int], list[str]] | None = None


@dataclass(frozen=True)
class Taken:
    """What the rounds of one start took, and the sum without noise.

    Attributes:
        seconds: of every round.
        processor_s: of a round on average, all processes together.
        total: array of size [K, bins].
    """

    seconds: list[float]
    processor_s: float
    total: NDArray[Any]


def settings(environments: Path) -> list[Setting]:
    """All of them, this project first."""
    pfl, flower = (environments / name / "bin" for name in ("pfl", "flower"))

    def pfl_command(processes: int, order: str) -> Callable[[Path, str, int], list[str]]:
        start = [str(pfl / "python")]
        if processes > 1:
            start = [str(pfl / "torchrun"), "--standalone", "--nnodes=1", f"--nproc_per_node={processes}"]
        kind = "numpy" if processes == 1 else "torch"
        return lambda folder, name, rounds: [
            *start,
            "pfl_rival.py",
            str(folder),
            name,
            str(rounds),
            kind,
            order,
        ]

    def flower_command(actors: int) -> Callable[[Path, str, int], list[str]]:
        start = [str(flower / "python"), "-c", "from flower_rival import main; main()"]
        return lambda folder, name, rounds: [*start, str(folder), name, str(rounds), str(actors)]

    return [
        *(Setting("dpsw_ray", "distributed", n) for n in (1, 2)),
        *(Setting("pfl", "as documented", n, pfl_command(n, "seeded")) for n in (1, 2)),
        *(Setting("pfl", "users without seeds", n, pfl_command(n, "plain")) for n in (1, 2)),
        *(Setting("Flower", "as documented", n, flower_command(n)) for n in (1, 2)),
    ]


def build(environments: Path) -> dict[str, dict[str, str]]:
    """Makes the rivals' environments where they are not there yet; returns the versions in them.

    Raises:
        SystemExit: a package could not be installed.
    """
    found = {}
    for name, packages in PACKAGES.items():
        folder, python = environments / name, environments / name / "bin" / "python"
        ready = folder / "ready"
        if not ready.exists() or ready.read_text() != "\n".join(packages):
            print(f"Building the environment of {name} in {folder} (once)", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            ready.unlink(missing_ok=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            done = subprocess.run([str(python), "-m", "pip", "install", "-qq", *packages], check=False)
            if done.returncode:
                raise SystemExit(
                    f"The environment of {name} could not be built: pip install {' '.join(packages)}"
                )
            ready.write_text("\n".join(packages))
        listed = subprocess.run(
            [str(python), "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
        )  # fmt: skip
        wanted = {package.partition("==")[0].partition("[")[0] for package in packages}
        found[name] = {p["name"]: p["version"] for p in json.loads(listed.stdout) if p["name"] in wanted}
    return found


def work_of(plan: UserPlan, lattice: NDArray[np.int32], users: int) -> Work:
    """What the rivals' users need: the same records, directions and table.

    Args:
        plan: of the round.
        lattice: array of size [users * RECORDS, d], the records in multiples of the lattice's step.
        users: of the cohort.
    """
    grid, unit = plan.grid, 1 << (16 - plan.precision)
    directions = plan.directions[0]
    return Work(
        latents=np.asarray(lattice * LATTICE, np.float64).reshape(users, RECORDS, -1), directions=directions,
        rows=whole_rows(plan.table, grid.bins), low=grid.low, steps=PHASES / grid.width, share=1 / (RECORDS * unit),
        bound=float(np.sqrt(len(directions) * plan.form.norm_sq)), noise=plan.noise_std / unit,
    )  # fmt: skip


def without_noise(plan: UserPlan, total: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of the messages, in the units that are sent: what the server sees, less the noise that was drawn."""
    key = NoiseKey.from_seed(0).derive(plan.digest().encode())
    cells = plan.cells[1:]
    drawn = skellam(key, plan.survivors * plan.share, int(np.prod(cells))).reshape(cells)
    released = plan.counts(total[0]) >> (16 - plan.precision)
    missed: NDArray[np.int64] = (released - drawn)[0]
    return missed


def ours(home: Path, users: int, actors: int, rounds: int, folder: Path) -> Taken:
    """This project's rounds; leaves the work for the rivals in `folder`."""
    with cohorts(home, users, actors, conditional=False) as population:
        total, _ = population.round()  # the first loads compiled code
        before = processor_s(os.getpid())
        seconds = [population.round()[1] for _ in range(rounds)]
        used = (processor_s(os.getpid()) - before) / rounds
        if not (folder / "work.json").exists():
            work_of(population.plan, _latents(population), users).save(folder)
        return Taken(seconds, used, without_noise(population.plan, total))


def _latents(population: Cohorts) -> NDArray[np.int32]:
    (path,) = population.private.glob("users/*/latents.npy")
    return np.asarray(np.load(path))


def theirs(setting: Setting, folder: Path, rounds: int, patience_s: float) -> Taken | None:
    """A rival's rounds; None where they did not end in time."""
    assert setting.command is not None
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RIVALS_ROOT"] = str(os.getpid())
    command = setting.command(folder, "rival", rounds)
    for suffix in ("json", "npy"):
        (folder / f"rival.{suffix}").unlink(missing_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=RIVALS, env=environment, stdout=log, stderr=log)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            for pid in family(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            return None
    if not (folder / "rival.json").exists():
        print((folder / "log").read_text(errors="replace")[-4000:], file=sys.stderr)
        raise SystemExit(
            f"{setting.who}, {setting.how}, {setting.processes} at work: failed; its last lines are above"
        )
    figures = json.loads((folder / "rival.json").read_text())
    return Taken(figures["seconds"], figures["processor_s"], np.load(folder / "rival.npy"))


def compare(
    options: list[Setting], users: int, rounds: int, repeat: int, patience_s: float, scratch: Path
) -> list[dict[str, Any]]:
    """Every setting with one cohort, in turn, `repeat` times."""
    folder = scratch / f"work-{users}"
    folder.mkdir()
    taken: dict[Setting, list[Taken]] = {setting: [] for setting in options}
    for _ in range(repeat):
        for setting in options:
            found: Taken | None
            if setting.command is None:
                found = ours(scratch, users, setting.processes, rounds, folder)
            else:
                found = theirs(setting, folder, rounds, patience_s)
            if found is None:
                print(f"{setting.who}, {users:,} users: not done in {patience_s:g} s", flush=True)
            else:
                taken[setting].append(found)
    expected = taken[options[0]][0].total
    results = []
    for setting, starts in taken.items():
        if starts:
            fastest, processor = min(min(t.seconds) for t in starts), min(t.processor_s for t in starts)
            results.append(
                {
                    "system": setting.who,
                    "setting": setting.how,
                    "processes": setting.processes,
                    "users": users,
                    "round_s": fastest,
                    "all_s": [t.seconds for t in starts],
                    "processor_s": processor,
                    "rounds_per_s": 1 / fastest,
                    "users_per_s": users / fastest,
                    "same_sum": all(np.array_equal(t.total, expected) for t in starts),
                }
            )
    return results


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument(
        "--environments", type=Path, metavar="FOLDER", default=Path(platformdirs.user_cache_dir("dpsw_ray"), "rivals"),
        help="where the rivals' environments are, or are built",
    )  # fmt: skip
    options.add_argument("--users", type=int, nargs="+", default=[1_000, 10_000], help="sizes of the cohort")
    options.add_argument(
        "--flower-users", type=int, default=1_000, help="Flower takes no cohort above this size"
    )
    options.add_argument("--rounds", type=int, default=5, help="rounds of each start")
    options.add_argument(
        "--repeat", type=int, default=2, help="starts of each setting; the fastest round counts"
    )
    options.add_argument(
        "--patience", type=float, default=600, metavar="S", help="seconds for a rival's start"
    )
    arguments = options.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if arguments.quick:
        arguments.users, arguments.rounds, arguments.repeat = [200], 2, 1
    versions = build(arguments.environments)
    results = []
    with tempfile.TemporaryDirectory(prefix="dpsw-rivals-") as scratch:
        os.environ["DPSW_HOME"] = scratch
        for users in arguments.users:
            chosen = [
                setting for setting in settings(arguments.environments)
                if setting.who != "Flower" or users <= arguments.flower_users
            ]  # fmt: skip
            results += compare(
                chosen, users, arguments.rounds, arguments.repeat, arguments.patience, Path(scratch)
            )
    ratios = _report(results)
    for who, what in MISSING.items():
        print(f"{who}: {what}")
    finish(arguments, {"results": results, "ratios": ratios, "rivals": versions, "notes": MISSING})


def _report(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints the table; returns how much faster this project is than each rival, by cohort and processes."""
    own = {(r["users"], r["processes"]): r for r in results if r["system"] == "dpsw_ray"}
    ratios = []
    for r in results:
        mine = own[r["users"], r["processes"]]
        ratios.append(
            {key: r[key] for key in ("system", "setting", "processes", "users")}
            | {name: r[name] / mine[name] for name in ("round_s", "processor_s")}
        )
    show(
        f"One round, {RECORDS} records a user, messages of 8,192 numbers",
        ["", "at work", "users", "round, s", "rounds/s", "users/s", "over ours", "processor, s", "over ours", "sum"],
        [
            [
                f"{r['system']}, {r['setting']}", str(r["processes"]), f"{r['users']:,}", f"{r['round_s']:.3f}",
                f"{r['rounds_per_s']:.2f}", f"{r['users_per_s']:,.0f}", f"{ratio['round_s']:.1f} x",
                f"{r['processor_s']:.3f}", f"{ratio['processor_s']:.1f} x", "same" if r["same_sum"] else "DIFFERENT",
            ]
            for r, ratio in zip(results, ratios, strict=True)
        ],
    )  # fmt: skip
    return ratios


if __name__ == "__main__":
    main()
