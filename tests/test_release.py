"""The release: masks that cancel, noise that is never drawn twice for one charge, a format that round-trips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import flip

from dpsw_ray.base.errors import PrivateSideError, UserError
from dpsw_ray.base.files import read_manifest, write_arrow, write_manifest
from dpsw_ray.cluster import LocalCluster, WorkerDied
from dpsw_ray.methods.dpswflow_h.mechanism import bound, noise
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy.accountants import account
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.keys import KeyStore
from dpsw_ray.private.latents import NULL, LatentStore, bounded
from dpsw_ray.private.shard import Shard
from dpsw_ray.release.exchange import release_once
from dpsw_ray.release.masks import MaskingKey, unmask
from dpsw_ray.slicing.grid import SCALE, BinGrid
from dpsw_ray.tables.plan import SlicesPlan
from dpsw_ray.tables.release import Release

DIM = 4


def make_plan(
    release_id: str = "r", classes: int = 3, epsilon: float = 1.0, relation: Any = "replace_one"
) -> SlicesPlan:
    return HistogramPlan.make(
        release_id=release_id, dim=DIM, frames=3, grid=BinGrid(16, 0.5), classes=classes, class_conditional=classes > 1,
        relation=relation, epsilon=epsilon, delta=1e-5, seed=7,
    )  # fmt: skip


def latents(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, DIM))
    return bounded(x / np.linalg.norm(x, axis=1, keepdims=True), rng.integers(-1, 3, n).astype(np.int32))


def store(folder: Path, n: int = 500) -> Path:
    """A private folder with latents in it, as `LatentStore.encode` leaves them."""
    x, labels = latents(n)
    target = LatentStore(folder, "key").folder
    target.mkdir(parents=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), DIM)
    write_arrow(target / "chunk-000000.arrow", pa.table({"latent": column, "label": labels}), mode=0o600)
    (target / "rows.json").write_text(str(n))
    return folder


def shards(folder: Path, size: int = 2) -> Any:
    shared = {
        "size": size,
        "private_dir": folder,
        "receipts_dir": folder / "receipts",
        "encoder_dir": folder,
        "latents_key": "key",
    }
    return LocalCluster(size).spawn(Shard, [{"rank": rank, **shared} for rank in range(size)])


def release(group: Any, folder: Path, ledger: Ledger, seed: int | None = None) -> Release:
    def manifest(plan: SlicesPlan) -> dict[str, Any]:
        privacy = account([plan.event], "replace_one", 1e-5).to_dict()
        return {"release_id": plan.release_id, "publishable": seed is None, "privacy": privacy}

    return release_once(
        Release,
        group,
        make_plan,
        folder,
        ledger=ledger,
        account="d",
        run_id="t",
        noise_seed=seed,
        manifest=manifest,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    book = Ledger(tmp_path / "ledger.sqlite")
    book.register("d", "replace_one", "record", 1e-5)
    return book


@pytest.mark.parametrize("size", [1, 2, 5])
def test_masks_cancel_in_the_sum(size: int) -> None:
    rng = np.random.default_rng(0)
    messages = [rng.integers(-(2**62), 2**62, (3, 7)) for _ in range(size)]
    keys = [MaskingKey() for _ in range(size)]
    public = [key.public for key in keys]
    masked = [
        key.mask(m, rank, public, b"round") for rank, (key, m) in enumerate(zip(keys, messages, strict=True))
    ]
    with np.errstate(over="ignore"):
        assert np.array_equal(unmask(masked), sum(messages))
    if size > 1:
        assert not any(np.any(a.view(np.int64) == b) for a, b in zip(masked, messages, strict=True))


def test_a_masking_key_masks_once_and_knows_its_round() -> None:
    keys = [MaskingKey(), MaskingKey()]
    public = [key.public for key in keys]
    message = np.zeros(4, np.int64)
    with pytest.raises(RuntimeError, match="not this round"):
        keys[0].mask(message, 1, public, b"")
    with pytest.raises(RuntimeError, match="not this round"):
        keys[0].mask(message, 0, [public[0], public[0]], b"")
    keys[0].mask(message, 0, public, b"")
    with pytest.raises(RuntimeError, match="one message only"):
        keys[0].mask(message, 0, public, b"")


def test_shards_refuse_to_contribute_out_of_turn(tmp_path: Path) -> None:
    shard = shards(store(tmp_path / "private"))
    with pytest.raises(UserError):
        shard.call("contribute", (0, {0: "", 1: ""}, [b"", b""]))
    shard.call("prepare", (make_plan(),))
    given = shard.call("answer", (make_plan(), 0, {}, [(0,), (1,)]))
    with pytest.raises(UserError):
        shard.call("contribute", (0, {}, []))
    with pytest.raises(UserError):  # once
        shard.call("contribute", (0, {**given[0][1], **given[1][1]}, [public for public, _ in given]))


def test_sums_do_not_depend_on_the_sharding_or_the_order() -> None:
    x, labels = latents(1000)
    plan = make_plan()
    whole = bound([(x, labels)], plan)
    order = np.random.default_rng(1).permutation(1000)
    for cuts in ([137], [10, 500, 501]):
        parts = zip(np.split(x[order], cuts), np.split(labels[order], cuts), strict=True)
        assert np.array_equal(bound(parts, plan), whole)


def test_every_record_adds_one_row_per_direction_or_nothing() -> None:
    x, labels = latents(200)
    plan = make_plan()
    for i in range(20):
        table = bound([(x[i : i + 1], labels[i : i + 1])], plan)
        if labels[i] < 0:
            assert not table.any()
        else:
            assert (table[labels[i]].sum(axis=1) == SCALE).all()
            assert (table >= 0).all()


@pytest.mark.parametrize("relation", ["replace_one", "zero_out", "add_remove"])
def test_no_neighbouring_pair_exceeds_the_stated_sensitivity(relation: Any) -> None:
    """The statement of `private.mechanism`, checked numerically on random and on extreme records."""
    plan = make_plan(relation=relation)
    stated = plan.event.sensitivity_sq(relation)
    rng = np.random.default_rng(3)
    x, _ = latents(400, seed=3)
    extremes = np.concatenate([np.eye(DIM), -np.eye(DIM), plan.directions[0, :8], np.zeros((1, DIM))])
    x, _ = bounded(np.concatenate([x, extremes]), np.zeros(400 + len(extremes), np.int32))
    largest = 0
    for _ in range(600):
        i, j = rng.integers(0, len(x), 2)
        a = bound([(x[i : i + 1], np.array([0], np.int32))], plan)
        if relation == "replace_one":
            a = a - bound([(x[j : j + 1], rng.integers(0, 3, 1).astype(np.int32))], plan)
        largest = max(largest, int((a**2).sum()))
    assert largest <= stated
    assert largest > 0.8 * stated  # and the statement is not idle: halving it would be found out


def test_bad_records_become_null_records_silently() -> None:
    x = np.array(
        [[np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [1e300, -1e300, 0, 0], [3.0, 4.0, 0, 0], [0.1, 0, 0, 0]]
    )
    safe, labels = bounded(x, np.zeros(5, np.int32))
    assert labels.tolist() == [NULL, NULL, 0, 0, 0]
    assert np.linalg.norm(safe, axis=1).max() < 1
    assert np.allclose(safe[3], [0.6, 0.8, 0, 0], atol=1e-5)
    assert not bound([(safe[:2], labels[:2])], make_plan()).any()
    assert not bound([(safe[:2], labels[:2])], make_plan(classes=1)).any()


def test_unlabelled_records_count_without_classes_and_not_with_them() -> None:
    x, _ = latents(5)
    labels = np.full(5, -1, np.int32)
    assert not bound([(x, labels)], make_plan()).any()
    assert bound([(x, labels)], make_plan(classes=1)).sum() == 5 * SCALE * 12


def test_noise_has_the_planned_scale_and_follows_the_key() -> None:
    plan = make_plan()
    key = NoiseKey.generate()
    drawn = noise(key, plan)
    assert drawn.shape == plan.cells[1:]
    assert np.array_equal(drawn, noise(key, plan))
    assert not np.array_equal(drawn, noise(NoiseKey.generate(), plan))
    assert abs(drawn.std() / plan.noise_std - 1) < 0.15
    assert not np.array_equal(drawn, noise(key, make_plan(epsilon=1.1)))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_release_is_the_same_for_any_number_of_shards(size: int, tmp_path: Path, ledger: Ledger) -> None:
    made = release(shards(store(tmp_path / "private"), size), tmp_path / "release", ledger, seed=5)
    x, labels = latents(500)
    expected = bound([(x, labels)], make_plan()) + noise(NoiseKey.from_seed(5), make_plan())
    assert np.array_equal(made.counts[0], expected)


def test_a_stored_release_is_read_back_and_costs_nothing(tmp_path: Path, ledger: Ledger) -> None:
    group = shards(store(tmp_path / "private"))
    first = release(group, tmp_path / "release", ledger)
    again = release(group, tmp_path / "release", ledger)
    assert np.array_equal(first.counts, again.counts)
    assert np.array_equal(first.directions, again.directions)
    assert np.array_equal(first.kernel, again.kernel)
    assert (again.grid, again.cell_noise) == (first.grid, first.cell_noise)
    assert ledger.total("d").charges == 1
    assert not list((tmp_path / "private" / "keys").iterdir())  # committed: the key is gone
    assert not (tmp_path / "release" / "pending.json").exists()


def test_a_release_that_was_lost_is_charged_again(tmp_path: Path, ledger: Ledger) -> None:
    group = shards(store(tmp_path / "private"))
    first = release(group, tmp_path / "release", ledger)
    for path in (tmp_path / "release").iterdir():
        path.unlink()
    again = release(group, tmp_path / "release", ledger)
    assert ledger.total("d").charges == 2
    assert not np.array_equal(first.counts, again.counts)


def test_an_interrupted_release_is_repeated_with_the_same_bits(
    tmp_path: Path, ledger: Ledger, monkeypatch: Any
) -> None:
    group = shards(store(tmp_path / "private"))
    seen: list[np.ndarray] = []

    def fails(self: Release, folder: Path) -> None:
        seen.append(self.counts)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Release, "save", fails)
        with pytest.raises(OSError, match="No space"):
            release(group, tmp_path / "release", ledger)
    made = release(group, tmp_path / "release", ledger)
    assert np.array_equal(made.counts, seen[0])
    assert ledger.total("d").charges == 1


def test_changed_latents_get_no_second_use_of_a_key(tmp_path: Path, ledger: Ledger, monkeypatch: Any) -> None:
    folder = store(tmp_path / "private")
    group = shards(folder)
    seen: list[np.ndarray] = []
    with monkeypatch.context() as patch:
        patch.setattr(Release, "save", lambda self, folder: (seen.append(self.counts), 1 / 0)[1])
        with pytest.raises(ZeroDivisionError):
            release(group, tmp_path / "release", ledger)
    chunk = LatentStore(folder, "key").folder / "chunk-000000.arrow"
    x, labels = latents(500)
    x[0] = -x[0]
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), DIM)
    write_arrow(chunk, pa.table({"latent": column, "label": labels}), mode=0o600)
    with pytest.raises(PrivateSideError, match="a message is not the one that was answered before"):
        release(group, tmp_path / "release", ledger)  # by workers who looked at the latents before
    made = release(shards(folder), tmp_path / "release", ledger)
    assert ledger.total("d").charges == 2
    # With the noise used twice the difference would be the two records' exact rows: a few cells, the rest zero.
    assert np.mean(made.counts == seen[0]) < 0.01


def test_a_key_is_never_used_for_another_plan(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    key = keys.create(make_plan(), "latents")
    found = keys.find(make_plan(), "latents")
    assert found is not None and found.secret == key.secret
    assert keys.find(make_plan(epsilon=2.0), "latents") is None
    assert keys.find(make_plan(), "other latents") is None
    with pytest.raises(RuntimeError):
        keys.create(make_plan(epsilon=2.0), "latents")
    assert (tmp_path / "keys" / "r.json").stat().st_mode & 0o077 == 0
    keys.destroy("r")
    assert keys.find(make_plan(), "latents") is None


def test_a_worker_that_dies_in_the_release_costs_nothing_more(tmp_path: Path, ledger: Ledger) -> None:
    class Dying:
        """The first message is lost with its worker, after the noise was drawn."""

        def __init__(self, group: Any) -> None:
            self.group, self.size, self.lost = group, group.size, []

        def call(self, method: str, args: Any = (), **kwargs: Any) -> Any:
            results = self.group.call(method, args, **kwargs)
            if method == "contribute" and not self.lost:
                self.lost.append(unmask(results))
                raise WorkerDied(0, 2, "contribute")
            return results

        def rebuild(self) -> None:
            self.group = shards(tmp_path / "private")

    store(tmp_path / "private")
    dying = Dying(shards(tmp_path / "private"))
    made = release(dying, tmp_path / "release", ledger)
    assert np.array_equal(made.counts, dying.lost[0])
    assert ledger.total("d").charges == 1


_KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_release as t
from dpsw_ray.privacy.ledger import Ledger
import {module} as module
original = module.{name}
def die(*args, **kwargs):
    if {after}: original(*args, **kwargs)
    os._exit(9)
module.{name} = die
root = Path({root!r})
t.release(t.shards(root / "private"), root / "release", Ledger(root / "ledger.sqlite"))
"""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("dpsw_ray.privacy.ledger", "Ledger.charge"),
        ("dpsw_ray.private.keys", "KeyStore.create"),
        ("dpsw_ray.tables.release", "Release.save"),
        ("dpsw_ray.private.keys", "KeyStore.destroy"),
    ],
)
def test_a_killed_release_never_makes_two_copies_for_one_charge(
    module: str, name: str, after: bool, tmp_path: Path, ledger: Ledger
) -> None:
    store(tmp_path / "private")
    code = _KILLED.format(
        tests=str(Path(__file__).parent), module=module, name=name, after=after, root=str(tmp_path)
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    stored = (tmp_path / "release" / "manifest.json").exists()
    before = Release.load(tmp_path / "release").counts.copy() if stored else None
    made = release(shards(tmp_path / "private"), tmp_path / "release", ledger)
    if before is not None:
        assert np.array_equal(made.counts, before)
    assert ledger.total("d").charges == 1
    assert not list((tmp_path / "private" / "keys").iterdir())


def test_a_release_cannot_be_changed(tmp_path: Path, ledger: Ledger) -> None:
    made = release(shards(store(tmp_path / "private")), tmp_path / "release", ledger)
    with pytest.raises(ValueError, match="read-only"):
        made.counts[0, 0, 0, 0] = 1
    with pytest.raises(TypeError):
        made.manifest["epsilon"] = 0  # type: ignore[index]


def test_every_changed_bit_of_a_release_is_seen(tmp_path: Path, ledger: Ledger) -> None:
    folder = tmp_path / "release"
    made = release(shards(store(tmp_path / "private")), folder, ledger)
    rng = np.random.default_rng(0)
    for name in ("table.arrow", "manifest.json"):
        path = folder / name
        whole = path.read_bytes()
        for place in rng.choice(8 * len(whole), 125, replace=False):
            flip(path, int(place))
            try:
                again = Release.load(folder)
            except UserError as refused:
                assert "damaged" in str(refused) and "\n" not in str(refused)
            else:  # a space, or the name of the digest itself
                assert name == "manifest.json"
                assert again.manifest == made.manifest or "sha256" not in path.read_text()
                assert again.counts.tobytes() == made.counts.tobytes()
            path.write_bytes(whole)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other version", "no json"])
def test_a_damaged_release_is_a_sentence(damage: str, tmp_path: Path, ledger: Ledger) -> None:
    folder = tmp_path / "release"
    release(shards(store(tmp_path / "private")), folder, ledger)
    if damage == "missing":
        (folder / "manifest.json").unlink()
    elif damage == "truncated":
        (folder / "table.arrow").write_bytes((folder / "table.arrow").read_bytes()[:200])
    elif damage == "no json":
        (folder / "manifest.json").write_text("{")
    else:
        stored = read_manifest(folder / "manifest.json") | {"format": "dpsw_ray release 99"}
        write_manifest(folder / "manifest.json", stored)
    with pytest.raises(UserError, match="release"):
        Release.load(folder)


def test_no_key_draws_by_two_samplers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference of two samplers' noise under one key would tell both noises: an old secret is not found."""
    import dpsw_ray.tables.plan as plans
    from dpsw_ray.privacy import noise

    key = NoiseKey.from_seed(1)
    before, digest = noise.lattice_gaussian(key, 1e6, 0, 1000), make_plan("r").digest()
    monkeypatch.setattr(noise, "SAMPLER", 1)
    monkeypatch.setattr(plans, "SAMPLER", 1)
    other = noise.lattice_gaussian(key, 1e6, 0, 1000)
    assert make_plan("r").digest() != digest
    assert abs(np.corrcoef(before, other)[0, 1]) < 0.2


@pytest.mark.parametrize("classes", [1, 3])
def test_a_shard_with_a_gpu_sums_to_the_bits_of_the_cpu(
    classes: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(classes=classes)
    batches = [latents(200), latents(90, seed=1)]
    batches[1][1][::5] = NULL
    expected = bound(batches, plan)
    request.getfixturevalue("fake_cuda")
    monkeypatch.setattr("dpsw_ray.methods.dpswflow_h.mechanism.add_histograms", None)  # the CPU's kernel
    assert np.array_equal(bound(batches, plan), expected)
