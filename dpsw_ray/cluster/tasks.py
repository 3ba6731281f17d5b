"""Independent tasks on a cluster's workers, whose outcomes come as they end."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from dpsw_ray.cluster.groups import Cluster, LocalCluster, Outcome, WorkerDied, attempt

if TYPE_CHECKING:
    from dpsw_ray.cluster.ray_cluster import RayCluster

__all__ = ["map_tasks"]

_ATTEMPTS = 2


def map_tasks(
    cluster: Cluster, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Outcome]]:
    """Calls `function(*task)` for every task, one at a time in each worker.

    A failure is an outcome: it stops no other task. A task whose worker died is begun once more, in a fresh one.

    Args:
        cluster: whose workers do it; those of this process take one task after the other.
        function: importable in the workers, and able to go on where a killed attempt stopped.
        tasks: argument tuples.

    Yields:
        A task's number and its outcome, in the order in which tasks end.
    """
    if isinstance(cluster, LocalCluster):
        return ((number, attempt(function, *task)) for number, task in enumerate(tasks))
    return _on_ray(cast("RayCluster", cluster), function, tasks)


def _on_ray(
    cluster: RayCluster, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Outcome]]:
    import ray

    waiting, idle = deque(range(len(tasks))), deque(range(cluster.size))
    running: dict[Any, tuple[int, int]] = {}
    deaths: Counter[int] = Counter()
    while waiting or running:
        while waiting and idle:
            with contextlib.suppress(WorkerDied):  # no room for it now: the others go on
                cluster.revive()
            rank = next((rank for rank in idle if cluster.host(rank) is not None), None)
            if rank is None:
                if not running:
                    cluster.revive()
                break
            idle.remove(rank)
            number = waiting.popleft()
            running[cluster.host(rank).run.remote(function, tasks[number])] = rank, number
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        rank, number = running.pop(ended)
        idle.append(rank)
        outcome = cluster.gather({rank: ended}, function.__name__).get(rank)
        if outcome is not None:
            yield number, outcome
            continue
        deaths[number] += 1
        if deaths[number] < _ATTEMPTS:
            waiting.append(number)
        else:
            yield number, (False, cluster.death(rank, function.__name__))
