"""Ray actors as workers. Ray's own retries are off: what draws noise must never run twice behind our back."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, WorkerCrashedError
from ray.util.placement_group import get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dpsw_ray.cluster.groups import Args, Outcome, WorkerDied, WorkerGroup, attempt, collect, per_rank
from dpsw_ray.config import ClusterConfig
from dpsw_ray.errors import UserError

__all__ = ["RayCluster"]

Key = tuple[int, int]
"""A group's number and a rank in it."""

_STRATEGIES = {"packed": "PACK", "spread": "SPREAD"}
_GONE = (RayActorError, ObjectLostError, WorkerCrashedError)


class _Host:
    """The actor: a shelf of objects by key. The same hosts serve a run's private and its public phase."""

    def __init__(self) -> None:
        self._parts: dict[Key, Any] = {}
        if not ray.get_gpu_ids():  # an actor without GPUs would otherwise see, and use, all of them
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def ready(self) -> bool:
        return True

    def build(self, key: Key, factory: Callable[..., object], kwargs: dict[str, Any]) -> Outcome:
        succeeded, value = attempt(factory, **kwargs)
        if succeeded:
            self._parts[key] = value
        return succeeded, None if succeeded else value

    def call(self, key: Key, method: str, args: tuple[Any, ...]) -> Outcome:
        return attempt(getattr(self._parts[key], method), *args)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        return attempt(function, *args)

    def drop(self, key: Key) -> None:
        self._parts.pop(key, None)


class RayCluster:
    """`config.actors` host actors, one per rank, in one placement group."""

    def __init__(
        self, config: ClusterConfig, *, private: bool, stop: Callable[[], None] = lambda: None
    ) -> None:
        """Starts the actors and waits until all of them answer.

        Args:
            config: the resources to ask for.
            private: this Ray runs for us alone, so what it lacks now it will lack for ever.
            stop: called by `close` when the actors are gone.

        Raises:
            UserError: the cluster cannot give what `config` asks for within `config.timeout_s`.
        """
        self._config = config
        self._stop = stop
        self._groups = itertools.count()
        self._placement: Any = None
        self._hosts: list[Any] = []
        self._dead: set[int] = set()
        try:
            self._place(private)
            self._hosts = [self._host(rank) for rank in range(config.actors)]
            if self._await(self._hosts):
                raise UserError(self._shortage())
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """How many workers."""
        return self._config.actors

    def spawn(self, factory: Callable[..., object], kwargs_per_rank: Sequence[dict[str, Any]]) -> WorkerGroup:
        """See `Cluster.spawn`."""
        return _RayGroup(self, next(self._groups), factory, kwargs_per_rank)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """See `Cluster.run`."""
        self.revive()
        outcomes = self.gather({0: self._hosts[0].run.remote(function, args)})
        if not outcomes:
            raise WorkerDied(0, self.size, getattr(function, "__name__", ""))
        return collect([outcomes[0]])[0]

    def close(self) -> None:
        """Ends our actors and the Ray we started; a cluster that was there before stays as it was."""
        hosts, self._hosts = self._hosts, []
        stop, self._stop = self._stop, lambda: None
        with contextlib.suppress(Exception):  # the cluster may be gone already
            for host in hosts:
                ray.kill(host)
            if self._placement is not None:
                remove_placement_group(self._placement)
        self._placement = None
        stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def host(self, rank: int) -> Any:
        """The actor that serves a rank, or None while it is known to be dead."""
        return None if rank % self.size in self._dead else self._hosts[rank % self.size]

    def gather(self, refs: dict[int, Any]) -> dict[int, Outcome]:
        """Waits for every rank's outcome; ranks whose actor died are missing, and the actor is marked."""
        outcomes: dict[int, Outcome] = {}
        for rank, ref in refs.items():
            try:
                outcomes[rank] = ray.get(ref)
            except _GONE:
                self._dead.add(rank % self.size)
            except RayError as error:  # the call itself could not travel: not importable there, not picklable
                cause = getattr(error, "cause", None) or error
                last = (str(cause).strip().splitlines() or [""])[-1]
                outcomes[rank] = False, RuntimeError(f"{type(cause).__name__}: {last}")
        return outcomes

    def revive(self) -> None:
        """Starts a fresh actor for every dead one."""
        for rank in sorted(self._dead):
            with contextlib.suppress(Exception):
                ray.kill(self._hosts[rank])  # it may only have been out of reach
            self._hosts[rank] = self._host(rank)
            if self._await([self._hosts[rank]]):
                raise WorkerDied(rank, self.size, "its restart")
            self._dead.discard(rank)

    def _place(self, private: bool) -> None:
        config = self._config
        if config.gpus_per_actor > 1 and config.gpus_per_actor % 1:
            raise UserError(f"cluster.gpus_per_actor above 1 must be whole, found {config.gpus_per_actor:g}.")
        if get_current_placement_group() is not None:
            return  # inside a sweep's trial: its own placement group already holds room for our actors
        if private and ray.cluster_resources().get("GPU", 0.0) < config.actors * config.gpus_per_actor:
            raise UserError(self._shortage())
        bundle = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        strategy = _STRATEGIES[config.placement]
        self._placement = placement_group([bundle] * config.actors, strategy=strategy)
        if not self._placement.wait(config.timeout_s):
            raise UserError(self._shortage())

    def _host(self, rank: int) -> Any:
        strategy: Any = None
        if self._placement is not None:
            strategy = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=rank)
        options = {
            "num_cpus": self._config.cpus_per_actor,
            "num_gpus": self._config.gpus_per_actor,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": strategy,
        }
        return ray.remote(_Host).options(**options).remote()

    def _await(self, hosts: Iterable[Any]) -> bool:
        """Waits for actors to answer; True if some did not in time."""
        try:
            ray.get([host.ready.remote() for host in hosts], timeout=self._config.timeout_s)
        except GetTimeoutError:
            return True
        except RayError as error:
            reason = (str(error).strip().splitlines() or [""])[-1]
            raise UserError(
                f"The Ray workers could not start ({reason}); is dpsw_ray installed on every machine "
                "of the cluster?"
            ) from None
        return False

    def _shortage(self) -> str:
        config, total, free = self._config, ray.cluster_resources(), ray.available_resources()
        for key, each, name in (
            ("gpus_per_actor", config.gpus_per_actor, "GPU"),
            ("cpus_per_actor", config.cpus_per_actor, "CPU"),
        ):
            have = total.get(name, 0.0)
            if have < config.actors * each:
                better = "0" if not have else f"at most {have / config.actors:.3g}, or fewer cluster.actors"
                return (
                    f"cluster.{key}: {config.actors} actors with {each:g} each ask for "
                    f"{config.actors * each:g} {name}s, but the Ray cluster has {have:g}; choose {better}."
                )
        return (
            f"cluster.timeout_s: no room within {config.timeout_s:g} s for {config.actors} actors with "
            f"{config.cpus_per_actor:g} CPUs and {config.gpus_per_actor:g} GPUs each; of the Ray cluster "
            f"{free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs are free: wait for other jobs, "
            "or choose fewer cluster.actors."
        )


