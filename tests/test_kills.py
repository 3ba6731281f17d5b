"""Actors, nodes and drivers killed at random moments of release and flow, on a real cluster of three nodes.

Whatever was killed: the same particles as without, and never a second noise for one charge. `DPSW_KILLS=50` makes
more kills than the few that every run of the tests makes, `DPSW_KILLS_SEED` others. `DPSW_FASHION_HOME` names a home
for a run of Fashion-MNIST on the same cluster.

The driver is this file as a script: the command line itself, with every noisy total noted that reached it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from support import descendants

from dpsw_ray.flow.config import FlowConfig

KILLS = int(os.environ.get("DPSW_KILLS", "3"))
SEED = int(os.environ.get("DPSW_KILLS_SEED", "0"))
VICTIMS = ("actor", "node", "driver")
MOMENTS = {
    "Encoding private records": "Releasing",
    "call encode": "done encode",
    "Releasing": "Moving particles",
    "call prepare": "done prepare",
    "call answer": "done answer",
    "call contribute": "done contribute",
    "Moving particles …": "sliced W2 to the release",
}
"""What a driver says when something begins and when it has ended; calls into the private wing are added by `drive`."""
OVERRIDES = (
    "cluster.actors=2", "encoder.epochs=3", "evaluation.enabled=false", "tracking.enabled=false",
    "flow.particles=3000", "flow.steps=120", "flow.patience=1000", "release.frames=80",
)  # fmt: skip
ROWS = ("method=dpswflow-r", "release.batch=100", "release.epochs=12", "release.frames=8")
WAYS = get_args(FlowConfig.model_fields["parallel"].annotation)
"""To divide the flow among workers: the same particles by each."""
END_S = 240.0
FASHION = os.environ.get("DPSW_FASHION_HOME")


class Nodes:
    """A head, which computes nothing, and two nodes with room for the whole run each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quick = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 4,
        }
        options = {"include_dashboard": False, "object_store_memory": 100 << 20, "_system_config": quick}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
        self.workers: list[Any] = []
        self.add(2)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, count: int) -> None:
        for _ in range(count):
            self.workers.append(self.cluster.add_node(num_cpus=2, object_store_memory=100 << 20))

    def lose(self, random_: random.Random) -> None:
        """A node without grace; another one joins later."""
        self.cluster.remove_node(self.workers.pop(random_.randrange(2)), allow_graceful=False)

    def close(self) -> None:
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


def actors() -> list[int]:
    """Process ids of the workers that descend from this process, in whose nodes they live."""
    return descendants(os.getpid(), b"ray::Host")


