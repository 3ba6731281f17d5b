"""Shared by the tests: small runs, and a cluster that remembers everything the driver exchanges with workers."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpsw_ray import cli
from dpsw_ray.cluster import Cluster, WorkerGroup
from dpsw_ray.cluster.groups import Meter
from dpsw_ray.config import RunConfig, load_config

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


def small(*overrides: str) -> RunConfig:
    """A run on the digits that takes seconds; with a home of its own, it has a ledger of its own too."""
    homes = [
        value for key, _, value in (override.partition("=") for override in overrides) if key == "paths.home"
    ]
    ledgers = [f"paths.ledger={home}/ledger.sqlite" for home in homes]
    return load_config("digits", (*SMALL, *ledgers, *overrides))


def run_dpsw(*args: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output, standard error."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
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
