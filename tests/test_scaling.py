"""Columns of any size beside ordinary ones: identifiers of many digits, times of one minute, the ends of float64."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import small

from dpsw_ray.base.progress import Progress
from dpsw_ray.config.run import EncoderConfig
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders import IdentityEncoder
from dpsw_ray.encoders.autoencoder import record_scaling, scale_records, train_autoencoder
from dpsw_ray.encoders.pca import BasisEncoder
from dpsw_ray.encoders.scaling import column_statistics, restored, standardised
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.downstream import boosted_accuracy, logreg_accuracy
from dpsw_ray.evaluation.table_pictures import columns_figure
from dpsw_ray.evaluation.tables import correlations, marginals
from dpsw_ray.pipeline.run import run
from dpsw_ray.pipeline.samples import read_samples, write_samples

QUIET = Progress(quiet=True)
LARGEST = np.finfo(np.float64).max

COLUMNS = {
    "ordinary": lambda z: 5 + z,
    "EAN of one prefix": lambda z: 4006381000000 + np.rint(100 * z),
    "milliseconds of a minute": lambda z: 1735689600000 + np.rint(1000 * z),
    "account": lambda z: 1e17 + np.rint(z * 100) * 16,
    "just apart": lambda z: np.where(z > 0, 1e15, 1e15 + 0.125),
    "beyond the root": lambda z: z * 1e200,
    "end of float64": lambda z: np.clip(z / 8, -1, 1) * LARGEST,
    "end of float64, near one another": lambda z: LARGEST * (0.9 + np.clip(z, -4, 4) * 1e-6),
    "squares vanish": lambda z: z * 1e-200,
    "least normal": lambda z: z * 1e-306,
}  # fmt: skip
NAMES = tuple(COLUMNS)
SCHEMA = RecordSchema("table", (len(NAMES),), NAMES)


def table(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Records and two classes, which lie apart in every column alike."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    z = np.clip(rng.normal(size=(n, len(NAMES))), -3, 3) + labels[:, None]
    return np.stack([make(z[:, i]) for i, make in enumerate(COLUMNS.values())], axis=1), labels


def exact(column: np.ndarray) -> tuple[Fraction, Fraction]:
    """Mean and variance, in rational numbers."""
    values = [Fraction(float(x)) for x in column]
    mean = sum(values, Fraction(0)) / len(values)
    return mean, sum(((x - mean) ** 2 for x in values), Fraction(0)) / len(values)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_exact_arithmetic(name: str) -> None:
    column = table()[0][:, NAMES.index(name)]
    (mean,), (deviation,) = column_statistics(column[:, None])
    true, variance = exact(column)
    assert abs(Fraction(float(deviation)) ** 2 - variance) <= variance / 10**9
    spacing = Fraction(float(np.spacing(np.abs(column).max())))
    assert abs(Fraction(float(mean)) - true) <= spacing + Fraction(float(deviation)) / 10**9


def test_a_column_is_constant_if_its_values_are_equal_and_by_no_threshold() -> None:
    column = np.full((999, 5), [0.1, -1e300, 5e-324, 0.0, 1e15])
    assert column_statistics(column)[1].tolist() == [0.0] * 5
    assert column_statistics(column)[0].tolist() == column[0].tolist()
    column[0] = np.nextafter(column[0], np.inf)
    assert (column_statistics(column)[1] > 0).all()


def test_every_column_comes_back_through_the_identity() -> None:
    public, inside = table(seed=0)[0], table(200, seed=1)[0]
    encoder = IdentityEncoder.fit(SCHEMA, public)
    latents = encoder.encode(inside)
    kept = np.linalg.norm(latents, axis=1) < 1 - 1e-9
    assert kept.mean() > 0.95
    # Every column has its share of the ball.
    spread = latents.std(axis=0)
    assert spread.min() > 0.5 * spread.max()
    back, deviation = encoder.decode(latents)[kept], column_statistics(public)[1]
    error = np.abs(back / deviation - inside[kept] / deviation).max(axis=0)
    assert (error <= 1e-9 + np.spacing(np.abs(inside).max(axis=0)) / deviation).all()


def test_a_column_that_is_constant_in_public_moves_no_private_record() -> None:
    public, _ = table()
    public[:, 1] = 4006381000000
    private = table(seed=1)[0]
    encoder = IdentityEncoder.fit(SCHEMA, public)
    latents = encoder.encode(private)
    assert (np.linalg.norm(latents, axis=1) < 1 - 1e-9).mean() > 0.95 and not latents[:, 1].any()
    assert (encoder.decode(latents)[:, 1] == 4006381000000).all()


def test_nets_see_every_column_in_its_own_units_and_give_it_back() -> None:
    public, _ = table()
    shift, scale = record_scaling(SCHEMA, torch.from_numpy(public))
    inputs = scale_records(torch.from_numpy(public), shift, scale)
    spacing = np.spacing(np.abs(public).max(axis=0)) / scale.numpy()  # the mean is between two numbers
    assert (np.abs(inputs.mean(dim=0).numpy()) <= 1e-4 + spacing).all()
    np.testing.assert_allclose(inputs.std(dim=0), 1.0, rtol=1e-4)
    back = restored(standardised(torch.from_numpy(public), shift, scale), shift, scale).numpy()
    deviation = scale.numpy()
    error = np.abs(back / deviation - public / deviation).max(axis=0)
    assert (error <= 1e-9 + np.spacing(np.abs(public).max(axis=0)) / deviation).all()


def test_a_net_learns_and_decodes_such_a_table() -> None:
    public, _ = table()
    config = EncoderConfig(kind="mlp", latent_dim=6, epochs=3)
    encoder = train_autoencoder(SCHEMA, public, config, seed=0)
    far = public[:1] * 1.0
    far[0, 0] = 1e300  # so many deviations away: as far as can be told, and no null record
    latents = encoder.encode(np.concatenate([public, far]))
    assert np.isfinite(latents).all()
    made = encoder.decode(latents)
    assert np.isfinite(made).all()
    shift, deviation = column_statistics(public)
    assert (np.abs(made[:-1] / deviation - shift / deviation) < 10).all()


@pytest.mark.parametrize(
    "box", [(4006381000000.0, 4006381000999.0), (-LARGEST, LARGEST), (0.0, 1e-300), (-1e200, 3e200)]
)
def test_boxes_of_any_width_come_back(box: tuple[float, float]) -> None:
    schema = RecordSchema("table", (2,), ("a", "b"))
    low, high = box
    share = np.linspace(0, 1, 9)
    inside = np.stack([low * (1 - share) + high * share, share], axis=1)
    bounds = {"a": box, "b": (0.0, 1.0)}
    for encoder, step in (
        (IdentityEncoder.fit(schema, np.empty((0, 2)), bounds), 1e-9),
        (BasisEncoder.make(schema, 2, 1.0, bounds), 2.0**-17),
    ):
        back = encoder.decode(encoder.encode(inside))
        assert np.isfinite(back).all()
        error = np.abs(back / 2 - inside / 2) / (np.array([high, 1]) / 2 - np.array([low, 0]) / 2)
        assert (error <= step + 4 * np.spacing(abs(high / 2)) / (high / 2 - low / 2)).all()


def test_figures_of_a_table_do_not_depend_on_the_units_of_its_columns() -> None:
    (real, real_labels), (made, labels) = table(seed=0), table(seed=1)
    rng = np.random.default_rng(0)
    z = np.clip(rng.normal(size=(400, 1)), -3, 3)
    same = np.concatenate([make(z) for make in COLUMNS.values()], axis=1)
    others = np.concatenate([make(z + 0.25) for make in COLUMNS.values()], axis=1)
    affine = [name != "just apart" for name in NAMES]
    found = marginals(others, same)
    np.testing.assert_allclose(found.wasserstein[affine], 0.25 / z.std(), rtol=0.02)
    np.testing.assert_allclose(correlations(same)[0][affine], 1.0, atol=1e-4)
    for train in (logreg_accuracy, lambda *parts: boosted_accuracy(*parts, 0)):
        accuracies = [
            train(made[:, [i]], labels, real[:, [i]], real_labels) for i in range(len(NAMES)) if affine[i]
        ]
        assert min(accuracies) > 0.6
    assert columns_figure(made, real, NAMES)


def test_whole_numbers_of_many_digits_are_written_as_whole_numbers(tmp_path: Path) -> None:
    account = 10**17 + 16 * np.arange(50)
    public = np.stack(
        [account.astype(float), np.full(50, 2.0**60), np.linspace(0, 1, 50), np.full(50, 1e300)], 1
    )
    schema = RecordSchema("table", (4,), ("account", "one", "share", "far"))
    columns = Columns.of(schema, public)
    assert columns.whole == (True, True, False, False)
    path = tmp_path / "samples.parquet"
    labels = np.full(50, -1, np.int32)
    write_samples(path, columns.restore(public), labels, schema, [], columns.whole)
    written = pq.read_table(path)
    assert (
        written.column("account").type == pa.int64()
        and written.column("account").to_pylist() == account.tolist()
    )
    assert np.array_equal(read_samples(path, schema, [])[0], public)


def test_identifiers_beside_an_ordinary_column_leave_it_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "ean": 4006381000000 + rng.integers(0, 1000, 4_000),
        "ms": 1735689600000 + rng.integers(0, 5_000, 4_000),
        "x": rng.normal(5, 1, 4_000),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    config = small(
        "data.source=table", f"data.path={tmp_path / 't.parquet'}", "data.public_fraction=0.4",
        "encoder.kind=identity", "cluster.executor=local", f"paths.home={tmp_path / 'home'}",
        "privacy.epsilon=50", "flow.particles=2000", "flow.steps=100", "release.bins=64",
    )  # fmt: skip
    run(config, tmp_path / "run", QUIET)
    made = pq.read_table(tmp_path / "run" / "samples.parquet")
    for name, column in columns.items():
        values = made.column(name).to_numpy()
        assert values.mean() - column.mean() == pytest.approx(0, abs=0.3 * column.std()), name
        assert values.std() == pytest.approx(column.std(), rel=0.3), name
