"""An encoder without public records: what its noise leaves of the components, and what limits the samples.

    python benchmarks/private_encoder.py --json private_encoder.json
    python benchmarks/private_encoder.py --cnn 1 10

Fashion-MNIST's 60,000 training images, replace-one, delta 1e-5, `encoder.share: auto`. The first table: variance that
the components hold, over what as many exact components hold, of the noisy matrix as it is (`plain`) and with bands of
frequencies weighed by their noise (`weighed`, what `PcaEncoder` does). `--cnn` adds the accuracy on real test images of
CNNs that were trained on 20,000 records: real ones, real ones through the encoder and back, samples of exact slices
under that encoder, and samples. The figures read private records without noise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, parser, show
from numpy.typing import NDArray

from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig, DataConfig, EncoderConfig
from dpsw_ray.data.sources import open_source
from dpsw_ray.encoders import BasisEncoder, PcaEncoder
from dpsw_ray.evaluation.models import model_accuracy
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.solver import solve
from dpsw_ray.methods.dpswflow_h.mechanism import bound, noise
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy.events import DpPcaEvent
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.private import moments
from dpsw_ray.private.latents import bounded
from dpsw_ray.release.moments import Lattice, Moments, MomentsPlan, moments_event
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.planner import encoder_share
from dpsw_ray.tables.quantiles import denoise
from dpsw_ray.tables.release import Release

Array = NDArray[np.float64]
RELATION: Relation = "replace_one"
DELTA, CLASSES, GRID = 1e-5, 10, BinGrid(48, 1.0)
BASES, DIM = (100, 200, 400), 32  # of the first table
CELLS = ((0.2, 32, 32), (1.0, 48, 32), (10.0, 48, 64))  # epsilon, dimension and frames of the second
DEFAULTS = EncoderConfig()


class Images:
    """Fashion-MNIST as arrays, and exact moments in each basis; `trained` is how many records a CNN gets."""

    def __init__(self, home: Path, quick: bool) -> None:
        source = open_source(DataConfig(source="fashion_mnist"), home)
        self.schema = source.schema
        self.train, self.labels = _part(source, "train")
        self.test, self.test_labels = _part(source, "test")
        self.trained = 1_000 if quick else 20_000
        if quick:
            self.train, self.labels = self.train[:6_000], self.labels[:6_000]
        self._sums: dict[tuple[int, Lattice], tuple[BasisEncoder, NDArray[np.int64]]] = {}

    def basis(self, size: int, lattice: Lattice) -> tuple[BasisEncoder, NDArray[np.int64]]:
        """A basis, and the sums under it without noise."""
        if (size, lattice) not in self._sums:
            basis = BasisEncoder.make(self.schema, size, DEFAULTS.radius)
            records, labels = bounded(basis.encode(self.train), self.labels)
            plan = MomentsPlan("benchmark", size, 0.0, lattice)
            self._sums[size, lattice] = basis, moments.moment_sums([(records, labels)], plan)
        return self._sums[size, lattice]

    def moments(self, size: int, epsilon: float, seed: int) -> tuple[BasisEncoder, Moments]:
        """Noisy moments at the encoder's part of epsilon."""
        plan = MomentsPlan("benchmark", size, 0.0)
        if epsilon < math.inf:
            plan = MomentsPlan.of(self.event(epsilon, size), size, "benchmark")
        basis, sums = self.basis(size, plan.lattice)
        drawn = moments.noise(NoiseKey.from_seed(seed), plan)
        return basis, Moments.from_plan(plan, sums + drawn, {"release_id": "benchmark"})

    def event(self, epsilon: float, size: int) -> DpPcaEvent:
        """What the moments cost."""
        share = encoder_share(RELATION, epsilon, DELTA, len(self.train))
        return moments_event(RELATION, epsilon, DELTA, share, size)


