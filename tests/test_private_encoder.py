"""A private encoder: noisy moments under the same protocol and the same epsilon as the release, and what they make."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import small
from test_boundary import recorded_run
from test_release import shards, store

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import open_dataset
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders import BasisEncoder, PcaEncoder, load_encoder
from dpsw_ray.pipeline.accounting import load_request
from dpsw_ray.pipeline.generate import generate
from dpsw_ray.pipeline.plan import describe_plan, make_moments_plan, make_plan, planned, run_events
from dpsw_ray.pipeline.records import Records
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy.accountants import bound
from dpsw_ray.privacy.events import DpPcaEvent, NoiseKind
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.noise import MAX_STD, NoiseKey, low_bits
from dpsw_ray.privacy.relations import RELATIONS, Relation
from dpsw_ray.privacy.statement import noise_kinds
from dpsw_ray.private.latents import BALL, NULL, LatentStore, bounded
from dpsw_ray.private.moments import moment_sums
from dpsw_ray.private.moments import noise as moment_noise
from dpsw_ray.release.masks import unmask
from dpsw_ray.release.moments import Lattice, Moments, MomentsPlan, moments_event
from dpsw_ray.tables.planner import encoder_share

QUIET = Progress(quiet=True)
IMAGES = RecordSchema("image", (8, 8, 1), value_range=(0, 16))


LATTICE = Lattice(1024)
STEPS, CONSTANT, LONGEST = LATTICE.steps, LATTICE.constant, LATTICE.longest


def plan(dim: int = 4, noise_std: float = 0.0, release_id: str = "r") -> MomentsPlan:
    return MomentsPlan(release_id, dim, noise_std, LATTICE)


def frobenius_sq(triangle: np.ndarray, dim: int) -> int:
    """Squared length of an upper triangle, entries beside the diagonal counted twice: exact."""
    rows, columns = np.triu_indices(dim + 1)
    return sum(int(x) ** 2 * (1 if i == j else 2) for x, i, j in zip(triangle, rows, columns, strict=True))


def one(record: np.ndarray) -> np.ndarray:
    """What one record of any length adds, through the code that bounds it."""
    return moment_sums([bounded(record[None], np.zeros(1, np.int32))], plan(len(record)))


def private(*overrides: str, home: Path) -> RunConfig:
    return small(
        "data.public_fraction=0", "data.classes=[0,1,2,3,4,5,6,7,8,9]", "encoder.kind=dp_pca", "encoder.latent_dim=4",
        "encoder.basis=20", "cluster.executor=local", f"paths.home={home}", *overrides,
    )  # fmt: skip


def test_the_longest_record_is_a_whole_number() -> None:
    for fineness in (8, 9, 1310, 4096):
        lattice = Lattice(fineness)
        assert lattice.steps**2 + lattice.constant**2 == lattice.longest**2


@pytest.mark.parametrize("dim", [2, 7, 40])
def test_no_pair_of_records_exceeds_the_stated_sensitivity(dim: int) -> None:
    """Rounding included, however long the records are, in exact integers."""
    rng = np.random.default_rng(dim)
    for trial in range(200):
        x, y = rng.standard_normal((2, dim)) * 10.0 ** rng.integers(-3, 6)
        if trial % 4 == 0:
            y = -x
        first, second = one(x), one(y)
        assert frobenius_sq(first, dim) <= LONGEST**4
        assert frobenius_sq(first - second, dim) <= 2 * LONGEST**4
    assert not moment_sums([bounded(np.full((1, dim), np.nan), np.zeros(1, np.int32))], plan(dim)).any()


def test_a_worst_pair_reaches_the_sensitivity() -> None:
    """Two records at the rim whose inner product is -k^2."""
    cosine = -((CONSTANT / STEPS) ** 2)
    x = np.array([1.0, 0.0]) * BALL
    y = np.array([cosine, math.sqrt(1 - cosine**2)]) * BALL
    assert frobenius_sq(one(x) - one(y), 2) > 0.999 * 2 * LONGEST**4
    assert frobenius_sq(one(x), 2) > 0.999 * LONGEST**4


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("noise", ["gaussian", "discrete_gaussian"])
def test_the_event_charges_the_exact_sensitivity(relation: Relation, noise: NoiseKind) -> None:
    event = moments_event(relation, 1.0, 1e-5, 0.25, 3, noise)
    ((loss, times),) = event.costs(relation)[0].items()
    changed = 2 if relation == "replace_one" else 1
    assert times == 1
    charged = MomentsPlan.of(event, 3, "r")
    assert charged.event == event
    squared = 2 * Fraction(loss.rho) if noise == "discrete_gaussian" else Fraction(loss.mu) ** 2  # type: ignore[attr-defined]
    claimed = squared * Fraction(event.noise_std) ** 2
    assert claimed >= changed * charged.lattice.longest**4 * (1 - Fraction(1, 10**14))


@pytest.mark.parametrize("dim", [2, 20, 400, 4096])
@pytest.mark.parametrize("epsilon", [0.05, 0.2, 1.0, 10.0, 100.0])
def test_the_lattice_is_as_coarse_as_the_low_bits_of_the_noise_ask_for(epsilon: float, dim: int) -> None:
    """Whatever they tell of a record is at most a hundredth of what is charged, in every plan that is accepted."""
    event = moments_event("replace_one", epsilon, 1e-6, 0.1, dim)
    charged = MomentsPlan.of(event, dim, "r")
    ((loss, _),) = event.costs("replace_one")[0].items()
    assert low_bits(event.noise_std, charged.cells[0]) <= 0.01 * loss.mu  # type: ignore[attr-defined]
    finer = dataclasses.replace(charged.lattice, fineness=charged.lattice.fineness + 1)
    too_fine = event.noise_std * (finer.longest / charged.lattice.longest) ** 2
    largest = charged.lattice.fineness == 4096 or too_fine > MAX_STD
    assert largest or low_bits(too_fine, charged.cells[0]) > 0.01 * loss.mu  # type: ignore[attr-defined]


def test_moments_whose_low_bits_would_tell_of_a_record_are_refused() -> None:
    with pytest.raises(UserError, match=r"low bits.*or privacy.noise discrete_gaussian\.$"):
        moments_event("replace_one", 0.01, 1e-6, 0.1, 4096)
    exact = moments_event("replace_one", 0.01, 1e-6, 0.1, 4096, "discrete_gaussian")
    assert exact.noise == "discrete_gaussian"


def test_a_run_with_exact_noise_has_it_in_both_releases(tmp_path: Path) -> None:
    config = private("privacy.noise=discrete_gaussian", home=tmp_path)
    result = run(config, tmp_path / "run", QUIET)
    assert result.privacy["epsilon"]["upper"] <= config.privacy.epsilon
    moments = Moments.load(tmp_path / "run" / "release" / "encoder")
    ledger = Ledger(config.ledger_path)
    charged = ledger.find_charge(str(moments.manifest["release_id"]))
    assert charged is not None
    (event,) = charged.events
    assert isinstance(event, DpPcaEvent)
    assert (event.noise, moments.lattice.longest) == ("discrete_gaussian", event.radius)
    assert noise_kinds(result.privacy["events"]) == {"discrete_gaussian"}


def test_noise_beside_the_diagonal_is_never_below_what_is_charged() -> None:
    for std in np.geomspace(1e3, 1e16, 500):
        assert 2 * Fraction(plan(noise_std=float(std)).beside_std) ** 2 >= Fraction(float(std)) ** 2


def test_noise_has_the_stated_scale_and_repeats() -> None:
    drawn = plan(60, 1e6)
    noise = moment_noise(NoiseKey.from_seed(1), drawn)
    rows, columns = np.triu_indices(61)
    assert noise[rows == columns].std() == pytest.approx(1e6, rel=0.3)
    assert noise[rows != columns].std() == pytest.approx(1e6 / math.sqrt(2), rel=0.05)
    assert np.array_equal(noise, moment_noise(NoiseKey.from_seed(1), drawn))
    assert np.mean(noise == moment_noise(NoiseKey.from_seed(2), drawn)) < 0.01
    other = dataclasses.replace(drawn, noise_std=2e6)
    assert np.mean(2 * noise == moment_noise(NoiseKey.from_seed(1), other)) < 0.01


def test_masked_sums_are_the_plain_sums_for_any_number_of_shards(tmp_path: Path) -> None:
    folder = store(tmp_path / "private")
    parts = LatentStore(folder, "key").batches(0, 500)
    whole = np.concatenate([np.trunc(x * STEPS).astype(np.int64) for x, labels in parts])
    whole = np.column_stack([whole, np.full(len(whole), CONSTANT)])
    plain = (whole.T @ whole)[np.triu_indices(5)]
    for size in (1, 2, 5):
        group = shards(folder, size)
        group.call("prepare", (plan(),))
        given = group.call("answer", (plan(), 0, {}, [(rank,) for rank in range(size)]))
        hashes = {rank: own[rank] for rank, (_, own) in enumerate(given)}
        messages = group.call("contribute", (0, hashes, [public for public, _ in given]))
        assert np.array_equal(unmask(messages), plain)
        if size > 1:
            assert not any(np.any(message.view(np.int64) == plain) for message in messages)
        group.call("commit", ("r",))
        (folder / "spent" / "r").unlink()


def test_null_records_add_nothing_and_unknown_classes_do() -> None:
    x, _ = bounded(np.full((3, 4), 0.3), np.zeros(3, np.int32))
    labels = np.array([0, -1, NULL], np.int32)
    assert moment_sums([(x, labels)], plan())[-1] == 2 * CONSTANT**2


def test_moments_are_stored_whole_and_damage_is_noticed(tmp_path: Path) -> None:
    totals = np.arange(15)
    made = Moments.from_plan(plan(noise_std=3.5), totals, {"release_id": "r"})
    assert np.array_equal(made.matrix, made.matrix.T)
    made.save(tmp_path)
    again = Moments.load(tmp_path)
    assert np.array_equal(again.matrix, made.matrix)
    assert (again.noise_std, again.manifest["release_id"]) == (3.5, "r")
    (tmp_path / "moments.arrow").write_bytes(b"damage")
    with pytest.raises(UserError, match="is damaged"):
        Moments.load(tmp_path)


def exact_moments(basis: BasisEncoder, records: np.ndarray) -> Moments:
    latents, labels = bounded(basis.encode(records), np.zeros(len(records), np.int32))
    drawn = plan(basis.latent_dim)
    return Moments.from_plan(drawn, moment_sums([(latents, labels)], drawn), {"release_id": "r"})


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    images: np.ndarray = load_digits().images.astype(np.uint8)[..., None]
    return images


def test_without_noise_the_components_are_the_principal_ones(digits: np.ndarray, tmp_path: Path) -> None:
    basis = BasisEncoder.make(IMAGES, 64, 1.0)
    encoder = PcaEncoder.fit(basis, exact_moments(basis, digits), 10, len(digits), 0.0)
    flat = digits.reshape(len(digits), -1) / 8.0
    best = np.linalg.eigvalsh(np.cov(flat.T, bias=True))[::-1][:10].sum()
    decoded = encoder.decode(encoder.encode(digits)).reshape(len(digits), -1) / 8.0
    left = float(((flat - decoded) ** 2).sum(axis=1).mean())
    whole = float(flat.var(axis=0).sum())
    assert left < (whole - best) * 1.08  # what leaves the ball and rounding to pixels
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert np.array_equal(again.encode(digits[:50]), encoder.encode(digits[:50]))
    assert np.array_equal(
        again.decode(again.encode(digits[:50])), encoder.decode(encoder.encode(digits[:50]))
    )


def test_a_latent_depends_on_its_record_alone(digits: np.ndarray) -> None:
    basis = BasisEncoder.make(IMAGES, 40, 0.7)
    encoder = PcaEncoder.fit(basis, exact_moments(basis, digits), 8, None, 0.7)
    for each in (basis, encoder):
        whole = each.encode(digits)
        assert np.linalg.norm(whole, axis=1).max() <= 1 + 1e-12
        assert np.array_equal(whole[7:8], each.encode(digits[7:8]))
        assert np.array_equal(whole[5:300], each.encode(digits[5:300]))
    latents = encoder.encode(digits[:20])
    assert np.array_equal(encoder.decode(latents)[3:4], encoder.decode(latents[3:4]))


def test_what_is_left_out_is_drawn_where_pixels_have_room_for_it(digits: np.ndarray) -> None:
    """Pixels decoded at an end of their range stay there; over all, as much is drawn as the moments tell of."""
    basis = BasisEncoder.make(IMAGES, 64, 1.0)
    moments = exact_moments(basis, digits)
    smooth, drawn = (PcaEncoder.fit(basis, moments, 8, len(digits), share) for share in (0.0, 1.0))
    latents = smooth.encode(digits)
    before, after = (each.decode(latents).astype(float) for each in (smooth, drawn))
    scaled = (latents / smooth._gain) @ smooth._components.T + smooth._mean
    dark = (scaled @ basis.basis <= -1).reshape(before.shape)
    assert 0.1 < dark.mean() < 0.6
    assert (after[dark] == 0).all()
    assert ((after - before)[~dark] ** 2).mean() > 1
    left = ((digits - before) ** 2).mean()
    assert 0.7 * left < ((after - before) ** 2).mean() < 1.1 * left  # what is clipped is missing


def test_the_basis_is_orthonormal_in_every_channel() -> None:
    schema = RecordSchema("image", (6, 5, 3), value_range=(0, 255))
    basis = BasisEncoder.make(schema, 47, 0.5).basis
    assert basis.shape == (47, 90)
    assert np.allclose(basis @ basis.T, np.eye(47))
    assert np.array_equal(basis[:3] != 0, np.tile(np.eye(3, dtype=bool), (1, 30)))  # the mean of each channel


def test_bands_are_whole_frequencies_and_cover_the_basis() -> None:
    schema = RecordSchema("image", (16, 16, 3), value_range=(0, 255))
    for size in (5, 47, 400):
        bands = BasisEncoder.make(schema, size, 0.5).bands
        assert (bands[0], bands[-1]) == (0, size)
        assert (np.diff(bands) > 0).all()
        assert not (bands[:-1] % 3).any()
    table = RecordSchema("table", (2,), columns=("a", "b"))
    bounds = {"a": (0.0, 1.0), "b": (0.0, 1.0)}
    assert BasisEncoder.make(table, 9, 0.5, bounds).bands.tolist() == [0, 2]


def noisy_moments(exact: Moments, std: float, seed: int) -> Moments:
    drawn = plan(exact.dim, std)
    triangle = exact.matrix[np.triu_indices(exact.dim + 1)] + moment_noise(NoiseKey.from_seed(seed), drawn)
    return Moments.from_plan(drawn, triangle, {"release_id": "r"})


def test_weighing_frequencies_finds_more_than_the_noisy_matrix_does(digits: np.ndarray) -> None:
    """Under noise that hides most of them, components of the weighed matrix hold more of the records' variance."""
    basis = BasisEncoder.make(IMAGES, 64, 0.7)
    exact = exact_moments(basis, digits)
    mean = exact.mean(len(digits))
    true = exact.second(len(digits)) - np.outer(mean, mean)
    for std in (1.2e10, 2.4e10):
        held = []
        for seed in range(3):
            noisy = noisy_moments(exact, std, seed)
            raw = noisy.second(len(digits)) - np.outer(*[noisy.mean(len(digits))] * 2)
            encoder = PcaEncoder.fit(basis, noisy, 8, len(digits), 0.0)
            weighed = encoder.weights()["components"].numpy()
            held.append([np.trace(v.T @ true @ v) for v in (weighed, np.linalg.eigh(raw)[1][:, -8:])])
        found, plain = np.mean(held, axis=0)
        assert found > 1.1 * plain