class _RayGroup:
    def __init__(
        self,
        cluster: RayCluster,
        number: int,
        factory: Callable[..., object],
        kwargs_per_rank: Sequence[dict[str, Any]],
    ) -> None:
        self._cluster = cluster
        self._number = number
        self._factory = factory
        self._kwargs = list(kwargs_per_rank)
        self._built: list[Any] = [None] * len(self._kwargs)  # the actor that holds each rank's object
        try:
            self.rebuild()
        except WorkerDied:  # it died while idle, or while building: building again is harmless
            self.rebuild()

    @property
    def size(self) -> int:
        return len(self._kwargs)

    def call(self, method: str, args: Args = (), *, retry: bool = False) -> list[Any]:
        if isinstance(args, tuple) and args:
            packed: list[Any] = [ray.put(args)] * self.size
        else:
            packed = per_rank(args, self.size)
        outcomes: dict[int, Outcome] = {}
        deadline: float | None = None
        while True:
            try:
                self._advance(method, packed, outcomes)
                return collect([outcomes[rank] for rank in range(self.size)])
            except WorkerDied:
                now = time.monotonic()
                deadline = deadline or now + self._cluster._config.timeout_s
                if not retry or now > deadline:
                    raise
            with contextlib.suppress(WorkerDied):  # dying again: the next round sees it
                self.rebuild()

    def rebuild(self) -> None:
        self._cluster.revive()
        missing = [rank for rank in range(self.size) if not self._alive(rank)]
        hosts = {rank: self._cluster.host(rank) for rank in missing}
        refs = {
            rank: host.build.remote((self._number, rank), self._factory, self._kwargs[rank])
            for rank, host in hosts.items()
        }
        outcomes = self._cluster.gather(refs)
        collect(list(outcomes.values()))
        for rank in outcomes:
            self._built[rank] = hosts[rank]
        self._demand(missing, outcomes, "its start")

    def close(self) -> None:
        for rank in range(self.size):
            if self._alive(rank):
                self._built[rank].drop.remote((self._number, rank))
        self._built = [None] * self.size

    def _alive(self, rank: int) -> bool:
        return self._built[rank] is not None and self._built[rank] is self._cluster.host(rank)

    def _advance(self, method: str, packed: list[Any], outcomes: dict[int, Outcome]) -> None:
        """Runs the ranks without an outcome; WorkerDied before anything runs if an object is missing."""
        ranks = [rank for rank in range(self.size) if rank not in outcomes]
        self._demand(ranks, {rank for rank in ranks if self._alive(rank)}, method)
        refs = {
            rank: self._built[rank].call.remote((self._number, rank), method, packed[rank]) for rank in ranks
        }
        outcomes |= self._cluster.gather(refs)
        self._demand(ranks, outcomes, method)

    def _demand(self, ranks: Iterable[int], present: Iterable[int], doing: str) -> None:
        missing = set(ranks) - set(present)
        if missing:
            raise WorkerDied(min(missing) % self._cluster.size, self._cluster.size, doing)
