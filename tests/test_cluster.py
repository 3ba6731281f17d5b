from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from dpsw_ray.base.errors import PrivateSideError, UserError
from dpsw_ray.cluster import Cluster, WorkerDied, WorkerGroup, open_cluster
from dpsw_ray.cluster.faults import Pace, Patience
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.private.sealing import sealed


class Part:
    """A plain class: what the private wing and the flow put on workers."""

    def __init__(self, rank: int, flag: Path | None = None) -> None:
        self.rank = rank
        self.flag = flag
        self.state = np.zeros(3)

    def scale(self, values: np.ndarray, by: float) -> np.ndarray:
        return values * by + self.rank

    def add(self, value: float) -> np.ndarray:
        self.state += value
        return self.state

    def spoil(self, values: np.ndarray) -> None:
        values[0] = 1.0

    def pid(self) -> int:
        return os.getpid()

    def refuse(self, text: str) -> None:
        try:
            raise ValueError("record 0.123")
        except ValueError:
            raise PrivateSideError(text) from None

    def stumble(self) -> None:
        raise KeyError("bins")

    def write(self) -> None:
        Path("/nowhere/file").write_text("")

    def die(self) -> None:
        os._exit(1)

    def nap(self, seconds: float) -> float:
        """Rank 1 alone; where there is a flag, once."""
        if self.rank == 1 and not (self.flag and self.flag.exists()):
            if self.flag:
                self.flag.touch()
            time.sleep(seconds)
        return seconds

    @sealed("napping")
    def nap_in_private(self, seconds: float) -> None:
        time.sleep(seconds * self.rank)

    def die_once(self, values: np.ndarray) -> float:
        assert self.flag is not None
        if self.rank == 1 and not self.flag.exists():
            self.flag.touch()
            os._exit(1)
        return float(values.sum()) + self.rank


def config(**values: Any) -> ClusterConfig:
    return ClusterConfig(**{"executor": "ray", "actors": 2, "timeout_s": 60.0} | values)


@pytest.fixture(scope="module")
def ray_cluster(ray_session: None) -> Iterator[Cluster]:
    with open_cluster(config()) as opened:
        yield opened


