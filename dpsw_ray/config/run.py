"""What all runs have in common, as pydantic models; every method has a subclass with sections of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import platformdirs
import yaml
from pydantic import Field, model_validator

from dpsw_ray.base.paths import absolute_path, path_from_environment
from dpsw_ray.config.fields import (
    MOST_RATE,
    MOST_REPEATS,
    Bounds,
    Epsilon,
    FilePlace,
    FolderPlace,
    Place,
    Real,
    Section,
    Seed,
    Share,
    Text,
    Whole,
)

__all__ = [
    "LONGEST_NAME",
    "NAME",
    "ClusterConfig",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "PathsConfig",
    "PrivacyConfig",
    "RunConfig",
    "TrackingConfig",
]


_MOST_ACTORS = 10_000
_MOST_LOCAL = 256
_MOST_SECONDS = 1e7  # four months

NAME = r"^[._-]*[A-Za-z0-9][A-Za-z0-9._-]*$"
"""The name of a run or a data set becomes a folder: `.` and `..` must not be among them."""

LONGEST_NAME = 200
"""Of such a name: what is made beside the folder has a longer one, and file systems take 255 bytes."""


class PathsConfig(Section):
    """Where things live. Relative paths are taken from the folder the command runs in."""

    home: FolderPlace | None = Field(None, description="data sets, private latents, encoder cache")
    ledger: FilePlace | None = Field(None, description="the privacy ledger, one per machine or cluster")


class DataConfig(Section):
    """Which records, and how they are divided."""

    source: Literal["digits", "fashion_mnist", "mnist", "celeba", "table"] = "digits"
    name: Text | None = Field(
        None, pattern=NAME, max_length=LONGEST_NAME, description="the data set's name in the ledger"
    )
    path: Place | None = Field(
        None, description="folder or file of the source, where it is not the usual one"
    )
    download: bool = Field(
        True, description="let torchvision fetch the source where it is not on this machine"
    )
    label: Text | None = Field(
        None, description="table: the label column; CelebA: the attribute used as label"
    )
    columns: list[Text] | None = Field(
        None, description="table: the numeric columns; default all but the label"
    )
    bounds: dict[Text, Bounds] | None = Field(None, description="table: public bounds by column")
    classes: list[Text] | None = Field(
        None, description="public class list; default: the public part's labels"
    )
    public_fraction: Real = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="not protected; 0: no record is public, then data.classes is given, for a table data.bounds too, "
        "and no encoder is trained; default: 0.5, but 0 for a table",
    )
    test_fraction: Real = Field(
        0.2,
        ge=0.0,
        lt=1.0,
        description="not protected, for sources without a test part of their own; default: 0.2, but 0 for a table and "
        "where public_fraction is 0",
    )
    split_seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _parts(cls, given: Any) -> Any:
        """A table is somebody's own, and private as a whole, unless they say so.

        Where no record is public none is a test record either: neither is protected.
        """
        if not isinstance(given, Mapping):
            return given
        source, named = given.get("source"), dict(given)
        public = named.setdefault("public_fraction", 0.0 if source == "table" else 0.5)
        own = source in ("fashion_mnist", "mnist")  # a test part that the fraction has no say in
        none = source == "table" or (str(public) in ("0", "0.0") and not own)
        named.setdefault("test_fraction", 0.0 if none else 0.2)
        return named

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.source == "table" and self.path is None:
            raise ValueError(
                "data.path is missing: data.source table needs a .parquet, .arrow or .feather file"
            )
        if self.source != "table" and (self.columns is not None or self.bounds is not None):
            key = "columns" if self.columns is not None else "bounds"
            raise ValueError(f"data.{key} is for data.source table, found data.source {self.source}")
        if self.bounds is not None:
            for column, (low, high) in self.bounds.items():
                if not (math.isfinite(low) and math.isfinite(high) and low < high):
                    raise ValueError(
                        f"data.bounds.{column} must be [low, high] with low < high, found [{low:g}, {high:g}]"
                    )
        labelled = self.label is not None if self.source in ("table", "celeba") else True
        if self.public_fraction == 0.0 and labelled and not self.classes:
            raise ValueError(
                "data.classes is missing: with data.public_fraction 0 (a table's default) no label is public, so the "
                "list has to be given"
            )
        if self.source in ("digits", "table") and self.public_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"data.public_fraction + data.test_fraction must be below 1, or no private record is left, "
                f"found {self.public_fraction:g} + {self.test_fraction:g}"
            )
        return self

    @property
    def account(self) -> str:
        """The data set's name: its folder under the home and its entry in the ledger."""
        if self.name is not None:
            return self.name
        if self.source == "table":
            assert self.path is not None
            return "".join(c if c.isalnum() or c in "._-" else "_" for c in self.path.stem)
        return self.source


