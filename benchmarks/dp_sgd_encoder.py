"""An autoencoder trained with DP-SGD, beside principal components of noisy moments: which is the better encoder.

    pip install opacus
    python benchmarks/dp_sgd_encoder.py --json dp_sgd_encoder.json

Fashion-MNIST's 60,000 training images at delta 1e-5. `dp_pca` is what a run has: `encoder.share: auto` of epsilon,
replace-one. `dp_sgd` is a convolutional autoencoder trained by Opacus (Poisson batches, PRV accountant) that gets
favours: all of epsilon, so that nothing would be left for the release, and add-or-remove neighbours, which ask for
about half the noise. Real test images go through each encoder and back: `left` is what the squared error leaves of
the pixels' variance, `logreg` and `cnn` are accuracies on the second half of the test images of models trained on
what became of the first.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import finish, parser, show
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.utils.batch_memory_manager import BatchMemoryManager
from private_encoder import CLASSES, DEFAULTS, DELTA, Images
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpsw_ray.encoders import PcaEncoder
from dpsw_ray.evaluation.models import model_accuracy

CELLS = ((10.0, 48, 16), (1.0, 48, 16))  # epsilon, d of dp_pca, d of dp_sgd
BATCH, CLIP, RATE = 2_048, 1.0, 2e-3


def autoencoder(dim: int) -> nn.Module:
    """Two convolutions down, two up, no normalisation over the batch: 28x28 pixels in [0, 1] to their logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ELU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ELU(),
        nn.Flatten(), nn.Linear(32 * 49, dim), nn.Tanh(),
        nn.Linear(dim, 32 * 49), nn.ELU(), nn.Unflatten(1, (32, 7, 7)),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ELU(), nn.ConvTranspose2d(16, 1, 4, 2, 1),
    )  # fmt: skip


def trained(images: NDArray[Any], dim: int, epsilon: float, epochs: int, seed: int) -> nn.Module:
    """An autoencoder whose weights are (epsilon, DELTA)-differentially private, add or remove one image."""
    torch.manual_seed(seed)
    net = autoencoder(dim)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    pixels = _pixels(images)
    loader = DataLoader(TensorDataset(pixels), batch_size=min(BATCH, len(pixels) // 4))
    engine = PrivacyEngine(accountant="prv")
    private, optimiser, loader = engine.make_private_with_epsilon(
        module=net, optimizer=optimiser, data_loader=loader,
        target_epsilon=epsilon, target_delta=DELTA, epochs=epochs, max_grad_norm=CLIP,
    )  # fmt: skip
    for epoch in range(epochs):
        print(f"epsilon {epsilon:g}, epoch {epoch + 1} of {epochs}", flush=True)
        with BatchMemoryManager(
            data_loader=loader, max_physical_batch_size=512, optimizer=optimiser
        ) as batches:
            for (batch,) in batches:
                optimiser.zero_grad()
                # A sum over pixels: the clipping norm decides the scale of a step, not the loss.
                loss = nn.functional.mse_loss(torch.sigmoid(private(batch)), batch, reduction="sum")
                (loss / max(len(batch), 1)).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return net.eval()


def _pixels(images: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def _through(net: nn.Module, images: NDArray[Any]) -> NDArray[np.uint8]:
    parts = torch.split(_pixels(images), 1_000)
    out = torch.sigmoid(torch.cat([net(part) for part in parts]))
    return np.asarray((out * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def measured(images: Images, decoded: NDArray[Any], sharp: NDArray[Any]) -> dict[str, float]:
    """What is left of the variance of the test images after `decoded`; models trained on the first half of `sharp`."""
    real = images.test.astype(np.float64)
    half = len(real) // 2
    variance = ((real - real.mean(axis=0)) ** 2).mean()
    return {"left": float(((real - decoded) ** 2).mean() / variance)} | {
        kind: model_accuracy(
            kind, sharp[:half], images.test_labels[:half], images.test[half:], images.test_labels[half:],
            schema=images.schema, classes=CLASSES, seed=0,
        )
        for kind in ("logreg", "cnn")
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--home", type=Path, default=Path("runs/home"), help="where downloaded images lie")
    options.add_argument("--epochs", type=int, default=20, help="of DP-SGD")
    arguments = options.parse_args()
    images = Images(arguments.home, arguments.quick)
    epochs = 2 if arguments.quick else arguments.epochs
    rows: list[dict[str, Any]] = [{"encoder": "none", "epsilon": math.inf, "dim": images.schema.size}]
    rows[0] |= measured(images, images.test, images.test)
    for epsilon, dim, small in CELLS:
        basis, moments = images.moments(DEFAULTS.basis, epsilon, 0)
        plain, drawn = (
            PcaEncoder.fit(basis, moments, dim, len(images.train), residual)
            for residual in (0.0, DEFAULTS.residual)
        )
        latents = plain.encode(images.test)
        found = measured(images, plain.decode(latents), drawn.decode(latents))
        rows.append({"encoder": "dp_pca", "epsilon": epsilon, "dim": dim, **found})
        decoded = _through(trained(images.train, small, epsilon, epochs, 0), images.test)
        found = measured(images, decoded, decoded)
        rows.append({"encoder": "dp_sgd", "epsilon": epsilon, "dim": small, **found})
    show(
        "real test images through the encoder and back",
        ["encoder", "epsilon", "d", "left of the variance", "LogReg", "CNN"],
        [
            [
                row["encoder"],
                f"{row['epsilon']:g}",
                f"{row['dim']}",
                *(f"{row[k]:.1%}" for k in ("left", "logreg", "cnn")),
            ]
            for row in rows
        ],
    )
    finish(arguments, {"encoders": rows})


if __name__ == "__main__":
    main()
