from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from dpsw_ray.base.errors import UserError
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.evaluation import sliced
from dpsw_ray.evaluation.classifier import Classifier, cached_classifier, load_classifier, train_classifier
from dpsw_ray.evaluation.downstream import intended_class_rate, logreg_accuracy
from dpsw_ray.evaluation.features import coverage, inception_score, kernel_distance, nearest_rows
from dpsw_ray.evaluation.fid import frechet_distance
from dpsw_ray.evaluation.membership import Membership, auc_at_most, membership
from dpsw_ray.evaluation.models import ModelKind, model_accuracy
from dpsw_ray.evaluation.pictures import (
    SliceMasses,
    curve_figure,
    film_strip,
    image_grid,
    image_pairs,
    losses_figure,
    moving_grid,
    slices_figure,
)
from dpsw_ray.evaluation.sliced import sliced_wasserstein

DIGITS = RecordSchema("image", (8, 8, 1), (), (0, 16))
Labelled = tuple[NDArray[np.uint8], NDArray[np.int32]]


@pytest.fixture(scope="module")
def digits() -> Labelled:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return data.images.astype(np.uint8)[order][..., None], data.target.astype(np.int32)[order]


@pytest.fixture(scope="module")
def classifier(digits: Labelled) -> Classifier:
    return train_classifier(DIGITS, digits[0][:900], digits[1][:900], 10, seed=0)


def test_sliced_distance_of_a_shift_is_the_shift_over_root_d() -> None:
    x = np.random.default_rng(0).normal(size=(500, 4))
    shift = np.array([3.0, 0.0, 4.0, 0.0])
    assert sliced_wasserstein(x, x + shift, 20_000, 0) == pytest.approx(5 / 2, rel=0.02)
    assert sliced_wasserstein(x, x[::-1], 16, 0) == 0.0


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8), (30, 12), (1, 9)])
def test_one_dimensional_distance_is_exact_for_any_sizes(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 1)), rng.normal(1.0, 2.0, (m, 1))
    repeated = np.sort(np.repeat(x[:, 0], m)) - np.sort(np.repeat(y[:, 0], n))
    assert sliced_wasserstein(x, y, 3, 0) == pytest.approx(np.sqrt(np.mean(repeated**2)), rel=1e-5)
    assert sliced_wasserstein(x, y, 3, 0) >= wasserstein_distance(x[:, 0], y[:, 0]) - 1e-6


def test_sliced_distance_agrees_with_pot_and_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), rng.normal(size=(45, 5)) * 1.3 + 100.0
    thetas = np.random.default_rng(7).standard_normal((64, 5))
    thetas /= np.linalg.norm(thetas, axis=1, keepdims=True)
    ours = sliced_wasserstein(x, y, 64, 7)
    assert ours == pytest.approx(ot.sliced_wasserstein_distance(x, y, projections=thetas.T), rel=1e-5)
    monkeypatch.setattr(sliced, "BLOCK", 500)
    assert sliced_wasserstein(x, y, 64, 7) == pytest.approx(ours, rel=1e-9)


def test_frechet_distance_agrees_with_the_textbook_formula() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    y = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 1.0
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * sqrtm(cov_x @ cov_y).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-7)


def test_frechet_distance_takes_dead_features_and_few_records() -> None:
    x = np.random.default_rng(0).normal(size=(3, 8)) * np.array([1, 1, 1, 1, 0, 0, 0, 0])
    assert frechet_distance(x, x + 2.0) == pytest.approx(4.0 * 8, rel=1e-6)
    assert np.isnan(frechet_distance(x[:1], x))