class EncoderConfig(Section):
    """Records to latents in the unit ball and back; trained on the public part only, but for `dp_pca`.

    `dp_pca`: principal components of noisy second moments of the private records, charged as a part of the run.
    """

    kind: Literal["conv", "dcgan32", "dcgan64", "vgg64", "mlp", "identity", "dp_pca"] = "conv"
    latent_dim: Whole = Field(8, ge=2, le=4096)
    share: Share = Field(
        "auto", description="dp_pca: of the run's squared mu; auto: as much as the planner's model says"
    )
    basis: Whole = Field(
        400, ge=2, le=4096, description="dp_pca: lowest frequencies of an image that moments are taken of"
    )
    radius: Real = Field(
        0.7,
        gt=0.0,
        le=1.0,
        description="dp_pca: length that records are cut to for the moments, as a share of the longest there can be",
    )
    residual: Real = Field(
        0.7,
        ge=0.0,
        le=1.0,
        description="dp_pca: of the deviation along the components left out, that decoding draws",
    )
    sphere: bool = Field(
        True, description="L2-normalise the latents onto the unit sphere; not for identity and dp_pca"
    )
    loss: Literal["mse", "bce"] = "mse"
    classification: Real = Field(
        0.0,
        ge=0.0,
        le=1e6,
        description="weight of a linear classifier's cross-entropy, on the latents and public labels, beside the loss",
    )
    conditional: bool = Field(
        False,
        description="tell encoder and decoder each record's class, learnt from public labels: latents then carry what "
        "varies within a class, and a sample is a picture of the class it was released for",
    )
    jitter: Real = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="length of the random shift of a latent before it is decoded in training: what is decoded later "
        "lies a little beside the records' latents",
    )
    detail: Whole = Field(
        0,
        ge=0,
        le=10**7,
        description="number of public records whose detail is kept and lent to what is decoded near them (in the same "
        "class where conditional); 0: decoded records are smooth means",
    )
    epochs: Whole = Field(30, ge=1, le=MOST_REPEATS)
    batch_size: Whole = Field(250, ge=2, le=10**7)
    learning_rate: Real = Field(1e-3, gt=0.0, le=MOST_RATE)
    holdout_fraction: Real = Field(0.1, gt=0.0, lt=0.9, description="public hold-out for early stopping")
    patience: Whole = Field(
        5, ge=1, le=MOST_REPEATS, description="epochs without progress on the hold-out before stopping"
    )
    seed: Seed | None = Field(None, description="public: weights, batches; default: the run's seed")

    @model_validator(mode="after")
    def _check(self) -> EncoderConfig:
        if self.kind in ("identity", "dp_pca"):
            for key in ("conditional", "classification", "jitter", "detail"):
                value = getattr(self, key)
                if value:
                    off, found = ("false", "true") if value is True else ("0", f"{value:g}")
                    raise ValueError(
                        f"encoder.{key} must be {off} for encoder.kind {self.kind}, which is not trained, found {found}"
                    )
        if self.conditional and self.classification:
            raise ValueError(
                f"encoder.classification must be 0 with encoder.conditional true, found {self.classification:g}: "
                "latents need no class in them where the decoder is told it"
            )
        return self

    @property
    def labelled(self) -> bool:
        """Whether public labels take part in the training."""
        return self.conditional or self.classification > 0


