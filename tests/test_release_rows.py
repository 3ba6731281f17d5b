"""Noisy projections and sampled histograms: what they add up to, what they cost, and that a retry repeats them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import small
from test_release import DIM, latents, ledger, shards, store  # noqa: F401

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_arrays
from dpsw_ray.base.progress import Progress
from dpsw_ray.methods.dpswflow.mechanism import batch_of_rows, noisy_histograms
from dpsw_ray.methods.dpswflow.plan import RowPlan, row_grid
from dpsw_ray.methods.dpswflow_r.mechanism import noise as sampled_noise
from dpsw_ray.methods.dpswflow_r.mechanism import sampled_sums
from dpsw_ray.methods.dpswflow_r.plan import SampledHistogramPlan
from dpsw_ray.methods.registry import load_config
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy.accountants import account, bound
from dpsw_ray.privacy.events import SequentialEvent, SlicedGaussianEvent
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.noise import NoiseKey, poisson_sample
from dpsw_ray.release.exchange import release_once
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.tables.release import Release

# ruff: noqa: F811 (the fixture)

KEY = NoiseKey.from_seed(3)


def rows(
    release_id: str = "r", law: Any = "haar", epochs: int = 1, batches: int = 1, epsilon: float = 5.0
) -> RowPlan:
    return RowPlan.make(
        release_id=release_id, dim=DIM, directions=8, law=law, epochs=epochs, batches=batches,
        relation="replace_one", epsilon=epsilon, delta=1e-5, seed=7,
    )  # fmt: skip


def sampled(release_id: str = "r", epsilon: float = 5.0) -> SampledHistogramPlan:
    return SampledHistogramPlan.make(
        release_id=release_id, dim=DIM, frames=2, rounds=5, rate=0.2, grid=BinGrid(16, 0.5), classes=3,
        class_conditional=True, relation="zero_out", epsilon=epsilon, delta=1e-5, seed=7,
    )  # fmt: skip


def made(plan: Any, folder: Path, book: Ledger, group: Any, seed: int | None = 5) -> Release:
    def manifest(plan: Any) -> dict[str, Any]:
        privacy = account([plan.event], "replace_one" if isinstance(plan, RowPlan) else "zero_out", 1e-5)
        return {"release_id": plan.release_id, "publishable": False, "privacy": privacy.to_dict()}

    return release_once(
        Release,
        group, lambda release_id: dataclasses.replace(plan, release_id=release_id), folder, ledger=book,
        account="d" if isinstance(plan, RowPlan) else "z", run_id="t", noise_seed=seed, manifest=manifest,
    )  # fmt: skip


@pytest.fixture
def book(ledger: Ledger) -> Ledger:
    ledger.register("z", "zero_out", "record", 1e-5)
    return ledger


@pytest.mark.parametrize("law", ["haar", "iid"])
@pytest.mark.parametrize("epochs", [1, 10])
def test_rows_are_calibrated_to_the_target(law: str, epochs: int) -> None:
    plan = rows(law=law, epochs=epochs, batches=epochs)
    assert 4.97 <= bound([plan.event], "replace_one", 1e-5).epsilon.upper <= 5.0
    once = SlicedGaussianEvent(8, DIM, plan.noise_std * LATTICE, law)  # type: ignore[arg-type]
    assert plan.event == (
        once if epochs == 1 else SequentialEvent((once,), epochs, "epochs of disjoint batches")
    )


def test_rows_show_how_many_there_are() -> None:
    with pytest.raises(UserError, match="number shows"):
        RowPlan.make(
            release_id="r", dim=DIM, directions=8, law="haar", epochs=1, batches=1, relation="add_remove",
            epsilon=1.0, delta=1e-5, seed=0,
        )  # fmt: skip


def test_haar_directions_are_public_and_iid_ones_follow_the_random_release_id() -> None:
    assert np.array_equal(rows("a").directions, rows("b").directions)
    assert not np.array_equal(rows("a", "iid").directions, rows("b", "iid").directions)
    assert np.array_equal(rows("a", "iid").directions, rows("a", "iid").directions)
    assert np.linalg.norm(rows("a", "iid").directions, axis=2) == pytest.approx(1.0, abs=1e-7)


def test_every_row_is_projected_noised_and_counted_once_per_direction() -> None:
    x, labels = latents(500)
    plan = rows(epsilon=20.0)
    total = noisy_histograms([(x, labels)], plan, 0, 0, 500, KEY)
    assert total.shape == (1, 1, 8, plan.grid.bins) and (total.sum(axis=3) == 500 * SCALE).all()
    centres = plan.grid.edges[:-1] + plan.grid.width / 2
    mean = (total[0, 0] / SCALE) @ centres / 500
    spread = np.sqrt((total[0, 0] / SCALE) @ centres**2 / 500 - mean**2)
    z = x @ plan.directions[0].T
    noise = plan.noise_std * LATTICE
    assert np.abs(mean - z.mean(axis=0)).max() < 6 * noise / np.sqrt(500)
    assert spread == pytest.approx(np.sqrt(z.var(axis=0) + noise**2), rel=0.15)


def test_without_noise_the_histogram_is_that_of_the_projections() -> None:
    x, labels = latents(500)
    plan = rows(epsilon=float("inf"))
    total = noisy_histograms([(x, labels)], plan, 0, 0, 500, KEY)[0, 0] // SCALE
    z = np.rint(x @ plan.directions[0].T / LATTICE) * LATTICE
    for j in range(8):
        assert np.array_equal(total[j], np.histogram(z[:, j], plan.grid.edges)[0])


def test_noise_belongs_to_the_row_and_not_to_the_shard() -> None:
    x, labels = latents(500)
    plan = rows(epochs=2, batches=3)
    for epoch in range(2):
        whole = noisy_histograms([(x, labels)], plan, epoch, 0, 500, KEY)
        parts = [
            noisy_histograms([(x[a:b], labels[a:b])], plan, epoch, a, 500, KEY)
            for a, b in [(0, 99), (99, 500)]
        ]
        assert np.array_equal(whole, sum(parts))
    other = noisy_histograms([(x, labels)], plan, 0, 0, 500, NoiseKey.from_seed(4))
    assert not np.array_equal(noisy_histograms([(x, labels)], plan, 0, 0, 500, KEY), other)


def test_a_record_is_in_one_batch_of_every_epoch() -> None:
    plan = rows(epochs=3, batches=7)
    batches = [batch_of_rows(plan, epoch, 500) for epoch in range(3)]
    for batch in batches:
        assert set(np.bincount(batch, minlength=7)) <= {71, 72}
    assert not np.array_equal(batches[0], batches[1])
    x, labels = latents(500)
    total = noisy_histograms([(x, labels)], plan, 1, 0, 500, KEY)
    assert np.array_equal(total.sum(axis=(1, 3))[:, 0], np.bincount(batches[1]) * SCALE)


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 30.0])
def test_the_grid_is_fine_against_the_noise_and_holds_its_tails(noise: float) -> None:
    grid = row_grid(noise)
    assert grid.sigma == pytest.approx(noise, rel=1e-9)
    assert grid.width <= max(noise / 2, 2 / 512 + 1e-9) and -grid.low >= 1 + 4 * noise - 1e-9


def test_samples_have_the_rate_and_are_independent_of_the_shard() -> None:
    sample = poisson_sample(KEY, 0.2, 0, 100_000)
    assert abs(sample.mean() - 0.2) < 5 * np.sqrt(0.16 / 100_000)
    assert np.array_equal(sample[777:1000], poisson_sample(KEY, 0.2, 777, 223))
    assert abs(np.corrcoef(sample, poisson_sample(NoiseKey.from_seed(9), 0.2, 0, 100_000))[0, 1]) < 0.02
    assert poisson_sample(KEY, 1.0, 0, 10).all()


def test_sampled_sums_hold_the_sampled_records_only_for_any_division() -> None:
    x, labels = latents(500)
    plan = sampled()
    whole = sampled_sums([(x, labels)], plan, 0, 0, KEY)
    parts = [sampled_sums([(x[a:b], labels[a:b])], plan, 0, a, KEY) for a, b in [(0, 123), (123, 500)]]
    assert np.array_equal(whole, sum(parts))
    taken = whole.sum(axis=(1, 3)) / SCALE  # [rounds, K]: records with a class
    assert (taken == taken[:, :1]).all() and len(set(taken[:, 0])) > 1
    share = taken[:, 0] / (labels >= 0).sum()
    assert np.all(np.abs(share - 0.2) < 0.1)
    noise = sampled_noise(KEY, plan, 0)
    assert noise.std() == pytest.approx(plan.noise_std, rel=0.1)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("plan", [rows(), rows(law="iid"), rows(epochs=3, batches=2), sampled()])
def test_a_release_has_the_same_bits_for_any_number_of_shards_and_reads_back(
    plan: Any, tmp_path: Path, book: Ledger
) -> None:
    private = store(tmp_path / "private")
    first = made(plan, tmp_path / "one", book, shards(private, 1))
    assert np.array_equal(first.counts, made(plan, tmp_path / "three", book, shards(private, 3)).counts)
    again = Release.load(tmp_path / "one")
    assert np.array_equal(first.counts, again.counts) and np.array_equal(first.directions, again.directions)
    assert first.rounds == len(plan.directions) and (again.cell_noise == 0) == isinstance(plan, RowPlan)


class Dying:
    """A group whose process dies when one message has been computed."""

    def __init__(self, group: Any, after: int) -> None:
        self.group, self.size, self.left = group, group.size, after

    def call(self, method: str, args: Any = (), **kwargs: Any) -> Any:
        if method == "contribute":
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        return self.group.call(method, args, **kwargs)

    def rebuild(self) -> None:
        pass


def test_a_long_release_goes_on_in_the_middle_without_a_second_charge(tmp_path: Path, book: Ledger) -> None:
    private = store(tmp_path / "private")
    plan = rows(epochs=4, batches=2)
    with pytest.raises(KeyboardInterrupt):
        made(plan, tmp_path / "a", book, Dying(shards(private), 2), seed=None)
    parts = sorted(tmp_path.glob("a/reply-*"))
    assert len(parts) == 2
    begun = [read_arrays(part)["reply"] for part in parts]
    finished = made(plan, tmp_path / "a", book, shards(private), seed=None)
    assert book.total("d").charges == 1
    assert np.array_equal(finished.counts[:4], np.concatenate(begun))
    assert not list(tmp_path.glob("a/reply-*")) and not list((private / "keys").iterdir())


def test_parts_left_by_a_kill_after_the_release_go_with_its_commit(tmp_path: Path, book: Ledger) -> None:
    private, plan = store(tmp_path / "private"), rows(epochs=3)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dpsw_ray.release.exchange._commit", _interrupt)
        made(plan, tmp_path / "a", book, shards(private), seed=None)
    assert len(list(tmp_path.glob("a/reply-*"))) == 3 and (tmp_path / "a" / "manifest.json").exists()
    made(plan, tmp_path / "a", book, shards(private), seed=None)
    assert book.total("d").charges == 1
    assert not list(tmp_path.glob("a/reply-*")) and not (tmp_path / "a" / "pending.json").exists()


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt


METHODS = {
    "dpswgen on pixels": ("encoder.kind=identity", "release.frames=1", "release.batch=300", "generator.steps=5"),
    "dpswgen": ("release.epochs=1", "release.batch=300", "generator.steps=20"),
    "dpswflow": ("release.directions=10", "release.law=iid"),
    "dpswflow-r": ("release.epochs=2", "release.batch=300", "flow.steps=12"),
    "dpswflow-r of samples": (
        "privacy.relation=zero_out", "release.sampling=poisson", "release.rounds=3", "release.rate=0.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_each_method_runs_from_records_to_samples(name: str, tmp_path: Path) -> None:
    config = small(
        "release.frames=2", *METHODS[name], f"method={name.split()[0]}", f"paths.home={tmp_path / 'home'}",
        "cluster.executor=local", "privacy.epsilon=5",
    )  # fmt: skip
    result = run(config, tmp_path / "run", Progress(quiet=True))
    assert result.privacy["epsilon"]["upper"] <= 5
    report = (tmp_path / "run" / "report.html").read_text()
    secret, own = "secret random sample" in report, "every projection with noise of" in report
    assert (secret, own) == (("samples" in name), ("samples" not in name))
    seed = json.loads((tmp_path / "run" / "release" / "manifest.json").read_text())["directions_seed"]
    assert seed == (None if "release.law=iid" in METHODS[name] else config.seed)
    assert (tmp_path / "run" / "samples.parquet").exists()
    directions = Release.load(tmp_path / "run" / "release").directions
    assert directions.shape[2] == (64 if "pixels" in name else config.encoder.latent_dim)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("method=dpswflow", "privacy.relation=add_remove"), "noisy projections show how many records"),
        (("method=dpswflow-r", "release.sampling=poisson"), "not proved for a replaced record"),
        (("method=dpswflow", "privacy.noise=discrete_gaussian"), "privacy.noise must be gaussian"),
        (("method=dpsw",), "method must be"),
    ],
)
def test_what_a_method_cannot_do_is_refused_in_the_config(settings: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config("digits", settings)
