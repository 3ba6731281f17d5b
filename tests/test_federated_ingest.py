"""Natural users whose records are not what they should be: private ones are null, public ones left out or named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from federated_support import divided_users, run_federated, shards_of, small

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress
from dpsw_ray.data import Dataset
from dpsw_ray.data.parts import read_part
from dpsw_ray.federated.config import FederatedConfig
from dpsw_ray.federated.population.ingest import _part

SIDE = 4
USERS = [f"f{i}" for i in range(120)]


def leaf(folder: Path, *overrides: str) -> FederatedConfig:
    return small(
        folder / "home", "data.source=leaf", f"data.path={folder}", "population.partition=natural",
        "encoder.kind=identity", *overrides,
    )  # fmt: skip


def images(seed: int, n: int = 3) -> list[list[float]]:
    return np.random.default_rng(seed).random((n, SIDE * SIDE)).tolist()


def users_of(config: FederatedConfig, part: str) -> list[str]:
    return [user for user in USERS if _part(user, config) == part]


def content() -> dict[str, Any]:
    data = {user: {"x": images(i), "y": [i % 3] * 3} for i, user in enumerate(USERS)}
    return {"users": list(USERS), "user_data": data}


def written(folder: Path, *files: Any) -> None:
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for number, held in enumerate(files):
        text = held if isinstance(held, bytes) else json.dumps(held).encode()
        (folder / "train" / f"{number}.json").write_bytes(text)


def private(data: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    part = read_part(data.private_dir, data.info.schema)
    return part.values, part.labels, np.load(data.private_dir / "owners.npy")


BROKEN: dict[str, Any] = {
    "flat x": {"x": images(0, 1)[0], "y": [1]},
    "x of numbers": {"x": [0.5, 0.5], "y": [1, 1]},
    "no x": {"y": [1]},
    "no labels": {"x": images(1)},
    "fewer labels": {"x": images(1), "y": [1]},
    "not a dict": [1, 2],
    "nothing": None,
    "short": {"x": [[0.5] * 3], "y": [1]},
    "ragged": {"x": [[[0.5], 0.5] + [0.5] * 14], "y": [1]},
    "text": {"x": [["0.5"] * 16], "y": [1]},
    "booleans": {"x": [[True] * 16], "y": [1]},
    "outside": {"x": [[255.0] * 16], "y": [1]},
    "negative": {"x": [[-0.1] + [0.5] * 15], "y": [1]},
    "NaN": {"x": [[math.nan] + [0.5] * 15], "y": [1]},
    "infinite": {"x": [[math.inf] + [0.5] * 15], "y": [1]},
    "missing": {"x": [[None] + [0.5] * 15], "y": [1]},
    "empty": {"x": [], "y": []},
}


def test_no_private_user_of_a_leaf_folder_ends_the_import_or_tells_of_itself(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = leaf(broken)
    bad = dict(zip(users_of(config, "private"), BROKEN.values(), strict=False))
    assert len(bad) == len(BROKEN)
    held = content()
    written(whole, held)
    written(broken, {**held, "user_data": {**held["user_data"], **bad}})
    told = []
    for folder in (whole, broken):
        data, users = divided_users(leaf(folder))
        told.append(
            (users, data.info.schema, data.info.classes, data.info.public_count, data.info.test_count)
        )
    assert told[0] == told[1] and told[0][0] == len(users_of(config, "private"))
    _, labels, owners = private(data)
    good = [number for number, user in enumerate(users_of(config, "private")) if user not in bad]
    assert set(owners) == set(good) and (np.bincount(owners)[good] == 3).all() and (labels >= 0).all()
    parts, users = shards_of(leaf(broken), tmp_path)
    assert len(parts[0].store.offsets) == users + 1


LABELS: list[Any] = [None, math.nan, 1.5, [1], {"a": 1}, "\ud800", "²", 10**30, "nobody's", True, 1.0]


def test_labels_that_are_none_are_unknown(tmp_path: Path) -> None:
    held = content()
    config = leaf(tmp_path)
    mine = users_of(config, "private")
    for user, label in zip(mine, LABELS, strict=False):
        held["user_data"][user]["y"] = [label] * 3
    data, _ = divided_users_of(tmp_path, held)
    _, labels, owners = private(data)
    assert data.info.classes == ("0", "1", "2")
    for number in range(len(LABELS)):
        expected = 1 if LABELS[number] == 1.0 and LABELS[number] is not True else -1
        assert set(labels[owners == number]) == {expected}, LABELS[number]


def divided_users_of(folder: Path, *files: Any) -> tuple[Dataset, int]:
    written(folder, *files)
    return divided_users(leaf(folder))


def test_broken_bytes_and_huge_numbers_of_one_user_spoil_no_other(tmp_path: Path) -> None:
    held, config = content(), leaf(tmp_path)
    first, second, third, *_ = users_of(config, "private")
    held["user_data"][first]["y"] = ["@1"] * 3
    held["user_data"][second]["y"] = [12345678901] * 3
    held["users"].append("@2")
    held["user_data"]["@2"] = {"x": images(999), "y": [0] * 3}
    text = json.dumps(held).encode()
    for mark, raw in ((b"@1", b"\xff"), (b"@2", b"\xfe"), (b"12345678901", b"9" * 5000)):
        text = text.replace(mark, raw)
    data, users = divided_users_of(tmp_path, text)
    assert users in (len(users_of(config, "private")), len(users_of(config, "private")) + 1)
    _, labels, owners = private(data)
    assert set(labels[owners < 2]) == {-1} and set(labels[owners == 2]) != {-1}
    assert third


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("where", ["image", "pixel", "label", "user"])
def test_a_private_user_of_thousands_of_levels_spoils_no_other(where: str, tmp_path: Path) -> None:
    held, config = content(), leaf(tmp_path)
    first, second, *others = users_of(config, "private")
    broken = held["user_data"][first]
    mine = {"image": broken["x"], "pixel": broken["x"][0], "label": broken["y"], "user": held["user_data"]}
    mine[where][first if where == "user" else 0] = "@deep"
    held["user_data"][second]["y"][0] = 'brackets ]}[{ and \\" quotes are text'
    text = json.dumps(held).replace('"@deep"', DEEP).encode()
    data, users = divided_users_of(tmp_path, text)
    _, labels, owners = private(data)
    assert users == len(others) + 2
    assert (np.bincount(owners, minlength=users)[1:] == 3).all()
    kept = labels[owners == 0]
    assert len(kept) == {"label": 3, "user": 0}.get(where, 2) and (kept == -1).sum() == (where == "label")


def test_a_public_image_of_thousands_of_levels_is_said(tmp_path: Path) -> None:
    held, config = content(), leaf(tmp_path)
    held["user_data"][users_of(config, "public")[1]]["x"][0] = "@deep"
    with pytest.raises(UserError, match="every record must be a list of 16 numbers"):
        divided_users_of(tmp_path, json.dumps(held).replace('"@deep"', DEEP).encode())


def test_the_size_of_an_image_is_that_of_the_public_and_a_first_file_may_have_no_users(
    tmp_path: Path,
) -> None:
    held, config = content(), leaf(tmp_path)
    first = users_of(config, "private")[0]
    odd = {"users": [first], "user_data": {first: {"x": [[0.5] * 9], "y": [1]}}}
    data, _ = divided_users_of(tmp_path, {"users": [], "user_data": {}}, odd, held)
    assert data.info.schema.shape == (SIDE, SIDE, 1)
    _, _, owners = private(data)
    assert (owners == 0).sum() == 3


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("flat x", r"0\.json is no file of the LEAF format: every record must be a list"),
        ("fewer labels", r"every record must be a list( of 16 numbers)? and have a label"),
        ("nothing", "every record must be a list"),
        ("text", "every record must be a list of 16 numbers"),
        ("outside", r"0\.json has pixels outside 0 to 1"),
        ("negative", r"0\.json has pixels outside 0 to 1"),
        ("short", "square images were expected|every record must be a list"),
    ],
)
@pytest.mark.parametrize("place", [0, -1])
def test_what_is_wrong_with_a_public_user_is_said(
    kind: str, sentence: str, place: int, tmp_path: Path
) -> None:
    held, config = content(), leaf(tmp_path)
    public = users_of(config, "public")[place]
    held["user_data"][public] = BROKEN[kind]
    with pytest.raises(UserError, match=sentence) as refused:
        divided_users_of(tmp_path, held)
    assert public not in str(refused.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("kind", ["NaN", "missing", "infinite"])
def test_public_images_with_missing_pixels_are_left_out(kind: str, tmp_path: Path) -> None:
    held, config = content(), leaf(tmp_path)
    whole = divided_users_of(tmp_path / "whole", held)[0].info.public_count
    held["user_data"][users_of(config, "public")[0]] = BROKEN[kind]
    if kind == "infinite":
        with pytest.raises(UserError, match="has pixels outside 0 to 1"):
            divided_users_of(tmp_path / "holes", held)
        return
    assert divided_users_of(tmp_path / "holes", held)[0].info.public_count == whole - 3


@pytest.mark.parametrize(
    "text",
    [b"[]", b"{", b'{"users": 3, "user_data": {}}', b"[" * 100_000, b'{"users": ["a"], "user_data": []}'],
)
def test_a_file_of_another_form_is_named(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.json is no file of the LEAF format: users and user_data"):
        divided_users_of(tmp_path, content(), text)


def test_folders_without_public_users_are_refused(tmp_path: Path) -> None:
    held, config = content(), leaf(tmp_path)
    with pytest.raises(UserError, match="has no public user with a record"):
        divided_users_of(tmp_path, {**held, "users": users_of(config, "private")})


def people(folder: Path, **columns: Any) -> Path:
    generator = np.random.default_rng(0)
    users = [f"p{i}" for i in generator.integers(0, 60, 1500)]
    numbers = {name: generator.standard_normal(1500) for name in ("a", "b")}
    table = {"user": users, **numbers, "kind": ["even", "odd"] * 750, **columns}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / "people.parquet")
    return folder / "people.parquet"


def natural(folder: Path, path: Path, *overrides: str) -> FederatedConfig:
    return small(
        folder / "home", "data.source=table", "population.partition=natural", "population.user=user",
        f"data.path={path}", "data.label=kind", "encoder.kind=identity", *overrides,
    )  # fmt: skip


def test_missing_labels_are_unknown_and_no_class(tmp_path: Path) -> None:
    labels: list[str | None] = ["even", "odd", None, ""] * 375
    config = natural(tmp_path, people(tmp_path, kind=labels))
    data, _ = divided_users(config)
    assert data.info.classes == ("", "even", "odd")
    for part in (data.public(), data.test(), read_part(data.private_dir, data.info.schema)):
        assert set(part.labels) == {-1, 0, 1, 2}
        assert np.mean(part.labels == -1) == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_public_rows_with_missing_values_are_left_out_and_private_ones_are_null(
    bad: float, tmp_path: Path
) -> None:
    a = np.random.default_rng(1).standard_normal(1500)
    a[::5] = bad
    config = natural(tmp_path, people(tmp_path, a=a), "evaluation.enabled=true", "evaluation.directions=8")
    run_federated(config, tmp_path / "run", Progress(quiet=True))
    data, _ = divided_users(config)
    for part in (data.public(), data.test()):
        assert len(part) and np.isfinite(part.values).all()
    values, _, _ = private(data)
    assert 0.1 < np.isnan(values[:, 0]).mean() < 0.3


@pytest.mark.parametrize("overrides", [[], ["evaluation.enabled=true", "evaluation.directions=8"]])
def test_there_may_be_no_test_users(overrides: list[str], tmp_path: Path) -> None:
    config = natural(tmp_path, people(tmp_path), "data.test_fraction=0", *overrides)
    run_federated(config, tmp_path / "run", Progress(quiet=True))
    assert divided_users(config)[0].info.test_count == 0


def test_labels_that_look_like_numbers_to_python_alone_are_texts(tmp_path: Path) -> None:
    config = natural(tmp_path, people(tmp_path, kind=["²", "10", "9", "-1"] * 375))
    assert divided_users(config)[0].info.classes == ("-1", "10", "9", "²")
    numbers = natural(tmp_path / "n", people(tmp_path / "n", kind=["10", "9", "-1"] * 500))
    assert divided_users(numbers)[0].info.classes == ("-1", "9", "10")


def test_a_class_list_that_no_public_user_has_is_refused(tmp_path: Path) -> None:
    config = natural(tmp_path, people(tmp_path), "data.classes=[left, right]")
    with pytest.raises(UserError, match=r"data\.classes has none of the labels in the public part"):
        divided_users(config)


def test_a_run_ends_where_no_private_user_holds_a_record(tmp_path: Path) -> None:
    held, config = content(), leaf(tmp_path, "cluster.actors=3")
    for user in users_of(config, "private"):
        held["user_data"][user] = None
    written(tmp_path, held)
    run_federated(config, tmp_path / "run", Progress(quiet=True))
    assert not len(private(divided_users(config)[0])[0])


def test_users_of_another_name_are_no_second_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the folder under another name: both names are told at a terminal, and in no log."""
    written(tmp_path / "one", content())
    written(tmp_path / "two", content())
    home = f"paths.home={tmp_path / 'home'}"
    divided_users(leaf(tmp_path / "one", home, "data.name=first"))
    again = leaf(tmp_path / "two", home, "data.name=second")
    for terminal, said in (
        (False, "Data set second is not divided"),
        (True, "are those of the data set first"),
    ):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        with pytest.raises(UserError, match=said) as caught:
            divided_users(again)
        assert ("first" in str(caught.value)) == terminal
