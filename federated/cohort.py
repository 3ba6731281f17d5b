"""Who takes part in a round: simulated dropouts, stragglers and broken devices, by public seeds.

None of it looks at a record, so that who answers tells nothing of anybody's records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.federated.config import FederatedConfig

__all__ = ["Cohort"]


@dataclass(frozen=True)
class Cohort:
    """The users of one round.

    Attributes:
        users: the population.
        number: of the round, from 0.
        seed: public.
        invited: share of the users that the server asks, by a public draw; 1 asks everybody.
        dropout: chance of a user to be away.
        deadline_s: answers after it are refused; infinity for none.
        median_s: time a user takes.
        spread: of its logarithm.
        malformed: chance of a user to have a broken device, in every round.
    """

    users: int
    number: int
    seed: int
    invited: float = 1.0
    dropout: float = 0.0
    deadline_s: float = math.inf
    median_s: float = 30.0
    spread: float = 0.5
    malformed: float = 0.0

    @classmethod
    def of(cls, config: FederatedConfig, users: int, number: int) -> Cohort:
        """The round's, as the config simulates it."""
        s = config.stragglers
        return cls(
            users, number, config.seed, config.invited, config.dropout.rate,
            s.deadline_s or math.inf, s.median_s, s.spread, config.population.malformed,
        )  # fmt: skip

    def asked(self) -> NDArray[np.bool_]:
        """Whom the server asks: array of size [users]."""
        return self._draws(0) < self.invited

    def away(self) -> NDArray[np.bool_]:
        """Who does not answer: array of size [users]."""
        return self._draws(1) < self.dropout

    def seconds(self) -> NDArray[np.float64]:
        """How long every user takes: a log-normal law, half of whose variance is the device's and lasts."""
        lasting = np.random.default_rng([self.seed, 0x5109]).standard_normal(self.users)
        passing = np.random.default_rng([self.seed, 0x510A, self.number]).standard_normal(self.users)
        return np.asarray(self.median_s * np.exp(self.spread * (lasting + passing) / math.sqrt(2)))

    def late(self) -> NDArray[np.bool_]:
        """Who answers too late: array of size [users]."""
        if math.isinf(self.deadline_s):
            return np.zeros(self.users, dtype=bool)
        return np.asarray(self.seconds() > self.deadline_s)

    def broken(self) -> NDArray[np.bool_]:
        """Whose device sends something wrong: array of size [users]."""
        return np.random.default_rng([self.seed, 0xBAD]).random(self.users) < self.malformed

    def answering(self) -> NDArray[np.bool_]:
        """Whose messages come in time, right or wrong: array of size [users]."""
        return self.asked() & ~self.away() & ~self.late()

    def survivors(self) -> NDArray[np.bool_]:
        """Whose messages come in time and come from working devices: array of size [users]."""
        return _survivors(self)

    def duration_s(self) -> float:
        """How long the round takes: until the last answer, or the deadline where somebody missed it."""
        waiting = self.asked() & ~self.away()
        if not waiting.any():
            return 0.0
        slowest = float(self.seconds()[waiting].max())
        # Who is away is waited for until the deadline, where there is one.
        missed = bool((self.asked() & self.away()).any()) or slowest > self.deadline_s
        return self.deadline_s if missed and math.isfinite(self.deadline_s) else slowest

    def _draws(self, purpose: int) -> NDArray[np.float64]:
        return np.random.default_rng([self.seed, 0xC0, purpose, self.number]).random(self.users)


@lru_cache(maxsize=4)
def _survivors(cohort: Cohort) -> NDArray[np.bool_]:
    present = cohort.answering() & ~cohort.broken()
    present.setflags(write=False)
    return present
