"""The actor: a shelf of objects. Everything else about Ray is on the driver's side, in `ray_cluster`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray

from dpsw_ray.cluster.groups import Outcome, attempt, timed

__all__ = ["Host"]

Key = tuple[int, int]
"""A group's number and a rank in it."""


class Host:
    """The actor: a shelf of objects by key. The same hosts serve a run's private and its public phase."""

    def __init__(self) -> None:
        self._parts: dict[Key, Any] = {}
        if not ray.get_gpu_ids():  # an actor without GPUs would otherwise see, and use, all of them
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def place(self) -> str:
        """The machine it lives on."""
        return str(ray.util.get_node_ip_address())

    def build(self, key: Key, factory: Callable[..., object], kwargs: dict[str, Any]) -> Outcome:
        """Makes an object."""
        succeeded, value = attempt(factory, **kwargs)
        if succeeded:
            self._parts[key] = value
        return succeeded, None if succeeded else value

    def call(self, key: Key, method: str, args: tuple[Any, ...]) -> Outcome:
        """A method of an object; a result comes with its seconds."""
        return timed(getattr(self._parts[key], method), *args)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        """A function that needs no object."""
        return attempt(function, *args)

    def drop(self, key: Key) -> None:
        """Forgets an object."""
        self._parts.pop(key, None)