class Driver:
    """A run on the cluster, from a process of its own, and when it said what."""

    def __init__(self, nodes: Nodes, folder: Path, *overrides: str, config: str = "digits") -> None:
        small = OVERRIDES if config == "digits" else ()
        sets = [f"--set={key}" for key in (*small, *overrides, f"cluster.address={nodes.address}")]
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        command = [sys.executable, __file__, str(folder / "seen"), "flow", config]
        self.process = subprocess.Popen(
            [*command, f"--output={folder / 'run'}", *sets],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[tuple[float, str]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in list(self.lines))

    def said(self, start: str) -> list[float]:
        """When a line that starts so was said."""
        return [when for when, line in list(self.lines) if line.startswith(start)]

    def until(self, start: str, count: int) -> bool:
        """Waits for a line to be said so many times; False where the run ends before."""
        deadline = time.monotonic() + END_S
        while len(self.said(start)) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                return len(self.said(start)) >= count
            time.sleep(0.001)
        return True

    def end(self, limit: float = END_S) -> int:
        code = self.process.wait(limit)
        self.reader.join(10)
        return code


def charges(folder: Path) -> list[Any]:
    from dpsw_ray.privacy.ledger import Ledger

    book = Ledger(folder / "ledger.sqlite")
    book.verify()
    return [entry for dataset in book.datasets() for entry in book.entries(dataset.name)]


def problems(folder: Path) -> Iterator[str]:
    """What must hold at the end: every noise is paid for, and there is one for every charge."""
    seen = [json.loads(line) for line in (folder / "seen").read_text().splitlines()]
    paid = [entry.release_id for entry in charges(folder)]
    if len(set(paid)) != len(paid):
        yield "a release was charged twice"
    noises: dict[tuple[str, int], set[str]] = {}
    for note in seen:
        noises.setdefault((note["release"], note["number"]), set()).add(note["digest"])
        if note["release"] not in paid or not note["charged"]:
            yield f"release {note['release']} was drawn unpaid"
    for (release, number), digests in noises.items():
        if len(digests) > 1:
            yield f"{len(digests)} noises of message {number} for the one charge of {release}"


def particles(folder: Path) -> np.ndarray:
    from dpsw_ray.base.files import read_arrow

    return np.asarray(
        read_arrow(folder / "run" / "particles.arrow").column("latent").combine_chunks().flatten()
    )


def replayed(folder: Path) -> np.ndarray:
    """The particles of a stored release, computed in this process by one worker."""
    from dpsw_ray.cluster import LocalCluster
    from dpsw_ray.encoders import load_encoder
    from dpsw_ray.methods.method import Tools
    from dpsw_ray.methods.registry import load_config, method_of
    from dpsw_ray.tables.release import Release

    config = load_config(folder / "run" / "config.yaml")
    method, tools = method_of(config), Tools(load_encoder(folder / "run" / "encoder"), LocalCluster(1))
    targets = method.targets(config, Release.load(folder / "run" / "release"))
    made = method.learn(config, targets, tools).sample(config.count, config.seed)
    return np.asarray(made.particles).ravel()


class Attack:
    """Runs under fire, one after the other, until the kills are used up."""

    def __init__(self, nodes: Nodes, folder: Path, kills: int, seed: int) -> None:
        self.nodes, self.folder, self.random = nodes, folder, random.Random(seed)
        # Every victim as often as the others, in random order.
        self.victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
        self.random.shuffle(self.victims)
        self.lengths: dict[tuple[tuple[str, ...], str], float] = {}
        self.times: dict[tuple[tuple[str, ...], str], int] = {}
        self.made: Counter[str] = Counter()
        self.when: Counter[str] = Counter()
        self.problems: list[str] = []
        self.runs = 0

    def undisturbed(self, name: str, *overrides: str) -> np.ndarray:
        folder = self._folder(name)
        driver = Driver(self.nodes, folder, *self._own(folder), "privacy.noise_seed=3", *overrides)
        assert driver.end() == 0, driver.text
        for begin, end in MOMENTS.items():
            pairs = zip(driver.said(begin), driver.said(end), strict=False)
            length = max((stop - start for start, stop in pairs), default=0.1)  # a seed needs no preparation
            self.lengths[overrides, begin] = length
            self.times[overrides, begin] = max(len(driver.said(begin)), 1)
        return particles(folder)

    def run(self, reference: np.ndarray | None, *overrides: str) -> None:
        """One run with some kills; without a reference its noise is secret."""
        name, self.runs = f"run-{self.runs:03d}", self.runs + 1
        folder = self._folder(name)
        for latents in self.folder.glob("home/**/private/latents"):
            shutil.rmtree(latents)  # encoded anew in every run
        keys = [*self._own(folder), *overrides, f"flow.parallel={self.random.choice(WAYS)}"]
        if reference is not None:
            keys.append("privacy.noise_seed=3")
        driver = Driver(self.nodes, folder, *keys)
        log = []
        moments = [moment for moment in MOMENTS if reference is None or moment != "call prepare"]
        weights = [3 if moment.startswith("Moving") else 1 for moment in moments]
        picked = self.random.choices(moments, weights, k=self.random.randint(2, 4))
        for moment in sorted(picked, key=moments.index):
            if not self.victims or not driver.until(
                moment, self.random.randint(1, self.times[overrides, moment])
            ):
                break
            # Early more often than late: another run may be faster than the undisturbed one was.
            time.sleep(self.random.random() ** 2 * self.lengths[overrides, moment])
            victim = self.victims.pop()
            if not self._kill(victim, driver):
                self.victims.append(victim)
                break
            self.made[victim] += 1
            log.append(f"{victim} after {moment!r}")
            self.when[moment] += 1
            if victim == "driver":
                driver.end()
                driver = Driver(self.nodes, folder, *keys)
        code = driver.end()
        self.nodes.add(2 - len(self.nodes.workers))
        found = [] if code == 0 else [f"the run ended with {code}"]
        if not found:
            own = particles(folder)
            if not np.array_equal(own, replayed(folder) if reference is None else reference):
                found.append("other particles")
        found += problems(folder)
        (self.folder / f"{name}.log").write_text(f"{log}\n{driver.text}\n")
        if found:
            self.problems.append(f"{name} ({', '.join(log)}): {'; '.join(found)}\n{driver.text}")

    def _kill(self, victim: str, driver: Driver) -> bool:
        if driver.process.poll() is not None:
            return False
        if victim == "driver":
            driver.process.kill()
        elif victim == "node":
            self.nodes.add(2 - len(self.nodes.workers))
            self.nodes.lose(self.random)
        else:
            living = actors()
            if not living:
                return False
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(living), signal.SIGKILL)
        return True

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def _own(self, folder: Path) -> list[str]:
        # The data set and its encoder are shared, the ledger is each run's own.
        return [f"paths.home={self.folder / 'home'}", f"paths.ledger={folder / 'ledger.sqlite'}"]


