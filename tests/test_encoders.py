from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import on_cuda
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from support import flip

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import digest_arrays, read_manifest, write_manifest
from dpsw_ray.config.run import EncoderConfig, RunConfig
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders import (
    Encoder,
    IdentityEncoder,
    cached_encoder,
    fit_encoder,
    load_encoder,
    train_autoencoder,
)
from dpsw_ray.encoders.architectures import build_autoencoder
from dpsw_ray.encoders.residuals import NEAREST, Residuals

DIGITS = RecordSchema("image", (8, 8, 1), (), (0, 16))
TABLE = RecordSchema("table", (3,), ("age", "income", "score"))
QUICK = EncoderConfig(kind="mlp", latent_dim=8, epochs=4, batch_size=64, learning_rate=2e-3)


@pytest.fixture(scope="module")
def digits() -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = load_digits().images.astype(np.uint8)[..., None]
    return images


def table(n: int = 500) -> NDArray[np.float64]:
    rng = np.random.default_rng(1)
    return rng.normal([40.0, 3e4, 0.0], [12.0, 1e4, 1.0], (n, 3))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("conv", (28, 28, 1)),
        ("conv", (8, 8, 1)),
        ("conv", (31, 32, 3)),
        ("dcgan32", (28, 28, 1)),
        ("dcgan64", (64, 64, 3)),
        ("vgg64", (64, 64, 1)),
        ("mlp", (8, 8, 1)),
        ("mlp", (5,)),
    ],
)
@pytest.mark.parametrize(("sphere", "classes"), [(True, 0), (False, 0), (True, 3)])
def test_every_net_maps_its_records_into_the_ball_and_back(
    kind: str, shape: tuple[int, ...], sphere: bool, classes: int
) -> None:
    net = build_autoencoder(kind, shape, 6, sphere, classes).eval()
    with torch.no_grad():
        labels = torch.tensor([0, 2, -1])
        latents = net.encode(torch.rand(3, *shape), labels)
        assert latents.shape == (3, 6)
        assert net.decode(latents, labels).shape == (3, *shape)
    norms = latents.norm(dim=1)
    assert torch.allclose(norms, torch.ones(3)) if sphere else bool((norms < 1).all())


def test_a_net_too_small_for_the_images_names_the_ones_that_fit() -> None:
    with pytest.raises(
        UserError, match=r"conv takes images up to 32x32, found 64x64; take dcgan64 or vgg64 or mlp"
    ):
        build_autoencoder("conv", (64, 64, 3), 8, True)


def test_digits_can_be_read_again_after_a_short_training(digits: NDArray[np.uint8]) -> None:
    config = QUICK.model_copy(update={"epochs": 60, "patience": 30})
    encoder = train_autoencoder(DIGITS, digits[:900], config, seed=0)
    held_out = digits[900:]
    latents = encoder.encode(held_out)
    decoded = encoder.decode(latents)
    assert latents.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(latents, axis=1), 1.0, rtol=1e-12)
    assert decoded.dtype == np.uint8
    assert decoded.shape == held_out.shape
    assert decoded.max() <= 16
    assert np.mean((decoded / 16.0 - held_out / 16.0) ** 2) < 0.025  # the mean image: 0.073
    assert encoder.history[-1]["holdout_loss"] < encoder.history[0]["holdout_loss"]


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_latent_does_not_depend_on_the_records_beside_it(digits: NDArray[np.uint8], kind: str) -> None:
    config = QUICK.model_copy(update={"kind": kind, "epochs": 1})
    encoder = train_autoencoder(DIGITS, digits[:300], config, seed=0)
    whole = encoder.encode(digits[:700])
    order = np.random.default_rng(0).permutation(700)
    np.testing.assert_array_equal(encoder.encode(digits[:700][order]), whole[order])
    shards = [encoder.encode(part) for part in np.array_split(digits[:700], [1, 90, 333])]
    np.testing.assert_array_equal(np.concatenate(shards), whole)
    assert encoder.encode(digits[:0]).shape == (0, 8)
    assert encoder.decode(whole[:0]).shape == (0, 8, 8, 1)


