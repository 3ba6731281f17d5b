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

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import write_bytes, write_manifest
from dpsw_ray.data.division import check_one_division
from dpsw_ray.data.origin import check_records_are_new
from dpsw_ray.data.parts import write_part
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.data.sources import resolved_path
from dpsw_ray.data.split import class_list, record_digests
from dpsw_ray.data.table import TableSource
from dpsw_ray.federated.config import FederatedConfig
from dpsw_ray.federated.population.leaf import LeafSource, UserBatch
from dpsw_ray.private.sealing import sealed

__all__ = ["ingest_users", "natural_folder"]

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
def ingest_users(
    config: FederatedConfig, folder: Path, pinned: Mapping[str, Any] | None = None, told: bool = False
) -> None:
    """Writes the three parts, and whose the private records are.

    A record that is not whole is left out of the public and the test part. A private one holds its place as a null
    record, or is left out: how many records a private user has is nobody's business. Every private user counts,
    whatever is stored of it.

    Args:
        config: the run.
        folder: where the data set is going to be stored.
        pinned: the only division that these records may have; None for any.
        told: whether a person reads the sentence that these are another data set's records, and no log keeps it.

    Raises:
        UserError: the source is missing or damaged, leaves no public record or fewer than two private users, or has the
            records of another data set.
    """
    data, path = config.data, resolved_path(config.data)
    assert path is not None, "checked by the config"
    source: _Table | LeafSource = (
        LeafSource(path, lambda user: _part(user, config) == "private")
        if data.source == "leaf"
        else _Table(path, data.label, data.columns, config.population.user or "")
    )
    schema: RecordSchema = source.schema
    rule = _rule(config)
    check_one_division(data, rule, source.schema.columns, folder, pinned)
    values: dict[str, list[NDArray[Any]]] = {part: [] for part in _PARTS}
    labels: dict[str, list[str | None]] = {part: [] for part in _PARTS}
    owners: list[int] = []
    people: dict[str, int] = {}
    for users, holders, rows, names in source.batches():
        for user in users:
            if _part(user, config) == "private":
                people.setdefault(user, len(people))
        parts = [_part(user, config) for user in holders]
        whole = np.asarray(np.isfinite(rows).reshape(len(rows), schema.size).all(axis=1))
        for part in _PARTS:
            mine = [i for i, found in enumerate(parts) if found == part and (whole[i] or part == "private")]
            values[part].append(rows[mine])
            labels[part] += [names[i] for i in mine]
            if part == "private":
                owners += [people[holders[i]] for i in mine]
    if len(people) < 2 or not labels["public"]:
        missing = "too few private users" if labels["public"] else "no public user with a whole record"
        raise UserError(
            f"{path} leaves {missing}: it is too small for data.public_fraction {data.public_fraction:g}."
        )
    seen_labels = sorted({label for label in labels["public"] if label is not None})
    classes = class_list(data, source.name, seen_labels) if source.labelled else ()
    index = {label: i for i, label in enumerate(classes)}
    records = {
        part: np.concatenate([*values[part], np.empty((0, *schema.shape), schema.dtype)]).astype(schema.dtype)
        for part in _PARTS
    }
    found = {part: record_digests(rows, schema) for part, rows in records.items()}
    check_records_are_new(data.account, np.concatenate(list(found.values())), folder.parent.parent, told)
    counts: dict[str, int] = {}
    for part in _PARTS:
        mode = 0o700 if part == "private" else 0o755
        (folder / part).mkdir(mode=mode, parents=True, exist_ok=True)
        flat, digests = records[part], found[part]
        codes = np.array([-1 if label is None else index.get(label, -1) for label in labels[part]], np.int32)
        # The same image may come from two users: it is left out where the public would learn it.
        if part == "private":
            seen = np.concatenate([np.load(folder / name / "digests.npy") for name in ("public", "test")])
            kept = ~np.isin(digests, seen)
        elif part == "test":
            kept = ~np.isin(digests, np.load(folder / "public" / "digests.npy"))
        else:
            kept = np.ones(len(flat), dtype=bool)
        flat, codes, digests = flat[kept], codes[kept], digests[kept]
        write_part(
            folder / part, flat.reshape(len(flat), schema.size), codes, digests,
            mode=0o600 if part == "private" else 0o644,
        )  # fmt: skip
        if part == "private":
            place = np.array(owners, np.int64)[kept]
            buffer = io.BytesIO()
            np.save(buffer, place, allow_pickle=False)
            write_bytes(folder / part / "owners.npy", buffer.getvalue(), mode=0o600)
        else:
            counts[part] = len(flat)
    write_manifest(
        folder / "dataset.json",
        {
            "format": 1, "source": data.source, "path": str(path), "split": rule,
            "schema": schema.to_dict(), "classes": list(classes), "class_names": None,
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
    name = user.encode(errors="surrogatepass")  # whatever bytes a file has for a name
    u = int.from_bytes(hashlib.blake2b(name, key=key, digest_size=8).digest(), "big") * 2.0**-64
    test = config.data.test_fraction
    return "test" if u < test else "public" if u < test + config.data.public_fraction else "private"


class _Table:
    """A table with a column that names the user."""

    def __init__(self, path: Path, label: str | None, columns: list[str] | None, user: str) -> None:
        self._users = TableSource(path, user, columns, [label])  # read as labels are: as texts
        self._records = TableSource(path, label, columns, [user])
        self.schema, self.name, self.labelled = self._records.schema, self._records.name, label is not None

    def batches(self) -> Iterator[UserBatch]:
        """Records in the order of the table; rows without a user are left out."""
        for (values, labels), (_, users) in zip(
            self._records.batches("train"), self._users.batches("train"), strict=True
        ):
            assert users is not None
            kept = [i for i, user in enumerate(users) if user is not None]
            names = [None if labels is None else labels[i] for i in kept]
            holders = [str(users[i]) for i in kept]
            yield holders, holders, values[kept], names
