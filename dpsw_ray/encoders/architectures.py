"""The autoencoders as torch modules: records scaled to [0, 1] in, latents out, and back.

`conv`, `dcgan32`, `dcgan64` and `vgg64` see square images, `mlp` sees any record as one row of numbers. The
DCGAN and VGG nets are those of Denton and Fergus, "Stochastic Video Generation with a Learned Prior" (2018),
without skips. A conditional autoencoder (Sohn, Lee and Yan, 2015) is told the class on both sides: constant planes
beside the image's channels, and numbers beside the latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dpsw_ray.base.errors import UserError

__all__ = ["Autoencoder", "build_autoencoder"]


class Autoencoder(nn.Module):
    """An encoder onto the unit sphere or into the unit ball, and its decoder, around records of one shape.

    Images are centred in the net's square by zero padding and cropped back, so losses never see the padding.

    Args:
        encoder: [n, c + classes, size, size] (or [n, values + classes] where size is None) to [n, d].
        decoder: [n, d + classes] to logits of the records' shape.
        shape: a record's shape, (h, w, c) or (columns,).
        size: side of the square the net works on, or None for nets on flattened records.
        sphere: L2-normalise the latents; otherwise z / sqrt(1 + |z|^2) squashes them into the open unit ball.
        classes: that both sides are told; 0: they are told none.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        shape: tuple[int, ...],
        size: int | None,
        sphere: bool,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.shape, self.size, self.sphere, self.classes = shape, size, sphere, classes

    def encode(self, records: Tensor, labels: Tensor) -> Tensor:
        """Scaled records [n, *shape] of classes [n], -1 without, to latents [n, d]."""
        if self.size is None:
            inputs = self._told(records.flatten(1), labels)
        else:
            top, bottom, left, right = self._padding(self.size)
            inputs = nn.functional.pad(records.permute(0, 3, 1, 2), (left, right, top, bottom))
            inputs = self._told(inputs, labels).contiguous(memory_format=torch.channels_last)
        raw: Tensor = self.encoder(inputs)
        if self.sphere:
            return nn.functional.normalize(raw)
        return raw * torch.rsqrt(1.0 + raw.square().sum(dim=1, keepdim=True))

    def shifted(self, latents: Tensor, length: float) -> Tensor:
        """Latents [n, d] moved by a random vector of this root mean square length, back to where latents live."""
        moved = latents + length / math.sqrt(latents.shape[1]) * torch.randn_like(latents)
        norms = moved.norm(dim=1, keepdim=True)
        lengths: Tensor = norms if self.sphere else norms.clamp(min=1.0)
        return moved / lengths

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Latents [n, d] of classes [n] to logits (images) or standardised values (tables) [n, *shape]."""
        raw: Tensor = self.decoder(self._told(latents, labels))
        if self.size is None:
            return raw.reshape(-1, *self.shape)
        top, _, left, _ = self._padding(self.size)
        height, width, _ = self.shape
        return raw[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)

    def forward(self, records: Tensor, labels: Tensor) -> Tensor:
        """Scaled records [n, *shape] of classes [n] to their reconstruction, before any sigmoid."""
        return self.decode(self.encode(records, labels), labels)

    def _told(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Inputs [n, c, ...] with each class's indicator beside their channels; all are zero without a class."""
        if not self.classes:
            return inputs
        one_hot = (labels[:, None] == torch.arange(self.classes, device=labels.device)).to(inputs.dtype)
        planes = one_hot.reshape(*one_hot.shape, *[1] * (inputs.ndim - 2))
        return torch.cat([inputs, planes.expand(-1, -1, *inputs.shape[2:])], dim=1)

    def _padding(self, size: int) -> tuple[int, int, int, int]:
        height, width, _ = self.shape
        top, left = (size - height) // 2, (size - width) // 2
        return top, size - height - top, left, size - width - left


def build_autoencoder(
    kind: str, shape: tuple[int, ...], latent_dim: int, sphere: bool, classes: int = 0
) -> Autoencoder:
    """Returns the untrained autoencoder `kind` for records of `shape`.

    Args:
        kind: conv, dcgan32, dcgan64, vgg64 or mlp.
        shape: (h, w, c) for images, (columns,) for tables; any shape for mlp.
        latent_dim: d.
        sphere: whether latents lie on the unit sphere or in the open unit ball.
        classes: that a conditional autoencoder is told; 0 for one that is told none.

    Raises:
        UserError: where the net cannot take records of this shape.
    """
    if kind == "mlp":
        encoder, decoder = _mlp(math.prod(shape), latent_dim, classes)
        return Autoencoder(encoder, decoder, shape, None, sphere, classes)
    size, nets = _IMAGE_NETS[kind]
    if len(shape) != 3:
        raise UserError(f"encoder.kind {kind} is for images; for a table take identity or mlp.")
    if max(shape[:2]) > size:
        fitting = [name for name, (side, _) in _IMAGE_NETS.items() if side >= max(shape[:2])] + ["mlp"]
        raise UserError(
            f"encoder.kind {kind} takes images up to {size}x{size}, found {shape[0]}x{shape[1]}; "
            f"take {' or '.join(fitting)}."
        )
    encoder, decoder = nets(shape[2], latent_dim, classes)
    module = Autoencoder(encoder, decoder, shape, size, sphere, classes)
    return module.to(memory_format=torch.channels_last)


