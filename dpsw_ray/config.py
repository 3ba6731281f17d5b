"""One run as pydantic models: YAML in, `--set a.b=c` on top, every error names the key and what is valid."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
import yaml
from pydantic import BeforeValidator, Field, model_validator

from dpsw_ray.config_fields import Number, Real, Section, Share, StepSize, Text, Whole, or_auto
from dpsw_ray.config_file import load_model

__all__ = [
    "ClusterConfig",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FlowConfig",
    "GeneratorConfig",
    "PathsConfig",
    "PrivacyConfig",
    "ReleaseConfig",
    "RunConfig",
    "TrackingConfig",
    "load_config",
]


def _test_fraction(given: dict[str, Any]) -> float:
    """Where no record is public none is a test record either, unless somebody says so: they are not protected."""
    own = given.get("source") in ("fashion_mnist", "mnist")  # a test part that the fraction has no say in
    return 0.0 if given.get("public_fraction") == 0.0 and not own else 0.2


_NAME = r"^[._-]*[A-Za-z0-9][A-Za-z0-9._-]*$"
"""A run's name becomes a folder: `.` and `..` must not be among them."""


class PathsConfig(Section):
    """Where things live. Relative paths are taken from the folder the command runs in."""

    home: Path | None = Field(None, description="data sets, private latents, encoder cache")
    ledger: Path | None = Field(None, description="the privacy ledger, one per machine or cluster")


class DataConfig(Section):
    """Which records, and how they are divided."""

    source: Literal["digits", "fashion_mnist", "mnist", "celeba", "table"] = "digits"
    name: Text | None = Field(
        None, pattern=r"^[A-Za-z0-9._-]+$", description="the data set's name in the ledger"
    )
    path: Path | None = Field(None, description="folder or file of the source, where it is not the usual one")
    download: bool = Field(
        True, description="let torchvision fetch the source where it is not on this machine"
    )
    label: Text | None = Field(
        None, description="table: the label column; CelebA: the attribute used as label"
    )
    columns: list[Text] | None = Field(
        None, description="table: the numeric columns; default all but the label"
    )
    bounds: dict[Text, tuple[Real, Real]] | None = Field(None, description="table: public bounds by column")
    classes: list[Text] | None = Field(
        None, description="public class list; default: the public part's labels"
    )
    public_fraction: Real = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="0: no record is public; then data.classes is given, and no encoder is trained",
    )
    test_fraction: Real = Field(
        default_factory=_test_fraction,
        ge=0.0,
        lt=1.0,
        description="for sources without a test part of their own; default: 0.2, but 0 where public_fraction is 0",
    )
    split_seed: Whole = Field(0, ge=0)

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
                "data.classes is missing: with data.public_fraction 0 no label is public, so the list has to be given"
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
        description="number of public records whose detail is kept and lent to what is decoded near them (in the same "
        "class where conditional); 0: decoded records are smooth means",
    )
    epochs: Whole = Field(30, ge=1)
    batch_size: Whole = Field(250, ge=2)
    learning_rate: Real = Field(1e-3, gt=0.0)
    holdout_fraction: Real = Field(0.1, gt=0.0, lt=0.9, description="public hold-out for early stopping")
    patience: Whole = Field(5, ge=1, description="epochs without progress on the hold-out before stopping")
    seed: Whole | None = Field(None, ge=0, description="public: weights, batches; default: the run's seed")

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

    epsilon: Number = Field(1.0, gt=0.0, description=".inf: no noise and no privacy, for research")
    delta: Real = Field(1e-5, gt=0.0, lt=1.0)
    relation: Literal["replace_one", "zero_out", "add_remove"] = "replace_one"
    unit: Literal["record", "user"] = Field("record", description="`user` is for `python -m federated`")
    noise: Literal["gaussian", "discrete_gaussian"] = Field(
        "gaussian",
        description="gaussian: in double precision, rounded to integers; discrete_gaussian: integers sampled exactly",
    )
    noise_seed: Whole | None = Field(
        None, ge=0, description="reproducible noise: tests and papers, never publish"
    )
    research: bool = Field(False, description="charge a research account of its own, marked not publishable")
    force_delta: bool = Field(False, description="accept delta >= 1/N")

    @model_validator(mode="after")
    def _check(self) -> PrivacyConfig:
        if math.isnan(self.epsilon):
            raise ValueError("privacy.epsilon must be a positive number or .inf, found nan")
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