class PrivacyConfig(Section):
    """What is promised."""

    epsilon: Epsilon = Field(1.0, description=".inf: no noise and no privacy, for research")
    delta: Real = Field(1e-5, ge=1e-30, lt=1.0)
    relation: Literal["replace_one", "zero_out", "add_remove"] = "replace_one"
    unit: Literal["record", "user"] = Field("record", description="`user` is for `dpsw federated`")
    noise: Literal["gaussian", "discrete_gaussian"] = Field(
        "gaussian",
        description="gaussian: in double precision, rounded to integers; discrete_gaussian: integers sampled exactly",
    )
    noise_seed: Seed | None = Field(None, description="reproducible noise: tests and papers, never publish")
    research: bool = Field(False, description="charge a research account of its own, marked not publishable")
    force_delta: bool = Field(False, description="accept delta >= 1/N")

    @model_validator(mode="after")
    def _check(self) -> PrivacyConfig:
        if self.noise == "discrete_gaussian" and self.noise_seed is not None:
            raise ValueError(
                f"privacy.noise_seed is for privacy.noise gaussian, the exact sampler takes no seed, found "
                f"{self.noise_seed} with privacy.noise discrete_gaussian"
            )
        return self

    @property
    def publishable(self) -> bool:
        """False for noise-free or reproducible releases and for research accounts."""
        return math.isfinite(self.epsilon) and self.noise_seed is None and not self.research


class EvaluationConfig(Section):
    """What is measured. Everything but `research` reads public and test records only."""

    enabled: bool = True
    directions: Whole = Field(
        1024, ge=1, le=10**6, description="directions of the reported sliced W2 distances"
    )
    images: Whole = Field(
        10_000, ge=1, le=10**9, description="at most this many samples go into image metrics"
    )
    models: list[Literal["logreg", "mlp", "cnn", "boosted"]] = Field(
        ["logreg"], description="trained on samples, tested on real records; boosted: gradient-boosted trees"
    )
    train: Whole = Field(20_000, ge=1, le=10**9, description="at most this many samples train a model")
    schedule: Literal["short", "full"] = Field(
        "short", description="of mlp and cnn; full: the literature's 50 epochs"
    )
    seed: Seed | None = Field(
        None, description="public: classifier, directions, baselines; default: the run's seed"
    )
    research: bool = Field(
        False, description="also measure against private records: epsilon = infinity, kept apart"
    )


class ClusterConfig(Section):
    """Who does the work."""

    executor: Literal["ray", "local"] = "ray"
    actors: Whole = Field(2, ge=1, le=_MOST_ACTORS)
    cpus_per_actor: Real = Field(1.0, gt=0.0, le=4096.0)
    gpus_per_actor: Real = Field(
        0.0,
        ge=0.0,
        le=1024.0,
        description="0.5: two actors share a GPU; above 1: whole, of which the kernels use the first",
    )
    placement: Literal["packed", "spread"] = Field(
        "packed", description="actors on as few machines as possible, or on as many"
    )
    address: Text | None = Field(
        None, description="a running cluster; default: RAY_ADDRESS, else a local one"
    )
    timeout_s: Real = Field(
        60.0, gt=0.0, le=_MOST_SECONDS, description="longest wait for the cluster's resources"
    )
    call_timeout_s: Real = Field(
        3600.0,
        gt=0.0,
        le=_MOST_SECONDS,
        description="longest wait for an answer of a worker; then it counts as lost",
    )

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        if self.executor == "local" and self.actors > _MOST_LOCAL:
            raise ValueError(
                f"cluster.actors must be at most {_MOST_LOCAL} with cluster.executor local, found {self.actors}: one "
                "process does the work of all, one after the other"
            )
        return self


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    uri: Text | None = Field(None, description="default: SQLite beside the run's folder")
    experiment: Text = Field("dpsw_ray", min_length=1, max_length=LONGEST_NAME)


