"""Partitioners, natural keys, and the store that holds users' latents in order."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from federated_support import divided_users, shards_of, small

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import LocalCluster
from dpsw_ray.config.run import PathsConfig, RunConfig
from dpsw_ray.data.split import read_info
from dpsw_ray.federated.config import FederatedConfig, load_federated
from dpsw_ray.federated.data import population_data
from dpsw_ray.federated.population import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalPartitioner,
    Partitioner,
    PowerLawPartitioner,
    ShardsPartitioner,
)
from dpsw_ray.federated.population.statistics import heterogeneity_figure, statistics
from dpsw_ray.federated.store import UserStore
from dpsw_ray.pipeline.division import divided_data
from dpsw_ray.privacy.ledger import Ledger

LABELS = np.repeat(np.arange(10, dtype=np.int32), 300)
USERS = 100


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def counts_of(partitioner: Partitioner) -> np.ndarray:
    owners = partitioner.assign(LABELS, rng())
    assert owners.shape == LABELS.shape and owners.min() >= 0 and owners.max() < USERS
    assert np.array_equal(owners, partitioner.assign(LABELS, rng()))
    table = np.zeros((USERS, 10), int)
    np.add.at(table, (owners, LABELS), 1)
    return table


def test_iid_users_have_the_same_number_of_records_and_all_labels() -> None:
    table = counts_of(IidPartitioner(USERS))
    assert set(table.sum(axis=1)) == {30}
    assert (table > 0).sum(axis=1).mean() > 9


def test_shards_leave_few_labels_to_a_user() -> None:
    table = counts_of(ShardsPartitioner(USERS, 2))
    assert (table > 0).sum(axis=1).max() <= 4  # a piece may cross from one label to the next
    assert (table > 0).sum(axis=1).mean() < 3
    assert table.sum() == len(LABELS)


def test_small_alphas_make_users_different_and_large_ones_alike() -> None:
    spread, alike, tiny = (counts_of(DirichletPartitioner(USERS, alpha)) for alpha in (0.1, 1000.0, 1e-4))
    assert (spread > 0).sum(axis=1).mean() < 5 < 9 < (alike > 0).sum(axis=1).mean()
    assert (tiny > 0).sum(axis=1).max() == 1
    for table in (spread, alike, tiny):
        assert np.array_equal(table.sum(axis=0), np.bincount(LABELS))


def test_a_power_law_leaves_some_with_most_and_many_with_none() -> None:
    sizes = np.sort(counts_of(PowerLawPartitioner(USERS, 2.0)).sum(axis=1))
    assert sizes[-1] > 0.5 * len(LABELS)
    assert (sizes == 0).any() and (sizes == 1).any()


def test_no_records_at_all_and_fewer_records_than_users() -> None:
    for partitioner in (
        IidPartitioner(50), ShardsPartitioner(50, 2), DirichletPartitioner(50, 0.1), PowerLawPartitioner(50, 1.0),
    ):  # fmt: skip
        assert partitioner.assign(np.empty(0, np.int32), rng()).shape == (0,)
        assert partitioner.assign(np.zeros(3, np.int32), rng()).shape == (3,)


def test_statistics_count_empty_and_large_users_and_draw_them() -> None:
    table = counts_of(PowerLawPartitioner(USERS, 2.0))
    labels = np.concatenate([np.repeat(np.arange(10), row) for row in table]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(table.sum(axis=1))])
    facts = statistics(offsets, labels)
    assert facts["records"] == len(LABELS) and facts["users"] == USERS
    assert facts["users_without_records"] == (table.sum(axis=1) == 0).sum()
    assert facts["users_with_one_record"] == (table.sum(axis=1) == 1).sum()
    assert facts["records_per_user"]["largest"] == table.sum(axis=1).max()
    alike = statistics(
        np.arange(USERS + 1) * 30, np.tile(np.repeat(np.arange(10), 3), USERS).astype(np.int32)
    )
    assert alike["label_distance"] == 0 < facts["label_distance"]
    assert heterogeneity_figure(facts)[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("partition", ["iid", "shards", "dirichlet", "power_law"])
def test_the_store_holds_every_record_once_sorted_by_user_and_label(tmp_path: Path, partition: str) -> None:
    config = small(tmp_path, f"population.partition={partition}", "encoder.kind=identity")
    parts, users = shards_of(config, tmp_path)
    store, records = parts[0].store, parts[0].records
    assert users == 40 == len(store.offsets) - 1
    rows = [(latents, labels) for latents, labels in records.batches(0, records.rows())]
    latents = np.concatenate([latents for latents, _ in rows])
    assert len(store.latents) == len(latents) == store.offsets[-1]
    stored = store.latents * 2.0**-26
    key = lambda x: x[np.lexsort(x.T)]  # noqa: E731
    assert np.array_equal(key(stored), key(latents))
    for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        assert (np.diff(store.labels[a:b]) >= 0).all()
    for path in (*store.folder.iterdir(), store.folder):
        assert path.stat().st_mode & 0o077 == 0


def test_the_work_is_divided_by_records(tmp_path: Path) -> None:
    config = small(
        tmp_path, "population.partition=power_law", "encoder.kind=identity", "population.users=300"
    )
    parts, users = shards_of(config, tmp_path)
    store = parts[0].store
    for size in (1, 2, 3, 7):
        shares = [store.share(rank, size) for rank in range(size)]
        assert shares[0][0] == 0 and shares[-1][1] == users
        assert all(left[1] == right[0] for left, right in itertools.pairwise(shares))
    work = [store.offsets[b] - store.offsets[a] + b - a for a, b in (store.share(r, 2) for r in range(2))]
    assert abs(work[0] - work[1]) <= np.diff(store.offsets).max() + 1


def people_table(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    users = [f"p{i}" for i in generator.integers(0, 60, 1500)]
    table = {
        "user": users,
        "a": generator.standard_normal(1500),
        "b": generator.standard_normal(1500),
        "kind": generator.integers(0, 2, 1500),
    }
    pq.write_table(pa.table(table), folder / "people.parquet")
    return folder / "people.parquet"


def named_table(folder: Path) -> Path:
    """With a label in words."""
    table = pq.read_table(people_table(folder))
    words = pa.array(["odd" if kind else "even" for kind in table["kind"].to_pylist()])
    pq.write_table(table.set_column(3, "kind", words), folder / "named.parquet")
    return folder / "named.parquet"


def natural(tmp_path: Path, *overrides: str) -> FederatedConfig:
    return small(
        tmp_path, "data.source=table", "population.partition=natural", "population.user=user",
        f"data.path={people_table(tmp_path)}", "data.label=kind", "encoder.kind=identity", *overrides,
    )  # fmt: skip


def test_a_natural_user_is_in_one_part_as_a_whole(tmp_path: Path) -> None:
    config = natural(tmp_path)
    parts, users = shards_of(config, tmp_path)
    table = pq.read_table(tmp_path / "people.parquet").to_pydict()
    values = np.stack([table["a"], table["b"]], axis=1)
    owner = {tuple(row): user for row, user in zip(values, table["user"], strict=True)}
    folder = parts[0].private_dir.parent
    from dpsw_ray.data.parts import read_part

    people = {
        part: {owner[tuple(row)] for row in read_part(folder / part, read_info(folder).schema).values}
        for part in ("public", "test", "private")
    }
    assert people["public"] and people["test"] and users == len(people["private"]) > 10
    assert not people["public"] & people["private"] and not people["test"] & people["private"]
    private = read_part(folder / "private", read_info(folder).schema).values
    owners = np.load(folder / "private" / "owners.npy")
    for number in range(users):
        assert len({owner[tuple(row)] for row in private[owners == number]}) == 1
    assert "private" not in json.loads((folder / "dataset.json").read_text())["counts"]
    with pytest.raises(ValueError, match="not those of the stored records"):
        NaturalPartitioner(owners[:-1]).assign(np.zeros(len(owners), np.int32), rng())


def test_the_columns_of_a_table_are_those_that_name_neither_users_nor_labels(tmp_path: Path) -> None:
    config = natural(tmp_path, f"data.path={named_table(tmp_path)}")
    data, _ = divided_users(config)
    assert data.info.schema.columns == ("a", "b") and data.info.classes == ("even", "odd")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.name=again"], "give data.name: people, not again"),
        (["data.split_seed=1"], r"data\.split_seed would divide it another way"),
        (["data.public_fraction=0.2"], r"data\.public_fraction would divide it another way"),
        (["population.user=kind", "data.label=null"], r"population\.user would divide it another way"),
    ],
)
def test_users_are_divided_once(tmp_path: Path, overrides: list[str], sentence: str) -> None:
    for book in ("", "another"):
        divided_users(natural(tmp_path), book)
    with pytest.raises(UserError, match=sentence):
        divided_users(natural(tmp_path, "data.columns=[a, b]", *overrides), "third")


def test_a_table_is_divided_by_users_or_by_records_and_not_both(tmp_path: Path) -> None:
    cluster, quiet = LocalCluster(1), Progress(quiet=True)
    by_users = natural(tmp_path, "data.columns=[a, b]")
    by_records = RunConfig.model_validate(
        {
            "data": {**by_users.data.model_dump(), "source": "table"},
            "encoder": {"kind": "identity"},
            "paths": by_users.paths.model_dump(),
        }
    )
    books = [Ledger(tmp_path / f"{book}.sqlite") for book in range(3)]  # that know of no home
    population_data(by_users, cluster, quiet, books[0])
    with pytest.raises(UserError, match="records or users as what is divided would divide it another way"):
        divided_data(by_records, cluster, quiet, books[1])
    other = PathsConfig(home=tmp_path / "other")
    divided_data(by_records.model_copy(update={"paths": other}), cluster, quiet, books[1])
    with pytest.raises(UserError, match="records or users as what is divided"):
        population_data(by_users.model_copy(update={"paths": other}), cluster, quiet, books[2])
    third = by_records.model_copy(update={"paths": PathsConfig(home=tmp_path / "third")})
    with pytest.raises(UserError, match="the privacy ledger says, and records or users as what is divided"):
        divided_data(third, cluster, quiet, books[0])
    assert not list((tmp_path / "third").rglob("dataset.json"))


def test_a_store_that_another_run_has_mapped_never_changes(tmp_path: Path) -> None:
    store, other = UserStore(tmp_path / "users" / "s"), UserStore(tmp_path / "users" / "s")
    counts, labels = np.array([2, 3]), np.arange(5, dtype=np.int32)
    store.create(counts, 2)
    store.put(slice(0, 3), np.ones((3, 2)), labels[:3])
    other.create(counts, 2)  # at the same time: it goes on with the same files
    assert not store.ready
    other.put(slice(3, 5), np.ones((2, 2)), labels[3:])
    store.finish()
    mapped = store.latents
    before = mapped.tobytes(), store.fingerprint()
    other.put(slice(0, 5), np.ones((5, 2)), labels)
    other.finish()
    other.create(np.array([9, 9]), 2)
    assert (mapped.tobytes(), store.fingerprint()) == before and mapped.shape == (5, 2)
    assert [path.name for path in store.folder.parent.iterdir() if path.is_dir()] == ["s"]


def test_what_a_killed_run_left_of_a_store_is_not_taken_for_one(tmp_path: Path) -> None:
    config = small(tmp_path, "encoder.kind=identity")
    parts, _ = shards_of(config, tmp_path)
    store = parts[0].store
    whole, left = store.fingerprint(), store.folder.with_name(f".{store.folder.name}.part")
    shutil.rmtree(store.folder)
    begun = left.with_name(f"{left.name}abc")
    for folder in (left, begun):
        folder.mkdir()
        (folder / "latents.npy").write_bytes(b"half")
    again, _ = shards_of(config, tmp_path)
    assert again[0].store.fingerprint() == whole and not left.exists() and not begun.exists()


def test_a_leaf_folder_gives_users_and_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        content = {
            "users": [f"f{i}" for i in range(40)],
            "num_samples": [4] * 40,
            "user_data": {
                f"f{i}": {"x": generator.random((4, 16)).tolist(), "y": [i % 3] * 4} for i in range(40)
            },
        }
        (tmp_path / part / "all.json").write_text(json.dumps(content))
    config = small(
        tmp_path, "data.source=leaf", f"data.path={tmp_path}", "population.partition=natural", "encoder.kind=identity",
    )  # fmt: skip
    parts, users = shards_of(config, tmp_path)
    info = read_info(parts[0].private_dir.parent)
    assert info.schema.shape == (4, 4, 1) and info.classes == ("0", "1", "2")
    assert set(np.diff(parts[0].store.offsets)) == {8}  # train and test files are one
    assert info.public_count + info.test_count + 8 * users == 320


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["population.user=nobody"], "no column nobody"),
        (["data.public_fraction=0.0001", "data.test_fraction=0"], "no public user"),
    ],
)
def test_natural_keys_that_cannot_be_read_are_refused(
    tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        divided_users(natural(tmp_path, *overrides))


def test_a_folder_that_is_no_leaf_data_is_refused(tmp_path: Path) -> None:
    keys = (
        "data.source=leaf",
        f"data.path={tmp_path}",
        "population.partition=natural",
        "encoder.kind=identity",
    )
    with pytest.raises(UserError, match="holds no LEAF data"):
        divided_users(small(tmp_path, *keys))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.json").write_text("{}")
    with pytest.raises(UserError, match="no file of the LEAF format"):
        divided_users(small(tmp_path, *keys))


def test_generated_users_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    seen = []
    for size in (1, 3):
        home = tmp_path / str(size)
        config = load_federated(
            Path(__file__).parents[1] / "configs" / "federated" / "million.yaml",
            (
                "population.users=9000",
                "population.records=3",
                f"paths.home={home}",
                "population.partition=dirichlet",
            ),
        )
        parts, users = shards_of(config, home, size)
        assert users == 9000 and set(np.diff(parts[0].store.offsets)) == {3}
        seen.append((parts[0].store.latents.tobytes(), parts[0].store.labels.tobytes()))
    assert seen[0] == seen[1]
