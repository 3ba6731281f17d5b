"""Records to latents in the unit ball and back, learnt from public records or from what was released."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config.run import EncoderConfig
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders.autoencoder import Progress, TrainedEncoder, train_autoencoder
from dpsw_ray.encoders.base import Encoder, load_encoder
from dpsw_ray.encoders.cache import cached_encoder
from dpsw_ray.encoders.pca import BasisEncoder, PcaEncoder
from dpsw_ray.encoders.tabular import IdentityEncoder

__all__ = [
    "BasisEncoder",
    "Encoder",
    "IdentityEncoder",
    "PcaEncoder",
    "TrainedEncoder",
    "cached_encoder",
    "fit_encoder",
    "load_encoder",
    "train_autoencoder",
]


def fit_encoder(
    schema: RecordSchema,
    public_values: NDArray[Any],
    config: EncoderConfig,
    seed: int,
    *,
    public_labels: NDArray[np.int32] | None = None,
    classes: int = 0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Encoder:
    """Fits the encoder `config.kind` on public records [n, *shape].

    Args:
        schema: what a record is.
        public_values: public records [n, *shape].
        config: which encoder, and how to train it.
        seed: of everything random in training.
        public_labels: their classes [n], -1 without; needed where `config.labelled`.
        classes: length of the public class list; needed where `config.conditional`.
        bounds: public bounds by column, for `identity` on tables.
        progress: called after every epoch with ("encoder", epoch, epochs, losses).
        device: where to train.
    """
    if config.kind == "identity":
        return IdentityEncoder.fit(schema, public_values, bounds)
    return train_autoencoder(schema, public_values, config, seed, progress, device, public_labels, classes)