@pytest.fixture(params=["local", "ray"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "local":
        return open_cluster(config(executor="local"))
    opened: Cluster = request.getfixturevalue("ray_cluster")
    return opened


def spawn(cluster: Cluster, flag: Path | None = None, size: int = 2) -> WorkerGroup:
    return cluster.spawn(Part, [{"rank": rank, "flag": flag} for rank in range(size)])


def test_results_come_back_in_rank_order(cluster: Cluster) -> None:
    group = spawn(cluster)
    broadcast = group.call("scale", (np.arange(4.0), 2.0))
    assert [type(result) for result in broadcast] == [np.ndarray, np.ndarray]
    np.testing.assert_array_equal(broadcast, [[0, 2, 4, 6], [1, 3, 5, 7]])
    own = group.call("scale", [(np.ones(1), 1.0), (np.ones(1), 5.0)])
    np.testing.assert_array_equal(own, [[1], [6]])
    assert (cluster.size, group.size) == (2, 2)


def test_a_group_may_be_larger_or_smaller_than_the_cluster(cluster: Cluster) -> None:
    for size in (1, 5):
        results = spawn(cluster, size=size).call("scale", (np.zeros(1), 1.0))
        assert [result.item() for result in results] == list(range(size))


def test_results_are_snapshots_and_arguments_read_only(cluster: Cluster) -> None:
    group = spawn(cluster)
    first = group.call("add", (1.0,))[0]
    group.call("add", (1.0,))
    np.testing.assert_array_equal(first, np.ones(3))
    assert not first.flags.writeable
    with pytest.raises(RuntimeError, match="read-only"):
        group.call("spoil", (np.zeros(3),))


def test_user_errors_arrive_as_themselves_without_a_traceback(cluster: Cluster) -> None:
    group = spawn(cluster)
    with pytest.raises(UserError) as caught:
        group.call("refuse", ("Binning failed with a ValueError.",))
    assert type(caught.value) is PrivateSideError
    assert str(caught.value) == "Binning failed with a ValueError."
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert "0.123" not in "".join(traceback.format_exception(caught.value))
    assert group.call("scale", (np.zeros(1), 1.0))[1] == 1.0, "the worker lives on"


def test_other_errors_name_type_place_and_message(cluster: Cluster) -> None:
    group = spawn(cluster)
    with pytest.raises(RuntimeError, match=r"KeyError in test_cluster.py, line \d+: 'bins'"):
        group.call("stumble")
    with pytest.raises(FileNotFoundError) as caught:
        group.call("write")
    assert caught.value.filename == "/nowhere/file"


def test_run_calls_one_function(cluster: Cluster) -> None:
    np.testing.assert_array_equal(cluster.run(np.cumsum, np.arange(3)), [0, 1, 3])
    with pytest.raises(UserError, match="refused"):
        cluster.run(_refuse)


def _refuse() -> None:
    raise UserError("refused")


def test_an_error_in_a_factory_arrives(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="TypeError"):
        cluster.spawn(Part, [{"wrong": 1}])


def test_both_phases_share_the_same_processes(ray_cluster: Cluster) -> None:
    private, flow = spawn(ray_cluster), spawn(ray_cluster)
    pids = private.call("pid")
    assert len({*pids, os.getpid()}) == 3
    private.close()
    assert flow.call("pid") == pids


def test_a_dead_worker_is_named_and_never_repeated_unasked(ray_cluster: Cluster) -> None:
    group, other = spawn(ray_cluster), spawn(ray_cluster)
    pids = group.call("pid")
    with pytest.raises(WorkerDied, match="Worker 0 of 2 died during die") as caught:
        group.call("die")
    assert caught.value.rank == 0
    with pytest.raises(WorkerDied):
        group.call("pid")
    group.rebuild()
    assert not set(group.call("pid")) & set(pids)
    np.testing.assert_array_equal(group.call("add", (1.0,)), np.ones((2, 3)))
    with pytest.raises(WorkerDied):  # what it held is gone, although its worker is back
        other.call("pid")
    assert other.call("pid", retry=True) == group.call("pid")
    assert ray_cluster.run(os.getpid) in group.call("pid")


def test_a_pure_step_is_repeated_on_request(ray_cluster: Cluster, tmp_path: Path) -> None:
    group = spawn(ray_cluster, tmp_path / "died")
    assert group.call("die_once", (np.ones(2),), retry=True) == [2.0, 3.0]


def test_repeating_ends_at_the_deadline(ray_session: None) -> None:
    with open_cluster(config(actors=1, timeout_s=20.0)) as cluster, pytest.raises(WorkerDied):
        spawn(cluster, size=1).call("die", retry=True)


@contextlib.contextmanager
def impatient(**values: float) -> Iterator[Cluster]:
    """A cluster that started in peace and is in a hurry from then on."""
    with open_cluster(config()) as opened:
        opened._config = opened._config.model_copy(update=values)  # type: ignore[attr-defined]
        yield opened


def test_a_worker_that_never_answers_is_given_up(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with impatient(call_timeout_s=2.0) as cluster:
        group = spawn(cluster)
        with pytest.raises(WorkerDied, match=r"Worker 1 of 2 died during nap: no answer for 2 s") as caught:
            group.call("nap", (1000.0,))
        assert "cluster.call_timeout_s is 2" in str(caught.value)
        assert spawn(cluster, tmp_path / "slept").call("nap", (1000.0,), retry=True) == [1000.0, 1000.0]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and all("died during nap: no answer" in line for line in lines)
    assert all(re.search(r"A new one on [\d.]+ takes its place\.$", line) for line in lines)


def test_a_slow_worker_is_named_and_one_of_the_private_wing_never(
    ray_session: None, caplog: pytest.LogCaptureFixture
) -> None:
    with impatient(timeout_s=1.0) as cluster:
        group = spawn(cluster)
        assert group.call("nap", (3.0,)) == [3.0, 3.0]
        assert re.fullmatch(r"Worker 1 of 2 on [\d.]+: slow, nap takes more than 1 s .*", caplog.messages[0])
        caplog.clear()
        before = cluster.meter
        group.call("nap_in_private", (3.0,))
        assert cluster.meter == before and not caplog.messages


def test_how_long_to_wait_follows_from_what_calls_took() -> None:
    pace = Pace(config(timeout_s=5.0, call_timeout_s=1000.0))
    assert pace.patience("drift", hidden=False) == Patience(1000.0, 5.0)
    assert pace.note("drift", {0: 0.1, 1: 9.0}) is None  # compiles
    assert pace.patience("drift", hidden=False) == Patience(185.0, 5.0)
    assert pace.patience("contribute", hidden=True) == Patience(1000.0)
    told = [pace.note("drift", {0: 1.0, 1: 4.0, 2: 1.5}) for _ in range(12)]
    assert [found for found in told if found] == [(1, 4.0, 1.25)]
    pace.forget()
    assert pace.patience("drift", hidden=False) == Patience(1000.0, 5.0)
    even = [pace.note("map", {0: 2.0, 1: 3.0}) for _ in range(20)]
    assert not any(even)


def test_the_meter_tells_work_from_waiting(cluster: Cluster) -> None:
    group, before = spawn(cluster), cluster.meter
    group.call("nap", (0.3,))
    spent = cluster.meter - before
    assert 0.3 <= spent.worked <= spent.waited


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"gpus_per_actor": 1},
            r"cluster\.gpus_per_actor: 2 actors with 1 each ask for 2 GPUs, but .* has 0; choose 0",
        ),
        ({"cpus_per_actor": 16}, r"cluster\.cpus_per_actor: .* ask for 32 CPUs, but the Ray cluster has 4"),
        ({"gpus_per_actor": 1.5}, "must be whole"),
    ],
)
def test_what_the_cluster_lacks_is_refused_in_time(
    ray_session: None, values: dict[str, float], message: str
) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=message):
        open_cluster(config(timeout_s=1.0, **values))
    assert time.monotonic() - started < 60


