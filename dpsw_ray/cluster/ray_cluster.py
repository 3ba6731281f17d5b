"""Ray actors as workers. Ray's own retries are off: what draws noise must never run twice behind our back."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.metrics import Gauge
from ray.util.placement_group import get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dpsw_ray.base.errors import UserError
from dpsw_ray.cluster.faults import GONE, Pace, Patience, init_failed, reason, say
from dpsw_ray.cluster.groups import (
    Args,
    Meter,
    Outcome,
    WorkerDied,
    WorkerGroup,
    collect,
    per_rank,
    secret,
)
from dpsw_ray.cluster.host import Host
from dpsw_ray.config.run import ClusterConfig

__all__ = ["RayCluster"]

_MOST_DEATHS = 4
"""Of one rank during one call: a call that kills its worker every time must end."""

_NO_ROOM = "the cluster had no room for it within cluster.timeout_s"

_STRATEGIES = {"packed": "PACK", "spread": "SPREAD"}


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
        self._places: dict[int, str] = {}
        self._lost: dict[int, WorkerDied] = {}
        self._gauges: dict[str, Any] = {}
        self.meter = Meter()
        try:
            self._place(private)
            self._hosts = [None] * config.actors
            deadline = time.monotonic() + config.timeout_s
            self._lost = self._start(range(config.actors))
            for _ in range(_MOST_DEATHS):
                if self._lost and time.monotonic() < deadline:
                    self._lost = self._start(sorted(self._lost))
            if self._lost:
                death = self._lost[min(self._lost)]
                raise UserError(self._shortage() if death.why == _NO_ROOM else str(death))
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """How many workers."""
        return self._config.actors

    def show(self, figures: Mapping[str, float]) -> None:
        """See `Cluster.show`: gauges `dpsw_<name>` of Ray's metrics, which its dashboard and Prometheus read."""
        for name, value in figures.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"dpsw_{name}")
            self._gauges[name].set(value)

    def spawn(self, factory: Callable[..., object], kwargs_per_rank: Sequence[dict[str, Any]]) -> WorkerGroup:
        """See `Cluster.spawn`."""
        return _RayGroup(self, next(self._groups), factory, kwargs_per_rank)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """See `Cluster.run`."""
        self.revive()
        doing = getattr(function, "__name__", "")
        outcomes = self.gather({0: self._hosts[0].run.remote(function, args)}, doing)
        if not outcomes:
            raise self.death(0, doing)
        return collect([outcomes[0]])[0]

    def close(self) -> None:
        """Ends our actors and the Ray we started; a cluster that was there before stays as it was."""
        hosts, self._hosts = [host for host in self._hosts if host is not None], []
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
        return None if rank % self.size in self._lost else self._hosts[rank % self.size]

    def death(self, rank: int, doing: str) -> WorkerDied:
        """What became of the actor that serves a rank, which is gone or does not hold what it held."""
        rank %= self.size
        return self._lost.get(rank) or WorkerDied(rank, self.size, doing)

    def where(self, rank: int) -> str:
        """The actor that serves a rank, and its machine, in words."""
        rank %= self.size
        return f"Worker {rank} of {self.size} on {self._places[rank]}"

    def gather(
        self, refs: Mapping[int, Any], doing: str = "", patience: Patience | None = None
    ) -> dict[int, Outcome]:
        """Waits for every rank's outcome; ranks whose actor died, or gave no answer in time, are missing."""
        begun, outcomes, waiting = time.monotonic(), {}, dict(refs)
        limit = patience.limit if patience else self._config.call_timeout_s
        notice = patience.notice if patience else None
        while waiting:
            until = limit if notice is None else min(notice, limit)
            left = max(0.0, begun + until - time.monotonic())
            ended, _ = ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=left)
            for rank in [rank for rank, ref in waiting.items() if ref in ended]:
                outcome = self._outcome(rank, waiting.pop(rank), doing)
                if outcome is not None:
                    outcomes[rank] = outcome
            if notice is not None and until == notice:
                if waiting and outcomes:
                    names = " and ".join(self.where(rank) for rank in waiting)
                    say(f"{names}: slow, {doing} takes more than {notice:g} s there and less elsewhere.")
                notice = None
            elif waiting:
                why = (
                    f"no answer for {limit:.0f} s (cluster.call_timeout_s is {self._config.call_timeout_s:g})"
                )
                for rank in waiting:
                    self._lose(rank, doing, why)
                break
        return outcomes

    def revive(self) -> None:
        """Starts a fresh actor for every dead one.

        Raises:
            WorkerDied: there is no room for one within `cluster.timeout_s`, or it died again.
        """
        if not self._lost:
            return
        before = self._lost
        self._lost = {**before, **self._start(sorted(before))}
        for rank, death in before.items():
            if self._lost[rank] is death:
                del self._lost[rank]
                say(f"{death.event}. A new one on {self._places[rank]} takes its place.")
            else:
                say(f"{death.event}.")
        if self._lost:
            raise self._lost[min(self._lost)]

    def _outcome(self, rank: int, ref: Any, doing: str) -> Outcome | None:
        try:
            outcome: Outcome = ray.get(ref)
            return outcome
        except GONE as error:
            self._lose(rank, doing, reason(error))
            return None
        except RayError as error:  # the call itself could not travel: not importable there, not picklable
            cause = getattr(error, "cause", None) or error
            last = (str(cause).strip().splitlines() or [""])[-1]
            return False, RuntimeError(f"{type(cause).__name__}: {last}")

    def _lose(self, rank: int, doing: str, why: str) -> None:
        self._lost.setdefault(rank % self.size, WorkerDied(rank % self.size, self.size, doing, why))

    def _start(self, ranks: Sequence[int]) -> dict[int, WorkerDied]:
        """Makes actors for these ranks and waits until they answer; those that do not, and why.

        Raises:
            UserError: they cannot be made at all.
        """
        for rank in ranks:
            with contextlib.suppress(Exception):
                ray.kill(self._hosts[rank])  # it may only have been out of reach, or not been placed yet
            self._hosts[rank] = self._host(rank)
        refs = {rank: self._hosts[rank].place.remote() for rank in ranks}
        if not refs:
            return {}
        ended, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=self._config.timeout_s)
        lost: dict[int, WorkerDied] = {}
        for rank, ref in refs.items():
            why = _NO_ROOM
            try:
                if ref in ended:
                    self._places[rank] = ray.get(ref)
                    continue
            except RayError as error:
                if init_failed(error):
                    last = (str(error).strip().splitlines() or [""])[-1]
                    raise UserError(
                        f"The Ray workers could not start ({last}); is dpsw_ray installed on every machine of the "
                        "cluster?"
                    ) from None
                why = reason(error)
            lost[rank] = WorkerDied(rank, self.size, "its start", why)
        return lost

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
            "enable_task_events": False,  # the dashboard would show how long the private wing's calls take
            "scheduling_strategy": strategy,
        }
        return ray.remote(Host).options(**options).remote()

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
        self._pace = Pace(cluster._config)
        self._rebuild_in_time()  # one died while idle, or while building: building again is harmless

    @property
    def size(self) -> int:
        return len(self._kwargs)

    def call(self, method: str, args: Args = (), *, retry: bool = False) -> list[Any]:
        start = time.perf_counter()
        if isinstance(args, tuple) and args:
            packed: list[Any] = [ray.put(args)] * self.size
        else:
            packed = per_rank(args, self.size)
        outcomes: dict[int, Outcome] = {}
        seconds: dict[int, float] = {}
        deaths: Counter[int] = Counter()
        while True:
            try:
                self._advance(method, packed, outcomes, seconds)
                break
            except WorkerDied as death:
                deaths[death.rank] += 1
                if not retry or deaths[death.rank] > _MOST_DEATHS:
                    raise
            self._rebuild_in_time()
        results = collect([outcomes[rank] for rank in range(self.size)])
        if not secret(self._factory, method):
            self._cluster.meter += Meter(max(seconds.values(), default=0.0), time.perf_counter() - start)
            if (slow := self._pace.note(method, seconds)) is not None:
                rank, own, others = slow
                name = self._cluster.where(rank)
                say(f"{name} is slow: {method} takes {own:.3g} s there, {others:.3g} s elsewhere.")
        return results

    def rebuild(self) -> None:
        self._cluster.revive()
        missing = [rank for rank in range(self.size) if not self._alive(rank)]
        hosts = {rank: self._cluster.host(rank) for rank in missing}
        refs = {
            rank: host.build.remote((self._number, rank), self._factory, self._kwargs[rank])
            for rank, host in hosts.items()
        }
        outcomes = self._cluster.gather(refs, "its start")
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

    def _rebuild_in_time(self) -> None:
        """Rebuilds, again where a worker dies meanwhile, while the cluster's patience lasts."""
        self._pace.forget()
        deadline = time.monotonic() + self._cluster._config.timeout_s
        for attempt in itertools.count():
            try:
                return self.rebuild()
            except WorkerDied:
                if attempt == _MOST_DEATHS or time.monotonic() > deadline:
                    raise

    def _advance(
        self, method: str, packed: list[Any], outcomes: dict[int, Outcome], seconds: dict[int, float]
    ) -> None:
        """Runs the ranks without an outcome; WorkerDied before anything runs if an object is missing."""
        ranks = [rank for rank in range(self.size) if rank not in outcomes]
        self._demand(ranks, {rank for rank in ranks if self._alive(rank)}, method)
        refs = {
            rank: self._built[rank].call.remote((self._number, rank), method, packed[rank]) for rank in ranks
        }
        patience = self._pace.patience(method, hidden=secret(self._factory, method))
        for rank, (succeeded, value) in self._cluster.gather(refs, method, patience).items():
            outcomes[rank] = succeeded, value[0] if succeeded else value
            seconds[rank] = value[1] if succeeded else 0.0
        self._demand(ranks, outcomes, method)

    def _demand(self, ranks: Iterable[int], present: Iterable[int], doing: str) -> None:
        missing = set(ranks) - set(present)
        if missing:
            raise self._cluster.death(min(missing), doing)