class RunConfig(Section):
    """What every run has; its method's config (`methods.registry.load_config`) adds the method's own sections.

    Attributes:
        own_encoder: whether the method's release shares its budget with an encoder computed from private records.
    """

    own_encoder: ClassVar[bool] = False

    name: Text = Field("run", pattern=NAME, max_length=LONGEST_NAME)
    method: str = "dpswflow-h"
    seed: Seed = Field(0, description="public: encoder, directions, particles, Wiener noise")
    data: DataConfig = Field(default_factory=DataConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    paths: PathsConfig = Field(default_factory=PathsConfig)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        self._check_method()
        image_encoder = self.encoder.kind not in ("mlp", "identity", "dp_pca")
        if self.data.source == "table" and image_encoder:
            raise ValueError(
                f"encoder.kind must be identity, mlp or dp_pca for data.source table, found {self.encoder.kind}"
            )
        if self.data.public_fraction == 0.0 and self.encoder.kind not in ("identity", "dp_pca"):
            raise ValueError(
                f"encoder.kind must be dp_pca or identity with data.public_fraction 0, found {self.encoder.kind}: "
                "it learns from public records, and there are none"
            )
        if self.encoder.kind == "dp_pca":
            self._check_private_encoder()
        if self.encoder.kind in ("dcgan64", "vgg64") and self.data.source not in ("celeba",):
            raise ValueError(
                f"encoder.kind {self.encoder.kind} is for 64x64 images; {self.data.source} has smaller ones"
            )
        return self

    def _check_private_encoder(self) -> None:
        if not self.own_encoder:
            raise ValueError(
                f"encoder.kind dp_pca shares a budget with the histograms of method dpswflow-h, found {self.method}"
            )
        if self.data.source != "table" and self.encoder.latent_dim > self.encoder.basis:
            raise ValueError(
                f"encoder.latent_dim must be at most encoder.basis {self.encoder.basis}, found "
                f"{self.encoder.latent_dim}"
            )

    def _check_method(self) -> None:
        """What the method refuses; it adds its own."""
        if self.privacy.unit != "record":
            raise ValueError(
                f"privacy.unit must be record, found {self.privacy.unit}: `dpsw federated` protects users"
            )

    @property
    def account(self) -> str:
        """What releases are charged to in the ledger, research accounts aside."""
        return self.data.account

    @property
    def count(self) -> int:
        """How many samples the run draws."""
        raise NotImplementedError(f"the config of method {self.method} says no number of samples")

    @property
    def expected_records(self) -> int | None:
        """A public guess of the private records' number, where the config has one."""
        return None

    @property
    def encoder_seed(self) -> int:
        """Of the encoder: runs with other seeds may share one."""
        return self.seed if self.encoder.seed is None else self.encoder.seed

    @property
    def evaluation_seed(self) -> int:
        """Of everything that judges: figures compare only where the same classifier and directions gave them."""
        return self.seed if self.evaluation.seed is None else self.evaluation.seed

    @property
    def home(self) -> Path:
        """Absolute folder of data sets, private latents and the encoder cache."""
        return absolute_path(self.paths.home) if self.paths.home else _default_home()

    @property
    def ledger_path(self) -> Path:
        """Absolute path of the ledger, independent of the output folder and of `paths.home`."""
        if self.paths.ledger:
            return absolute_path(self.paths.ledger)
        # Not under `paths.home`: data moved to another disk have spent what they have spent.
        return path_from_environment("DPSW_LEDGER", "file") or _default_home() / "ledger.sqlite"

    def to_yaml(self) -> str:
        """The resolved config as YAML that is read back to an equal config."""
        values = self.model_dump(mode="json")
        for section in ("evaluation", "cluster", "tracking", "paths"):  # after the method's own
            values[section] = values.pop(section)
        return yaml.safe_dump(values, sort_keys=False)


def _default_home() -> Path:
    return path_from_environment("DPSW_HOME", "folder") or absolute_path(
        platformdirs.user_data_dir("dpsw_ray")
    )
