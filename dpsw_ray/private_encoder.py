"""The encoder of a run without public records: noisy moments, released and charged, and what is computed from them.

It is a release like any other: made under the same protocol, stored in the run's own folder, never in the cache that
runs share. What stands in `encoder/` follows from `release/encoder/` at no further cost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpsw_ray.cluster import WorkerGroup
from dpsw_ray.config import RunConfig
from dpsw_ray.data import Dataset
from dpsw_ray.encoders import Encoder, load_encoder
from dpsw_ray.encoders.pca import BasisEncoder, PcaEncoder
from dpsw_ray.plan import ledger_account, make_moments_plan
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.protocol import release_moments_once
from dpsw_ray.progress import Progress
from dpsw_ray.publish import moments_manifest

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
        UserError: the ledger refuses the charge, the stored moments are not in it, or bounds are missing.
    """
    e, p, moments_dir = config.encoder, config.privacy, folder / "release" / "encoder"
    basis = BasisEncoder.make(data.info.schema, e.basis, e.radius, config.data.bounds)
    basis_dir = folder / "encoder" / "basis"
    if not (basis_dir / "encoder.json").exists():
        basis.save(basis_dir)
    name = ledger_account(config)
    ledger.register(name, p.relation, p.unit, p.delta, publishable=p.publishable)
    stored = (moments_dir / "manifest.json").exists()
    shards = spawn(basis_dir)
    try:
        if stored:
            progress.say(f"Using the encoder's moments stored in {moments_dir}: nothing is charged")
        else:
            progress.say("Releasing the encoder's moments: charge, sum, noise")
            shards.call("encode", retry=True)
        moments = release_moments_once(
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
    if stored and (folder / "encoder" / "encoder.json").exists():
        return load_encoder(
            folder / "encoder"
        )  # the release of this folder, if there is one, was made with it
    encoder = PcaEncoder.fit(basis, moments, e.latent_dim, data.info.private_count, e.residual)
    encoder.save(folder / "encoder")
    return encoder
