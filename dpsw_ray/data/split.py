"""The stored public/private/test split: made once, the same everywhere, disjoint, checked on every load.

The rule. A record's *digest* is BLAKE2b of the bytes of its values (labels left out). Its number u, from 0 to
below 1, is BLAKE2b of the digest under a key made of `data.split_seed`. A source with a test part of its own
keeps it; of the rest, records whose digest is in that test part are dropped, `u < public_fraction` is public,
what remains is private. A source without one: `u < test_fraction` is test, then `u < test_fraction +
public_fraction` is public, the rest private.

Why a hash and not a shuffle:

* The part of a record depends on that record alone (and on the source's own, unprotected test part). Two data
  sets that differ in a private record therefore have identical public and test parts, which is what lets
  everything learned from the public part (encoder, class list) count as public. A shuffle would move *other*
  records across the border when one is added, and the sizes of its parts would tell N.
* Identical records always land in the same part, so a duplicate cannot be public and private at once; for the
  same reason the label is left out of the digest. Duplicates inside one part are left where they are.
* A data set is divided once: another seed, fraction or set of columns under the same account is refused, as
  records that one division protects would be public in the other. Corrected data are divided again on demand: what
  was public in every stored division of the account, and is as it was, stays public, everything else is private.
* Records have one name: where nearly all of them are another data set's of the home, their division is refused.
* The digest is of little-endian bytes with one NaN and one zero, so every machine makes the same split, and
  growing the data set later never moves a record that was there.

What is private stays so: `private/` is made with mode 0700 and its files with 0600 from creation; the class
list is `data.classes` or what the public part shows; labels outside it become -1 silently; no error quotes a
record; and under `add_remove`, where N is private, neither the manifest nor anything returned
holds the number of private records.

    home/datasets/<account>/<key>/
        dataset.json            the public manifest
        public/  test/          records.arrow, digests.npy
        private/                the same, and origin.json, readable by its owner only
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import (
    DAMAGE,
    DamagedFile,
    read_json,
    read_manifest,
    write_manifest,
)
from dpsw_ray.config.run import DataConfig, PrivacyConfig
from dpsw_ray.data.collect import PARTS, Digests, Unprotected, collect, record_digests
from dpsw_ray.data.division import (
    check_bounds,
    check_one_division,
    damaged,
    division_of,
    settled,
    split_rule,
)
from dpsw_ray.data.origin import Origin, check_files_are_new, check_records_are_new
from dpsw_ray.data.parts import DamagedPart, overlap, read_digests, read_part
from dpsw_ray.data.records import NULL, Part, RecordSchema, Source
from dpsw_ray.data.sources import open_source, resolved_path

__all__ = [
    "Dataset",
    "DatasetInfo",
    "check_count_secret",
    "class_list",
    "dataset_folder",
    "import_dataset",
    "open_dataset",
    "read_info",
    "record_digests",
    "source_changed",
]

MAX_CLASSES = 1000
_FORMAT = 1
_REMEMBERED = ("keys", "spent", "asked", "said")
_RELATIONS: tuple[str, ...] = get_args(PrivacyConfig.model_fields["relation"].annotation)


@dataclass(frozen=True)
class DatasetInfo:
    """What everybody may know of a stored data set.

    Attributes:
        schema: the form of a record.
        classes: the public class list, empty when there are no labels; labels are indices into it.
        class_names: a nice name for each class, None where the source has none.
        public_count: records in the public part.
        test_count: records in the test part.
        private_count: N, or None where it is private (`add_remove`).
        folder: where the data set is stored.
        division: what decides which part a record goes to, as JSON values; empty for generated records.
    """

    schema: RecordSchema
    classes: tuple[str, ...]
    class_names: tuple[str, ...] | None
    public_count: int
    test_count: int
    private_count: int | None
    folder: Path
    division: Mapping[str, Any]

    @property
    def unprotected(self) -> dict[str, int]:
        """Records by part that nothing protects; parts without any are left out."""
        counts = {"public": self.public_count, "test": self.test_count}
        return {part: count for part, count in counts.items() if count}

    def to_dict(self) -> dict[str, Any]:
        """The info as JSON values; `private_count` is absent where N is private."""
        counts = {"private_count": self.private_count} if self.private_count is not None else {}
        return {
            "schema": self.schema.to_dict(),
            "classes": list(self.classes),
            "class_names": list(self.class_names) if self.class_names is not None else None,
            "public_count": self.public_count,
            "test_count": self.test_count,
            **counts,
            "folder": str(self.folder),
            "division": dict(self.division),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError where `values` is something else."""
        names, private = values["class_names"], values.get("private_count")
        return cls(
            schema=RecordSchema.from_dict(values["schema"]),
            classes=tuple(str(label) for label in values["classes"]),
            class_names=tuple(str(name) for name in names) if names is not None else None,
            public_count=int(values["public_count"]),
            test_count=int(values["test_count"]),
            private_count=int(private) if private is not None else None,
            folder=Path(values["folder"]),
            division=dict(values["division"]),
        )


