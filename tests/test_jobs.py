"""`ray job submit` of every entry point, to a head that an operator would start: where outputs go, and how jobs end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import SMALL

from dpsw_ray.base.progress import Progress
from dpsw_ray.methods.registry import load_config
from dpsw_ray.pipeline.run import run

ROOT = Path(__file__).parents[1]
ONE = ("cluster.actors=1", "cluster.cpus_per_actor=0.5", "cluster.timeout_s=200")


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: of its job server.
        env: of those who talk to it.
    """

    address: str
    env: dict[str, str]

    def client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.address)

    def submit(self, *words: object, **env: object) -> str:
        """Submits a command line as `ray job submit` does; returns the job's id."""
        variables = {name: str(value) for name, value in {"OMP_NUM_THREADS": 1, **env}.items()}
        return str(
            self.client().submit_job(
                entrypoint=shlex.join(["python", "-m", *map(str, words)]),
                runtime_env={"working_dir": str(ROOT), "env_vars": variables},
            )
        )

    def submit_from_shell(self, *words: object) -> str:
        command = ["ray", "job", "submit", "--address", self.address, "--no-wait", "--working-dir", str(ROOT)]
        command += ["--submission-id", f"job-{time.monotonic_ns()}", "--", "python", "-m", *map(str, words)]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return command[command.index("--submission-id") + 1]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    ports: list[int] = []
    while len(ports) < 6:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={ports[0]}", f"--dashboard-port={ports[1]}",
        "--dashboard-host=127.0.0.1", "--object-store-memory=200000000", "--disable-usage-stats",
        # Ports of its own for all it offers: another Ray on this machine may hold the usual ones.
        f"--dashboard-agent-listen-port={ports[2]}", f"--dashboard-agent-grpc-port={ports[3]}",
        f"--metrics-export-port={ports[4]}", f"--ray-client-server-port={ports[5]}",
    ]  # fmt: skip
    # A job has as long to end as this process gives it; 3 s are little on a busy machine.
    process = subprocess.Popen(
        command, env=env | {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    made = Head(f"http://127.0.0.1:{ports[1]}", env)
    deadline = time.monotonic() + 180
    probe_job = ["ray", "job", "submit", "--address", made.address, "--", "python", "-c", "pass"]
    # The head answers before its job agent does, and refuses jobs until then.
    while subprocess.run(probe_job, env=env, capture_output=True, timeout=90).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail("the Ray head did not start")
        time.sleep(1)
    # Ray deletes a package with the last job that uses it, also under one that is just starting: this one keeps it.
    job = ["ray", "job", "submit", "--address", made.address, "--no-wait", "--working-dir", str(ROOT)]
    job += ["--submission-id", "keeper", "--", "sleep", "1000"]
    subprocess.run(job, env=env, capture_output=True, timeout=90, check=True)
    yield made
    made.client().stop_job("keeper")  # the head waits for its jobs
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def ended(client: Any, job: str) -> tuple[str, str]:
    """A job's status, once it has ended, and its log."""
    deadline = time.monotonic() + 400
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.3)
    return str(status.value), client.get_job_logs(job)


def sets(*overrides: str) -> list[str]:
    return [f"--set={override}" for override in overrides]


def test_every_entry_point_as_a_job(head: Head, tmp_path: Path) -> None:
    home, root = tmp_path / "home", tmp_path / "root"
    own = (*ONE, f"paths.home={home}", f"paths.ledger={tmp_path / 'ledger.sqlite'}")
    tracked = [override for override in (*SMALL, *own) if override != "tracking.enabled=false"]
    sweep = {
        "name": "sweep",
        "base": "digits",
        "set": {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in tracked)},
        "space": {"flow.step_size": {"grid": [1.0, 2.0]}},
        "search": {"kind": "grid"},
        "trials": {"cpus": 0.5},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    compared = ["--methods=dpswflow-h", "--epsilon=10", "--seeds=1", "--jobs=1"]
    measured = [
        "--metrics=sliced_w2_test",
        *sets(*tracked, "evaluation.enabled=true", "evaluation.directions=16"),
    ]
    # Where outputs go is said in each of the three ways.
    jobs = {
        root / "flow": head.submit_from_shell(
            "dpsw_ray", "flow", "configs/digits.yaml", f"--output={root / 'flow'}", *sets(*tracked)
        ),
        root / "compare": head.submit(
            "dpsw_ray", "compare", "digits", *compared, *measured, "--output=compare", DPSW_OUTPUT_ROOT=root
        ),
        root / "tune": head.submit("tune", tmp_path / "sweep.yaml", f"--output={root / 'tune'}"),
        home / "runs" / "users": head.submit(
            "federated", "configs/federated/digits.yaml", "--output=runs/users",
            *sets(*tracked, "population.users=60", "privacy.delta=1e-3"),
        ),
    }  # fmt: skip
    client = head.client()
    for folder, job in jobs.items():
        status, log = ended(client, job)
        assert status == "SUCCEEDED", log
        assert "\r" not in log and "\x1b[" not in log  # lines, not bars
        assert str(folder) in log
        assert (folder / ("compare.html" if folder.name == "compare" else "report.html")).exists()
        assert (folder.parent / "mlflow.db").exists()
    flow = client.get_job_logs(jobs[root / "flow"])
    assert "Moving particles …" in flow and "Moving particles: 6 in" in flow
    assert json.loads((root / "flow" / "privacy.json").read_text())["epsilon"]["upper"] <= 10
    assert "1 of 1" in client.get_job_logs(jobs[root / "compare"])


def test_a_stopped_job_goes_on_from_where_it_was(head: Head, tmp_path: Path) -> None:
    own = [f"paths.home={tmp_path / 'home'}", f"paths.ledger={tmp_path / 'ledger.sqlite'}", *SMALL, *ONE]
    own += ["flow.steps=2000", "flow.patience=2000", "flow.particles=1000", "tracking.enabled=true"]
    folder = tmp_path / "run"
    job = head.submit("dpsw_ray", "flow", "digits", f"--output={folder}", *sets(*own))
    client = head.client()
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "flow.npz").exists():
        running = time.monotonic() < deadline and not client.get_job_status(job).is_terminal()
        assert running, client.get_job_logs(job)
        time.sleep(0.05)
    client.stop_job(job)
    status, log = ended(client, job)
    assert status == "STOPPED"
    assert log.splitlines()[-1] == "Interrupted: the same command goes on from here.", log
    assert "Traceback" not in log

    import mlflow

    store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("dpsw_ray")
    assert experiment is not None
    assert [found.info.status for found in store.search_runs([experiment.experiment_id])] == ["KILLED"]
    whole, said = load_config("digits", [*own, "cluster.executor=local", "tracking.enabled=false"]), []
    progress = Progress(quiet=True)
    progress.say = said.append  # type: ignore[method-assign]
    run(whole, folder, progress)
    assert any(line.startswith("Using the release stored in") for line in said)
    assert (folder / "report.html").exists()


def test_sigterm_ends_a_command_like_ctrl_c(tmp_path: Path) -> None:
    own = [f"paths.home={tmp_path / 'home'}", f"paths.ledger={tmp_path / 'ledger.sqlite'}", *SMALL, *ONE]
    endless = ("cluster.executor=local", "flow.steps=100000", "flow.patience=100000")
    words = ["flow", "digits", f"--output={tmp_path / 'run'}", *sets(*own, *endless)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dpsw_ray", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        # As of a shell's background job: interrupts are ignored, SIGTERM is not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "checkpoints" / "flow.npz").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143
    assert err == "Interrupted: the same command goes on from here.\n"