def _mlp(
    values: int, latent_dim: int, classes: int, widths: Sequence[int] = (512, 256)
) -> tuple[nn.Module, nn.Module]:
    sizes = [values + classes, *widths]
    encoder: list[nn.Module] = []
    for before, after in pairwise(sizes):
        encoder += [nn.Linear(before, after), nn.ReLU()]
    encoder.append(nn.Linear(sizes[-1], latent_dim))
    decoder: list[nn.Module] = []
    sizes = [latent_dim + classes, *reversed(widths)]
    for before, after in pairwise(sizes):
        decoder += [nn.Linear(before, after), nn.ReLU()]
    decoder.append(nn.Linear(sizes[-1], values))
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _conv(channels: int, latent_dim: int, classes: int) -> tuple[nn.Module, nn.Module]:
    """Three 3x3 convolutions of stride 2 and a linear layer, mirrored: 32 -> 16 -> 8 -> 4."""
    a, b, c = 16, 32, 64

    def down(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    def up(before: int, after: int) -> list[nn.Module]:
        return [
            nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]

    encoder = nn.Sequential(
        *down(channels + classes, a), *down(a, b), *down(b, c), nn.Flatten(), nn.Linear(16 * c, latent_dim)
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim + classes, 16 * c),
        nn.Unflatten(1, (c, 4, 4)),
        nn.BatchNorm2d(c),
        nn.ReLU(),
        *up(c, b),
        *up(b, a),
        nn.ConvTranspose2d(a, channels, 3, 2, 1, output_padding=1),
    )
    return encoder, decoder


def _dcgan(halvings: int) -> Callable[[int, int, int], tuple[nn.Module, nn.Module]]:
    """4x4 convolutions of stride 2 down to 4x4, widths doubling from 64, and a last one to the latent."""

    def nets(channels: int, latent_dim: int, classes: int) -> tuple[nn.Module, nn.Module]:
        widths = [64 * 2**i for i in range(halvings)]
        encoder: list[nn.Module] = []
        for before, after in zip([channels + classes, *widths], widths, strict=False):
            encoder += [
                nn.Conv2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        encoder += [nn.Conv2d(widths[-1], latent_dim, 4), nn.Flatten()]
        decoder: list[nn.Module] = [*_seed(latent_dim + classes, widths[-1])]
        for before, after in zip(widths[::-1], widths[-2::-1], strict=False):
            decoder += [
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        decoder.append(nn.ConvTranspose2d(widths[0], channels, 4, 2, 1))
        return nn.Sequential(*encoder), nn.Sequential(*decoder)

    return nets


def _vgg64(channels: int, latent_dim: int, classes: int) -> tuple[nn.Module, nn.Module]:
    """Blocks of 3x3 convolutions with max-pooling down to 4x4, mirrored with nearest upsampling."""
    blocks = [(64, 2), (128, 2), (256, 3), (512, 3)]

    def layer(before: int, after: int) -> list[nn.Module]:
        return [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(0.2),
        ]

    encoder: list[nn.Module] = []
    before = channels + classes
    for width, depth in blocks:
        for _ in range(depth):
            encoder += layer(before, width)
            before = width
        encoder.append(nn.MaxPool2d(2))
    encoder += [nn.Conv2d(before, latent_dim, 4), nn.Flatten()]
    decoder: list[nn.Module] = [*_seed(latent_dim + classes, before)]
    narrower = [width for width, _ in blocks[-2::-1]]
    for (width, depth), after in zip(blocks[:0:-1], narrower, strict=True):
        decoder.append(nn.Upsample(scale_factor=2))
        for step in range(depth):
            decoder += layer(width, after if step == depth - 1 else width)
    first = narrower[-1]
    decoder += [nn.Upsample(scale_factor=2), *layer(first, first), nn.Conv2d(first, channels, 3, padding=1)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _seed(inputs: int, width: int) -> list[nn.Module]:
    """[n, inputs] to a first 4x4 map of `width` channels."""
    return [
        nn.Unflatten(1, (inputs, 1, 1)),
        nn.ConvTranspose2d(inputs, width, 4, bias=False),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2),
    ]


_IMAGE_NETS: dict[str, tuple[int, Callable[[int, int, int], tuple[nn.Module, nn.Module]]]] = {
    "conv": (32, _conv),
    "dcgan32": (32, _dcgan(3)),
    "dcgan64": (64, _dcgan(4)),
    "vgg64": (64, _vgg64),
}