@pytest.mark.timeout(200 + 60 * KILLS)
def test_kills_at_random_moments_change_no_particle_and_draw_no_second_noise(
    nodes: Nodes, tmp_path: Path
) -> None:
    attack = Attack(nodes, tmp_path, KILLS, SEED)
    kinds: list[tuple[str, ...]] = [(), ROWS] if KILLS > 10 else [()]
    references = [attack.undisturbed(f"undisturbed-{number}", *kind) for number, kind in enumerate(kinds)]
    while attack.victims:
        number = attack.runs % len(kinds)
        secret = attack.runs // len(kinds) % 2 == 0
        attack.run(None if secret else references[number], *kinds[number])
    print(
        f"\n{dict(attack.made)} killed in {attack.runs} runs, after {dict(attack.when)}, seconds {attack.lengths}"
    )
    assert not attack.problems, "\n\n".join(attack.problems)
    assert sum(attack.made.values()) == KILLS


def test_what_would_be_wrong_is_found(tmp_path: Path) -> None:
    from dpsw_ray.privacy.events import GaussianEvent
    from dpsw_ray.privacy.ledger import Ledger

    book = Ledger(tmp_path / "ledger.sqlite")
    book.register("d", "replace_one", "record", 1e-5)
    book.charge("d", [GaussianEvent("release", {"replace_one": 1.0}, 10.0)], "run", release_id="paid")

    def seen(*notes: tuple[str, int, str]) -> list[str]:
        names = ("release", "number", "digest")
        lines = [json.dumps({**dict(zip(names, note, strict=True)), "charged": True}) for note in notes]
        (tmp_path / "seen").write_text("\n".join(lines))
        return list(problems(tmp_path))

    assert not seen(("paid", 0, "a"), ("paid", 0, "a"), ("paid", 1, "b"))
    assert seen(("paid", 0, "a"), ("paid", 0, "b")) == ["2 noises of message 0 for the one charge of paid"]
    assert seen(("free", 0, "a")) == ["release free was drawn unpaid"]


@pytest.mark.skipif(FASHION is None, reason="DPSW_FASHION_HOME names no home for data, encoder and latents")
def test_three_nodes_run_fashion_mnist_from_end_to_end(nodes: Nodes, tmp_path: Path) -> None:
    """`configs/fashion_mnist.yaml` as it is, but for its place, its noise, and workers on both nodes."""
    own = (f"paths.home={FASHION}", f"paths.ledger={tmp_path / 'ledger.sqlite'}", "privacy.noise_seed=3")
    driver = Driver(nodes, tmp_path, *own, "cluster.actors=4", config="fashion_mnist")
    assert driver.end(3000) == 0, driver.text
    print(f"\n{driver.text}\n{json.loads((tmp_path / 'run' / 'metrics.json').read_text())['seconds']}")
    assert not list(problems(tmp_path))
    assert (tmp_path / "run" / "report.html").exists()
    assert np.array_equal(particles(tmp_path), replayed(tmp_path))


