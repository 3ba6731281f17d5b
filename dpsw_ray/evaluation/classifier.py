"""A small classifier trained on public labelled records: judges samples, lends its features to the FID."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import digest_arrays
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders.autoencoder import Progress, record_scaling, scale_records, seeded
from dpsw_ray.encoders.base import read_weights, write_weights
from dpsw_ray.encoders.cache import cache_key, cached, code_version

__all__ = ["FEATURES", "Classifier", "cached_classifier", "load_classifier", "net_inputs", "train_classifier"]

FEATURES = "lenet features"
WIDTH = 128  # of the penultimate layer
BATCH = 128  # smaller where there are few records: a pass has at least LEAST_STEPS steps, batches at least 16 records
LEAST_STEPS = 32
STEPS = 1_200  # at most: five passes over 30,000 records
PASSES = 20  # at most: what ends the training on few records
CHECKS = 24  # looks at the hold-out in the whole of the training
PATIENCE = 8  # looks without progress before stopping: a third of the cycle, whose hot start is noisy
TOLERANCE = 1e-3  # nats the hold-out's cross-entropy must fall by to count as progress
HOLDOUT = 1_000  # records at most, a tenth where there are fewer than 10,000
LEARNING_RATE = 3e-3


class Classifier:
    """A LeNet-style CNN (images) or a small MLP (tables), with the scaling of its records.

    Attributes:
        schema: what a record is.
        classes: number of classes; labels are 0 to classes - 1.
    """

    def __init__(
        self, schema: RecordSchema, classes: int, net: nn.Sequential, shift: Tensor, scale: Tensor
    ) -> None:
        self.schema, self.classes = schema, classes
        self._net, self._shift, self._scale = net.eval(), shift, scale

    def predict(self, records: NDArray[Any]) -> NDArray[np.int32]:
        """Most likely class [n] of records [n, *shape]."""
        return np.asarray(self.probabilities(records).argmax(axis=1), dtype=np.int32)

    def probabilities(self, records: NDArray[Any]) -> NDArray[np.float64]:
        """Class probabilities [n, classes] of records [n, *shape]."""
        return self._apply(nn.Sequential(self._net, nn.Softmax(dim=1)), records, self.classes)

    def features(self, records: NDArray[Any]) -> NDArray[np.float64]:
        """The penultimate layer's activations [n, 128], named "lenet features", of records [n, *shape]."""
        return self._apply(self._net[:-1], records, WIDTH)

    def save(self, folder: Path) -> None:
        """Writes `classifier.json` and `weights.pt` into `folder`."""
        weights = {**self._net.state_dict(), "records.shift": self._shift, "records.scale": self._scale}
        write_weights(
            folder, "classifier.json", {"schema": self.schema.to_dict(), "classes": self.classes}, weights
        )

    @torch.inference_mode()
    def _apply(self, net: nn.Module, records: NDArray[Any], width: int) -> NDArray[np.float64]:
        out = np.empty((len(records), width))
        for start in range(0, len(records), 1024):
            part = torch.from_numpy(np.array(records[start : start + 1024])).to(self._shift.device)
            out[start : start + 1024] = net(net_inputs(part, self._shift, self._scale)).double().cpu().numpy()
        return out


