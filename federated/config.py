"""One federated run: the sections of a run, with a population of users in front of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dpsw_ray.config.family import Family
from dpsw_ray.config.fields import MOST_REPEATS, Real, Section, Seed, Text, Whole
from dpsw_ray.config.run import DataConfig, PrivacyConfig
from dpsw_ray.methods.dpswflow.config import check_gaussian
from dpsw_ray.methods.registry import RUNS
from dpsw_ray.methods.sections import FlowingConfig, Slices, check_conditional, check_tails

__all__ = [
    "FEDERATED",
    "DropoutConfig",
    "FederatedConfig",
    "FederatedDataConfig",
    "FederatedPrivacyConfig",
    "FederatedRoundsConfig",
    "FederatedRowsConfig",
    "FederatedTablesConfig",
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


class UserRowsConfig(Section):
    """What is released: noisy projections onto directions in whole frames."""

    frames: Whole = Field(
        16, ge=1, le=2**31, description="orthonormal frames m; directions K = m * latent dimension"
    )


class UserTablesConfig(UserRowsConfig):
    """What is released: histograms of all users' messages."""

    bins: Whole = Field(32, ge=2, le=4096, description="cells per direction, the tails' room included")
    smoothing: Real = Field(1.0, ge=0.0, le=64.0, description="sigma, in bin widths")
    class_conditional: bool = True

    @model_validator(mode="after")
    def _check(self) -> UserTablesConfig:
        check_tails(self.bins, self.smoothing)
        return self


class UserRoundsConfig(UserTablesConfig):
    """What is released: histograms, in rounds of users."""

    rate: Real = Field(0.01, gt=0.0, le=1.0, description="chance of a user to be in a round's sample")
    rounds: Whole = Field(
        100, ge=1, le=MOST_REPEATS, description="rounds at most, each with frames of its own"
    )


class PopulationConfig(Section):
    """Who holds the private records."""

    users: Whole = Field(3000, ge=2, le=_MOST, description="how many; natural keys bring their own number")
    partition: Literal["iid", "shards", "dirichlet", "power_law", "natural"] = "iid"
    alpha: Real = Field(
        0.5, ge=1e-3, le=1e6, description="dirichlet: small values give every user few classes"
    )
    shards: Whole = Field(
        2, ge=1, le=10_000, description="shards: pieces of records sorted by label, for each user"
    )
    exponent: Real = Field(
        1.2, gt=0.0, le=100.0, description="power_law: user k has a share proportional to k^-exponent"
    )
    user: Text | None = Field(None, description="natural: the column of a table that names the user")
    records: Whole = Field(20, ge=1, le=10_000, description="generated: records of every user")
    classes: Whole = Field(10, ge=1, le=1000, description="generated: classes")
    seed: Seed = Field(0, description="public: who gets which records")
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
        None, gt=0.0, le=1e7, description="answers after it are refused; default: no deadline"
    )
    median_s: Real = Field(30.0, gt=0.0, le=1e7, description="time a user takes, in the middle")
    spread: Real = Field(0.5, ge=0.0, le=5.0, description="of its logarithm: half lasting, half by round")


class FederatedConfig(FlowingConfig):
    """What every federated run has; its method's config adds what is released."""

    trust: Trust = "central"
    data: FederatedDataConfig = Field(default_factory=FederatedDataConfig)
    privacy: FederatedPrivacyConfig = Field(default_factory=FederatedPrivacyConfig)
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
        if natural and not self.data.public_fraction:
            raise ValueError(
                "data.public_fraction must be above 0 for population.partition natural, found 0: some users have to be "
                "public, and their records are not protected"
            )
        if natural and self.data.source == "table" and self.population.user is None:
            raise ValueError("population.user is missing: it names the table's column of users")
        if self.data.source == "leaf" and self.data.path is None:
            raise ValueError("data.path is missing: data.source leaf needs the folder with train/ and test/")
        if self.data.source in ("generated", "leaf") and self.encoder.kind not in (
            ("identity",) if self.data.source == "generated" else ("conv", "dcgan32", "mlp", "identity")
        ):
            raise ValueError(
                f"encoder.kind {self.encoder.kind} does not fit data.source {self.data.source}; choose identity"
            )
        return self

    def _check_method(self) -> None:
        trust, relation = self.trust, self.privacy.relation
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
                f"privacy.relation must be zero_out for method {self.method} under trust central with release.rate "
                f"below 1, found {relation}: amplification by sampling is not proved for a replaced user"
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

    def _check_private_encoder(self) -> None:
        raise ValueError(
            "encoder.kind dp_pca protects single records: users need another encoder.kind, found dp_pca"
        )

    @property
    def sampled(self) -> bool:
        """Whether rounds are of secret samples of the users."""
        return self.trust == "central" and self.slices.rate < 1

    @property
    def invited(self) -> float:
        """The share of the users whom the server asks in a round, by a public draw."""
        return 1.0 if self.trust == "central" else self.slices.rate

    @property
    def rounds(self) -> int:
        """How many rounds at most."""
        return self.slices.rounds

    @property
    def sent_rows(self) -> int:
        """How many records' projections a user sends; 0 where it sends averages."""
        return 0

    @property
    def sent(self) -> str:
        """What a user makes of its records, in words."""
        raise NotImplementedError

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