class Place:
    """What a worker holds in the test below."""

    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())


def stay(address: str) -> None:
    """Says on which nodes two workers are, at the start and for every line that comes in."""
    from test_kills import Place as Imported

    from dpsw_ray.cluster import WorkerDied, open_cluster
    from dpsw_ray.config.run import ClusterConfig

    with open_cluster(ClusterConfig(actors=2, address=address, timeout_s=30.0)) as cluster:
        group = cluster.spawn(Imported, [{}, {}])
        print(*group.call("node"), flush=True)
        for line in sys.stdin:
            cluster._config = cluster._config.model_copy(update={"timeout_s": float(line)})  # type: ignore[attr-defined]
            try:
                print(*group.call("node", retry=True), flush=True)
            except WorkerDied as death:
                print(death, flush=True)


def test_a_lost_node_s_workers_go_where_there_is_room(nodes: Nodes) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, __file__, "stay", nodes.address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None

    def after_losing(node: str, patience: float) -> str:
        found = next(worker for worker in nodes.workers if worker.node_id == node)
        nodes.workers.remove(found)
        nodes.cluster.remove_node(found, allow_graceful=False)
        assert process.stdin is not None and process.stdout is not None
        said, deadline = node, time.monotonic() + 60
        while node in said:  # its workers outlive it by a moment, and answer
            assert time.monotonic() < deadline
            process.stdin.write(f"{patience}\n")
            process.stdin.flush()
            said = process.stdout.readline().strip()
        return said

    before = process.stdout.readline().split()
    assert set(before) <= {worker.node_id for worker in nodes.workers}
    after = after_losing(before[0], 60.0).split()
    assert after == [nodes.workers[0].node_id] * 2
    nowhere = after_losing(after[0], 3.0)
    assert "the cluster had no room for it within cluster.timeout_s; start the run again" in nowhere
    _, lines = process.communicate(timeout=60)
    # Before Ray knows that the machine is gone, it may put the new one there as well.
    found = re.search(
        r"^Worker 0 of 2 died during .*: its machine left the cluster\. A new one on \S+ takes", lines, re.M
    )
    assert found, lines
    nodes.add(2)


def drive(seen: Path, arguments: list[str]) -> None:
    """The command line, with a note of every noisy total as soon as it is known, and of calls into the private wing."""
    from dpsw_ray.cli import main
    from dpsw_ray.cluster import ray_cluster
    from dpsw_ray.methods.registry import load_config
    from dpsw_ray.privacy.ledger import Ledger
    from dpsw_ray.release import exchange

    call = ray_cluster._RayGroup.call

    def telling(self: Any, method: str, args: Any = (), *, retry: bool = False) -> list[Any]:
        if f"call {method}" not in MOMENTS:
            return call(self, method, args, retry=retry)
        print(f"call {method}", flush=True)
        results = call(self, method, args, retry=retry)
        print(f"done {method}", flush=True)
        return results

    ray_cluster._RayGroup.call = telling  # type: ignore[method-assign]
    total_of = exchange.noisy_answer
    sets = [argument.removeprefix("--set=") for argument in arguments if argument.startswith("--set=")]
    ledger = load_config(arguments[1], sets).ledger_path

    def noting(shards: Any, plan: Any, number: int, question: Any, noise_seed: int | None) -> np.ndarray:
        total = total_of(shards, plan, number, question, noise_seed)
        note = {
            "release": plan.release_id,
            "number": number,
            "digest": hashlib.sha256(np.ascontiguousarray(total).tobytes()).hexdigest(),
            "charged": Ledger(ledger).find_charge(plan.release_id) is not None,
        }
        with seen.open("a") as stream:
            stream.write(json.dumps(note) + "\n")
        return total

    exchange.noisy_answer = noting
    sys.argv = ["dpsw", *arguments]
    main()


if __name__ == "__main__":
    if sys.argv[1] == "stay":
        stay(sys.argv[2])
    else:
        drive(Path(sys.argv[1]), sys.argv[2:])
