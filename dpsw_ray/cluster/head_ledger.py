"""One owner of the ledger on a Ray cluster: an actor on the head node opens the file, everybody else asks it.

SQLite's locks hold between the processes of one machine. On a network file system they cannot be trusted, and two
nodes would each open a file of their own where the path is not shared: both could lose charges.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from dpsw_ray.base.errors import UserError
from dpsw_ray.cluster.groups import Outcome, attempt, collect
from dpsw_ray.privacy.ledger import Ledger

__all__ = ["HeadLedger", "open_ledger"]

P = ParamSpec("P")
T = TypeVar("T")

_START_S = 60.0


def open_ledger(path: Path) -> Ledger:
    """The ledger at `path`: of this machine, or, in a Ray cluster whose head is another node, of the head.

    Args:
        path: absolute; on the head node where the ledger lives there.

    Raises:
        UserError: the file cannot be opened, or the head node does not answer.
    """
    head = _head_elsewhere()
    return Ledger(path) if head is None else HeadLedger(path, head)


def _head_elsewhere() -> str | None:
    """The id of the head node, where this process is connected to a cluster through another node."""
    if "ray" not in sys.modules:
        return None
    import ray

    if not ray.is_initialized():
        return None
    heads = [
        str(node["NodeID"])
        for node in ray.nodes()
        if node["Alive"] and "node:__internal_head__" in node["Resources"]
    ]
    if not heads:
        raise UserError(
            "The privacy ledger belongs to the head node of the Ray cluster, and the cluster shows none that is "
            "alive: start it again, or run on one machine (cluster.address and RAY_ADDRESS unset)."
        )
    return None if heads[0] == ray.get_runtime_context().get_node_id() else heads[0]


class _Keeper:
    """The actor: the ledger on the head's disk."""

    def __init__(self) -> None:
        self._ledger: Ledger | None = None

    def open(self, path: Path) -> Outcome:
        succeeded, value = attempt(Ledger, path)
        self._ledger = value if succeeded else None
        return succeeded, None if succeeded else value

    def ask(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        return attempt(getattr(self._ledger, method), *args, **kwargs)


def _on_head(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    @functools.wraps(method)
    def asking(self: HeadLedger, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answer: T = self._ask(method.__name__, args, kwargs)
        return answer

    return asking


class HeadLedger(Ledger):
    """A ledger whose file is on another node; every call runs there, in one transaction as ever.

    Args:
        path: of the file, on that node.
        node: its Ray id.

    Raises:
        UserError: the file cannot be opened there, or the node does not answer.
    """

    def __init__(self, path: Path, node: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.path = path
        # Ray must never repeat a call by itself: a charge is asked for once, and may fail once.
        options = {
            "num_cpus": 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        self._keeper = ray.remote(_Keeper).options(**options).remote()
        try:
            outcome = ray.get(self._keeper.open.remote(path), timeout=_START_S)
        except ray.exceptions.RayError as error:  # a timeout too
            raise UserError(
                f"The privacy ledger {path} cannot be opened on the head node of the Ray cluster "
                f"({type(error).__name__}); is dpsw_ray installed there?"
            ) from None
        collect([outcome])

    def _ask(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import ray

        try:
            outcome = ray.get(self._keeper.ask.remote(method, args, kwargs))
        except ray.exceptions.RayError as error:
            raise UserError(
                f"The privacy ledger {self.path} on the head node of the Ray cluster was lost during {method} "
                f"({type(error).__name__}): the last charge may be in it, so nothing may be released on it; "
                "start the run again."
            ) from None
        return collect([outcome])[0]

    register = _on_head(Ledger.register)
    divide = _on_head(Ledger.divide)
    division = _on_head(Ledger.division)
    remove = _on_head(Ledger.remove)
    set_cap = _on_head(Ledger.set_cap)
    check = _on_head(Ledger.check)
    charge = _on_head(Ledger.charge)
    check_receipts = _on_head(Ledger.check_receipts)
    find_charge = _on_head(Ledger.find_charge)
    entries = _on_head(Ledger.entries)
    cap_changes = _on_head(Ledger.cap_changes)
    datasets = _on_head(Ledger.datasets)
    total = _on_head(Ledger.total)
    rows = _on_head(Ledger.rows)
    verify = _on_head(Ledger.verify)
