"""Models trained on synthetic records and tested on real ones, by the protocol of the literature.

Logistic regression, an MLP with 100 hidden units, a CNN with three convolutions, and gradient-boosted trees. A
network's epoch is chosen on held-out *synthetic* records, never by what is real. `full` is the published schedule (Adam
3e-4, 50 epochs), `short` one cycle of a larger learning rate in a sixth of the epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders.autoencoder import record_scaling, seeded
from dpsw_ray.evaluation.classifier import net_inputs
from dpsw_ray.evaluation.downstream import boosted_accuracy, logreg_accuracy

__all__ = ["ModelKind", "ScheduleName", "model_accuracy"]

ModelKind: TypeAlias = Literal["logreg", "mlp", "cnn", "boosted"]
ScheduleName: TypeAlias = Literal["short", "full"]

_BATCH = (
    64  # smaller where there are few records: an epoch has at least 32 steps, a batch at least 16 records
)
_HELD_OUT = 0.1


@dataclass(frozen=True)
class _Schedule:
    epochs: int
    learning_rate: float
    cycle: bool


_SCHEDULES = {"short": _Schedule(8, 2e-3, True), "full": _Schedule(50, 3e-4, False)}


def model_accuracy(
    kind: ModelKind,
    train_x: NDArray[Any],
    train_y: NDArray[np.integer[Any]],
    test_x: NDArray[Any],
    test_y: NDArray[np.integer[Any]],
    *,
    schema: RecordSchema,
    classes: int,
    seed: int,
    schedule: ScheduleName = "short",
    device: str = "cpu",
) -> float:
    """Accuracy on real test records of a model trained on (synthetic) records.

    Deterministic given the seed, the machine and the number of threads. Records labelled -1 are left out; `nan` where
    nothing is left to train, to hold out or to test on.

    Args:
        kind: of model; a CNN needs images.
        train_x: records [n, *shape].
        train_y: labels [n].
        test_x: real test records [m, *shape].
        test_y: labels [m].
        schema: what a record is.
        classes: number of classes; labels are 0 to classes - 1.
        seed: of the weights, the hold-out and the shuffling.
        schedule: how long to train a network.
        device: where to train a network.
    """
    if kind == "logreg":
        return logreg_accuracy(train_x, train_y, test_x, test_y)
    if kind == "boosted":
        return boosted_accuracy(train_x, train_y, test_x, test_y, seed)
    plan = _SCHEDULES[schedule]
    order = np.random.default_rng(seed).permutation(np.flatnonzero(train_y >= 0))
    tested = np.flatnonzero(test_y >= 0)
    held = max(1, round(_HELD_OUT * len(order)))
    if len(order) - held < 2 or not len(tested):
        return float("nan")
    records = torch.from_numpy(np.ascontiguousarray(train_x[order])).to(device)
    labels = torch.from_numpy(train_y[order].astype(np.int64)).to(device)
    shift, scale = record_scaling(schema, records)
    batch = min(_BATCH, max(16, (len(order) - held) // 32), len(order) - held)
    steps = (len(order) - held) // batch
    with seeded(seed, device) as generator:
        net = _build(kind, schema, classes).to(device)
        optimiser = torch.optim.Adam(net.parameters(), lr=plan.learning_rate)
        cycle = (
            torch.optim.lr_scheduler.OneCycleLR(
                optimiser, plan.learning_rate, total_steps=plan.epochs * steps
            )
            if plan.cycle
            else None
        )
        best, weights = -1.0, net.state_dict()
        for _ in range(plan.epochs):
            net.train()
            shuffled = (held + torch.randperm(len(order) - held, generator=generator)).to(device)
            for rows in shuffled[: steps * batch].reshape(steps, batch):
                loss = nn.functional.cross_entropy(net(net_inputs(records[rows], shift, scale)), labels[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                if cycle is not None:
                    cycle.step()
            accuracy = _accuracy(net, records[:held], labels[:held], shift, scale)
            if accuracy > best:
                best, weights = accuracy, {key: value.clone() for key, value in net.state_dict().items()}
        net.load_state_dict(weights)
    real = torch.from_numpy(np.ascontiguousarray(test_x[tested])).to(device)
    return _accuracy(net, real, torch.from_numpy(test_y[tested].astype(np.int64)).to(device), shift, scale)


def _build(kind: ModelKind, schema: RecordSchema, classes: int) -> nn.Module:
    """The network from scaled records [n, c, h, w] or [n, columns] to logits [n, classes]."""
    if kind == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(schema.shape), 100), nn.ReLU(), nn.Linear(100, classes)
        )
    height, width, channels = schema.shape
    body: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64), (64, 128)):
        body += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    flat = 128 * -(-height // 8) * -(-width // 8)
    head = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(*body, *head).to(memory_format=torch.channels_last)


@torch.inference_mode()
def _accuracy(net: nn.Module, records: Tensor, labels: Tensor, shift: Tensor, scale: Tensor) -> float:
    net.eval()
    right = 0
    for start in range(0, len(labels), 1024):
        part = slice(start, start + 1024)
        chosen = net(net_inputs(records[part], shift, scale)).argmax(dim=1)
        right += int((chosen == labels[part]).sum())
    return right / len(labels)