def test_training_is_deterministic_and_leaves_torch_as_it_was(digits: NDArray[np.uint8]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (train_autoencoder(DIGITS, digits[:300], QUICK, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.encode(digits), again.encode(digits))
    other = train_autoencoder(DIGITS, digits[:300], QUICK, seed=4)
    assert not np.array_equal(first.encode(digits), other.encode(digits))


def test_early_stopping_keeps_the_best_weights(digits: NDArray[np.uint8]) -> None:
    config = QUICK.model_copy(update={"epochs": 400, "patience": 3, "learning_rate": 1e-2})
    encoder = train_autoencoder(DIGITS, digits[:120], config, seed=0)
    losses = [epoch["holdout_loss"] for epoch in encoder.history]
    assert len(losses) < 400
    assert len(losses) - 1 - int(np.argmin(losses)) == 3


def test_early_stopping_sees_the_net_and_no_lag_of_its_statistics(digits: NDArray[np.uint8]) -> None:
    config = QUICK.model_copy(update={"kind": "conv", "batch_size": 250, "learning_rate": 3e-3})
    history = train_autoencoder(DIGITS, digits[:400], config, seed=0).history  # two steps an epoch
    for epoch in history:
        assert epoch["holdout_loss"] < 1.1 * epoch["train_loss"], history


def test_progress_reports_every_epoch(digits: NDArray[np.uint8]) -> None:
    calls: list[tuple[str, int, int, dict[str, float]]] = []
    train_autoencoder(DIGITS, digits[:200], QUICK, 0, lambda *call: calls.append(call))
    assert [call[:3] for call in calls] == [("encoder", epoch, 4) for epoch in (1, 2, 3, 4)]
    assert set(calls[0][3]) == {"train_loss", "holdout_loss"}


def test_a_table_goes_through_the_mlp(digits: NDArray[np.uint8]) -> None:
    config = QUICK.model_copy(update={"latent_dim": 3, "sphere": False, "epochs": 30})
    encoder = train_autoencoder(TABLE, table(), config, seed=0)
    extreme = np.array([[1e300, -1e300, np.inf], [np.nan, 0.0, 0.0]])
    latents = encoder.encode(np.concatenate([table(), extreme]))
    assert np.isnan(latents[500:]).all()
    assert np.linalg.norm(latents[:500], axis=1).max() <= 1 + 1e-12
    decoded = encoder.decode(latents[:500])
    assert decoded.dtype == np.float64
    assert np.mean(((decoded - table()) / table().std(axis=0)) ** 2) < 0.3
    with pytest.raises(UserError, match="must be mse for a table"):
        train_autoencoder(TABLE, table(), config.model_copy(update={"loss": "bce"}), seed=0)


def test_classes_lie_apart_where_the_encoder_learns_them(digits: NDArray[np.uint8]) -> None:
    from sklearn.linear_model import LogisticRegression

    labels = load_digits().target.astype(np.int32)
    known = np.where(np.arange(1000) % 5, labels[:1000], -1).astype(np.int32)
    accuracies = []
    for weight in (0.0, 0.1):
        config = QUICK.model_copy(update={"classification": weight, "epochs": 15})
        encoder = train_autoencoder(DIGITS, digits[:1000], config, seed=0, public_labels=known)
        latents = encoder.encode(digits)
        reader = LogisticRegression(C=100.0, max_iter=500).fit(latents[:1000], labels[:1000])
        accuracies.append(reader.score(latents[1000:], labels[1000:]))
        assert not any("head" in name for name in encoder.weights())
    assert accuracies[1] > accuracies[0] + 0.03, accuracies
    with pytest.raises(UserError, match="classification needs public labels"):
        train_autoencoder(DIGITS, digits[:200], config, seed=0, public_labels=np.full(200, -1, np.int32))


def test_a_decoder_that_was_jittered_knows_what_lies_beside_the_latents(digits: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(0)
    errors = []
    for jitter in (0.0, 0.2):
        config = QUICK.model_copy(update={"jitter": jitter, "epochs": 60, "patience": 60})
        encoder = train_autoencoder(DIGITS, digits[:1000], config, seed=0)
        latents = encoder.encode(digits[1000:])
        beside = latents + 0.4 / np.sqrt(8) * rng.standard_normal(latents.shape)
        beside /= np.linalg.norm(beside, axis=1, keepdims=True)
        gap = encoder.decode(beside).astype(float) - digits[1000:]
        errors.append(np.mean(gap**2))
    assert errors[1] < errors[0]


CONDITIONAL = QUICK.model_copy(update={"conditional": True, "detail": 200})


def _conditional(digits: NDArray[np.uint8], **changes: Any) -> tuple[Encoder, NDArray[np.int32]]:
    labels = load_digits().target.astype(np.int32)
    config = CONDITIONAL.model_copy(update=changes)
    known = np.where(np.arange(900) % 9, labels[:900], -1).astype(np.int32)
    encoder = fit_encoder(DIGITS, digits[:900], config, seed=0, public_labels=known, classes=10)
    return encoder, labels


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_conditional_encoder_reads_the_class_on_both_sides(digits: NDArray[np.uint8], kind: str) -> None:
    encoder, labels = _conditional(digits, kind=kind, epochs=2, detail=0)
    assert encoder.conditional
    latents = encoder.encode(digits, labels)
    np.testing.assert_allclose(np.linalg.norm(latents, axis=1), 1.0, rtol=1e-12)
    other = (labels + 1) % 10
    assert not np.array_equal(encoder.encode(digits, other), latents)
    assert not np.array_equal(encoder.decode(latents, other), encoder.decode(latents, labels))
    without = np.full_like(labels, -1)
    assert not np.array_equal(encoder.decode(latents, without), encoder.decode(latents, labels))


def test_a_random_latent_is_decoded_to_the_class_that_it_is_given(digits: NDArray[np.uint8]) -> None:
    from sklearn.linear_model import LogisticRegression

    encoder, labels = _conditional(digits, epochs=30, detail=0)
    reader = LogisticRegression(max_iter=500).fit(digits.reshape(len(digits), -1) / 16, labels)
    latents = np.random.default_rng(0).standard_normal((1000, 8))
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    decoded = encoder.decode(latents, labels[:1000]).reshape(1000, -1) / 16
    assert reader.score(decoded, labels[:1000]) > 0.5  # of a chance of a tenth


def test_a_conditional_encoder_will_not_guess_classes(digits: NDArray[np.uint8]) -> None:
    encoder, labels = _conditional(digits, epochs=1)
    with pytest.raises(ValueError, match="needs labels"):
        encoder.encode(digits)
    with pytest.raises(ValueError, match="needs labels"):
        encoder.decode(np.zeros((3, 8)))
    with pytest.raises(ValueError, match="5 rows, but 4 labels"):
        encoder.encode(digits[:5], labels[:4])
    unlabelled = np.full(300, -1, np.int32)
    with pytest.raises(
        UserError, match=r"encoder\.conditional needs public labels, found none: set it to false"
    ):
        fit_encoder(DIGITS, digits[:300], CONDITIONAL, 0, public_labels=unlabelled, classes=10)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_conditional_latent_depends_on_its_record_and_class_alone(
    digits: NDArray[np.uint8], kind: str
) -> None:
    encoder, labels = _conditional(digits, kind=kind, epochs=1)
    whole = encoder.encode(digits[:700], labels[:700])
    decoded = encoder.decode(whole, labels[:700])
    for part in np.array_split(np.random.default_rng(0).permutation(700), [1, 90, 333]):
        np.testing.assert_array_equal(encoder.encode(digits[part], labels[part]), whole[part])
        np.testing.assert_array_equal(encoder.decode(whole[part], labels[part]), decoded[part])
    assert encoder.decode(whole[:0], labels[:0]).shape == (0, 8, 8, 1)


@pytest.mark.parametrize("changes", [{}, {"conditional": False}, {"detail": 0, "kind": "conv"}])
def test_encoders_with_classes_or_residuals_come_back_bit_for_bit(
    digits: NDArray[np.uint8], changes: dict[str, Any], tmp_path: Path
) -> None:
    encoder, labels = _conditional(digits, epochs=1, **changes)
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert again.conditional == encoder.conditional
    latents = encoder.encode(digits, labels)
    np.testing.assert_array_equal(again.encode(digits, labels), latents)
    np.testing.assert_array_equal(again.decode(latents, labels), encoder.decode(latents, labels))
    twin, _ = _conditional(digits, epochs=1, **changes)
    np.testing.assert_array_equal(twin.decode(latents, labels), encoder.decode(latents, labels))


def test_an_encoder_of_before_classes_is_still_read(digits: NDArray[np.uint8], tmp_path: Path) -> None:
    encoder = fit_encoder(DIGITS, digits[:300], QUICK, seed=0)
    encoder.save(tmp_path)
    manifest = json.loads((tmp_path / "encoder.json").read_text())
    del manifest["classes"], manifest["sha256"]
    for key in ("conditional", "detail"):
        del manifest["config"][key]
    (tmp_path / "encoder.json").write_text(json.dumps(manifest))
    again = load_encoder(tmp_path)
    np.testing.assert_array_equal(again.encode(digits), encoder.encode(digits))


def test_decoded_records_borrow_what_the_decoder_leaves_out(digits: NDArray[np.uint8]) -> None:
    plain = QUICK.model_copy(update={"epochs": 30})
    smooth = train_autoencoder(DIGITS, digits[:900], plain, seed=0)
    lent = train_autoencoder(DIGITS, digits[:900], plain.model_copy(update={"detail": 900}), seed=0)
    latents = smooth.encode(digits[900:])
    np.testing.assert_array_equal(lent.encode(digits[900:]), latents)
    real, mean, drawn = (x / 16 for x in (digits[900:], smooth.decode(latents), lent.decode(latents)))
    missing, left = (1 - x.var(axis=0).sum() / real.var(axis=0).sum() for x in (mean, drawn))
    assert missing > 0.25 and abs(left) < 0.5 * missing, (missing, left)


def test_no_record_borrows_its_own_detail() -> None:
    latents = torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    residuals = Residuals(latents, torch.zeros(50, dtype=torch.int64), torch.arange(50.0)[:, None])
    assert not (residuals.lent(latents)[:, 0] == torch.arange(50)).any()


def test_residuals_are_lent_by_the_nearest_of_the_class_where_it_has_any() -> None:
    rng = np.random.default_rng(0)
    kept, points = (torch.from_numpy(rng.uniform(-0.5, 0.5, (n, 3))).float() for n in (300, 500))
    residuals = Residuals(kept, torch.arange(300) % 3, torch.arange(300.0)[:, None])
    wanted = torch.arange(500) % 4
    rows = residuals.lent(points, wanted)[:, 0].long()
    own = wanted < 3
    assert torch.equal(rows[own] % 3, wanted[own])
    assert len(torch.unique(rows[~own] % 3)) == 3  # class 3 has none of its own
    gaps = torch.cdist(points, kept)
    lent = gaps.gather(1, residuals.lent(points).long())
    assert bool((lent[:, 0] <= gaps.sort(dim=1).values[:, NEAREST - 1] + 1e-6).all())
    few = Residuals(kept[:2], torch.zeros(2, dtype=torch.int64), torch.arange(2.0)[:, None])
    assert set(few.lent(points)[:, 0].tolist()) == {0.0, 1.0}


def test_bce_trains_images(digits: NDArray[np.uint8]) -> None:
    encoder = train_autoencoder(DIGITS, digits[:300], QUICK.model_copy(update={"loss": "bce"}), seed=0)
    assert encoder.history[-1]["train_loss"] < encoder.history[0]["train_loss"]


def test_too_few_public_records_is_a_sentence(digits: NDArray[np.uint8]) -> None:
    with pytest.raises(UserError, match="too few to train"):
        train_autoencoder(DIGITS, digits[:2], QUICK, seed=0)


@pytest.mark.parametrize("kind", ["mlp", "conv", "identity"])
def test_saved_encoders_come_back_bit_for_bit(digits: NDArray[np.uint8], kind: str, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"kind": kind, "epochs": 1})
    encoder = fit_encoder(DIGITS, digits[:300], config, seed=0)
    encoder.save(tmp_path / "e")
    again = load_encoder(tmp_path / "e")
    assert (again.schema, again.latent_dim, again.sphere) == (DIGITS, encoder.latent_dim, encoder.sphere)
    latents = encoder.encode(digits)
    np.testing.assert_array_equal(again.encode(digits), latents)
    np.testing.assert_array_equal(again.decode(latents), encoder.decode(latents))
    assert again.history == encoder.history
    assert [sorted(epoch) for epoch in again.history] == (
        [] if kind == "identity" else [["holdout_loss", "train_loss"]]
    )


def test_every_changed_bit_of_an_encoder_is_seen(tmp_path: Path) -> None:
    encoder = IdentityEncoder.fit(TABLE, table())
    encoder.save(tmp_path)
    for name in ("encoder.json", "weights.pt"):
        path = tmp_path / name
        whole = path.read_bytes()
        for place in np.random.default_rng(0).choice(8 * len(whole), 125, replace=False):
            flip(path, int(place))
            try:
                again = load_encoder(tmp_path)
            except UserError as refused:
                assert "damaged" in str(refused)
            else:  # a space, or the name of the digest itself
                assert name == "encoder.json" and again.manifest() == encoder.manifest()
            path.write_bytes(whole)


def test_a_damaged_encoder_is_refused(tmp_path: Path) -> None:
    IdentityEncoder.fit(TABLE, table()).save(tmp_path)
    weights = tmp_path / "weights.pt"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="damaged"):
        load_encoder(tmp_path)
    weights.write_bytes(whole)
    manifest = read_manifest(tmp_path / "encoder.json")
    write_manifest(tmp_path / "encoder.json", {**manifest, "family": "other"})
    with pytest.raises(UserError, match="does not hold an encoder"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").unlink()
    with pytest.raises(UserError, match=r"encoder\.json is missing"):
        load_encoder(tmp_path)


def test_identity_standardises_by_the_public_part_and_inverts() -> None:
    public = table()
    encoder = IdentityEncoder.fit(TABLE, public)
    assert (encoder.latent_dim, encoder.sphere) == (3, False)
    latents = encoder.encode(public)
    norms = np.linalg.norm(latents, axis=1)
    assert norms.max() <= 1 + 1e-12
    assert (norms < 1 - 1e-12).mean() > 0.995
    inside = norms < 1 - 1e-12
    np.testing.assert_allclose(encoder.decode(latents)[inside], public[inside], rtol=1e-9, atol=1e-9)


def test_identity_with_bounds_moves_no_record_inside_the_box() -> None:
    bounds = {"age": (0.0, 120.0), "income": (0.0, 1e6), "score": (-4.0, 4.0)}
    encoder = IdentityEncoder.fit(TABLE, table(0), bounds)
    corners = np.array([[a, i, s] for a in (0, 120) for i in (0, 1e6) for s in (-4, 4)], dtype=np.float64)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(corners), axis=1), 1.0)
    np.testing.assert_allclose(encoder.decode(encoder.encode(corners)), corners, atol=1e-9)
    outside = encoder.decode(encoder.encode(np.array([[500.0, -1.0, 0.0]])))
    np.testing.assert_allclose(outside, [[120.0, 0.0, 0.0]], atol=1e-9)
    with pytest.raises(UserError, match="is no column"):
        IdentityEncoder.fit(TABLE, table(), {"weight": (0.0, 1.0)})