def train_classifier(
    schema: RecordSchema,
    public_values: NDArray[Any],
    public_labels: NDArray[np.integer[Any]],
    classes: int,
    seed: int,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Classifier:
    """Trains on public labelled records, keeping the weights that were best on a public hold-out of them.

    Adam with one cycle of the learning rate, which ends early once the hold-out's cross-entropy has stopped
    falling. Deterministic given the seed, the machine and the number of threads.

    Args:
        schema: what a record is.
        public_values: public records [n, *shape].
        public_labels: their classes [n]; -1 means none and leaves the record out.
        classes: number of classes.
        seed: of the weights, the hold-out and the shuffling.
        progress: called at every look at the hold-out with ("classifier", step, steps, losses).
        device: where to train; the classifier stays there.

    Raises:
        UserError: where fewer than two labelled records are left.
    """
    labelled = public_labels >= 0
    if labelled.sum() < 2:
        raise UserError(
            "A classifier needs labelled public records, found none; set evaluation.enabled: false."
        )
    order = np.random.default_rng(seed).permutation(np.flatnonzero(labelled))
    held = min(HOLDOUT, max(1, len(order) // 10))
    records = torch.from_numpy(public_values[order]).to(device)
    labels = torch.from_numpy(public_labels[order].astype(np.int64)).to(device)
    shift, scale = record_scaling(schema, records)
    batch = min(BATCH, max(16, (len(order) - held) // LEAST_STEPS), len(order) - held)
    steps = min(STEPS, PASSES * ((len(order) - held) // batch))
    every = -(-steps // CHECKS)
    with seeded(seed, device) as generator:
        net = _build(schema, classes).to(device)
        optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
        best, best_loss, mark, waited = net.state_dict(), math.inf, math.inf, 0
        for step, rows in enumerate(_draws(len(order) - held, batch, steps, generator), 1):
            rows = (rows + held).to(device)
            net.train()
            loss = nn.functional.cross_entropy(net(net_inputs(records[rows], shift, scale)), labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if step % every and step < steps:
                continue
            holdout_loss = _holdout_loss(net, net_inputs(records[:held], shift, scale), labels[:held])
            if progress is not None:
                losses = {"train_loss": float(loss.detach()), "holdout_loss": holdout_loss}
                progress("classifier", step, steps, losses)
            if holdout_loss < best_loss:
                best = {key: value.clone() for key, value in net.state_dict().items()}
                best_loss = holdout_loss
            if holdout_loss < mark - TOLERANCE:
                mark, waited = holdout_loss, 0
            else:
                waited += 1
            if waited >= PATIENCE:
                break
    net.load_state_dict(best)
    return Classifier(schema, classes, net, shift, scale)


def load_classifier(folder: Path, device: str = "cpu") -> Classifier:
    """Reads what `Classifier.save` wrote.

    Raises:
        UserError: where the folder is not a whole classifier of this version.
    """
    manifest, weights = read_weights(folder, "classifier.json")
    try:
        schema, classes = RecordSchema.from_dict(manifest["schema"]), int(manifest["classes"])
        shift, scale = weights.pop("records.shift").to(device), weights.pop("records.scale").to(device)
        net = _build(schema, classes)
        net.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{folder} does not hold a classifier of this version ({type(error).__name__})."
        ) from error
    return Classifier(schema, classes, net.to(device), shift, scale)


def cached_classifier(
    schema: RecordSchema,
    public_values: NDArray[Any],
    public_labels: NDArray[np.integer[Any]],
    classes: int,
    seed: int,
    home: Path,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Classifier:
    """Returns the classifier of `home/classifiers/<key>`, or trains it and publishes it there."""
    key = cache_key(
        public=digest_arrays(values=public_values, labels=public_labels),
        schema=schema.to_dict(),
        classes=classes,
        seed=seed,
        code=[code_version("dpsw_ray.evaluation", "classifier"), code_version("dpsw_ray.encoders")],
    )
    return cached(
        home / "classifiers" / key,
        lambda folder: load_classifier(folder, device),
        lambda: train_classifier(schema, public_values, public_labels, classes, seed, progress, device),
        lambda classifier, folder: classifier.save(folder),
    )


def _build(schema: RecordSchema, classes: int) -> nn.Sequential:
    """The net from scaled records [n, c, h, w] or [n, columns] to logits [n, classes]."""
    if schema.kind == "table":
        columns = math.prod(schema.shape)
        body: list[nn.Module] = [nn.Linear(columns, WIDTH), nn.ReLU()]
        flat = WIDTH
    else:
        height, width, channels = schema.shape
        body = [nn.Conv2d(channels, 16, 5, padding=2), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]
        body += [nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(), nn.Flatten()]
        flat = 32 * -(-height // 4) * -(-width // 4)
    head = [nn.Dropout(0.25), nn.Linear(flat, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes)]
    return nn.Sequential(*body, *head).to(memory_format=torch.channels_last)  # twice as fast on a CPU


def net_inputs(records: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Records [n, *shape] as what a net takes: scaled, and images as [n, c, h, w]."""
    scaled = scale_records(records, shift, scale)
    if scaled.ndim == 4:
        return scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return scaled


@torch.inference_mode()
def _holdout_loss(net: nn.Sequential, inputs: Tensor, labels: Tensor) -> float:
    net.eval()
    return float(nn.functional.cross_entropy(net(inputs), labels))


def _draws(count: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of row numbers: whole passes in a fresh order each, no row twice in a pass."""
    rows = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(rows) < batch:
            rows = torch.cat([rows, torch.randperm(count, generator=generator)])
        drawn, rows = rows[:batch], rows[batch:]
        yield drawn