@dataclass(frozen=True)
class Dataset:
    """A stored data set as the driver may see it: info, public and test part, never the private one."""

    info: DatasetInfo

    @property
    def private_dir(self) -> Path:
        """The private part's folder, to be handed to the private wing unopened."""
        return self.info.folder / "private"

    @property
    def receipts_dir(self) -> Path:
        """Where the private side keeps receipts of charges: one folder for all divisions of an account's records."""
        folder = self.info.folder  # of generated records, who are nobody's, each has its own
        return (folder.parent if self.info.division else folder) / ".receipts"

    def public(self) -> Part:
        """The public part, memory-mapped."""
        return self._part("public")

    def test(self) -> Part:
        """The test part, memory-mapped; benchmark records, not protected."""
        return self._part("test")

    def _part(self, name: str) -> Part:
        folder = self.info.folder
        try:
            digests = {part: read_digests(folder / part) for part in ("public", "test")}
            part = read_part(folder / name, self.info.schema)
        except DamagedPart:
            raise damaged(folder, "a file of its public or test part is missing or damaged") from None
        if overlap(digests["public"], digests["test"]):
            raise damaged(folder, "its public and test parts have records in common")
        if not len(digests[name]) == len(part) == getattr(self.info, f"{name}_count"):
            raise damaged(folder, f"its {name} part does not hold the number of records it should")
        return part