def _part(source: Any, part: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    batches = list(source.batches(part))
    names = [name for _, labels in batches for name in labels]
    order = {name: index for index, name in enumerate(sorted(set(names)))}
    return np.concatenate([values for values, _ in batches]), np.array([order[n] for n in names], np.int32)


def held(images: Images, size: int, epsilon: float, seed: int) -> dict[str, float]:
    """Variance that components hold, over what exact ones in the largest basis hold."""
    number = len(images.train)
    _, whole = images.moments(max(BASES), math.inf, 0)
    exact = _covariance(whole, number)
    best = np.linalg.eigvalsh(exact)[-DIM:].sum()
    basis, noisy = images.moments(size, epsilon, seed)
    weighed = PcaEncoder.fit(basis, noisy, DIM, number, 0.0).weights()["components"].numpy()
    plain = np.linalg.eigh(_covariance(noisy, number))[1][:, -DIM:]
    # Records are shortened by their length in each basis; the largest basis's covariance judges all of them.
    return {
        name: float(np.trace(v.T @ exact[:size, :size] @ v) / best)
        for name, v in (("plain", plain), ("weighed", weighed))
    }


def _covariance(moments: Moments, number: int) -> Array:
    mean = moments.mean(number)
    return np.asarray(moments.second(number) - np.outer(mean, mean))


def limits(images: Images, epsilon: float, dim: int, frames: int, seed: int) -> dict[str, float]:
    """CNN accuracies on real test images, one thing after the other made as a run has it."""
    chosen = np.random.default_rng(seed).permutation(len(images.train))[: images.trained]
    basis, moments = images.moments(DEFAULTS.basis, epsilon, seed)
    encoder = PcaEncoder.fit(basis, moments, dim, len(images.train), DEFAULTS.residual)
    latents, labels = bounded(encoder.encode(images.train), images.labels)
    plan = HistogramPlan.make(
        release_id="benchmark", dim=dim, frames=frames, grid=GRID, classes=CLASSES, class_conditional=True,
        relation=RELATION, epsilon=epsilon, delta=DELTA, seed=seed, beside=(images.event(epsilon, DEFAULTS.basis),),
    )  # fmt: skip
    exact = bound([(latents, labels)], plan)
    noisy = exact + noise(NoiseKey.from_seed(seed), plan)
    found = {
        "real": (images.train[chosen], images.labels[chosen]),
        "through the encoder": (encoder.decode(latents[chosen]), labels[chosen]),
    }
    for name, table in (("samples of exact slices", exact), ("samples", noisy)):
        with open_cluster(ClusterConfig(executor="local", actors=1)) as cluster:
            flow = solve(
                denoise(Release.from_plan(plan, table[None], {"publishable": False})),
                FlowConfig(particles=images.trained, kernel="numba"),
                sphere=False,
                seed=seed,
                cluster=cluster,
            )
        found[name] = encoder.decode(flow.particles), flow.labels
    return {
        name: model_accuracy(
            "cnn", records, classes, images.test, images.test_labels,
            schema=images.schema, classes=CLASSES, seed=seed,
        )
        for name, (records, classes) in found.items()
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--home", type=Path, default=Path("runs/home"), help="where downloaded images lie")
    options.add_argument(
        "--cnn",
        type=float,
        nargs="*",
        choices=[cell[0] for cell in CELLS],
        default=[],
        help="epsilons of the second table, one seed: ten minutes each",
    )
    arguments = options.parse_args()
    images = Images(arguments.home, arguments.quick)
    rows = [
        {"epsilon": epsilon, "basis": size}
        | {
            name: float(np.mean([held(images, size, epsilon, seed)[name] for seed in range(arguments.seeds)]))
            for name in ("plain", "weighed")
        }
        for epsilon, _, _ in CELLS
        for size in BASES
    ]
    show(
        f"variance held by {DIM} components, means of {arguments.seeds} seeds",
        ["epsilon", "frequencies", "plain", "weighed"],
        [
            [f"{row['epsilon']:g}", f"{row['basis']}", f"{row['plain']:.1%}", f"{row['weighed']:.1%}"]
            for row in rows
        ],
    )
    accuracies: list[dict[str, Any]] = []
    for epsilon, dim, frames in (cell for cell in CELLS if cell[0] in arguments.cnn):
        found = limits(images, epsilon, dim, frames, 0)
        accuracies.append({"epsilon": epsilon, "dim": dim, "frames": frames, **found})
        show(
            f"CNN accuracy, epsilon {epsilon:g}, d = {dim}, {frames} frames",
            list(found),
            [[f"{value:.1%}" for value in found.values()]],
        )
    finish(arguments, {"components": rows, "cnn": accuracies})


if __name__ == "__main__":
    main()
