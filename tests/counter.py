"""A toy mechanism that remembers: K parts add up, over T questions, what they were asked, and what they hold.

Its messages depend on the question in floating point and on a running state, as those of a critic that is trained do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.files import read_arrays, read_manifest, write_arrays, write_manifest
from dpsw_ray.privacy.events import Event, GaussianEvent, SequentialEvent
from dpsw_ray.privacy.noise import NoiseKey, lattice_gaussian
from dpsw_ray.private.held import HeldRecords
from dpsw_ray.private.noise import NoiseSecret
from dpsw_ray.private.said import State
from dpsw_ray.release.exchange import Exchange
from dpsw_ray.release.form import Form
from dpsw_ray.release.question import Question

UNIT = 2.0**-20
CELLS = 3


@dataclass(frozen=True)
class CounterPlan:
    """T questions to K parts; the noise is on the sum."""

    release_id: str
    questions: int = 20
    parts: int | None = 4
    noise_std: float = 3e7
    noise: str = "gaussian"
    noise_on: Literal["sum", "messages"] = "sum"
    mechanism: str = "counter"

    @property
    def form(self) -> Form:
        bound = math.ceil(1 / UNIT)
        return Form((CELLS,), bound**2, 2 * bound, signed=True)

    @property
    def cells(self) -> tuple[int, ...]:
        return (self.questions, CELLS)

    @property
    def stretches(self) -> tuple[tuple[float, int], ...]:
        return ((self.noise_std, math.prod(self.cells)),)

    @property
    def event(self) -> Event:
        changed = math.sqrt(self.form.sensitivity_sq("replace_one", grouped=True))
        once = GaussianEvent("a question", {"replace_one": changed}, self.noise_std)
        return SequentialEvent((once,), self.questions) if self.questions > 1 else once

    def shape(self, number: int) -> tuple[int, ...]:
        return (CELLS,)

    def digest(self) -> str:
        own = ("CounterPlan", self.questions, self.parts, self.noise_std, self.mechanism)
        return hashlib.sha256(repr(own).encode()).hexdigest()


def message(
    held: HeldRecords, question: Question, number: int, state: State | None, plan: CounterPlan
) -> tuple[NDArray[np.int64], State | None]:
    """What a part says: a direction that depends on its records, on the question and on all questions before."""
    memory = np.zeros(CELLS) if state is None else state["memory"]
    weights = question["weights"] if question else np.ones(CELLS)
    for latents, _ in held.batches:
        memory = np.tanh(memory + weights * latents[:, :CELLS].sum(axis=0) / math.pi)
    length = max(float(np.linalg.norm(memory)), 1.0)
    return np.trunc(memory / length / UNIT * (1 - 1e-6)).astype(np.int64), {"memory": memory}


def noise(secret: NoiseSecret, plan: CounterPlan, number: int) -> NDArray[np.int64]:
    assert isinstance(secret, NoiseKey)
    return lattice_gaussian(secret.derive(plan.digest().encode()), plan.noise_std, number * CELLS, CELLS)


@dataclass(frozen=True)
class Learnt:
    """What a learner made of the answers: all of them."""

    replies: NDArray[np.int64]
    manifest: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def from_plan(cls, plan: CounterPlan, learnt: NDArray[np.int64], manifest: Mapping[str, Any]) -> Self:
        return cls(learnt, manifest)

    def save(self, folder: Path) -> None:
        write_arrays(folder / "learnt.npz", {"replies": self.replies})
        write_manifest(folder / "manifest.json", self.manifest, ["learnt.npz"])

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(read_arrays(folder / "learnt.npz")["replies"], read_manifest(folder / "manifest.json"))


def learn(exchange: Exchange[CounterPlan], seed: int) -> NDArray[np.int64]:
    """Asks with weights that follow the replies; they begin at random, as those of a resumed driver that lost them."""
    weights, replies = np.random.default_rng(seed).normal(size=CELLS), []
    while exchange.number < exchange.plan.questions:
        replies.append(exchange.ask({"weights": weights}))
        weights = weights + replies[-1] * UNIT / 10
    return np.array(replies)
