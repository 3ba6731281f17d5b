"""What noise that is drawn anew in every step and charged once really costs, and what honest releases give instead.

python benchmarks/honest_epsilon.py --json honest_epsilon.json

The public half of Fashion-MNIST plays the private records, so that the dishonest flow can be shown: nothing here
reads a private record or charges a ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, parser, show
from numpy.typing import NDArray

from dpsw_ray.audit.attack import Attack, Randomness, Scores
from dpsw_ray.audit.result import audit
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import RunConfig
from dpsw_ray.evaluation.sliced import sliced_wasserstein
from dpsw_ray.flow.solver import solve
from dpsw_ray.methods.dpswflow.mechanism import noisy_histograms
from dpsw_ray.methods.dpswflow.plan import RowPlan
from dpsw_ray.methods.dpswflow_h.mechanism import bound, noise
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.methods.registry import load_config
from dpsw_ray.methods.sections import FlowingConfig
from dpsw_ray.pipeline.division import divided_data
from dpsw_ray.pipeline.plan import make_plan
from dpsw_ray.pipeline.steps import train_encoder
from dpsw_ray.privacy.accountants import bound as account_bound
from dpsw_ray.privacy.events import SequentialEvent
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.latents import BALL, bounded
from dpsw_ray.private.noise import draw_secret
from dpsw_ray.slicing.directions import LATTICE, round_to_lattice
from dpsw_ray.slicing.grid import SCALE
from dpsw_ray.tables.quantiles import Targets, denoise
from dpsw_ray.tables.release import Release

Records = tuple[NDArray[np.float64], NDArray[np.int32]]

STEPS = 1_500
LITERATURE = ("method=dpswflow", "release.law=haar", "release.directions=70")
FLOW = ("flow.steps=1500", "flow.step_size=3", "flow.schedule=constant", "flow.subset=25")


def redrawn(plan: RowPlan, steps: int) -> Attack:
    """The same projections with fresh noise in each of `steps` steps, held against the price of one release.

    A record shown `steps` times is `steps` equal rows of the production mechanism, each with noise of its own.
    """
    start, end = (round_to_lattice(sign * np.eye(8)[:1] * BALL) for sign in (-1.0, 1.0))
    centres = plan.grid.low + plan.grid.width * (np.arange(plan.grid.bins) + 0.5)
    change = plan.directions[0] @ (end - start)[0] / (plan.noise_std * LATTICE) ** 2

    def scores(runs: int, source: Randomness) -> Scores:
        shown = np.empty((2, runs))
        for run in range(runs):
            key = source.key.derive(b"run %d" % run)
            for world, record in enumerate((start, end)):
                rows = np.repeat(record, steps, axis=0), np.zeros(steps, np.int32)
                table = noisy_histograms([rows], plan, 0, 0, steps, key)[0, 0]
                shown[world, run] = change @ (table @ centres) / SCALE
        return shown[0], shown[1]

    return Attack("noise drawn anew in every step", (plan.event,), "replace_one", scores)


def projections(plan: RowPlan, records: Records) -> Targets:
    """One release of noisy projections with fresh noise."""
    table = noisy_histograms([records], plan, 0, 0, len(records[0]), NoiseKey.generate())
    return denoise(Release.from_plan(plan, table, {}))[0]


def histograms(plan: HistogramPlan, records: Records) -> Targets:
    """One release of smoothed histograms with fresh noise."""
    table = bound([records], plan) + noise(draw_secret(plan), plan)
    return denoise(Release.from_plan(plan, table[None], {}))[0]


def distance(rounds: Sequence[Targets], config: FlowingConfig, latents: NDArray[np.float64]) -> float:
    """Sliced W2 between the records and the particles that flowed to the release."""
    with open_cluster(config.cluster) as cluster:
        flowed = solve(rounds, config.flow, sphere=True, seed=config.seed, cluster=cluster, threads=2)
    return sliced_wasserstein(flowed.particles, latents, config.evaluation.directions, 0)


def play(home: Path | None) -> tuple[RunConfig, Records]:
    """The shipped config, and the public half's latents and labels: the records of this experiment."""
    overrides = ["cluster.executor=local", "privacy.research=true", *([f"paths.home={home}"] if home else [])]
    config = load_config("fashion_mnist", overrides)
    progress = Progress()
    with open_cluster(config.cluster) as cluster:
        data = divided_data(config, cluster, progress, Ledger(config.ledger_path))
    public = data.public()
    encoder = train_encoder(config, data, config.home / "honest-epsilon-encoder", progress)
    return config, bounded(encoder.encode(public.values, public.labels), public.labels)


