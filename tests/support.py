"""Shared by the tests: small runs, and a cluster that remembers everything the driver exchanges with workers."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dpsw_ray import cli
from dpsw_ray.cluster import Cluster, WorkerGroup
from dpsw_ray.cluster.groups import Meter
from dpsw_ray.config.family import Family, has_key
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.registry import RUNS, load_config

SMALL = (
    "encoder.epochs=3",
    "release.frames=2",
    "release.bins=16",
    "release.smoothing=1",
    "flow.particles=60",
    "flow.steps=6",
    "tracking.enabled=false",
    "evaluation.enabled=false",
)


def kept(keys: Sequence[str], overrides: Sequence[str], family: Family[Any] = RUNS) -> list[str]:
    """Those of some keys that the method has which is named among the overrides."""
    method = family.method(dict(override.split("=", 1) for override in overrides))
    model = family.config(method) if method in family.methods else RunConfig
    return [key for key in keys if has_key(model, key.partition("=")[0])]


def small(*overrides: str) -> Any:
    """A run on the digits that takes seconds; with a home of its own, it has a ledger of its own too."""
    homes = [
        value for key, _, value in (override.partition("=") for override in overrides) if key == "paths.home"
    ]
    ledgers = [f"paths.ledger={home}/ledger.sqlite" for home in homes]
    return load_config("digits", (*kept(SMALL, overrides), *ledgers, *overrides))


EARLIER = {
    "release": {
        "frames": 16, "law": "haar", "directions": None, "bins": 32, "smoothing": 1.0, "expected_records": None,
        "class_conditional": True, "sampling": "partition", "batch": 250, "epochs": 1, "rate": 0.01, "rounds": 100,
    },
    "generator": {
        "noise_dim": 8, "hidden": [256, 512], "steps": None, "batch_size": 250, "learning_rate": 0.001,
    },
    "flow": {"particles": 10000, "steps": None, "subset": None, "step_size": "auto", "schedule": "auto",
             "diffusion": 0.0, "class_balance": "released", "patience": 10, "tolerance": 0.005, "denoising": 1.0,
             "parallel": "auto", "kernel": "auto"},
}  # fmt: skip
"""What an earlier version wrote into every `config.yaml`, the run's own values aside."""


def as_earlier(config: str) -> str:
    """A resolved config as an earlier version stored it, with the sections of every method."""
    values = yaml.safe_load(config)
    for section, keys in EARLIER.items():
        values[section] = {**keys, **values.get(section, {})}
    if "trust" in values:
        values.setdefault("rows", 1)
        values["release"]["sampling"] = "poisson"
    return yaml.safe_dump(values, sort_keys=False)


class Terminal(io.StringIO):
    """A text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run_dpsw(*args: object, terminal: bool = False) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output, standard error (a `terminal`, or not)."""
    out, err, argv = io.StringIO(), Terminal() if terminal else io.StringIO(), sys.argv
    sys.argv = ["dpsw", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    return code, out.getvalue(), err.getvalue()


def done(*args: object) -> str:
    """Standard output of a command that ends well; what it says where it does not."""
    code, out, err = run_dpsw(*args)
    assert code == 0, err
    return out


def flip(path: Path, place: int) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


class RecordingGroup:
    """Passes calls on and keeps what went out and what came back."""

    def __init__(self, group: WorkerGroup, log: list[tuple[str, Any]]) -> None:
        self._group = group
        self._log = log

    @property
    def size(self) -> int:
        return self._group.size

    def call(self, method: str, args: Any = (), *, retry: bool = False) -> list[Any]:
        results = self._group.call(method, args, retry=retry)
        self._log.append((method, (args, results)))
        return results

    def rebuild(self) -> None:
        self._group.rebuild()

    def close(self) -> None:
        self._group.close()


class RecordingCluster:
    """A cluster whose every exchange with the driver is kept in `log`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.log: list[tuple[str, Any]] = []

    @property
    def size(self) -> int:
        return self._cluster.size

    @property
    def meter(self) -> Meter:
        return self._cluster.meter

    def show(self, figures: Mapping[str, float]) -> None:
        self.log.append(("show", ((figures,), None)))
        self._cluster.show(figures)

    def spawn(self, factory: Callable[..., object], kwargs_per_rank: Sequence[dict[str, Any]]) -> WorkerGroup:
        self.log.append((factory.__name__, kwargs_per_rank))
        return RecordingGroup(self._cluster.spawn(factory, kwargs_per_rank), self.log)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        result = self._cluster.run(function, *args)
        self.log.append((function.__name__, (args, result)))
        return result

    def close(self) -> None:
        self._cluster.close()

    def __enter__(self) -> RecordingCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def descendants(root: int, mark: bytes) -> list[int]:
    """Ids of the processes that descend from `root` and have `mark` in their command line."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
    found = []
    for process, name in names.items():
        ancestor = process
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if ancestor == root and mark in name:
            found.append(process)
    return found
