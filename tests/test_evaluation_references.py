"""The ceiling, random latents and real records beside every figure; the figures of tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from dpsw_ray.config.run import EncoderConfig, EvaluationConfig
from dpsw_ray.data.records import Part, RecordSchema
from dpsw_ray.encoders import IdentityEncoder, fit_encoder
from dpsw_ray.evaluation import references as module
from dpsw_ray.evaluation.columns import Columns
from dpsw_ray.evaluation.downstream import boosted_accuracy
from dpsw_ray.evaluation.evaluate import complete, evaluate
from dpsw_ray.evaluation.references import CEILING, RANDOM, REAL
from dpsw_ray.evaluation.report import Metric
from dpsw_ray.evaluation.table_pictures import columns_figure, correlations_figure, paths_figure
from dpsw_ray.evaluation.table_report import table_sections
from dpsw_ray.evaluation.tables import correlation_gaps, correlations, marginals

CORRELATION = np.array(
    [[1.0, 0.8, -0.5, 0.0], [0.8, 1.0, -0.3, 0.2], [-0.5, -0.3, 1.0, 0.0], [0.0, 0.2, 0.0, 1.0]]
)
NAMES = ("a", "b", "c", "d")


def table(n: int, seed: int, correlation: NDArray[np.float64] = CORRELATION) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal([0.0, 5.0, 0.0, -1.0], correlation, n) * [1.0, 10.0, 0.1, 2.0]


def part(values: NDArray[Any], labels: NDArray[Any] | None, name: str) -> Part:
    given = np.full(len(values), -1) if labels is None else labels
    return Part(values, given.astype(np.int32), name)


def measured(
    samples: NDArray[Any],
    labels: NDArray[Any] | None,
    public: Part,
    test: Part,
    home: Path,
    classes: Sequence[str] = (),
    names: Sequence[str] = NAMES,
    **config: Any,
) -> dict[str, Metric]:
    schema = RecordSchema("table", (samples.shape[1],), tuple(names))
    known = np.isfinite(public.values).all(axis=1)
    encoder = IdentityEncoder.fit(schema, public.values[known])
    found = evaluate(
        EvaluationConfig.model_validate({"directions": 64, "models": ["logreg", "mlp", "cnn", "boosted"]} | config),
        particles=encoder.encode(samples), samples=(samples, part(samples, labels, "samples").labels), public=public,
        test=test, encoder=encoder, encoder_seed=0, classes=classes, seed=0, home=home,
    )  # fmt: skip
    return {metric.name: metric for metric in found}


def test_a_column_is_compared_in_units_of_its_deviation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 4.0, (20_000, 2))
    moved = x + np.array([2.0, 0.0])
    found = marginals(moved, x)
    np.testing.assert_allclose(found.wasserstein, [0.5, 0.0], atol=0.01)
    assert found.kolmogorov[0] == pytest.approx(2 * 0.0987, abs=0.01)  # 2 Phi(1 / 4) - 1 for half a deviation
    constant = np.full((10, 1), 0.1)
    assert marginals(constant, constant).wasserstein[0] == 0.0
    assert marginals(constant + 2.0, constant).wasserstein[0] == pytest.approx(2.0)
    holes = np.where(np.arange(10)[:, None] % 2, constant, np.nan)
    assert marginals(holes, constant).kolmogorov[0] == 0.0
    assert np.isnan(marginals(np.full((3, 1), np.nan), constant).kolmogorov[0])


def test_correlations_are_the_known_ones() -> None:
    x = table(40_000, 0)
    np.testing.assert_allclose(correlations(x), CORRELATION, atol=0.02)
    np.testing.assert_allclose(correlations(x, ranks=True), spearmanr(x).statistic, atol=1e-12)
    constant = np.concatenate([x, np.full((len(x), 1), 0.1)], axis=1)
    assert correlations(constant)[4].tolist() == [0, 0, 0, 0, 1]
    independent = table(40_000, 1, np.eye(4))
    largest, square = correlation_gaps(independent, x)
    assert largest == pytest.approx(0.8, abs=0.02)
    assert square == pytest.approx(np.sqrt((0.8**2 + 0.5**2 + 0.3**2 + 0.2**2) / 6), abs=0.02)
    assert correlation_gaps(x, x, ranks=True) == (0.0, 0.0)
    assert np.isnan(correlation_gaps(x[:, :1], x[:, :1])).all()


def test_every_figure_of_a_table_stands_between_what_is_random_and_the_ceiling(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 2, n) for n in (1_500, 1_500, 1_500)]
    public, test, close = (table(1_500, seed) + 2.0 * own[:, None] for seed, own in enumerate(labels))
    close = close + 0.3 * rng.normal(size=close.shape) * close.std(axis=0)
    found = measured(
        close,
        labels[2],
        part(public, labels[0], "public"),
        part(test, labels[1], "test"),
        tmp_path,
        ("n", "y"),
    )
    assert "CNN accuracy" not in found and "FID (classifier features)" not in found
    for name, metric in found.items():
        beside = dict(metric.baselines)
        assert set(beside) == ({CEILING, RANDOM} if "sliced" in name else {CEILING, RANDOM, REAL}), name
        assert np.isfinite([metric.value, *beside.values()]).all()
        if "classes by" in name:
            continue  # says little of random records
        if metric.better == "lower":
            assert beside[CEILING] < metric.value < beside[RANDOM], name
        else:
            assert beside[RANDOM] < metric.value < beside[CEILING] + 0.03, name
    assert found["boosted trees accuracy"].baselines[REAL] > 0.75
    parts = found["marginal W1, mean"].parts
    assert list(parts) == list(NAMES)
    assert np.mean([values["this run"] for values in parts.values()]) == pytest.approx(
        found["marginal W1, mean"].value
    )
    assert max(values[CEILING] for values in parts.values()) == pytest.approx(
        found["marginal W1, largest"].baselines[CEILING]
    )
    (columns, together) = table_sections(close, test, NAMES, list(found.values()))
    assert [row["column"] for row in columns.table] == list(NAMES)
    assert columns.table[0]["W1"] == parts["a"]["this run"]
    assert columns.picture_png is not None and together.picture_png is not None


def test_references_are_computed_once_and_again_where_a_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    compute = module.References.candidate
    monkeypatch.setattr(
        module.References,
        "candidate",
        lambda self, name, of="public": made.append(name) or compute(self, name, of),
    )  # type: ignore[func-returns-value]
    public, test = part(table(300, 0), None, "public"), part(table(300, 1), None, "test")
    first = measured(table(200, 2), None, public, test, tmp_path)
    again = measured(table(200, 3), None, public, test, tmp_path)
    assert made == 2 * [CEILING, RANDOM, REAL]  # sliced, and the table's
    assert first["marginal KS, mean"].baselines == again["marginal KS, mean"].baselines
    assert first["marginal KS, mean"].value != again["marginal KS, mean"].value
    for path in tmp_path.glob("baselines/*/figures.json"):
        path.write_text("{")
    assert (
        measured(table(200, 3), None, public, test, tmp_path)["marginal KS, mean"]
        == again["marginal KS, mean"]
    )
    measured(table(200, 3), None, part(table(300, 5), None, "public"), test, tmp_path)
    measured(table(100, 3), None, public, test, tmp_path)
    assert len(made) == 4 * 6


def test_one_class_missing_labels_missing_values_and_odd_columns_are_no_mistake(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def odd(n: int) -> NDArray[np.float64]:
        x = np.stack([rng.normal(size=n), rng.poisson(2.0, n), np.full(n, 0.1), rng.random(n) < 0.3], axis=1)
        x[: n // 10, 0] = np.nan
        return x.astype(np.float64)

    one = np.zeros(200, np.int64)
    some = np.where(rng.random(200) < 0.5, rng.integers(0, 2, 200), -1)
    for labels, classes in ((one, ("only",)), (some, ("n", "y")), (None, ())):
        samples = np.nan_to_num(odd(200))
        found = measured(
            samples,
            labels,
            part(odd(200), labels, "public"),
            part(odd(200), labels, "test"),
            tmp_path,
            classes,
        )
        assert all(np.isfinite(metric.value) for metric in found.values())
        assert ("LogReg accuracy" in found) == bool(classes)
        assert found["marginal W1, mean"].parts["c"]["this run"] == pytest.approx(0.0)
    assert not measured(samples, None, part(odd(200), None, "public"), part(odd(0), None, "test"), tmp_path)
    single = measured(
        samples[:, :1],
        None,
        part(odd(99)[:, 1:2], None, "public"),
        part(odd(99)[:, 1:2], None, "test"),
        tmp_path,
        names=("a",),
    )
    assert not any("correlations" in name for name in single)


def test_records_with_missing_values_are_left_out_and_the_order_kept() -> None:
    values = np.array([[0.0], [np.nan], [2.0], [3.0]])
    kept, order = complete(part(values, np.arange(4), "public"), np.array([3, 1, 0, 2]))
    assert kept.values[order, 0].tolist() == [3.0, 0.0, 2.0] and kept.labels[order].tolist() == [3, 0, 2]


def test_the_ceiling_takes_the_records_held_out_of_the_encoders_training_first() -> None:
    """The order of the public records is the one that training shuffles by: its first were not learnt by heart."""
    schema = RecordSchema("table", (4,), NAMES)
    config = EncoderConfig(
        kind="mlp", latent_dim=3, sphere=False, epochs=150, patience=150, batch_size=40, holdout_fraction=0.25,
        learning_rate=5e-3,
    )  # fmt: skip
    public = np.random.default_rng(0).normal(size=(160, 4))
    encoder = fit_encoder(schema, public, config, 7)
    order = np.random.default_rng(7).permutation(len(public))
    gaps = (encoder.decode(encoder.encode(public)) - public) / public[order[40:]].std(axis=0)
    losses = [float(np.mean(gaps[order[i : i + 40]] ** 2)) for i in range(0, 160, 40)]
    assert losses[0] == pytest.approx(min(epoch["holdout_loss"] for epoch in encoder.history), rel=0.1)
    assert max(losses[1:]) < 0.7 * losses[0]


def test_whole_numbers_and_constants_come_back_as_they_are_in_public() -> None:
    schema = RecordSchema("table", (4,), ("x", "count", "constant", "member"))
    public = np.array([[0.5, 3, 0.1, 0], [1.5, 9, 0.1, 1], [np.nan, 4, 0.1, 1]])
    columns = Columns.of(schema, public)
    assert columns.whole == (False, True, False, True)
    made = np.array([[0.3, 2.2, 7.0, -0.6], [9.9, 4.6, 0.1, 0.6]])
    restored = columns.restore(made)
    assert restored.tolist() == [[0.3, 3.0, 0.1, 0.0], [9.9, 5.0, 0.1, 1.0]]
    assert made[0, 1] == 2.2  # untouched
    assert (
        Columns.from_list(json.loads(json.dumps(columns.to_list()))).restore(made).tolist()
        == restored.tolist()
    )
    images = np.zeros((2, 8, 8, 1), np.uint8)
    assert Columns.of(RecordSchema("image", (8, 8, 1), (), (0, 16)), images).restore(images) is images
    assert Columns.from_list(None).whole == ()


def test_boosted_trees_learn_what_no_line_separates() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    assert boosted_accuracy(x[:600], y[:600], x[600:], y[600:], 0) > 0.9
    assert boosted_accuracy(x[:600], 0 * y[:600], x[600:], y[600:], 0) == np.mean(y[600:] == 0)
    assert np.isnan(boosted_accuracy(x[:9], y[:9] * 0 - 1, x, y, 0))


def test_pictures_of_tables_are_drawn() -> None:
    x, y = table(200, 0), table(150, 1)
    x[:, 3], y[:, 3] = 7.0, np.rint(y[:, 3])
    for png in (
        columns_figure(x, y, NAMES),
        columns_figure(x[:, 3:], y[:, 3:], ["only"]),
        correlations_figure(x, y, NAMES),
        correlations_figure(np.tile(x, 10), np.tile(y, 10), [f"column number {i}" for i in range(40)]),
        paths_figure([0, 1, 5], [x, y, y], None, NAMES),
        paths_figure([0], [x], y, NAMES[:1]),
    ):
        assert png.startswith(b"\x89PNG")