def test_the_classifier_reads_digits(digits: Labelled, classifier: Classifier, tmp_path: Path) -> None:
    images, labels = digits
    assert np.mean(classifier.predict(images[900:]) == labels[900:]) > 0.95
    assert classifier.predict(images[:3]).dtype == np.int32
    features = classifier.features(images[900:])
    assert features.shape == (len(images) - 900, 128)
    np.testing.assert_allclose(classifier.probabilities(images[:5]).sum(axis=1), 1.0, rtol=1e-5)
    noise = np.random.default_rng(0).integers(0, 17, images[900:].shape).astype(np.uint8)
    near = frechet_distance(features, classifier.features(images[:900]))
    assert near < 0.2 * frechet_distance(features, classifier.features(noise))
    assert intended_class_rate(classifier, images[900:], labels[900:]) > 0.95
    assert intended_class_rate(classifier, images[900:], (labels[900:] + 1) % 10) < 0.05
    assert np.isnan(intended_class_rate(classifier, images[:3], np.full(3, -1)))
    classifier.save(tmp_path)
    np.testing.assert_array_equal(load_classifier(tmp_path).features(images[900:]), features)


def test_the_classifier_is_trained_once(
    digits: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpsw_ray.evaluation import classifier as module

    monkeypatch.setattr(module, "STEPS", 20)
    images, labels = digits[0][:200], digits[1][:200]
    steps: list[int] = []
    monkeypatch.setattr(module, "train_classifier", lambda *args: steps.append(1) or train_classifier(*args))  # type: ignore[func-returns-value]
    first = cached_classifier(DIGITS, images, labels, 10, 0, tmp_path)
    again = cached_classifier(DIGITS, images, labels, 10, 0, tmp_path)
    assert len(steps) == 1
    np.testing.assert_array_equal(first.features(images), again.features(images))
    (folder,) = (tmp_path / "classifiers").iterdir()
    (folder / "classifier.json").write_text("{")
    cached_classifier(DIGITS, images, labels, 10, 0, tmp_path)
    assert len(steps) == 2


def test_the_classifier_stops_once_the_hold_out_tells_it_nothing_new(digits: Labelled) -> None:
    rng = np.random.default_rng(0)
    images = digits[0][:600]
    guesses = rng.integers(0, 10, 600).astype(np.int32)
    labels = np.where(
        rng.random(600) < 0.5, guesses, digits[1][:600]
    )  # half of them can only be learnt by heart
    calls: list[tuple[str, int, int, dict[str, float]]] = []
    trained = train_classifier(DIGITS, images, labels, 10, 0, lambda *call: calls.append(call))
    _, last, steps, _ = calls[-1]
    losses = [call[3]["holdout_loss"] for call in calls]
    assert last < steps
    assert losses[-1] > 1.02 * min(losses)
    held = np.random.default_rng(0).permutation(600)[:60]
    kept = -np.log(trained.probabilities(images[held])[np.arange(60), labels[held]]).mean()
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_the_classifier_is_done_soon_where_classes_are_plain() -> None:
    schema = RecordSchema("table", (2,), ("a", "b"))
    labels = (np.arange(4_000) % 2).astype(np.int32)
    values = np.random.default_rng(0).normal(size=(4_000, 2)) + 12.0 * labels[:, None]
    calls: list[tuple[str, int, int, dict[str, float]]] = []
    trained = train_classifier(schema, values, labels, 2, 0, lambda *call: calls.append(call))
    assert calls[-1][1] < 0.7 * calls[-1][2]
    assert np.mean(trained.predict(values) == labels) > 0.999


def test_the_classifier_takes_tables_and_skips_unlabelled_records() -> None:
    rng = np.random.default_rng(0)
    schema = RecordSchema("table", (2,), ("a", "b"))
    labels = rng.integers(0, 2, 400).astype(np.int32)
    values = rng.normal(size=(400, 2)) * [1.0, 1e4] + labels[:, None] * [4.0, 0.0]
    hidden = np.where(np.arange(400) < 50, -1, labels)
    trained = train_classifier(schema, values, hidden, 2, seed=0)
    assert np.mean(trained.predict(values) == labels) > 0.9
    with pytest.raises(UserError, match="labelled public records"):
        train_classifier(schema, values, np.full(400, -1), 2, seed=0)


def test_logistic_regression_tells_good_labels_from_shuffled_ones(digits: Labelled) -> None:
    images, labels = digits
    assert logreg_accuracy(images[:900], labels[:900], images[900:], labels[900:]) > 0.93
    shuffled = np.random.default_rng(0).permutation(labels[:900])
    assert logreg_accuracy(images[:900], shuffled, images[900:], labels[900:]) < 0.3


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_networks_learn_from_samples_and_tell_good_labels_from_shuffled_ones(
    kind: ModelKind, digits: Labelled
) -> None:
    images, labels = digits
    common: dict[str, Any] = {"schema": DIGITS, "classes": 10, "seed": 0}
    real = images[900:], labels[900:]
    accuracy = model_accuracy(kind, images[:900], labels[:900], *real, **common)
    assert accuracy > 0.85
    assert accuracy == model_accuracy(kind, images[:900], labels[:900], *real, **common)
    shuffled = np.random.default_rng(0).permutation(labels[:900])
    assert model_accuracy(kind, images[:900], shuffled, *real, **common) < 0.35
    partly = np.where(np.arange(900) % 2, labels[:900], -1).astype(np.int32)
    assert model_accuracy(kind, images[:900], partly, *real, **common) > 0.7
    assert np.isnan(model_accuracy(kind, images[:9], np.full(9, -1), *real, **common))


def test_the_full_schedule_trains_longer(digits: Labelled) -> None:
    images, labels = digits
    common: dict[str, Any] = {"schema": DIGITS, "classes": 10, "seed": 0, "schedule": "full"}
    assert model_accuracy("mlp", images[:900], labels[:900], images[900:], labels[900:], **common) > 0.9


def test_pairs_of_samples_of_one_distribution_cover_each_other() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1500, 8))
    same = coverage(x, y)
    assert same.precision > 0.7 and same.recall > 0.7 and same.density == pytest.approx(1.0, abs=0.1)
    assert same.coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # Naeem et al. 2020, (9): 1 - (1/2)^k
    narrow = coverage(0.1 * x, y)
    assert narrow.precision > 0.95 and narrow.recall < 0.2 and narrow.coverage < same.coverage
    far = coverage(x + 20.0, y)
    assert (far.precision, far.recall, far.density, far.coverage) == (0.0, 0.0, 0.0, 0.0)
    assert np.isnan(coverage(x[:5], y).precision)