class ReleaseConfig(Section):
    """What is released. Histograms: frames, bins, smoothing, classes. Noisy projections: law, directions.

    `auto` leaves frames, bins and smoothing to the planner (dpswflow-h); elsewhere it stands for 16, 32 and 1.
    """

    frames: Annotated[int | Literal["auto"], BeforeValidator(or_auto(1, 2**31, True))] = Field(
        16, description="orthonormal frames m; directions K = m * latent dimension"
    )
    law: Literal["haar", "iid"] = Field("haar", description="noisy projections: the law of the directions")
    directions: Whole | None = Field(
        None, ge=1, description="noisy projections: K, rounded up to whole frames under haar; default: frames"
    )
    bins: Annotated[int | Literal["auto"], BeforeValidator(or_auto(2, 4096, True))] = Field(
        32, description="cells per direction, the room for the tails included"
    )
    smoothing: Annotated[float | Literal["auto"], BeforeValidator(or_auto(0.0, 64.0, False))] = Field(
        1.0, description="sigma, in bin widths"
    )
    expected_records: Whole | None = Field(
        None,
        ge=1,
        description="public guess of the private records' number, for auto where it is protected or not known yet; "
        "default: 30,000",
    )
    class_conditional: bool = True
    sampling: Literal["partition", "poisson"] = Field(
        "partition",
        description="dpswflow-r: noisy projections of disjoint batches, or histograms of secret samples",
    )
    batch: Whole = Field(250, ge=1, description="partition: records in a batch, about")
    epochs: Whole = Field(1, ge=1, description="partition: passes over the records")
    rate: Real = Field(
        0.01, gt=0.0, le=1.0, description="poisson: chance of a record to be in a round's sample"
    )
    rounds: Whole = Field(100, ge=1, description="poisson: rounds, each with frames of its own")

    @model_validator(mode="after")
    def _check(self) -> ReleaseConfig:
        if self.bins == "auto" or self.smoothing == "auto":
            return self
        margin = math.ceil(4 * self.smoothing)
        if self.bins - 2 * margin < 2:
            raise ValueError(
                f"release.bins must exceed 2 * ceil(4 * smoothing) + 1 = {2 * margin + 1} to leave room for the "
                f"tails, found {self.bins} with release.smoothing {self.smoothing:g}"
            )
        return self


class FlowConfig(Section):
    """Post-processing: everything here is free of privacy cost."""

    particles: Whole = Field(10_000, ge=1)
    steps: Whole | None = Field(
        None,
        ge=1,
        description="at most; an early stop may end it before; default: 300, and every round of a release once",
    )
    subset: Whole | None = Field(
        None, ge=1, description="directions used in each step, drawn anew from those released; default: all"
    )
    step_size: StepSize = Field("auto", description="h; auto: the full transport step h = d")
    schedule: Literal["auto", "constant", "cosine", "inverse"] = Field(
        "auto",
        description="of the step size; inverse falls like 1 / t, which averages over noisy rounds; auto: constant for "
        "one round, inverse for several",
    )
    diffusion: Real = Field(0.0, ge=0.0, description="lambda of the Wiener term sqrt(2 lambda h) Z")
    class_balance: Literal["released", "equal"] = Field("released", description="particles per class")
    patience: Whole = Field(10, ge=1, description="steps without progress before the early stop")
    tolerance: Real = Field(5e-3, ge=0.0, description="relative fall of the sliced distance that counts")
    denoising: Real = Field(
        1.0,
        gt=0.0,
        le=100.0,
        description="pull of noisy slices towards what all of them share, in multiples of the estimated best",
    )
    parallel: Literal["auto", "directions", "particles", "classes"] = Field(
        "auto",
        description="what the actors divide among them; the same bits on CPUs, to 2^-26 a step on GPUs. particles: any "
        "number of them; classes: nothing is exchanged; directions: few particles, many directions; auto: by size",
    )
    kernel: Literal["auto", "numba", "torch"] = "auto"


class GeneratorConfig(Section):
    """The generator of DPSWgen: post-processing, free of privacy cost."""

    noise_dim: Whole = Field(8, ge=1, le=4096, description="dimension of the Gaussian noise that goes in")
    hidden: tuple[Annotated[Whole, Field(ge=1, le=65_536)], ...] = Field(
        (256, 512), min_length=1, description="widths of the hidden layers; the widest has the batch norm"
    )
    steps: Whole | None = Field(
        None,
        ge=1,
        description="steps of Adam; step t uses round t modulo their number; default: 2,000, and every round once",
    )
    batch_size: Whole = Field(250, ge=2, description="generated points per step, divided among the classes")
    learning_rate: Real = Field(1e-3, gt=0.0)


class EvaluationConfig(Section):
    """What is measured. Everything but `research` reads public and test records only."""

    enabled: bool = True
    directions: Whole = Field(1024, ge=1, description="directions of the reported sliced W2 distances")
    images: Whole = Field(10_000, ge=1, description="at most this many samples go into image metrics")
    models: list[Literal["logreg", "mlp", "cnn", "boosted"]] = Field(
        ["logreg"], description="trained on samples, tested on real records; boosted: gradient-boosted trees"
    )
    train: Whole = Field(20_000, ge=1, description="at most this many samples train a model")
    schedule: Literal["short", "full"] = Field(
        "short", description="of mlp and cnn; full: the literature's 50 epochs"
    )
    seed: Whole | None = Field(
        None, ge=0, description="public: classifier, directions, baselines; default: the run's seed"
    )
    research: bool = Field(
        False, description="also measure against private records: epsilon = infinity, kept apart"
    )