def test_closing_leaves_a_foreign_ray_running(ray_session: None) -> None:
    import ray

    for _ in range(3):  # each fits only if the one before gave its CPUs back
        with open_cluster(config(actors=2)) as cluster:
            assert cluster.run(os.getpid) != os.getpid()
    assert ray.is_initialized()


def test_a_server_that_is_not_ray_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.handle_request).start()
        with pytest.raises(UserError, match="not a Ray head"):
            open_cluster(config(address=f"127.0.0.1:{server.server_port}"))


def test_another_ray_than_the_one_in_use_is_refused(ray_session: None) -> None:
    import ray

    used = ray.get_runtime_context().gcs_address
    with open_cluster(config(actors=1, address=used)) as cluster:
        assert cluster.size == 1
    with pytest.raises(UserError, match=r"No Ray cluster answers at cluster.address 127.0.0.1:1 "):
        open_cluster(config(address="127.0.0.1:1"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=speak_http2, args=(server,)).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            UserError, match=f"connected to the Ray at {used} already, and cluster.address is {address}"
        ):
            open_cluster(config(address=address))


def speak_http2(server: socket.socket) -> None:
    """Answers one connection as any gRPC server would at first."""
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"\0\0\0\4\0\0\0\0\0")
        connection.recv(64)


SCRIPT = """
import os, pathlib
from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.base.errors import UserError

def refused(**values):
    try:
        open_cluster(ClusterConfig(timeout_s=5, **values))
    except UserError as error:
        return str(error)

if __name__ == "__main__":
    print(refused(address="127.0.0.1:1"))
    print(refused(address="ray://127.0.0.1:1"))
    print(refused(address="somewhere"))
    with open_cluster(ClusterConfig(actors=8, cpus_per_actor=1)) as cluster:
        print(cluster.size, cluster.run(os.getpid) != os.getpid())
    import ray
    print(ray.is_initialized(), "RAY_AUTH_TOKEN" in os.environ, (pathlib.Path.home() / ".ray").exists())
    print(refused(gpus_per_actor=64))
"""