def test_coverage_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 3)) + 0.5, rng.normal(size=(30, 3))

    def radii(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sort(np.linalg.norm(z[:, None] - z, axis=2), axis=1)[:, 5]

    gaps = np.linalg.norm(y[:, None] - x, axis=2)
    balls = gaps <= radii(y)[:, None]
    found = coverage(x, y)
    assert found.precision == pytest.approx(balls.any(axis=0).mean())
    assert found.density == pytest.approx(balls.sum() / (5 * 40))
    assert found.coverage == pytest.approx(balls.any(axis=1).mean())
    assert found.recall == pytest.approx((gaps <= radii(x)).any(axis=1).mean())


def test_the_kernel_distance_is_unbiased_and_grows() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3000, 16))
    assert abs(kernel_distance(x, y, 0)) < 0.01
    assert kernel_distance(x + 0.5, y, 0) > 10 * abs(kernel_distance(x + 0.1, y, 0)) > 0
    few = x[:20], y[:30] + 1.0  # all of them are in every subset: against the double sum
    kernel = [(a @ b.T / 16 + 1) ** 3 for a, b in ((few[0], few[0]), (few[1][:20], few[1][:20]))]
    assert kernel_distance(few[0], few[1][:20], 0) == pytest.approx(
        sum((k.sum() - np.trace(k)) / 380 for k in kernel)
        - 2 * ((few[0] @ few[1][:20].T / 16 + 1) ** 3).mean()
    )


