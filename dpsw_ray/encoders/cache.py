"""Fitted nets on disk, found again by everything that went into them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data.records import RecordSchema
from dpsw_ray.encoders.base import Encoder, load_encoder

__all__ = ["cache_key", "cached", "cached_encoder", "code_version"]

T = TypeVar("T")


def cached_encoder(
    config: RunConfig, schema: RecordSchema, public_digest: str, home: Path, train: Callable[[], Encoder]
) -> Encoder:
    """Returns the encoder of `home/encoders/<key>`, or trains it and publishes it there.

    The key covers the public records, the schema, the encoder's config, its seed, the public bounds and the
    encoders' source code. A damaged folder is trained anew.

    Args:
        config: the run.
        schema: what a record is.
        public_digest: `digest_arrays` of the public records.
        home: the folder of data sets and caches.
        train: fits the encoder where there is none.
    """
    key = cache_key(
        public=public_digest,
        schema=schema.to_dict(),
        encoder=config.encoder.model_dump(mode="json", exclude={"seed"}),
        bounds=config.data.bounds,
        seed=config.encoder_seed,
        code=code_version("dpsw_ray.encoders"),
    )
    return cached(home / "encoders" / key, load_encoder, train, lambda encoder, folder: encoder.save(folder))


def cached(
    folder: Path, load: Callable[[Path], T], build: Callable[[], T], save: Callable[[T, Path], None]
) -> T:
    """Loads `folder`, or builds its content and publishes it whole: saved aside, then renamed.

    Two processes may build at the same time: the first to finish is kept, each returns what it built.
    """
    if folder.exists():
        try:
            return load(folder)
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
    built = build()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        save(built, aside)
        aside.chmod(0o755)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return built


def cache_key(**parts: Any) -> str:
    """SHA-256 of the parts as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def code_version(package: str, module: str = "") -> str:
    """SHA-256 of the Python sources of a package, or of one `module` of it."""
    digest = hashlib.sha256()
    for entry in sorted(resources.files(package).iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".py") and module in ("", entry.name.removesuffix(".py")):
            digest.update(entry.name.encode() + b"\0" + entry.read_bytes() + b"\0")
    return digest.hexdigest()