def test_components_below_the_noise_are_not_counted(digits: np.ndarray) -> None:
    basis = BasisEncoder.make(IMAGES, 40, 0.7)
    exact = exact_moments(basis, digits)
    seen = []
    for std in (6e4, 6e9, 6e11):
        moments = noisy_moments(exact, std, 0)
        seen.append(PcaEncoder.fit(basis, moments, 8, len(digits), 0.7).above_noise)
    assert seen[0] > seen[1] > seen[2]
    assert seen[2] <= 2


def test_tables_need_bounds_of_every_column() -> None:
    schema = RecordSchema("table", (2,), columns=("a", "b"))
    with pytest.raises(UserError, match=r"data\.bounds lacks b"):
        BasisEncoder.make(schema, 100, 0.7, {"a": (0.0, 1.0)})
    with pytest.raises(UserError, match=r"data\.bounds\.c is no column"):
        BasisEncoder.make(schema, 100, 0.7, {"a": (0.0, 1.0), "b": (0.0, 1.0), "c": (0.0, 1.0)})
    basis = BasisEncoder.make(schema, 100, 1.0, {"a": (0.0, 1.0), "b": (-1.0, 3.0)})
    latents = basis.encode(np.array([[0.5, 1.0], [9.0, 3.0], [np.nan, 0.0]]))
    assert np.allclose(latents[:2], [[0.0, 0.0], [math.sqrt(0.5), math.sqrt(0.5)]])
    assert np.isnan(latents[2]).all()


