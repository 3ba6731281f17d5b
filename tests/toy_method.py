"""A method that draws at random and reads nothing of its release: a file on the path, which a registry line names."""

from __future__ import annotations

import sys
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dpsw_ray.config.fields import Section, Whole
from dpsw_ray.config.run import RunConfig
from dpsw_ray.encoders import Encoder
from dpsw_ray.flow.points import Points
from dpsw_ray.methods.dpswflow_h.audit import TableCanaries
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.methods.method import Facts, Held, Method, Tools
from dpsw_ray.methods.registry import METHODS
from dpsw_ray.release.answers import Answers
from dpsw_ray.slicing.grid import BinGrid

if "pytest" not in sys.modules:  # a worker of Ray, which has no registry line
    METHODS["toy"] = __name__


class ToySection(Section):
    points: Whole = Field(50, ge=1, le=10**6)


class ToyConfig(RunConfig):
    method: Literal["toy"] = "toy"
    toy: ToySection = Field(default_factory=ToySection)

    @property
    def count(self) -> int:
        return self.toy.points


class Drawn:
    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def sample(self, count: int, seed: int) -> Points:
        points = np.random.default_rng(seed).standard_normal((count, self._encoder.latent_dim))
        points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1)
        return Points(points, np.zeros(count, np.int32))


class Canaries(TableCanaries):
    def answer(self, release: Any) -> NDArray[np.int64]:
        answers: NDArray[np.int64] = release.answers
        return answers


class Toy(Method[ToyConfig]):
    Config = ToyConfig
    free: ClassVar = ("toy.",)
    released = Answers

    def plan(self, config: ToyConfig, facts: Facts, release_id: str) -> HistogramPlan:
        p = config.privacy
        return HistogramPlan.make(
            release_id=release_id, dim=facts.dim, frames=1, grid=BinGrid(16, 1.0), classes=1,
            class_conditional=False, relation=p.relation, epsilon=p.epsilon, delta=p.delta, seed=config.seed,
        )  # fmt: skip

    def describe(self, config: ToyConfig, plan: HistogramPlan, facts: Facts, known: bool) -> dict[str, Any]:
        return {"release": {"numbers": 16}, "noise": {"kind": plan.noise}}

    def statement(self, config: ToyConfig) -> str:
        return "Toys, with noise."

    def memory(self, config: ToyConfig, held: Held) -> dict[str, int]:
        return {"toy.points": 8 * held.count * held.dim}

    def learn(self, config: ToyConfig, targets: Any, tools: Tools) -> Drawn:
        return Drawn(tools.encoder)

    def audit(self) -> Canaries:
        return Canaries()


METHOD = Toy()