def dataset_folder(cfg: DataConfig, home: Path, relation: str) -> Path:
    """Where the data set of `cfg` is stored: a folder per account and per set of keys that decide the split.

    Whether N is private is one of those keys, so that a data set registered with a private N is never opened
    through the manifest of one that tells it.

    Raises:
        UserError: the account's name cannot name a folder.
    """
    if relation not in _RELATIONS:
        raise UserError(f"privacy.relation must be one of {', '.join(_RELATIONS)}, found {relation}.")
    if not cfg.account.strip("."):
        raise UserError(f"data.name must hold something besides dots, found {cfg.account}.")
    path = resolved_path(cfg)
    identity = {
        "format": _FORMAT,
        "source": cfg.source,
        "path": str(path) if path is not None else None,
        "label": cfg.label,
        "columns": cfg.columns,
        "classes": cfg.classes,
        "public_fraction": cfg.public_fraction,
        "test_fraction": cfg.test_fraction,
        "split_seed": cfg.split_seed,
        "private_count_hidden": relation == "add_remove",
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return home / "datasets" / cfg.account / key


def open_dataset(cfg: DataConfig, home: Path, relation: str) -> Dataset | None:
    """Opens a stored data set, or returns None where it has not been imported.

    Raises:
        UserError: the stored folder is damaged.
    """
    folder = dataset_folder(cfg, home, relation)
    return Dataset(read_info(folder)) if os.path.lexists(folder / "dataset.json") else None


def check_count_secret(cfg: DataConfig, home: Path) -> None:
    """Refuses to promise that nobody learns how many private records there are where a manifest tells it already.

    Raises:
        UserError: the account's records were divided before, under another relation.
    """
    for manifest in sorted(dataset_folder(cfg, home, "add_remove").parent.glob("[!.]*/dataset.json")):
        try:
            told = "private" in read_json(manifest)["counts"]
        except (DamagedFile, OSError, *DAMAGE):
            continue
        if told:
            raise UserError(
                f"Data set {cfg.account} was divided under another relation before, and {manifest} tells how many "
                "private records there are: privacy.relation add_remove can no longer hide it. Keep to that relation, "
                "or, if nobody has read the file, use another paths.home."
            )


def read_info(folder: Path) -> DatasetInfo:
    """Reads the public manifest of a stored data set.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    try:
        manifest = read_manifest(folder / "dataset.json")
        if manifest["format"] != _FORMAT:
            raise ValueError("format")
        counts = {f"{part}_count": count for part, count in manifest["counts"].items()}
        # Generated records are divided by no rule: there is nobody to protect.
        rule = manifest.get("split")
        columns = manifest["schema"]["columns"]
        division = division_of(manifest["source"], columns, rule) if rule else {}
        return DatasetInfo.from_dict({**manifest, **counts, "folder": str(folder), "division": division})
    except (DamagedFile, *DAMAGE):
        raise damaged(folder, "its dataset.json is missing or damaged") from None


def import_dataset(
    cfg: DataConfig,
    home: Path,
    relation: str,
    processes: int = 1,
    pinned: Mapping[str, Any] | None = None,
    *,
    again: bool = False,
    told: bool = False,
) -> DatasetInfo:
    """Makes and stores the split of a data set, once; afterwards only opens it.

    Runs on the private side. Neither the result nor an exception holds a private statistic, but N where the
    relation makes it public. The folder appears whole or not at all, also when several processes import it.

    Args:
        cfg: the `data` section.
        home: the home folder, which must be a local or locking file system.
        relation: the neighbouring relation the data set is registered under.
        processes: how many read the source at a time; the result does not depend on it.
        pinned: the only division that these records may have (`check_pinned`); None for any.
        again: divide a source that has changed anew, in the place of the stored division: what was private stays so.
        told: whether a refusal may say that these are another data set's records: not where a log would keep it.

    Returns:
        The public info.

    Raises:
        UserError: the source is missing or damaged, or the config does not fit it.
    """
    folder = dataset_folder(cfg, home, relation)
    if again or not os.path.lexists(folder / "dataset.json"):
        source = open_source(cfg, home)
        if cfg.classes is not None:
            _check_classes(cfg.classes, source)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(".account.lock")):
            if not folder.exists() and _former(folder).exists():  # whoever divided it again was killed
                _former(folder).rename(folder)
            stored = os.path.lexists(folder / "dataset.json")
            if again and not stored:
                raise UserError(
                    f"Data set {cfg.account} is not divided yet with these data.* keys: there is nothing to divide "
                    "again."
                )
            if again or not stored:
                if folder.exists() and not stored:
                    raise damaged(folder, "its dataset.json is missing")
                public = cfg.public_fraction > 0
                asked, cfg = cfg, settled(cfg, pinned, folder)
                if cfg != asked and not any(folder.parent.glob("[!.]*/dataset.json")):
                    raise UserError(
                        f"Data set {cfg.account} was divided with data.public_fraction {cfg.public_fraction:g}, the "
                        f"privacy ledger says, and this home does not hold that division: which records were public "
                        "cannot be told here. Use the paths.home that holds it."
                    )
                columns = source.schema.columns
                check_one_division(cfg, split_rule(source, cfg), columns, folder, pinned)
                if source.schema.kind == "table":
                    check_bounds(cfg, columns, cfg.public_fraction > 0)
                origin = Origin.of(source.files)
                check_files_are_new(cfg.account, origin, folder.parent.parent, told)
                _build(source, cfg, home, folder, relation, processes, pinned, origin, public, told)
    return read_info(folder)


def source_changed(cfg: DataConfig, home: Path, relation: str) -> bool:
    """Whether the files of a stored data set hold something else than when it was divided; a private fact.

    A source that is gone, or does not fit the config any more, is not looked at: the stored division needs it no more.
    """
    origin = Origin.load(dataset_folder(cfg, home, relation) / "private")
    try:
        return origin is not None and origin.differs(open_source(cfg, home).files)
    except (UserError, OSError):
        return False


def _former(folder: Path) -> Path:
    """Where a division is moved for the moment in which another takes its place."""
    return folder.with_name(f".{folder.name}.former")


def _before(folder: Path) -> Unprotected:
    """What all stored divisions of an account left unprotected, the one that is going to be replaced among them.

    Raises:
        UserError: a division whose records cannot be told any more: what was private could become public.
    """
    unprotected: dict[str, Digests] | None = None
    for manifest in sorted(folder.parent.glob("[!.]*/dataset.json")):
        try:
            if read_json(manifest)["source"] == "generated":
                continue
            found = {part: read_digests(manifest.parent / part) for part in ("public", "test")}
        except (DamagedPart, DamagedFile, *DAMAGE):
            raise damaged(manifest.parent, "the digests of its records are missing or damaged") from None
        known = found if unprotected is None else unprotected
        unprotected = {part: np.intersect1d(known[part], digests) for part, digests in found.items()}
    return unprotected


def _replace(folder: Path, aside: Path) -> None:
    """Puts a division in the place of another, with what the private side remembers of releases, and nothing else."""
    for name in _REMEMBERED:
        if (folder / "private" / name).is_dir():
            shutil.copytree(folder / "private" / name, aside / "private" / name)
    former = _former(folder)
    shutil.rmtree(former, ignore_errors=True)
    folder.rename(former)
    aside.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def _build(
    source: Source,
    cfg: DataConfig,
    home: Path,
    folder: Path,
    relation: str,
    processes: int,
    pinned: Mapping[str, Any] | None,
    origin: Origin,
    public: bool,
    told: bool,
) -> None:
    before = _before(folder)
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed: the lock is ours now
    try:
        private = aside / "private"
        for path, mode in (
            (aside, 0o755),
            (aside / "public", 0o755),
            (aside / "test", 0o755),
            (private, 0o700),
        ):
            path.mkdir(mode=mode)
        labels, parts = collect(source, cfg, home, private, before, processes)
        rule = split_rule(source, cfg)
        if source.has_test:  # which records those are decides too, and is known only now
            rule["test_records"] = hashlib.sha256(np.sort(parts["test"].digests).tobytes()).hexdigest()[:16]
            check_one_division(cfg, rule, source.schema.columns, folder, pinned)
        counts = {name: len(part.codes) for name, part in parts.items()}
        if 0 < sum(counts.values()) == counts["private"] and (parts["private"].codes == NULL).all():
            raise UserError(f"{source.name} holds no image that can be decoded; unpack it again.")
        everyone = np.concatenate([part.digests for part in parts.values()])
        check_records_are_new(cfg.account, everyone, folder.parent.parent, told)
        if public and not counts["public"] and before is not None:
            raise UserError(
                f"{source.name} holds none of the stored division's public records as they were, and no other may "
                "become public: a private one with a value mended may be among them. Put the public records back, or "
                "set data.public_fraction: 0."
            )
        if public and not counts["public"]:
            raise UserError(
                f"{source.name} gives no public record: it is empty, its records have missing values, "
                f"or it is too small for data.public_fraction {cfg.public_fraction}."
            )
        seen = set(np.unique(parts["public"].codes).tolist())
        found = [label for code, label in enumerate(labels) if code in seen]
        classes = class_list(cfg, source.name, found) if source.labelled else ()
        index = {label: i for i, label in enumerate(classes)}
        lookup = np.array([*(index.get(label, -1) for label in labels), NULL, -1], np.int32)
        for name, part in parts.items():
            part.store(aside / name, source.schema, lookup, 0o600 if name == "private" else 0o644)
        digests = {name: part.digests for name, part in parts.items()}
        if relation != "add_remove" and not len(digests["private"]):
            raise UserError(
                f"{source.name} leaves no private record: it is too small for "
                f"data.public_fraction {cfg.public_fraction}."
            )
        for i, name in enumerate(PARTS):
            for other in PARTS[i + 1 :]:
                assert not overlap(digests[name], digests[other]), f"{name} and {other} overlap"
        if relation == "add_remove":
            del counts["private"]
        write_manifest(aside / "dataset.json", _manifest(source, cfg, relation, classes, counts, rule))
        origin.save(private)
        if folder.exists():
            _replace(folder, aside)
        else:
            aside.rename(folder)
        with _opened(folder.parent) as descriptor:
            os.fsync(descriptor)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def class_list(cfg: DataConfig, name: str, found: list[str]) -> tuple[str, ...]:
    """`data.classes`, else the labels of the public part: by number where all are integers, else by text.

    Args:
        cfg: the `data` section.
        name: what sentences call the source.
        found: the different labels of the public part.

    Raises:
        UserError: there are no labels or too many, or none of those that `data.classes` lists.
    """
    if cfg.classes is not None:
        if found and not set(cfg.classes) & set(found):
            raise UserError(
                f"data.classes has none of the labels in the public part of {name}; "
                f"those are {_listed(sorted(found))}."
            )
        return tuple(cfg.classes)
    if not found:
        raise UserError(f"The public part of {name} has no labels: set data.classes or leave data.label out.")
    if len(found) > MAX_CLASSES:
        raise UserError(
            f"The public part of {name} has {len(found)} different labels, more than {MAX_CLASSES}: "
            "set data.label to a column with classes, or data.classes to those wanted."
        )
    numeric = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in found)
    return tuple(sorted(found, key=(lambda label: (int(label), label)) if numeric else None))


def _check_classes(classes: list[str], source: Source) -> None:
    if not source.labelled:
        raise UserError("data.classes needs labels: set data.label too.")
    if not classes or len(set(classes)) < len(classes):
        raise UserError(f"data.classes must list different labels, found {_listed(classes) or 'none'}.")


def _listed(labels: Sequence[str], most: int = 20) -> str:
    return ", ".join(labels[:most]) + (", …" if len(labels) > most else "")


def _manifest(
    source: Source,
    cfg: DataConfig,
    relation: str,
    classes: tuple[str, ...],
    counts: Mapping[str, int],
    rule: Mapping[str, Any],
) -> dict[str, Any]:
    names = (
        [source.class_names.get(label, label) for label in classes]
        if source.class_names and classes
        else None
    )
    path = resolved_path(cfg)
    return {
        "format": _FORMAT,
        "source": cfg.source,
        "path": str(path) if path is not None else None,
        "relation": relation,
        "schema": source.schema.to_dict(),
        "classes": list(classes),
        "class_names": names,
        "counts": dict(counts),
        "split": dict(rule),
    }


@contextlib.contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the system gives back when the process ends, however it ends."""
    with _opened(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