def test_samples_that_are_the_records_give_their_members_away() -> None:
    rng = np.random.default_rng(0)
    members, outsiders, fresh = rng.normal(size=(3, 400, 8))
    copied = membership(members + 1e-3, members, outsiders, 300, 0)
    assert copied == Membership(1.0, 1.0, 300)
    honest = membership(fresh, members, outsiders, 1_000, 0)
    assert honest.records == 400 and honest.auc == pytest.approx(0.5, abs=0.1) and honest.found < 0.1
    assert np.isnan(membership(fresh[:0], members, outsiders, 10, 0).auc)


def test_no_attack_on_gaussian_noise_passes_the_area_that_mu_allows() -> None:
    """Noisy sums of a member and of an outsider: the ranking by correlation, which is the best there is."""
    assert auc_at_most(0.0) == 0.5 and auc_at_most(1.0) == pytest.approx(0.69146, abs=1e-5)
    rng = np.random.default_rng(0)
    record = np.array([1.0, 0.0]), np.array([-1.0, 0.0])  # replacing one by the other moves the sum by 2
    noisy = record[0] + rng.normal(size=(20_000, 2)) * 2 / 1.0  # mu = 1
    area = np.mean(noisy @ record[0] > noisy @ record[1])
    assert area == pytest.approx(auc_at_most(1.0), abs=0.01)


