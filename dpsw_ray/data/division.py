"""What decides which part a record goes to, and that records are divided in one way, under one name.

A data set is divided once. What one division protects, another would train an encoder on, or show as test records,
and no charge would tell. So a home refuses another division of an account's records, and the ledger pins the first that
is not for research, wherever it is stored (`dpsw_ray.pipeline.plan.pin_division`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DAMAGE, DamagedFile, read_json, read_manifest
from dpsw_ray.config.run import DataConfig
from dpsw_ray.data.records import Source
from dpsw_ray.data.sources import resolved_path

__all__ = [
    "check_bounds",
    "check_one_division",
    "check_pinned",
    "damaged",
    "division_of",
    "settled",
    "split_rule",
]

_WAYS_OUT = (
    "Keep to that division; if these are other people's records, give them a data.name of their own; for research on "
    "benchmark data alone there are privacy.research: true and another paths.home."
)
_SHOWN = 20  # columns in one sentence
_RULES = {
    "rule": "records or users as what is divided",
    "test": "the source's test part",
    "test_records": "what the source's test part holds",
    "user": "population.user",
}


def split_rule(source: Source, cfg: DataConfig) -> dict[str, Any]:
    """All that decides which part a record goes to, its own values aside."""
    return {
        "rule": "digest = BLAKE2b-128(values); "
        "u = 2^-53 * (BLAKE2b-64(digest, key = BLAKE2b-256(split_seed)) >> 11)",
        "test": "the source's own" if source.has_test else f"u < {cfg.test_fraction}",
        "public_fraction": cfg.public_fraction,
        "test_fraction": None if source.has_test else cfg.test_fraction,
        "split_seed": cfg.split_seed,
    }


def division_of(source: str, columns: Sequence[str], rule: Mapping[str, Any]) -> dict[str, Any]:
    """A division as a ledger keeps it: where the records are from, what is read of them, and the rule."""
    return {"source": source, "columns": list(columns), **rule}


def settled(cfg: DataConfig, pinned: Mapping[str, Any] | None, folder: Path) -> DataConfig:
    """The config by which records are divided, where it makes all of them private and some were not before.

    A record that was public has trained encoders, and no later division protects it: it stays what it was, and so does
    what was private.

    Args:
        cfg: the `data` section.
        pinned: the only division that these records may have; None for any.
        folder: of the data set that is going to be made.
    """
    before = pinned
    for manifest in sorted(folder.parent.glob("[!.]*/dataset.json")) if before is None else ():
        try:
            before = read_json(manifest)["split"]
        except (DamagedFile, OSError, *DAMAGE):
            continue
    public, test = ((before or {}).get(key) for key in ("public_fraction", "test_fraction"))
    # no test fraction: the source's own test part, in which the config has no say
    if cfg.public_fraction or not public or (test is not None and cfg.test_fraction not in (0.0, test)):
        return cfg
    return cfg.model_copy(
        update={"public_fraction": public, "test_fraction": cfg.test_fraction if test is None else test}
    )


def check_bounds(cfg: DataConfig, columns: Sequence[str], public: bool) -> None:
    """Refuses a table without public records whose columns nothing public bounds, and bounds of no column.

    Raises:
        UserError: says which.
    """
    bounds = cfg.bounds or {}
    for column in bounds.keys() - set(columns):
        raise UserError(f"data.bounds.{column} is no column; the columns are {', '.join(columns)}.")
    lacking = [column for column in columns if column not in bounds]
    if lacking and not public:
        more = ", ..." if len(lacking) > _SHOWN else ""
        shown = ", ".join(f"{column}: [LOW, HIGH]" for column in lacking[:_SHOWN])
        raise UserError(
            f"data.bounds lacks {', '.join(lacking[:_SHOWN])}{more}: where no record is public, bounds of every column "
            f"come from public knowledge (data.bounds: {{{shown}{more}}}); or name a share of records that need no "
            "protection with data.public_fraction."
        )


def check_one_division(
    cfg: DataConfig,
    rule: Mapping[str, Any],
    columns: tuple[str, ...],
    folder: Path,
    pinned: Mapping[str, Any] | None = None,
) -> None:
    """Refuses to divide records in two ways, or under two names.

    What one division protects, the other would train its encoder on; and a second name would be a second budget.

    Args:
        cfg: the `data` section.
        rule: all that decides which part a record goes to.
        columns: of a record, none for images.
        folder: of the data set that is going to be made.
        pinned: the only division that these records may have; None for any.

    Raises:
        UserError: the records are divided already, in another way or under another name.
    """
    if pinned is not None:
        check_pinned(cfg.account, pinned, division_of(cfg.source, columns, rule))
    path = resolved_path(cfg)
    for manifest in sorted(folder.parent.parent.glob("[!.]*/[!.]*/dataset.json")):
        account = manifest.parent.parent.name
        try:
            stored = read_manifest(manifest)
            if stored["source"] == "generated":  # of a simulated population: divided by no rule
                continue
            same_source = (stored["source"], stored["path"]) == (cfg.source, str(path) if path else None)
            differing = [key for key, value in rule.items() if stored["split"].get(key) != value]
            if same_source and tuple(stored["schema"]["columns"]) != columns:
                differing.append("columns")  # whose values the rule hashes
        except (DamagedFile, OSError, *DAMAGE):
            if account != cfg.account:
                continue
            raise damaged(manifest.parent, "its dataset.json is missing or damaged") from None
        if account != cfg.account:
            if same_source:
                raise UserError(
                    f"These records are the data set {account} already, in {manifest.parent}, and what is spent "
                    f"on them is counted there: give data.name: {account}, not {cfg.account}."
                )
        elif differing:
            names = ", ".join(_RULES.get(key, f"data.{key}") for key in differing)
            raise UserError(
                f"Data set {cfg.account} is divided already, in {manifest.parent}, and {names} would divide it "
                f"another way: records that are private there would be public here. {_WAYS_OUT}"
            )


def check_pinned(account: str, pinned: Mapping[str, Any], division: Mapping[str, Any]) -> None:
    """Refuses a division of records that are divided in another way, wherever that is stored.

    Args:
        account: name of the records.
        pinned: their division, as a ledger has it.
        division: `DatasetInfo.division`, or as much of it as is known.

    Raises:
        UserError: the two differ.
    """
    if differing := [key for key, value in division.items() if pinned.get(key) != value]:
        changes = ", ".join(
            f"{_RULES.get(key, f'data.{key}')} (there {pinned.get(key)}, here {division[key]})"
            for key in differing
        )
        raise UserError(
            f"Data set {account} is divided already, the privacy ledger says, and {changes} would divide it another "
            f"way: records that are private there would be public here. {_WAYS_OUT}"
        )


def damaged(folder: Path, what: str) -> UserError:
    """What to say of a stored data set that cannot be used; it may hold what nobody can make again."""
    return UserError(f"The stored data set {folder} is damaged: {what}; restore the folder from a copy.")