class FederatedTablesConfig(FederatedConfig):
    """A federated run of DPSWflow-h."""

    method: Literal["dpswflow-h"] = "dpswflow-h"
    release: UserTablesConfig = Field(default_factory=UserTablesConfig)

    def _check_method(self) -> None:
        super()._check_method()
        check_conditional(self, self.release.class_conditional)

    @property
    def slices(self) -> Slices:
        """What is asked for."""
        r = self.release
        return Slices(r.frames, r.bins, r.smoothing, labelled=r.class_conditional)

    @property
    def sent(self) -> str:
        """What a user makes of its records, in words."""
        return "Every user averages the histograms of its own records' projections onto random directions"


class FederatedRowsConfig(FederatedConfig):
    """A federated run of DPSWflow, on the devices."""

    method: Literal["dpswflow"] = "dpswflow"
    rows: Whole = Field(1, ge=1, le=1000, description="records that every user sends, padded or cut")
    release: UserRowsConfig = Field(default_factory=UserRowsConfig)

    def _check_method(self) -> None:
        if self.trust != "local":
            raise ValueError(
                f"trust must be local for method {self.method}, found {self.trust}: the rows are noised on the device"
            )
        super()._check_method()
        check_gaussian(self)
        if self.encoder.conditional:
            raise ValueError(
                f"encoder.conditional must be false for method {self.method}, found true: noisy projections carry no "
                "class to decode by"
            )

    @property
    def slices(self) -> Slices:
        """What is asked for."""
        return Slices(self.release.frames, 32)

    @property
    def sent_rows(self) -> int:
        """How many records' projections a user sends."""
        return self.rows

    @property
    def sent(self) -> str:
        """What a user makes of its records, in words."""
        return "Every user sends the same number of its records' projections onto random directions"


class FederatedRoundsConfig(FederatedConfig):
    """A federated run of DPSWflow-r."""

    method: Literal["dpswflow-r"] = "dpswflow-r"
    release: UserRoundsConfig = Field(default_factory=UserRoundsConfig)

    def _check_method(self) -> None:
        super()._check_method()
        check_gaussian(self)
        check_conditional(self, self.release.class_conditional)

    @property
    def slices(self) -> Slices:
        """What is asked for."""
        r = self.release
        return Slices(r.frames, r.bins, r.smoothing, None, r.class_conditional, r.rounds, r.rate)

    @property
    def sent(self) -> str:
        """What a user makes of its records, in words."""
        return (
            "In every round a user averages the histograms of its own records' projections onto random directions of "
            "that round"
        )


_CONFIGS: dict[str, type[FederatedConfig]] = {
    "dpswflow-h": FederatedTablesConfig,
    "dpswflow": FederatedRowsConfig,
    "dpswflow-r": FederatedRoundsConfig,
}

FEDERATED: Family[FederatedConfig] = Family(_CONFIGS, _CONFIGS.__getitem__, "federated", RUNS)
"""Configs of runs of users, by method."""


def load_federated(path: str | Path, overrides: Iterable[str] = ()) -> FederatedConfig:
    """Reads the config of a federated run; see `dpsw_ray.methods.registry.load_config`."""
    return FEDERATED.load(path, overrides)