def test_identity_bounds_every_record_whatever_it_holds() -> None:
    encoder = IdentityEncoder.fit(TABLE, table())
    big = np.finfo(np.float64).max
    extreme = np.array(
        [[big, big, -big], [np.inf, 0, 0], [np.nan] * 3, [-np.inf, np.inf, np.nan], [1e200, 0, 1]]
    )
    latents = encoder.encode(extreme)
    assert np.isfinite(latents[[0, 4]]).all()
    assert np.isnan(latents[1:4]).all()
    latents = latents[[0, 4]]
    assert np.linalg.norm(latents, axis=1).max() <= 1 + 1e-12


def test_identity_survives_a_constant_column() -> None:
    public = table()
    public[:, 1] = 0.1
    encoder = IdentityEncoder.fit(TABLE, public)
    np.testing.assert_allclose(encoder.decode(encoder.encode(public))[:, 1], 0.1)


def _counting(digits: NDArray[np.uint8], calls: list[int], config: RunConfig) -> Any:
    def train() -> Any:
        calls.append(1)
        return fit_encoder(DIGITS, digits[:200], config.encoder, config.seed)

    return train


def test_the_cache_trains_once_and_again_when_anything_changes(
    digits: NDArray[np.uint8], tmp_path: Path
) -> None:
    config = RunConfig(encoder=QUICK.model_copy(update={"epochs": 1}))
    calls: list[int] = []
    digest = digest_arrays(digits[:200])
    first = cached_encoder(config, DIGITS, digest, tmp_path, _counting(digits, calls, config))
    second = cached_encoder(config, DIGITS, digest, tmp_path, _counting(digits, calls, config))
    assert len(calls) == 1
    np.testing.assert_array_equal(first.encode(digits), second.encode(digits))
    privacy = config.model_copy(update={"privacy": config.privacy.model_copy(update={"epsilon": 3.0})})
    cached_encoder(privacy, DIGITS, digest, tmp_path, _counting(digits, calls, config))
    assert len(calls) == 1
    cached_encoder(
        config.model_copy(update={"seed": 1}), DIGITS, digest, tmp_path, _counting(digits, calls, config)
    )
    cached_encoder(config, DIGITS, digest_arrays(digits[:199]), tmp_path, _counting(digits, calls, config))
    assert len(calls) == 3
    folders = list((tmp_path / "encoders").iterdir())
    assert len(folders) == 3
    assert not [folder for folder in folders if folder.name.endswith(".part")]