@pytest.mark.parametrize("share", ["auto", "0.4"])
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 10.0])
def test_both_events_together_cost_epsilon(
    share: str, relation: Relation, epsilon: float, tmp_path: Path
) -> None:
    config = private(
        f"privacy.epsilon={epsilon}",
        f"privacy.relation={relation}",
        f"encoder.share={share}",
        home=tmp_path,
    )
    events = run_events(config, make_plan(config, 4, 10, 1000, "r"))
    upper = bound(events, relation, config.privacy.delta).epsilon.upper
    assert epsilon * (1 - 1e-9) < upper <= epsilon
    assert make_moments_plan(config, 20, "r").event == events[0]


def test_the_plan_and_the_account_show_both_events(tmp_path: Path) -> None:
    config = private("encoder.share=0.25", "privacy.epsilon=1", home=tmp_path)
    shown = describe_plan(config)
    assert [event["kind"] for event in shown["privacy"]["events"]] == ["dp_pca", "sliced_histogram"]
    assert shown["encoder"]["share of squared mu"] == 0.25
    assert shown["ledger"]["epsilon with this run"] <= 1.0
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml())
    assert load_request(path).events == tuple(run_events(config, planned(config)[0]))


def test_the_encoder_s_share_grows_with_the_noise_and_stays_between_its_ends() -> None:
    shares = [encoder_share("replace_one", epsilon, 1e-5, 60_000) for epsilon in (math.inf, 10, 1, 0.2, 1e-3)]
    assert shares == sorted(shares) and shares[0] == 0.05 and shares[-1] == 0.3
    assert (
        encoder_share("zero_out", 1, 1e-5, 60_000) < shares[2] < encoder_share("replace_one", 1, 1e-5, 1000)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A whole run without public records, evaluated and measured for research."""
    folder = tmp_path_factory.mktemp("private-encoder")
    config = private(
        "evaluation.enabled=true", "evaluation.directions=16", "evaluation.research=true", "data.test_fraction=0.2",
        home=folder / "home",
    )  # fmt: skip
    return config, run(config, folder / "run", QUIET).folder


def test_a_run_without_public_records_is_counted_as_a_whole(finished: tuple[RunConfig, Path]) -> None:
    config, folder = finished
    data = open_dataset(config.data, config.home, config.privacy.relation)
    assert data is not None and len(data.public()) == 0
    privacy = json.loads((folder / "privacy.json").read_text())
    assert [event["kind"] for event in privacy["events"]] == ["dp_pca", "sliced_histogram"]
    assert 9.999 < privacy["epsilon"]["upper"] <= 10.0
    assert privacy["ledger"]["charges"] == 2
    entries = Ledger(config.ledger_path).entries("digits")
    assert [entry.events[0].kind for entry in entries] == ["dp_pca", "sliced_histogram"]
    assert privacy["ledger"]["total_epsilon"] <= 10.0
    said = privacy["statement"]["not_covered"][0]
    assert f"{len(data.test())} test records and 0 public records are not protected" in said
    assert "noisy moments" in said
    page = (folder / "report.html").read_text()
    assert "noisy moments of the private records" in page
    assert "Trained on public records" not in page
    assert "trained on the public part" not in page
    assert "first test records" not in page


def test_a_private_encoder_stays_in_the_run_s_folder(finished: tuple[RunConfig, Path]) -> None:
    config, folder = finished
    assert not (config.home / "encoders").exists()
    assert not (config.home / "baselines").exists()
    assert isinstance(load_encoder(folder / "encoder"), PcaEncoder)
    assert (folder / "release" / "encoder" / "manifest.json").exists()


def test_without_public_records_half_of_the_test_part_judges(finished: tuple[RunConfig, Path]) -> None:
    figures = json.loads((finished[1] / "metrics.json").read_text())["metrics"]
    assert set(figures["LogReg accuracy"]["baselines"]) == {
        "random latents", "ceiling", "real records"
    }  # fmt: skip
    assert "one half of the test part" in figures["FID (classifier features)"]["explanation"]
    assert not any("public" in name for name in figures)


def test_more_samples_need_neither_records_nor_budget(
    finished: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, folder = finished
    generate(folder, tmp_path / "more.parquet", 30, progress=QUIET)
    assert (tmp_path / "more.parquet").exists()
    assert Ledger(config.ledger_path).total("digits").charges == 2


def test_actors_and_shards_change_no_bit(ray_session: None, tmp_path: Path) -> None:
    seen = set()
    for executor, actors in (("local", 1), ("local", 3), ("ray", 2)):
        home = tmp_path / f"{executor}-{actors}"
        config = private(
            "privacy.noise_seed=5", f"cluster.executor={executor}", f"cluster.actors={actors}", home=home
        )
        folder = run(config, home / "run", QUIET).folder
        seen.add(
            (Moments.load(folder / "release" / "encoder").matrix.tobytes(), (folder / "particles.arrow").read_bytes())
        )  # fmt: skip
    assert len(seen) == 1


def die(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_that_dies_between_the_charges_pays_for_the_encoder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = private(home=tmp_path / "home")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Records, "release", die)
        run(config, tmp_path / "run", QUIET)
    moments = (tmp_path / "run" / "release" / "encoder" / "moments.arrow").read_bytes()
    ledger = Ledger(config.ledger_path)
    assert ledger.total("digits").charges == 1
    run(config, tmp_path / "run", QUIET)
    assert ledger.total("digits").charges == 2
    assert (tmp_path / "run" / "release" / "encoder" / "moments.arrow").read_bytes() == moments
    assert ledger.total("digits").epsilon.upper <= 10.0
    run(config, tmp_path / "run", QUIET)
    assert ledger.total("digits").charges == 2


@pytest.fixture
def between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Path]:
    """A run that died when its encoder was paid for and its release was not."""
    config = private("privacy.epsilon=1", home=tmp_path / "home")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Records, "release", die)
        run(config, tmp_path / "run", QUIET)
    return config, tmp_path / "run"


def test_the_release_is_planned_beside_what_the_encoder_did_cost(
    between: tuple[RunConfig, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever another version of the planner would give the encoder now."""
    config, folder = between
    monkeypatch.setattr("dpsw_ray.pipeline.plan.encoder_share", lambda *_: 0.01)
    result = run(config, folder, QUIET)
    total = Ledger(config.ledger_path).total("digits")
    assert total.charges == 2 and result.privacy["epsilon"]["upper"] == pytest.approx(total.epsilon.upper)
    assert total.epsilon.upper <= 1.0


def test_moments_of_a_larger_budget_are_refused(between: tuple[RunConfig, Path], tmp_path: Path) -> None:
    _, folder = between
    config = private("privacy.epsilon=0.05", home=tmp_path / "home")
    (folder / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(UserError, match=r"cost"):
        run(config, folder, QUIET)
    assert Ledger(config.ledger_path).total("digits").charges == 1


def test_another_encoder_in_the_folder_is_not_used(between: tuple[RunConfig, Path]) -> None:
    config, folder = between
    mine = (folder / "encoder" / "encoder.json").read_bytes()
    basis = load_encoder(folder / "encoder" / "basis")
    assert isinstance(basis, BasisEncoder)
    rng = np.random.default_rng(0)
    matrix = np.cov(rng.standard_normal((basis.latent_dim + 1, 500))) * STEPS**2
    other = Moments(np.rint(matrix).astype(np.int64), 0.0, LATTICE, {"release_id": "elsewhere"})
    PcaEncoder.fit(basis, other, 4, 500, 0.0).save(folder / "encoder")
    run(config, folder, QUIET)
    assert (folder / "encoder" / "encoder.json").read_bytes() == mine


def test_a_release_whose_moments_are_gone_buys_no_second_encoder(tmp_path: Path) -> None:
    config = private(home=tmp_path / "home")
    run(config, tmp_path / "run", QUIET)
    moments = tmp_path / "run" / "release" / "encoder"
    moments.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"are missing from .*restore them"):
        run(config, tmp_path / "run", QUIET)
    assert Ledger(config.ledger_path).total("digits").charges == 2
    (tmp_path / "elsewhere").rename(moments)
    run(config, tmp_path / "run", QUIET)


def test_more_latents_than_dimensions_are_refused_before_the_charge(tmp_path: Path) -> None:
    config = private("encoder.basis=100", "encoder.latent_dim=80", home=tmp_path / "home")  # of 64 pixels
    with pytest.raises(UserError, match=r"encoder.latent_dim must be at most 64.*found 80"):
        run(config, tmp_path / "run", QUIET)
    assert not Ledger(config.ledger_path).datasets()


def test_how_long_the_encoder_took_does_not_tell_a_protected_number(tmp_path: Path) -> None:
    keys = ("privacy.relation=add_remove", "privacy.research=true")
    folder = run(private(*keys, home=tmp_path / "home"), tmp_path / "run", QUIET).folder
    assert "encoder" not in json.loads((folder / "metrics.json").read_text())["seconds"]


def test_moments_that_were_charged_and_not_stored_are_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = private(home=tmp_path / "home")
    seen: list[np.ndarray] = []

    def save(self: Moments, folder: Path) -> None:
        seen.append(self.matrix.copy())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Moments, "save", save)
        run(config, tmp_path / "run", QUIET)
    run(config, tmp_path / "run", QUIET)
    assert np.array_equal(Moments.load(tmp_path / "run" / "release" / "encoder").matrix, seen[0])
    assert Ledger(config.ledger_path).total("digits").charges == 2


