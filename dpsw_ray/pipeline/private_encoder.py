"""The encoder of a run without public records: noisy moments, released and charged, and what is computed from them.

It is a release like any other: made under the same protocol, stored in the run's own folder, never in the cache that
runs share. What stands in `encoder/` follows from `release/encoder/` at no further cost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import WorkerGroup
from dpsw_ray.config.run import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder, load_encoder
from dpsw_ray.encoders.pca import BasisEncoder, PcaEncoder
from dpsw_ray.pipeline.plan import (
    encoder_events,
    ledger_account,
    make_moments_plan,
    make_plan,
    register_account,
)
from dpsw_ray.pipeline.publish import moments_manifest
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.release.exchange import is_charged, release_once
from dpsw_ray.release.moments import Moments

__all__ = ["private_encoder"]


def private_encoder(
    config: RunConfig,
    data: Dataset,
    folder: Path,
    ledger: Ledger,
    spawn: Callable[[Path], WorkerGroup],
    progress: Progress,
) -> Encoder:
    """The run's encoder, computed from noisy moments of the private part: stored ones, or ones made and paid for now.

    Args:
        config: the run, of encoder `dp_pca`.
        data: its data set.
        folder: of the run; the moments go to `release/encoder/`, the encoder to `encoder/`.
        ledger: who is charged.
        spawn: makes private shards over an encoder's folder; the public basis is one, and they are closed again.
        progress: where to report.

    Raises:
        UserError: the ledger refuses what the run is going to charge, the stored moments are not in it or are missing,
            bounds are missing, or there are fewer dimensions than `encoder.latent_dim`; before anything is charged.
    """
    e, p, moments_dir = config.encoder, config.privacy, folder / "release" / "encoder"
    basis = BasisEncoder.make(data.info.schema, e.basis, e.radius, config.data.bounds)
    if e.latent_dim > basis.latent_dim:
        raise UserError(
            f"encoder.latent_dim must be at most {basis.latent_dim}, the number of dimensions of these records in "
            f"their public basis (encoder.basis), found {e.latent_dim}."
        )
    basis_dir = folder / "encoder" / "basis"
    if not (basis_dir / "encoder.json").exists():
        basis.save(basis_dir)
    name = register_account(config, ledger)
    stored = (moments_dir / "manifest.json").exists()
    if not stored:
        _check_room(config, data, folder, ledger)
    shards = spawn(basis_dir)
    try:
        if stored:
            progress.say(f"Using the encoder's moments stored in {moments_dir}: nothing is charged")
        else:
            progress.say("Releasing the encoder's moments: charge, sum, noise")
            shards.call("encode", retry=True)
        moments = release_once(
            Moments,
            shards,
            lambda release_id: make_moments_plan(config, basis.latent_dim, release_id),
            moments_dir,
            ledger=ledger,
            account=name,
            run_id=config.name,
            noise_seed=p.noise_seed,
            manifest=lambda plan: moments_manifest(config, plan, data.info, ledger),
        )
    finally:
        shards.close()
    if (folder / "encoder" / "encoder.json").exists():
        kept = load_encoder(folder / "encoder")
        if kept.source == moments.source:
            return kept
    encoder = PcaEncoder.fit(basis, moments, e.latent_dim, data.info.private_count, e.residual)
    encoder.save(folder / "encoder")
    return encoder


def _check_room(config: RunConfig, data: Dataset, folder: Path, ledger: Ledger) -> None:
    """Refuses what would be refused after the moments are paid for, and a second encoder for a release that has one."""
    release = folder / "release"
    if is_charged(ledger, release):
        raise UserError(
            f"The release in {release} is charged, and the moments that its encoder was computed from are missing from "
            f"{release / 'encoder'}: restore them from a copy, or give another --output."
        )
    info = data.info
    plan = make_plan(config, config.encoder.latent_dim, len(info.classes), info.private_count, "plan")
    due = () if is_charged(ledger, release / "encoder") else encoder_events(config)
    ledger.check(ledger_account(config), config.privacy.relation, (*due, plan.event))