def test_the_nearest_row_is_found_across_blocks() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2_500, 4, 4, 1)).astype(np.uint8)
    chosen = rng.permutation(2_500)[:20]
    almost = np.clip(images[chosen].astype(int) + rng.integers(-3, 4, (20, 4, 4, 1)), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(nearest_rows(almost, images), chosen)
    assert len(nearest_rows(images[:0], images)) == 0


def test_the_inception_score_is_one_without_and_the_number_of_classes_with_variety() -> None:
    assert inception_score(np.full((50, 10), 0.1)) == pytest.approx(1.0)
    assert inception_score(np.tile(np.eye(10)[:1], (50, 1))) == pytest.approx(1.0)
    assert inception_score(np.tile(np.eye(10), (5, 1))) == pytest.approx(10.0)


def test_logistic_regression_on_degenerate_samples(digits: Labelled) -> None:
    images, labels = digits
    one = np.zeros(20, dtype=np.int32)
    assert logreg_accuracy(images[:20], one, images, labels) == np.mean(labels == 0)
    assert np.isnan(logreg_accuracy(images[:20], one - 1, images, labels))


def _pixels(png: bytes) -> NDArray[np.float64]:
    from matplotlib.image import imread

    assert png.startswith(b"\x89PNG")
    return np.asarray(imread(io.BytesIO(png), format="png"))


def test_grids_show_every_class_and_fit_the_value_range(digits: Labelled) -> None:
    images, labels = digits
    names = [f"digit {i}" for i in range(10)]
    grid = _pixels(image_grid(images, labels, names, 8, value_range=(0, 16)))
    plain = _pixels(image_grid(images, None, [], 6, value_range=(0, 16)))
    assert grid.shape[0] > 10 * 48
    assert grid.shape[1] > plain.shape[1]
    assert grid[..., :3].max() > 0.99
    assert _pixels(image_grid(images[labels != 3], labels[labels != 3], names, 4)).shape[0] == grid.shape[0]
    colour = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    assert _pixels(image_grid(colour, np.full(4, -1), [], 3)).ndim == 3
    assert _pixels(image_grid(images[:0], None, [], 3)).ndim == 3


def test_reconstructions_stand_below_their_originals() -> None:
    white, black = np.full((3, 64, 64, 1), 255, np.uint8), np.zeros((3, 64, 64, 1), np.uint8)
    strip = _pixels(image_pairs(white, black, ("original", "decoded")))[4:-4, -190:-10, :3]
    half = len(strip) // 2
    assert strip[: half - 2].mean() > 0.98
    assert strip[half + 2 :].mean() < 0.05


def test_losses_mark_the_epoch_that_was_kept() -> None:
    history = [{"train_loss": 0.5 / i, "holdout_loss": loss} for i, loss in enumerate((0.6, 0.2, 0.4), 1)]
    later = [*history[:2], {"train_loss": 0.1, "holdout_loss": 0.1}]
    assert _pixels(losses_figure(history)).shape == (340, 640, 4)
    assert not np.array_equal(_pixels(losses_figure(history)), _pixels(losses_figure(later)))
    assert _pixels(losses_figure(history[:1])).ndim == 3


def test_figures_are_drawn() -> None:
    rng = np.random.default_rng(0)
    edges = np.linspace(-1, 1, 33)
    released = rng.dirichlet(np.ones(32), 5)
    noisy, end = released + 0.01 * rng.normal(size=released.shape), rng.dirichlet(np.ones(32), 5)
    masses = SliceMasses(noisy, released, released[::-1], end)
    whole = _pixels(slices_figure(edges, masses))
    assert whole.shape[1] > 600
    assert not np.array_equal(whole, _pixels(slices_figure(edges, dataclasses.replace(masses, start=None))))
    one = SliceMasses(noisy[:1], released[:1], None, end[:1])
    assert _pixels(slices_figure(edges, one, private=end[:1])).ndim == 3
    curve = _pixels(curve_figure(range(50), np.exp(-np.arange(50) / 5), "Distance", "sliced W2"))
    assert curve.shape[1] == 640
    assert _pixels(curve_figure([0], [0.0], "Distance", "sliced W2")).ndim == 3


def test_a_film_shows_every_frame_and_moves() -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 2, 3, 8, 8, 1)).astype(np.uint8)
    strip = _pixels(film_strip(frames, [0, 1, 2, 5], ["a", "b"]))
    other = frames.copy()
    other[3, 1, 2] = 0
    assert not np.array_equal(strip, _pixels(film_strip(other, [0, 1, 2, 5], ["a", "b"])))
    moving = moving_grid(frames, [0, 1, 2, 5])
    assert moving is not None
    with Image.open(io.BytesIO(moving)) as picture:
        assert getattr(picture, "n_frames", 1) == 4
        shown = []
        for number in range(4):
            picture.seek(number)
            shown.append(np.asarray(picture.convert("L")))
    size = shown[0].shape[1] // (3 * 9)
    assert shown[2][16 : 16 + size, :size].mean() == pytest.approx(frames[2, 0, 0, 0, 0, 0])
    assert moving_grid(rng.integers(0, 256, (4, 2, 3, 64, 64, 3)), [0, 1, 2, 5], most=1_000) is None
    colour = moving_grid(rng.integers(0, 256, (2, 1, 1, 8, 8, 3)), [0, 1])
    assert colour is not None and _pixels(colour).shape[2] >= 3


def test_a_classifier_learns_on_cuda_what_it_learns_on_the_cpu(
    digits: Labelled, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    images, labels = digits
    expected = train_classifier(DIGITS, images[:200], labels[:200], 10, 0).probabilities(images[200:300])
    request.getfixturevalue("fake_cuda")
    made = train_classifier(DIGITS, images[:200], labels[:200], 10, 0, device="cuda")
    assert np.allclose(made.probabilities(images[200:300]), expected, atol=1e-3)
    made.save(tmp_path)
    loaded = load_classifier(tmp_path, "cuda")
    assert np.array_equal(loaded.features(images[200:300]), made.features(images[200:300]))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_model_learns_on_cuda_what_it_learns_on_the_cpu(
    kind: ModelKind, digits: Labelled, request: pytest.FixtureRequest
) -> None:
    images, labels = digits

    def accuracy(device: str) -> float:
        learnt, real = (images[:200], labels[:200]), (images[200:400], labels[200:400])
        return model_accuracy(kind, *learnt, *real, schema=DIGITS, classes=10, seed=0, device=device)

    expected = accuracy("cpu")
    request.getfixturevalue("fake_cuda")
    assert accuracy("cuda") == pytest.approx(expected, abs=0.02)