def test_a_ray_of_its_own_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    script = tmp_path / "run it.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment | {"HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("No Ray cluster answers at cluster.address 127.0.0.1:1 (")
    assert "ray job submit" in lines[1] and "host:port" in lines[2]
    assert lines[3:5] == ["8 True", "False False False"]
    assert "cluster.gpus_per_actor" in lines[5]
    assert done.stderr == ""


LISTENERS = """
import json, os
from pathlib import Path
from support import descendants
from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig

def listening():
    \"\"\"Addresses on which processes of ours wait, as the kernel writes them.\"\"\"
    sockets = set()
    for process in {os.getpid(), *descendants(os.getpid(), b"")}:
        for place in Path(f"/proc/{process}/fd").glob("*"):
            try:
                sockets.add(os.readlink(place))
            except OSError:
                pass
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.append(fields[1].rpartition(":")[0])
    return found

if __name__ == "__main__":
    before = dict(os.environ)
    with open_cluster(ClusterConfig(actors=2, cpus_per_actor=0.5)) as cluster:
        import ray
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        closed = [folder for folder in session.parents if folder.stat().st_mode & 0o077 == 0]
        print(json.dumps({"closed": [str(folder) for folder in closed], "session": str(session)}))
        print(json.dumps(listening()))
    ours = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_TMPDIR", "TMPDIR")
    print(json.dumps([name for name in ours if before.get(name) != os.environ.get(name)]))
    print(json.dumps(closed[0].exists()))
"""


@pytest.mark.parametrize("deep", [False, True])
def test_a_ray_of_its_own_is_open_to_its_owner_on_this_machine_alone(deep: bool, tmp_path: Path) -> None:
    places = tmp_path / ("deep" * 20) if deep else tmp_path  # sockets of such a path would have no name
    places.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (tmp_path / "listeners.py").write_text(LISTENERS)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "listeners.py")],
        env=environment | {"PYTHONPATH": path, **({"TMPDIR": str(places)} if deep else {})},
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    folders, addresses, changed, left = map(json.loads, done.stdout.splitlines())
    own = Path(folders["closed"][0])
    assert own.name.startswith("dpsw-") and folders["session"].startswith(f"{own}/")
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert len(addresses) > 5 and set(addresses) <= loopback
    assert changed == [] and left is False


def test_a_folder_whose_sockets_would_have_no_name_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpsw_ray.cluster import start

    monkeypatch.setattr(start, "_LONGEST", 1)
    with pytest.raises(UserError, match="at most 1 bytes: set RAY_TMPDIR to one"):
        start._own_folder()


STARVED = """
import sys, time
from ray.cluster_utils import Cluster
from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.base.errors import UserError
from test_cluster import Part

if __name__ == "__main__":
    monitor = {"memory_usage_threshold": 0.01, "memory_monitor_refresh_ms": 3000}  # any use is too much
    options = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args={**options, "_system_config": monitor})
    try:
        with open_cluster(ClusterConfig(actors=1, address=nodes.address, timeout_s=20)) as cluster:
            cluster.spawn(Part, [{"rank": 1}]).call("nap", (60.0,))
    except UserError as error:
        print(error)
    nodes.shutdown()
"""


def test_a_worker_out_of_memory_is_a_sentence(tmp_path: Path) -> None:
    """Ray's own memory monitor, told that a hundredth of the machine's memory is all there is."""
    (tmp_path / "starved.py").write_text(STARVED)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "starved.py")],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout + done.stderr
    assert re.match(r"Worker 0 of 1 died during (nap|its start): its machine ran out of memory", lines[0])
    assert "Traceback" not in done.stderr and "raylet" not in done.stdout