def main() -> None:
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--epsilon", type=float, default=5.0, help="what one release is calibrated to")
    options.add_argument("--home", type=Path, help="data sets and encoder cache, where not the usual one")
    arguments = options.parse_args()
    steps, runs = (60, 50) if arguments.quick else (STEPS, 4_000)
    shipped, (latents, labels) = play(arguments.home)
    budget = (f"privacy.epsilon={arguments.epsilon}",)

    def configured(*overrides: str) -> FlowingConfig:
        chosen = load_config("fashion_mnist", ["cluster.executor=local", *budget, *overrides])
        assert isinstance(chosen, FlowingConfig)
        return chosen.model_copy(update={"paths": shipped.paths})

    def planned(config: RunConfig) -> Any:
        return make_plan(config, latents.shape[1], 10, len(latents), "honest epsilon")

    literature, ours = configured(*LITERATURE, *FLOW), configured("method=dpswflow-h")
    literature = literature.model_copy(update={"flow": literature.flow.model_copy(update={"steps": steps})})
    rows, tables = planned(literature), planned(ours)
    once = account_bound([rows.event], "replace_one", 1e-5)
    spent = account_bound([SequentialEvent((rows.event,), steps)], "replace_one", 1e-5)
    attack = redrawn(rows, steps)
    found = audit(attack, runs, 0.9999, 1e-5, seed=None)
    honest = audit(replace(redrawn(rows, 1), name="noise drawn once"), runs, 0.9999, 1e-5, seed=None)

    records = (latents, labels)
    distances = {
        "published: noise anew in every step": distance(
            [projections(rows, records) for _ in range(steps)], literature, latents
        ),
        "DPSWflow, noise drawn once": distance([projections(rows, records)], literature, latents),
        "DPSWflow-h": distance([histograms(tables, records)], ours, latents),
    }
    true = {name: spent.epsilon.upper if "anew" in name else once.epsilon.upper for name in distances}
    proven = {"published: noise anew in every step": found, "DPSWflow, noise drawn once": honest}
    show(
        f"Fashion-MNIST, charged for epsilon {arguments.epsilon:g} at delta 1e-5, {steps:,} steps",
        ["flow", "epsilon charged", "epsilon spent", "audit: epsilon at least", "mu at least", "sliced W2"],
        [
            [
                name,
                f"{arguments.epsilon:g}",
                f"{true[name]:,.4g}",
                f"{proven[name].epsilon_lower:.3g}" if name in proven else "",
                f"{proven[name].mu_lower:.3g}" if name in proven else "",
                f"{value:.4f}",
            ]
            for name, value in distances.items()
        ],
    )
    print(found.sentence)
    finish(
        arguments,
        {
            "charged": arguments.epsilon,
            "steps": steps,
            "noise_std": rows.noise_std * LATTICE,
            "epsilon_once": once.epsilon.upper,
            "epsilon_spent": spent.epsilon.upper,
            "mu_spent": math.sqrt(steps) * 2 * math.sqrt(rows.cells[2] / 8) / (rows.noise_std * LATTICE),
            "audit": found.to_dict(),
            "audit_once": honest.to_dict(),
            "sliced_w2": distances,
        },
    )


if __name__ == "__main__":
    main()
