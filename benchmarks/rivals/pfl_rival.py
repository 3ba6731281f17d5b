"""The cohort through pfl's simulation; runs in pfl's own environment, one process or several under `torchrun`.

    python pfl_rival.py FOLDER NAME ROUNDS numpy|torch seeded|plain

As its guide "Fast distributed simulations" advises: data sets in memory as `pfl.data.dataset.Dataset`, users in a fixed
order (`MinimizeReuseUserSampler`), no evaluation of users, one process a core. The statistics are the user's message;
the library's own Gaussian mechanism bounds every message and adds noise to the sum, once a round.

Every worker of its `FederatedDataset` draws a seed for every user of every worker, which costs more than the user's
work. `plain` hands the users out without: a data set class of one's own, which its interface allows.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from clock import processor_s
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import FederatedAlgorithm
from pfl.callback.base import TrainingProcessCallback
from pfl.common_types import Population
from pfl.context import CentralContext
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset, FederatedDatasetBase
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import AlgorithmHyperParams, ModelHyperParams
from pfl.metrics import Metrics
from pfl.model.base import Model
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from pfl.stats import MappedVectorStatistics
from work import Work, report


class Sum(Model):
    """What the server keeps: the last round's sum."""

    def __init__(self) -> None:
        self.total: Any = None

    def apply_model_update(self, statistics: MappedVectorStatistics) -> tuple[Sum, Metrics]:
        """Keeps the sum."""
        self.total = statistics["histograms"]
        return self, Metrics()


class Histograms(FederatedAlgorithm):
    """Every round asks the whole cohort for its messages."""

    def __init__(self, users: int, rounds: int, message: Any) -> None:
        super().__init__()
        self._users, self._rounds, self._message = users, rounds, message

    def get_next_central_contexts(
        self,
        model: Any,
        iteration: int,
        algorithm_params: Any,
        model_train_params: Any,
        model_eval_params: Any = None,
    ) -> Any:
        """The next round."""
        if iteration == self._rounds:
            return None, model, Metrics()
        context = CentralContext(
            current_central_iteration=iteration, do_evaluation=False, cohort_size=self._users,
            population=Population.TRAIN, algorithm_params=algorithm_params, model_train_params=model_train_params,
            seed=self._get_seed(),
        )  # fmt: skip
        return (context,), model, Metrics()

    def simulate_one_user(self, model: Any, user_dataset: Any, central_context: Any) -> Any:
        """One user's message."""
        return MappedVectorStatistics({"histograms": self._message(user_dataset.raw_data[0])}), Metrics()

    def process_aggregated_statistics(
        self, central_context: Any, aggregate_metrics: Any, model: Any, statistics: Any
    ) -> Any:
        """Hands the sum to the server."""
        return model.apply_model_update(statistics)


class Plain(FederatedDatasetBase):
    """The users in order, without seeds, which only noise on the devices would need."""

    def __init__(self, sets: list[Dataset]) -> None:
        super().__init__()
        self._sets = sets

    def __next__(self) -> Any:
        """No user by itself: pfl's interface asks for one, its backend for whole cohorts."""
        raise StopIteration

    def get_cohort(self, cohort_size: int) -> Any:
        """This worker's part of the users."""
        return (
            (self._sets[user], None) for user in self._get_ops().distributed.distribute_range(cohort_size)
        )


class Laps(TrainingProcessCallback):
    """Seconds of every round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Starts the clock."""
        self._start = time.perf_counter()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """Ends a lap."""
        now = time.perf_counter()
        self.seconds.append(now - self._start)
        self._start = now
        return False, Metrics()


def main(folder: Path, name: str, rounds: int, kind: str, order: str) -> None:
    work = Work.load(folder)
    message: Any = work.message
    if kind == "torch":
        import torch
        from pfl.model.pytorch import PyTorchModel  # noqa: F401 (from here on pfl works with tensors)

        torch.set_num_threads(1)

        def message(records: Any) -> Any:
            return torch.from_numpy(work.message(records))

    users = len(work.latents)
    sets = [Dataset((records,), user_id=str(user)) for user, records in enumerate(work.latents)]

    def run(noise: float, rounds: int) -> tuple[Any, list[float]]:
        sampler = get_user_sampler("minimize_reuse", range(users))
        data = Plain(sets) if order == "plain" else FederatedDataset(sets.__getitem__, sampler)
        mechanism = CentrallyAppliedPrivacyMechanism(GaussianMechanism(work.bound, noise / work.bound))
        backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[mechanism])
        model, laps = Sum(), Laps()
        Histograms(users, rounds, message).run(
            AlgorithmHyperParams(), backend, model, ModelHyperParams(), callbacks=[laps],
            send_metrics_to_platform=False,
        )  # fmt: skip
        return model.total, laps.seconds

    total, _ = run(0.0, 1)
    root = int(os.environ["RIVALS_ROOT"])  # whose descendants all workers are
    before = processor_s(root)
    _, seconds = run(work.noise, rounds)
    used = (processor_s(root) - before) / rounds
    if os.environ.get("RANK", "0") == "0":
        report(folder, name, seconds, used, np.asarray(total))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
