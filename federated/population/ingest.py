"""Natural keys: tables with a column of users, and folders of the LEAF format. Divided by user, on the private side.

A user is public, private or a test user as a whole: by a hash of its name under a key made of `data.split_seed`, so
that nobody's part depends on anybody else. The train and test files of a LEAF folder are read as one: they often hold
the same users.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.data.division import check_one_division
from dpsw_ray.data.parts import write_part
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.data.sources import resolved_path
from dpsw_ray.data.split import record_digests
from dpsw_ray.data.table import TableSource
from dpsw_ray.errors import UserError
from dpsw_ray.files import write_bytes, write_json
from dpsw_ray.private.sealing import sealed
from federated.config import FederatedConfig

__all__ = ["ingest_users", "natural_folder"]

Batch = tuple[list[str], NDArray[Any], list[str | None]]
"""Users, values [n, *shape], and labels of some records."""

_PARTS = ("public", "test", "private")


def natural_folder(config: FederatedConfig) -> Path:
    """Where the data set of `config` is stored: a folder per account and per set of keys that decide the division."""
    data = config.data
    identity = {
        "source": data.source, "path": str(resolved_path(data)), "label": data.label, "columns": data.columns,
        "classes": data.classes, "public": data.public_fraction, "test": data.test_fraction,
        "seed": data.split_seed, "user": config.population.user,
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return config.home / "datasets" / data.account / f"users-{key}"


@sealed("dividing users into public, private and test users")
def ingest_users(config: FederatedConfig, folder: Path, pinned: Mapping[str, Any] | None = None) -> None:
    """Writes the three parts, and whose the private records are.

    Raises:
        UserError: the source is missing or damaged, or leaves no public or fewer than two private users.
    """
    data, path = config.data, resolved_path(config.data)
    assert path is not None, "checked by the config"
    source: _Table | _Leaf = (
        _Leaf(path)
        if data.source == "leaf"
        else _Table(path, data.label, data.columns, config.population.user or "")
    )
    rule = _rule(config)
    check_one_division(data, rule, source.schema.columns, folder, pinned)
    values: dict[str, list[NDArray[Any]]] = {part: [] for part in _PARTS}
    labels: dict[str, list[str | None]] = {part: [] for part in _PARTS}
    owners: list[str] = []
    for users, rows, names in source.batches():
        parts = [_part(user, config) for user in users]
        for part in _PARTS:
            mine = [i for i, found in enumerate(parts) if found == part]
            values[part].append(rows[mine])
            labels[part] += [names[i] for i in mine]
            if part == "private":
                owners += [users[i] for i in mine]
    known = sorted({label for label in labels["public"] if label is not None}, key=_order)
    classes = list(data.classes) if data.classes is not None else known
    index = {label: i for i, label in enumerate(classes)}
    people = {user: i for i, user in enumerate(dict.fromkeys(owners))}
    if len(people) < 2 or not labels["public"]:
        raise UserError(
            f"{path} leaves {'too few private users' if labels['public'] else 'no public user'}: it is too small for "
            f"data.public_fraction {data.public_fraction:g}."
        )
    schema: RecordSchema = source.schema
    counts: dict[str, int] = {}
    for part in _PARTS:
        mode = 0o700 if part == "private" else 0o755
        (folder / part).mkdir(mode=mode, parents=True, exist_ok=True)
        flat = np.concatenate([*values[part], np.empty((0, *schema.shape), schema.dtype)]).astype(
            schema.dtype
        )
        codes = np.array([index.get(label or "", -1) for label in labels[part]], np.int32)
        # The same image may come from two users: it is left out where the public would learn it.
        digests = record_digests(flat, schema)
        if part == "private":
            seen = np.concatenate([np.load(folder / name / "digests.npy") for name in ("public", "test")])
            kept = ~np.isin(digests, seen)
        elif part == "test":
            kept = ~np.isin(digests, np.load(folder / "public" / "digests.npy"))
        else:
            kept = np.ones(len(flat), dtype=bool)
        flat, codes, digests = flat[kept], codes[kept], digests[kept]
        write_part(
            folder / part, flat.reshape(len(flat), -1), codes, digests,
            mode=0o600 if part == "private" else 0o644,
        )  # fmt: skip
        if part == "private":
            place = np.array([people[user] for user in owners], np.int64)[kept]
            buffer = io.BytesIO()
            np.save(buffer, place, allow_pickle=False)
            write_bytes(folder / part / "owners.npy", buffer.getvalue(), mode=0o600)
        else:
            counts[part] = len(flat)
    write_json(
        folder / "dataset.json",
        {
            "format": 1, "source": data.source, "path": str(path), "split": rule,
            "schema": schema.to_dict(), "classes": classes, "class_names": None,
            "counts": counts, "users": len(people),
        },
    )  # fmt: skip


def _rule(config: FederatedConfig) -> dict[str, Any]:
    """All that decides which part a user goes to, its own name aside."""
    data = config.data
    return {
        "rule": "u = 2^-64 * BLAKE2b-64(user, key = BLAKE2b-256(split_seed))",
        "test": f"u < {data.test_fraction}",
        "public_fraction": data.public_fraction,
        "test_fraction": data.test_fraction,
        "split_seed": data.split_seed,
        "user": config.population.user,
    }


def _part(user: str, config: FederatedConfig) -> str:
    key = hashlib.blake2b(str(config.data.split_seed).encode(), digest_size=32, person=b"dpsw users").digest()
    u = int.from_bytes(hashlib.blake2b(user.encode(), key=key, digest_size=8).digest(), "big") * 2.0**-64
    test = config.data.test_fraction
    return "test" if u < test else "public" if u < test + config.data.public_fraction else "private"


def _order(label: str) -> tuple[int, str]:
    return (int(label), label) if label.lstrip("-").isdigit() else (0, label)


class _Table:
    """A table with a column that names the user."""

    def __init__(self, path: Path, label: str | None, columns: list[str] | None, user: str) -> None:
        self._users = TableSource(path, user, columns, [label])  # read as labels are: as texts
        self._records = TableSource(path, label, columns, [user])
        self.schema = self._records.schema

    def batches(self) -> Iterator[Batch]:
        """Records in the order of the table; rows without a user are left out."""
        for (values, labels), (_, users) in zip(
            self._records.batches("train"), self._users.batches("train"), strict=True
        ):
            assert users is not None
            kept = [i for i, user in enumerate(users) if user is not None]
            names = [None if labels is None else labels[i] for i in kept]
            yield [str(users[i]) for i in kept], values[kept], names


class _Leaf:
    """A folder of the LEAF format: train/*.json and test/*.json with `users` and `user_data` (Caldas et al. 2018)."""

    def __init__(self, path: Path) -> None:
        self._files = [file for part in ("train", "test") for file in sorted((path / part).glob("*.json"))]
        if not self._files:
            raise UserError(
                f"data.path {path} holds no LEAF data: a folder train/ with .json files was expected."
            )
        first = next(self._read(self._files[0]), None)
        if first is None:
            raise UserError(f"{self._files[0]} is no file of the LEAF format: it has no users.")
        size = len(first[1][0])
        side = round(size**0.5)
        if side * side != size:
            raise UserError(
                f"{path} has records of {size} numbers; square images were expected, such as FEMNIST's."
            )
        self.schema = RecordSchema("image", (side, side, 1), value_range=(0, 255))

    def batches(self) -> Iterator[Batch]:
        """Records user by user."""
        for file in self._files:
            for user, records, labels in self._read(file):
                try:
                    values = np.asarray(records, float)
                except (ValueError, TypeError):
                    values = np.empty(0)
                if values.shape != (len(labels), self.schema.size):
                    raise UserError(
                        f"{file} is no file of the LEAF format: every record must be a list of {self.schema.size} "
                        "numbers and have a label."
                    )
                pixels = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
                images = pixels.reshape(-1, *self.schema.shape)
                names: list[str | None] = [str(label) for label in labels]
                yield [user] * len(images), images, names

    def _read(self, file: Path) -> Iterator[tuple[str, list[list[float]], list[Any]]]:
        try:
            content = json.loads(file.read_text())
            for user in content["users"]:
                held = content["user_data"][user]
                if held["x"]:
                    yield str(user), held["x"], held["y"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{file} is no file of the LEAF format: users and user_data were expected."
            ) from None
