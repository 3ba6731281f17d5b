"""The event of a sweep that shows its best trial only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dpsw_ray.privacy.events.base import Event, common_unit, compose_costs
from dpsw_ray.privacy.events.composition import check_parts
from dpsw_ray.privacy.losses import Cost, Gaussian
from dpsw_ray.privacy.relations import Relation, Unit
from dpsw_ray.privacy.selection import Selected, TrialsLaw

__all__ = ["PrivateSelectionEvent"]


@dataclass(frozen=True)
class PrivateSelectionEvent(Event, kind="private_selection"):
    """The best of T trials, T secret and from the truncated negative binomial law, nothing else shown.

    A trial draws its hyper-parameters from a fixed law that does not depend on the data and makes its release and its
    score; `parts` are what that costs at most, whatever was drawn. The other trials, T and the running time
    are secret (Papernot and Steinke 2022). Counted by Renyi bounds only.

    Args:
        parts: of one trial, one after the other; all of one unit.
        eta: shape of the law.
        gamma: its second parameter.
    """

    parts: tuple[Event, ...]
    eta: float
    gamma: float
    label: str = "best of a secret number of trials"

    def __post_init__(self) -> None:
        check_parts(self)
        self.law  # noqa: B018 (raises where the parameters are no law)

    @property
    def law(self) -> TrialsLaw:
        """Of the number of trials."""
        return TrialsLaw(float(self.eta), float(self.gamma))

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """The parts' unit."""
        return common_unit(self.parts)

    def costs(self, relation: Relation) -> tuple[Cost, ...]:
        """The theorem's bound on the losses of one trial; infinite where a trial's are."""
        return tuple(
            self._cost(cost) for cost in compose_costs([part.costs(relation) for part in self.parts])
        )

    def _cost(self, trial: Cost) -> Cost:
        if any(isinstance(loss, Gaussian) and loss.mu == float("inf") for loss in trial):
            return Counter({Gaussian(float("inf")): 1})
        return Counter({Selected(tuple(sorted(trial.items(), key=repr)), self.law): 1})
