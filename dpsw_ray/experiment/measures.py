"""The figures an experiment compares, by short names, and where a finished run keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpsw_ray.base.errors import UserError, shown
from dpsw_ray.base.files import read_json, read_manifest

__all__ = ["MEASURES", "MODELS", "Figures", "Measure", "choose_measures", "read_figures"]


@dataclass(frozen=True)
class Measure:
    """A figure of a run.

    Attributes:
        title: in words; in `metrics.json`, its name.
        better: which way.
        private: computed from private records without noise: its epsilon is infinite.
    """

    title: str
    better: Literal["lower", "higher"]
    private: bool = False


MEASURES: Mapping[str, Measure] = {
    "sliced_w2": Measure("sliced W2 to private latents", "lower", private=True),
    "sliced_w2_test": Measure("sliced W2 to test latents", "lower"),
    "fid": Measure("FID (classifier features)", "lower"),
    "kid": Measure("KID (classifier features)", "lower"),
    "precision": Measure("precision", "higher"),
    "recall": Measure("recall", "higher"),
    "density": Measure("density", "higher"),
    "coverage": Measure("coverage", "higher"),
    "inception": Measure("Inception score (classifier)", "higher"),
    "logreg": Measure("LogReg accuracy", "higher"),
    "mlp": Measure("MLP accuracy", "higher"),
    "cnn": Measure("CNN accuracy", "higher"),
    "boosted": Measure("boosted trees accuracy", "higher"),
    "w1": Measure("marginal W1, mean", "lower"),
    "ks": Measure("marginal KS, mean", "lower"),
    "pearson": Measure("Pearson correlations, RMS gap", "lower"),
    "spearman": Measure("Spearman correlations, RMS gap", "lower"),
    "pseudo_logreg": Measure("LogReg accuracy, classes by the public classifier", "higher"),
    "intended": Measure("intended class", "higher"),
    "membership": Measure("membership inference, AUC", "lower", private=True),
    "seconds": Measure("seconds of all phases", "lower"),
}


MODELS = ("logreg", "mlp", "cnn", "boosted")
"""Measures of models that are trained on samples: only those of `evaluation.models` are."""


@dataclass(frozen=True)
class Figures:
    """A run's figures by short name; what it did not measure is missing.

    Attributes:
        values: name -> figure.
        baselines: name -> what it was measured against -> figure.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def choose_measures(text: str) -> dict[str, Measure]:
    """The measures that a comma-separated list names, in its order.

    Raises:
        UserError: some name is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        if name not in MEASURES:
            raise UserError(f"--metrics takes some of {', '.join(MEASURES)}, found {shown(name)}.")
    return {name: MEASURES[name] for name in names}


def read_figures(folder: Path) -> Figures:
    """All figures of the finished run in `folder`."""
    stored = read_manifest(folder / "metrics.json")
    values: dict[str, Any] = {"seconds": sum(stored["seconds"].values())}
    baselines: dict[str, Mapping[str, float]] = {}
    for name, measure in MEASURES.items():
        if entry := stored["metrics"].get(measure.title):
            values[name] = entry["value"]
            baselines[name] = entry["baselines"]
    research = folder / "research" / "metrics.json"
    if research.exists():
        found = read_json(research)
        values["sliced_w2"] = found["sliced_w2_to_private_latents"]
        values["membership"] = found.get("membership", {}).get("auc")  # not in runs of earlier versions
    return Figures(
        {name: float(values[name]) for name in MEASURES if values.get(name) is not None}, baselines
    )