def test_a_cap_without_room_for_both_refuses_the_first(tmp_path: Path) -> None:
    config = private(home=tmp_path / "home")
    ledger = Ledger(config.ledger_path)
    ledger.register("digits", "replace_one", "record", 1e-4, cap=9.7)  # enough for either, not for both
    with pytest.raises(UserError, match="would bring it to 10"):
        run(config, tmp_path / "run", QUIET)
    assert ledger.total("digits").charges == 0
    assert not (tmp_path / "run").exists()


def test_where_the_number_of_records_is_protected_the_noisy_one_is_used(tmp_path: Path) -> None:
    config = private("privacy.relation=add_remove", home=tmp_path / "home")
    folder = run(config, tmp_path / "run", QUIET).folder
    moments = Moments.load(folder / "release" / "encoder")
    assert moments.manifest["private_records"] is None
    assert moments.records == pytest.approx(1437, rel=0.2)
    data = open_dataset(config.data, config.home, "add_remove")
    assert data is not None and data.info.private_count is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data.classes=null",), r"data\.classes is missing"),
        (("encoder.kind=mlp",), "must be dp_pca or identity"),
        (("encoder.share=1.5",), "encoder.share must be a number between 0 and 1, or auto, found 1.5"),
        (("encoder.latent_dim=21",), "must be at most encoder.basis 20, found 21"),
        (("method=dpswgen",), "shares a budget with the histograms of method dpswflow-h, found dpswgen"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(
    overrides: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        private(*overrides, home=tmp_path)


def test_the_driver_sees_no_record_and_no_true_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    config = private("cluster.actors=2", "privacy.epsilon=1", home=home)
    log = recorded_run(config, tmp_path / "run", monkeypatch)
    data = open_dataset(config.data, config.home, config.privacy.relation)
    assert data is not None
    store_of = LatentStore(data.private_dir, next(v for m, v in log if m == "Shard")[0]["latents_key"])
    released = next(args[0] for method, (args, _) in log if method == "answer")
    messages = next(results for method, (_, results) in log if method == "contribute")
    assert isinstance(released, MomentsPlan)
    cuts = [rank * store_of.rows() // 2 for rank in range(3)]
    parts = [moment_sums(store_of.batches(*cut), released) for cut in itertools.pairwise(cuts)]
    truth = sum(parts)
    for message in messages:
        for exact in (*parts, truth):
            rest = (message - exact.view(np.uint64)).view(np.int64).astype(np.float64)
            assert np.mean(np.abs(rest) < 2.0**56) < 0.05
    noisy = unmask(messages)
    rows, columns = np.triu_indices(released.dim + 1)
    scale = np.where(rows == columns, 1.0, math.sqrt(0.5)) * released.noise_std
    assert 0.8 < ((noisy - truth) / scale).std() < 1.2
    size = released.dim + 1
    assert np.array_equal(
        Moments.load(tmp_path / "run" / "release" / "encoder").matrix[np.triu_indices(size)], noisy
    )
    matrix = np.zeros((size, size), np.int64)
    matrix[rows, columns] = truth
    needles = [row.tobytes() for row in matrix if np.count_nonzero(row) > 1]
    needles += [row.tobytes() for x, _ in store_of.batches(0, 50) for row in x]
    hay = pickle.dumps(log)
    assert not any(needle in hay for needle in needles)
    for path in tmp_path.rglob("*"):
        if path.is_file() and data.private_dir not in path.parents:
            content = path.read_bytes()
            assert not any(needle in content for needle in needles), path


def test_moments_of_an_earlier_sampler_on_too_fine_a_lattice_are_refused(tmp_path: Path) -> None:
    """What is stored without a mark was drawn before low bits were counted: harmless ones are read, others are not."""
    for std, mark, refused in ((1e12, {}, True), (1e12, {"sampler": 2}, False), (1e8, {}, False)):
        stored = Moments(np.zeros((401, 401), np.int64), std, Lattice(), {"release_id": "r", **mark})
        folder = tmp_path / f"{std:g}{len(mark)}"
        stored.save(folder)
        if refused:
            with pytest.raises(
                UserError, match="an earlier version drew: the low bits of their noise may tell more"
            ):
                Moments.load(folder)
        else:
            assert Moments.load(folder).noise_std == std