def test_a_damaged_cache_is_trained_anew(digits: NDArray[np.uint8], tmp_path: Path) -> None:
    config = RunConfig(encoder=QUICK.model_copy(update={"epochs": 1}))
    calls: list[int] = []
    cached_encoder(config, DIGITS, "x", tmp_path, _counting(digits, calls, config))
    (folder,) = (tmp_path / "encoders").iterdir()
    (folder / "weights.pt").write_bytes(b"")
    cached_encoder(config, DIGITS, "x", tmp_path, _counting(digits, calls, config))
    assert len(calls) == 2
    load_encoder(folder)


def test_digests_see_values_types_shapes_and_names() -> None:
    base = np.arange(6, dtype=np.int32)
    variants: list[NDArray[Any]] = [base, base + 1, base.astype(np.int64), base.reshape(2, 3), base[::-1]]
    digests = {digest_arrays(variant) for variant in variants} | {digest_arrays(values=base)}
    assert len(digests) == len(variants) + 1
    assert digest_arrays(base.copy()) == digest_arrays(base)


LEARNT: list[dict[str, Any]] = [
    {},
    {"kind": "conv"},
    {"loss": "bce", "jitter": 0.1, "classification": 0.3},
    {"conditional": True, "detail": 100},
]


@pytest.mark.usefixtures("fake_cuda")
def test_a_table_goes_through_the_mlp_on_cuda() -> None:
    encoder = train_autoencoder(TABLE, table(), QUICK, seed=0, device="cuda")
    assert on_cuda(*encoder.weights().values())
    assert encoder.decode(encoder.encode(table(9))).shape == (9, 3)


@pytest.mark.parametrize("changes", LEARNT, ids=str)
def test_an_encoder_learns_on_cuda_what_it_learns_on_the_cpu(
    changes: dict[str, Any], digits: NDArray[np.uint8], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config, classes = QUICK.model_copy(update={"epochs": 2} | changes), load_digits().target.astype(np.int32)
    known: dict[str, Any] = {"public_labels": classes[:300], "classes": 10}
    given = digits[300:400], classes[300:400]
    expected = train_autoencoder(DIGITS, digits[:300], config, 0, **known)
    latents = expected.encode(*given)
    records = expected.decode(latents, given[1]).astype(int)
    request.getfixturevalue("fake_cuda")
    made = train_autoencoder(DIGITS, digits[:300], config, 0, device="cuda", **known)
    assert on_cuda(*made.weights().values())
    for found, wanted in zip(made.history, expected.history, strict=True):
        assert found == pytest.approx(wanted)
    assert np.allclose(made.encode(*given), latents, atol=1e-5)
    made.save(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder", "cuda")
    assert on_cuda(*loaded.weights().values())
    assert np.abs(loaded.decode(latents, given[1]) - records).max() <= 1
    assert np.array_equal(load_encoder(tmp_path / "encoder").encode(*given), made.encode(*given))
