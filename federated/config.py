"""One federated run: the sections of a run, with a population of users in front of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dpsw_ray.config import DataConfig, PrivacyConfig, ReleaseConfig, RunConfig
from dpsw_ray.config_fields import Real, Section, Text, Whole
from dpsw_ray.config_file import load_model

__all__ = [
    "DropoutConfig",
    "FederatedConfig",
    "FederatedDataConfig",
    "FederatedPrivacyConfig",
    "FederatedReleaseConfig",
    "PopulationConfig",
    "SecAggConfig",
    "StragglersConfig",
    "Trust",
    "load_federated",
]

Trust = Literal["central", "distributed", "local"]

_MOST = 2**30  # users, records, pieces: their products still fit the kernel's 64 bits


class FederatedDataConfig(DataConfig):
    """Which records; the private part is what the users hold."""

    source: Literal["digits", "fashion_mnist", "mnist", "celeba", "table", "leaf", "generated"] = "digits"  # type: ignore[assignment]


class FederatedPrivacyConfig(PrivacyConfig):
    """What is promised to every user."""

    unit: Literal["user"] = "user"


class FederatedReleaseConfig(ReleaseConfig):
    """What is released: directions in whole frames, and dpswflow-r in rounds of users."""

    frames: Whole = Field(16, ge=1, description="orthonormal frames m; directions K = m * latent dimension")
    bins: Whole = Field(32, ge=2, le=4096, description="cells per direction, the tails' room included")
    smoothing: Real = Field(1.0, ge=0.0, le=64.0, description="sigma, in bin widths")
    law: Literal["haar"] = "haar"
    directions: None = None
    expected_records: None = None
    sampling: Literal["poisson"] = "poisson"


class PopulationConfig(Section):
    """Who holds the private records."""

    users: Whole = Field(3000, ge=2, le=_MOST, description="how many; natural keys bring their own number")
    partition: Literal["iid", "shards", "dirichlet", "power_law", "natural"] = "iid"
    alpha: Real = Field(0.5, gt=0.0, description="dirichlet: small values give every user few classes")
    shards: Whole = Field(
        2, ge=1, le=10_000, description="shards: pieces of records sorted by label, for each user"
    )
    exponent: Real = Field(
        1.2, gt=0.0, description="power_law: user k has a share proportional to k^-exponent"
    )
    user: Text | None = Field(None, description="natural: the column of a table that names the user")
    records: Whole = Field(20, ge=1, le=10_000, description="generated: records of every user")
    classes: Whole = Field(10, ge=1, le=1000, description="generated: classes")
    seed: Whole = Field(0, ge=0, description="public: who gets which records")
    full_weight_at: Whole = Field(
        1,
        ge=1,
        le=_MOST,
        description="records from which on a user has full weight; users with fewer weigh less",
    )
    malformed: Real = Field(
        0.0, ge=0.0, lt=1.0, description="trust central, simulated: share of users whose message is wrong"
    )


class SecAggConfig(Section):
    """Secure aggregation, for `trust: distributed`."""

    threshold: Real = Field(
        0.75, gt=0.0, le=1.0, description="share of the users asked that must answer, or the round is aborted"
    )
    corrupted: Whole = Field(
        1, ge=0, le=_MOST, description="users whose noise may be known, such as one who sees the release"
    )
    bits: Whole | None = Field(
        None, ge=8, le=62, description="of the modulus; default: as many as are needed"
    )
    precision: Whole = Field(
        16, ge=4, le=16, description="bits of one user's whole mass; fewer are less to send"
    )
    neighbours: Whole = Field(
        100, ge=1, le=_MOST, description="users whom each user shares masks with, for the traffic"
    )


class DropoutConfig(Section):
    """Simulated: devices that do not answer."""

    rate: Real = Field(0.0, ge=0.0, lt=1.0, description="chance of a user to be away in a round")


class StragglersConfig(Section):
    """Simulated: devices that answer late. Times say nothing of the records."""

    deadline_s: Real | None = Field(
        None, gt=0.0, description="answers after it are refused; default: no deadline"
    )
    median_s: Real = Field(30.0, gt=0.0, description="time a user takes, in the middle")
    spread: Real = Field(0.5, ge=0.0, le=5.0, description="of its logarithm: half lasting, half by round")


class FederatedConfig(RunConfig):
    """One federated run, whole."""

    method: Literal["dpswflow-h", "dpswflow", "dpswflow-r"] = "dpswflow-h"
    trust: Trust = "central"
    rows: Whole = Field(
        1, ge=1, le=1000, description="dpswflow: records that every user sends, padded or cut"
    )
    data: FederatedDataConfig = Field(default_factory=FederatedDataConfig)
    privacy: FederatedPrivacyConfig = Field(default_factory=FederatedPrivacyConfig)
    release: FederatedReleaseConfig = Field(default_factory=FederatedReleaseConfig)
    population: PopulationConfig = Field(default_factory=PopulationConfig)
    secagg: SecAggConfig = Field(default_factory=SecAggConfig)
    dropout: DropoutConfig = Field(default_factory=DropoutConfig)
    stragglers: StragglersConfig = Field(default_factory=StragglersConfig)

    @model_validator(mode="after")
    def _check_federated(self) -> FederatedConfig:
        natural = self.population.partition == "natural"
        if natural and self.data.source not in ("table", "leaf"):
            raise ValueError(
                f"population.partition natural is for data.source table or leaf, found {self.data.source}"
            )
        if self.data.source == "leaf" and not natural:
            raise ValueError(
                f"population.partition must be natural for data.source leaf, found {self.population.partition}"
            )
        if self.data.source == "table" and not natural and self.privacy.publishable:
            raise ValueError(
                f"population.partition must be natural for data.source table, found {self.population.partition}: "
                "nothing would be promised to whoever is behind a record (privacy.research: true allows it)"
            )
        if natural and self.data.source == "table" and self.population.user is None:
            raise ValueError("population.user is missing: it names the table's column of users")
        if self.data.source == "leaf" and self.data.path is None:
            raise ValueError("data.path is missing: data.source leaf needs the folder with train/ and test/")
        if self.encoder.kind == "dp_pca":
            raise ValueError(
                "encoder.kind dp_pca protects single records: users need another encoder.kind, found dp_pca"
            )
        if self.data.source in ("generated", "leaf") and self.encoder.kind not in (
            ("identity",) if self.data.source == "generated" else ("conv", "dcgan32", "mlp", "identity")
        ):
            raise ValueError(
                f"encoder.kind {self.encoder.kind} does not fit data.source {self.data.source}; choose identity"
            )
        return self

    def _check_method(self) -> None:
        trust, relation, kind = self.trust, self.privacy.relation, self.release_kind
        if kind == "rows" and trust != "local":
            raise ValueError(
                f"trust must be local for method dpswflow, found {trust}: the rows are noised on the device"
            )
        if trust == "local" and relation != "replace_one":
            raise ValueError(
                f"privacy.relation must be replace_one for trust local, found {relation}: a message hides what it was "
                "made from, whatever that is"
            )
        if relation == "add_remove":
            raise ValueError(
                "privacy.relation must be replace_one or zero_out, found add_remove: who takes part in a federated "
                "run is seen, so their number is public"
            )
        if self.sampled and relation != "zero_out":
            raise ValueError(
                f"privacy.relation must be zero_out for method dpswflow-r under trust central with release.rate below "
                f"1, found {relation}: amplification by sampling is not proved for a replaced user"
            )
        if trust != "central" and self.privacy.noise != "gaussian":
            raise ValueError(
                f"privacy.noise is for trust central, found {self.privacy.noise}; under trust {trust} the noise is "
                "Skellam's, or on the rows"
            )
        if trust != "central" and self.population.malformed:
            raise ValueError(
                f"population.malformed is for trust central, found {self.population.malformed:g}: under trust {trust} "
                "the server sees no message that it could check"
            )
        if self.method != "dpswflow-h" and self.privacy.noise != "gaussian":
            raise ValueError(
                f"privacy.noise must be gaussian for method {self.method}, found {self.privacy.noise}"
            )

    @property
    def sampled(self) -> bool:
        """Whether rounds are of secret samples of the users."""
        return self.method == "dpswflow-r" and self.trust == "central" and self.release.rate < 1

    @property
    def rounds(self) -> int:
        """How many rounds at most."""
        return self.release.rounds if self.method == "dpswflow-r" else 1

    @property
    def release_kind(self) -> Literal["histograms", "rows", "sampled"]:
        """What a user sends: histograms, noisy projections, or histograms in some rounds."""
        kinds: dict[str, Literal["histograms", "rows", "sampled"]] = {
            "dpswflow-h": "histograms", "dpswflow": "rows", "dpswflow-r": "sampled",
        }  # fmt: skip
        return kinds[self.method]

    @property
    def account(self) -> str:
        """One for all divisions of the same records among simulated users: each spends of the same budget."""
        if self.simulated:
            return f"{self.data.account} users"
        return f"{self.data.account} users ({self.population.user or 'natural'})"

    @property
    def simulated(self) -> bool:
        """Whether the users are made up, and the records dealt out to them."""
        return self.population.partition != "natural"


def load_federated(path: str | Path, overrides: Iterable[str] = ()) -> FederatedConfig:
    """Reads the config of a federated run; see `dpsw_ray.config_file.load_model`."""
    return load_model(FederatedConfig, path, overrides, "federated")