class ClusterConfig(Section):
    """Who does the work."""

    executor: Literal["ray", "local"] = "ray"
    actors: Whole = Field(2, ge=1)
    cpus_per_actor: Real = Field(1.0, gt=0.0)
    gpus_per_actor: Real = Field(
        0.0,
        ge=0.0,
        description="0.5: two actors share a GPU; above 1: whole, of which the kernels use the first",
    )
    placement: Literal["packed", "spread"] = Field(
        "packed", description="actors on as few machines as possible, or on as many"
    )
    address: str | None = Field(None, description="a running cluster; default: RAY_ADDRESS, else a local one")
    timeout_s: Real = Field(60.0, gt=0.0, description="longest wait for the cluster's resources")
    call_timeout_s: Real = Field(
        3600.0, gt=0.0, description="longest wait for an answer of a worker; then it counts as lost"
    )


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    uri: str | None = Field(None, description="default: SQLite beside the run's folder")
    experiment: Text = "dpsw_ray"


class RunConfig(Section):
    """One run, whole."""

    name: Text = Field("run", pattern=_NAME)
    method: Literal["dpswflow-h", "dpswflow", "dpswflow-r", "dpswgen"] = "dpswflow-h"
    seed: Whole = Field(0, ge=0, description="public: encoder, directions, particles, Wiener noise")
    data: DataConfig = Field(default_factory=DataConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    release: ReleaseConfig = Field(default_factory=ReleaseConfig)
    flow: FlowConfig = Field(default_factory=FlowConfig)
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    paths: PathsConfig = Field(default_factory=PathsConfig)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        self._check_method()
        self._check_conditional()
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
        if self.method != "dpswflow-h":
            raise ValueError(
                f"encoder.kind dp_pca shares a budget with the histograms of method dpswflow-h, found {self.method}"
            )
        if self.privacy.noise != "gaussian":
            raise ValueError(
                f"privacy.noise must be gaussian for encoder.kind dp_pca, found {self.privacy.noise}"
            )
        if self.data.source != "table" and self.encoder.latent_dim > self.encoder.basis:
            raise ValueError(
                f"encoder.latent_dim must be at most encoder.basis {self.encoder.basis}, found "
                f"{self.encoder.latent_dim}"
            )

    def _check_method(self) -> None:
        if self.privacy.unit != "record":
            raise ValueError(
                f"privacy.unit must be record, found {self.privacy.unit}: `python -m federated` protects users"
            )
        relation, sampled = self.privacy.relation, self.release_kind == "sampled"
        if self.release_kind == "rows" and relation == "add_remove":
            raise ValueError(
                f"privacy.relation must be replace_one or zero_out for method {self.method}, found add_remove: noisy "
                "projections show how many records there are"
            )
        if sampled and relation == "replace_one":
            raise ValueError(
                "privacy.relation must be zero_out or add_remove for release.sampling poisson, found replace_one: "
                "amplification by sampling is not proved for a replaced record"
            )
        if self.release_kind != "histograms" and self.privacy.noise != "gaussian":
            raise ValueError(
                f"privacy.noise must be gaussian for method {self.method}, found {self.privacy.noise}"
            )

    def _check_conditional(self) -> None:
        if self.encoder.conditional and self.release_kind == "rows":
            raise ValueError(
                f"encoder.conditional must be false for method {self.method}, found true: noisy projections carry no "
                "class to decode by"
            )
        if self.encoder.conditional and not self.release.class_conditional:
            raise ValueError(
                "release.class_conditional must be true for encoder.conditional true, found false: without the class "
                "nothing can be decoded"
            )

    @property
    def account(self) -> str:
        """What releases are charged to in the ledger, research accounts aside."""
        return self.data.account

    @property
    def release_kind(self) -> Literal["histograms", "rows", "sampled"]:
        """Sums of histograms, noisy projections, or histograms of secret samples."""
        if self.method == "dpswflow-h":
            return "histograms"
        if self.method == "dpswflow" or self.release.sampling == "partition":
            return "rows"
        return "sampled"

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
        chosen = self.paths.home or os.environ.get("DPSW_HOME") or platformdirs.user_data_dir("dpsw_ray")
        return Path(chosen).expanduser().absolute()

    @property
    def ledger_path(self) -> Path:
        """Absolute path of the ledger, independent of the output folder and of `paths.home`."""
        if chosen := self.paths.ledger or os.environ.get("DPSW_LEDGER"):
            return Path(chosen).expanduser().absolute()
        # Not under `paths.home`: data moved to another disk have spent what they have spent.
        root = os.environ.get("DPSW_HOME") or platformdirs.user_data_dir("dpsw_ray")
        return Path(root).expanduser().absolute() / "ledger.sqlite"

    def to_yaml(self) -> str:
        """The resolved config as YAML that `load_config` reads back to an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads the config of one run; see `load_model`."""
    return load_model(RunConfig, path, overrides)
