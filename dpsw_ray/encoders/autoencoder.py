"""Autoencoders trained on public records: training with early stopping, and the encoder that comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import EncoderConfig
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders.architectures import Autoencoder, build_autoencoder
from dpsw_ray.encoders.base import Encoder, to_records
from dpsw_ray.encoders.residuals import Residuals
from dpsw_ray.encoders.scaling import column_statistics, restored, standardised

__all__ = ["Progress", "TrainedEncoder", "record_scaling", "scale_records", "seeded", "train_autoencoder"]

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with (what, done, total, figures)."""

BATCH = 64  # of encode and decode; fixed, because a kernel's rounding may depend on the batch's shape

SETTLE = 2_000  # training records at most that the batch normalisation's statistics are taken from


class TrainedEncoder(Encoder):
    """An autoencoder with the scaling of its records.

    Attributes:
        config: the config it was trained with.
    """

    family: ClassVar[str] = "autoencoder"

    def __init__(
        self,
        schema: RecordSchema,
        config: EncoderConfig,
        net: Autoencoder,
        shift: Tensor,
        scale: Tensor,
        history: Sequence[Mapping[str, float]],
        residuals: Residuals | None = None,
    ) -> None:
        self.schema, self.config, self.history = schema, config, history
        self.latent_dim, self.sphere = config.latent_dim, config.sphere
        self.conditional = config.conditional
        self._net, self._shift, self._scale, self._residuals = net.eval(), shift, scale, residuals

    def encode(
        self, records: NDArray[Any], labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.float64]:
        """Records [n, *shape] with classes [n] to latents [n, d]; NaN for a record that has none."""
        records = np.asarray(records).reshape(-1, *self.schema.shape)
        latents = np.empty((len(records), self.latent_dim))
        for start, batch, classes in self._batches(records, labels):
            inputs = scale_records(batch, self._shift, self._scale)
            with torch.inference_mode():
                out = self._net.encode(inputs, classes).double().cpu().numpy()
            latents[start : start + BATCH] = out[: len(records) - start]
        latents[~np.isfinite(latents).all(axis=1)] = np.nan
        norms = np.linalg.norm(latents, axis=1, keepdims=True)
        if self.sphere:
            latents[norms[:, 0] == 0] = np.eye(1, self.latent_dim)
            norms[norms == 0] = 1.0
        else:
            norms = np.maximum(norms, 1.0)
        latents /= norms
        return latents

    def decode(
        self, latents: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[Any]:
        """Latents [n, d] with classes [n] to records [n, *shape]."""
        points = np.asarray(latents, dtype=np.float32).reshape(-1, self.latent_dim)
        records = np.empty((len(points), *self.schema.shape), self.schema.dtype)
        for start, batch, classes in self._batches(points, labels):
            out = self._mean(batch, classes)
            if self._residuals is not None:
                out = out + self._residuals.lent(batch, classes if self.conditional else None)
            values = restored(out, self._shift.double(), self._scale.double()).cpu().numpy()
            records[start : start + BATCH] = to_records(values[: len(points) - start], self.schema)
        return records

    def keep_residuals(self, values: NDArray[Any], labels: NDArray[np.integer[Any]]) -> None:
        """Keeps what reconstructions of public records [n, *shape] with classes [n] miss, for what is decoded later."""
        device = self._shift.device
        points = self.encode(values, labels).astype(np.float32)
        means = torch.cat([self._mean(batch, classes) for _, batch, classes in self._batches(points, labels)])
        records = scale_records(torch.from_numpy(values).to(device), self._shift, self._scale)
        classes = torch.from_numpy(labels.astype(np.int64)).to(device)
        self._residuals = Residuals(
            torch.from_numpy(points).to(device), classes, records - means[: len(records)]
        )

    @torch.inference_mode()
    def _mean(self, latents: Tensor, labels: Tensor) -> Tensor:
        """What the decoder makes of latents [n, d] with classes [n], in the net's units, float64."""
        out = self._net.decode(latents, labels)
        return (torch.sigmoid(out) if self.schema.kind == "image" else out).double()

    def manifest(self) -> dict[str, Any]:
        """Schema, config and learning curve."""
        return {
            "schema": self.schema.to_dict(),
            "config": self.config.model_dump(mode="json"),
            "classes": self._net.classes,
            "history": list(self.history),
        }

    def weights(self) -> dict[str, Tensor]:
        """The net's weights, the records' scaling, and the residuals that were kept."""
        weights = {**self._net.state_dict(), "records.shift": self._shift, "records.scale": self._scale}
        if self._residuals is not None:
            weights |= {f"residuals.{name}": part for name, part in self._residuals.tensors().items()}
        return weights

    @classmethod
    def restore(cls, manifest: Mapping[str, Any], weights: dict[str, Tensor], device: str) -> TrainedEncoder:
        """Builds the net of the manifest's config and loads the weights."""
        schema = RecordSchema.from_dict(manifest["schema"])
        config = EncoderConfig.model_validate(manifest["config"])
        classes = int(manifest.get("classes", 0))  # encoders of before were told none
        net = build_autoencoder(config.kind, tuple(schema.shape), config.latent_dim, config.sphere, classes)
        weights = dict(weights)
        shift, scale = weights.pop("records.shift").to(device), weights.pop("records.scale").to(device)
        residuals = None
        if "residuals.values" in weights:
            names = ("latents", "labels", "values")
            residuals = Residuals(*(weights.pop(f"residuals.{name}").to(device) for name in names))
        net.load_state_dict(weights)
        return cls(schema, config, net.to(device), shift, scale, list(manifest["history"]), residuals)

    def _batches(
        self, values: NDArray[Any], labels: NDArray[np.integer[Any]] | None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Batches of exactly BATCH rows with their classes, the last one filled up by repeating its last row."""
        if labels is None:
            if self.conditional:
                raise ValueError("a conditional encoder needs labels, -1 where there are none")
            labels = np.full(len(values), -1)
        if len(labels) != len(values):
            raise ValueError(f"{len(values)} rows, but {len(labels)} labels")
        device = self._shift.device
        for start in range(0, len(values), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(values) - 1)
            batch, classes = np.ascontiguousarray(values[rows]), labels[rows].astype(np.int64)
            yield start, torch.from_numpy(batch).to(device), torch.from_numpy(classes).to(device)


def train_autoencoder(
    schema: RecordSchema,
    public_values: NDArray[Any],
    config: EncoderConfig,
    seed: int,
    progress: Progress | None = None,
    device: str = "cpu",
    public_labels: NDArray[np.int32] | None = None,
    classes: int = 0,
) -> TrainedEncoder:
    """Trains an autoencoder on public records, keeping the weights that were best on a public hold-out.

    With `config.classification` a linear classifier on the latents learns the public labels beside it, so that
    latents of different classes lie apart; it is not kept. With `config.jitter` latents are shifted before they are
    decoded, so that the decoder knows what lies beside them. With `config.conditional` encoder and decoder are told
    the class. With `config.detail` decoded records borrow detail from public ones.

    Adam with a cosine decay from `config.learning_rate`; images are scaled to [0, 1] (MSE or BCE), tables are
    standardised by the public mean and standard deviation (MSE). Deterministic given the seed, the machine
    and the number of threads.

    Args:
        schema: what a record is.
        public_values: public records [n, *shape].
        config: architecture, latent dimension and training schedule.
        seed: of the initial weights, the hold-out and the shuffling.
        progress: called after every epoch with ("encoder", epoch, epochs, losses).
        device: where to train; the encoder stays there.
        public_labels: classes [n], -1 without; needed where `config.labelled`.
        classes: length of the public class list; needed where `config.conditional`.

    Raises:
        UserError: where the config does not fit the records.
    """
    if schema.kind == "table" and config.loss != "mse":
        raise UserError(f"encoder.loss must be mse for a table, found {config.loss}.")
    held = max(1, round(config.holdout_fraction * len(public_values)))
    if len(public_values) - held < 2:
        raise UserError(
            f"The public part has {len(public_values)} records, too few to train an encoder on; "
            "raise data.public_fraction."
        )
    order = np.random.default_rng(seed).permutation(len(public_values))
    if public_labels is None:
        public_labels = np.full(len(public_values), -1, np.int32)
    labels = torch.from_numpy(public_labels[order].astype(np.int64)).to(device)
    if config.labelled and not (labels[held:] >= 0).any():
        key, none = ("conditional", "false") if config.conditional else ("classification", "0")
        raise UserError(f"encoder.{key} needs public labels, found none: set it to {none}.")
    holdout = torch.from_numpy(public_values[order[:held]]).to(device)
    train = torch.from_numpy(public_values[order[held:]]).to(device)
    shift, scale = record_scaling(schema, train)
    history: list[dict[str, float]] = []
    with seeded(seed, device) as generator:
        told = classes if config.conditional else 0
        net = build_autoencoder(config.kind, tuple(schema.shape), config.latent_dim, config.sphere, told)
        net = net.to(device)
        heads = int(labels.max()) + 1 if config.classification else 0
        objective = _Objective(schema, config, heads).to(device)
        steps = -(-len(train) // config.batch_size)
        optimiser = torch.optim.Adam([*net.parameters(), *objective.parameters()], lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * steps)
        best, best_loss, waited = _copy(net), float("inf"), 0
        for epoch in range(config.epochs):
            net.train()
            objective.train()
            total = torch.zeros((), dtype=torch.float64, device=device)
            shuffled = torch.randperm(len(train), generator=generator).to(device)
            for rows in shuffled.tensor_split(
                steps
            ):  # parts of equal size: no batch of one for the batch norm
                records = scale_records(train[rows], shift, scale)
                loss = objective(net, records, labels[held:][rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.detach() * len(rows)
            # The running statistics lag behind weights that move fast: after a few steps, early stopping would see
            # the lag alone. Taken anew with the weights of this epoch.
            settled = shuffled[:SETTLE]
            _settle(net, _parts(train[settled], labels[held:][settled], shift, scale))
            figures = {
                "train_loss": float(total) / len(train),
                "holdout_loss": _holdout_loss(net, objective, _parts(holdout, labels[:held], shift, scale)),
            }
            history.append(figures)
            if progress is not None:
                progress("encoder", epoch + 1, config.epochs, figures)
            if figures["holdout_loss"] < best_loss:
                best, best_loss, waited = _copy(net), figures["holdout_loss"], 0
            else:
                waited += 1
                if waited >= config.patience:
                    break
    if not np.isfinite(best_loss):
        raise UserError(
            f"The encoder's training diverged; lower encoder.learning_rate, found {config.learning_rate}."
        )
    net.load_state_dict(best)
    encoder = TrainedEncoder(schema, config, net, shift, scale, history)
    if config.detail:  # the hold-out's come first: the net was not fitted to them
        kept = order[: config.detail]
        encoder.keep_residuals(public_values[kept], public_labels[kept])
    return encoder


@contextlib.contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[torch.Generator]:
    """Seeds torch for a block of training, yields a generator for shuffling, and restores torch's state."""
    on_gpu = torch.device(device).type == "cuda"
    with (
        torch.random.fork_rng(devices=[torch.device(device)] if on_gpu else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def record_scaling(schema: RecordSchema, train: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale [*shape] (tables) or [] (images) that map the records' own units to the net's."""
    if schema.value_range is not None:
        low, high = schema.value_range
        return torch.tensor(float(low), device=train.device), torch.tensor(
            float(high - low), device=train.device
        )
    shift, scale = column_statistics(train.cpu().numpy(), ddof=1)
    return torch.from_numpy(shift).to(train.device), torch.from_numpy(scale).to(train.device)


def scale_records(records: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Records [n, *shape] in the net's units, as float32."""
    if records.dtype == torch.uint8:
        return ((records - shift) / scale).float()
    return standardised(records, shift, scale).float()


Labelled = tuple[Tensor, Tensor]
"""Scaled records [n, *shape] and classes [n], -1 without."""


def _parts(records: Tensor, labels: Tensor, shift: Tensor, scale: Tensor) -> Iterator[Labelled]:
    """Parts of equal size, up to one record: none weighs more than it should in an average over parts."""
    count = -(-len(records) // BATCH)
    for part, classes in zip(records.tensor_split(count), labels.tensor_split(count), strict=True):
        yield scale_records(part, shift, scale), classes


class _Objective(nn.Module):
    """What is minimised: the reconstruction's loss, and how badly a linear classifier reads the latents' classes."""

    def __init__(self, schema: RecordSchema, config: EncoderConfig, classes: int) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        self.head = nn.Linear(config.latent_dim, classes) if classes else None

    def forward(self, net: Autoencoder, records: Tensor, labels: Tensor) -> Tensor:
        """The loss of scaled records [n, *shape] with classes [n], -1 without."""
        config, latents = self.config, net.encode(records, labels)
        shift = self.training and config.jitter > 0
        raw = net.decode(net.shifted(latents, config.jitter) if shift else latents, labels)
        if config.loss == "bce":
            loss = nn.functional.binary_cross_entropy_with_logits(raw, records)
        else:
            loss = nn.functional.mse_loss(torch.sigmoid(raw) if self.schema.kind == "image" else raw, records)
        known = labels >= 0
        if self.head is not None and known.any():
            read = nn.functional.cross_entropy(self.head(latents[known]), labels[known])
            loss = loss + config.classification * read
        return loss


@torch.no_grad()
def _settle(net: Autoencoder, parts: Iterator[Labelled]) -> None:
    """Takes the batch normalisation's statistics anew, as torch's `update_bn` does for nets of one argument."""
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over what is seen
    for records, labels in parts:
        net(records, labels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.inference_mode()
def _holdout_loss(net: Autoencoder, objective: _Objective, parts: Iterator[Labelled]) -> float:
    net.eval()
    objective.eval()
    total, count = 0.0, 0
    for records, labels in parts:
        total += float(objective(net, records, labels)) * len(records)
        count += len(records)
    return total / count


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in net.state_dict().items()}
