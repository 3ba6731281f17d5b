"""Independent tasks: outcomes as they end, failures and deaths included."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.cluster import LocalCluster, WorkerDied, open_cluster
from dpsw_ray.cluster.tasks import map_tasks
from dpsw_ray.config.run import ClusterConfig


def nap(folder: Path, number: int) -> int:
    """A task in a Ray worker: 1 fails, 2 dies once, 3 always."""
    marker = folder / f"{number}-{os.getpid()}"
    marker.write_text("")
    if number == 1:
        raise UserError("One is wrong.")
    if number == 3 or (number == 2 and len(list(folder.glob("2-*"))) == 1):
        os._exit(1)
    time.sleep(0.2)
    return number


def test_ray_workers_share_tasks_and_a_death_costs_one_repetition(ray_session: None, tmp_path: Path) -> None:
    config = ClusterConfig(actors=2, cpus_per_actor=0.5)
    with open_cluster(config) as cluster:
        outcomes = dict(map_tasks(cluster, nap, [(tmp_path, number) for number in range(6)]))
    assert {number: value for number, (succeeded, value) in outcomes.items() if succeeded} == {
        0: 0,
        2: 2,
        4: 4,
        5: 5,
    }
    assert str(outcomes[1][1]) == "One is wrong."
    assert isinstance(outcomes[3][1], WorkerDied)
    tries = [path.name.split("-")[0] for path in tmp_path.iterdir()]
    assert [tries.count(str(number)) for number in range(6)] == [1, 1, 2, 2, 1, 1]


def test_local_tasks_end_in_their_order_and_a_failure_stops_none(tmp_path: Path) -> None:
    outcomes = list(map_tasks(LocalCluster(2), nap, [(tmp_path, 0), (tmp_path, 1), (tmp_path, 4)]))
    assert [(number, succeeded) for number, (succeeded, _) in outcomes] == [(0, True), (1, False), (2, True)]
