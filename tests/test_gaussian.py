"""The Gaussian fit: what it releases is bounded and noisy as its Statement says, and what it draws fits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import run_dpsw

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import PrivacyConfig
from dpsw_ray.methods.gaussian.learn import Gaussians
from dpsw_ray.methods.gaussian.mechanism import class_sums, noise
from dpsw_ray.methods.gaussian.plan import ClassMomentsPlan
from dpsw_ray.methods.method import Facts
from dpsw_ray.methods.registry import load_config, method_named, method_of
from dpsw_ray.pipeline.plan import encoder_events, make_plan
from dpsw_ray.privacy.accountants import bound
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.latents import NULL
from dpsw_ray.release.answers import Answers

DIM, CLASSES = 3, 4
ROWS, COLUMNS = np.triu_indices(DIM + 1)
WEIGHTS = np.where(ROWS == COLUMNS, 1.0, math.sqrt(2.0))


def plan_of(epsilon: float = 1.0, classes: int = CLASSES, **keys: Any) -> ClassMomentsPlan:
    privacy = PrivacyConfig.model_validate({"epsilon": epsilon, "delta": 1e-5} | keys)
    return ClassMomentsPlan.make(privacy, Facts(DIM, CLASSES, 100), classes, "r")


def records(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((count, DIM))
    return latents / np.linalg.norm(latents, axis=1, keepdims=True) * (1 - 1e-6), rng.integers(
        0, CLASSES, count
    ).astype(np.int32)


@pytest.mark.parametrize("relation", ["replace_one", "add_remove", "zero_out"])
def test_no_record_adds_more_than_is_charged_and_some_nearly_do(relation: str) -> None:
    plan = plan_of(relation=relation)
    latents, labels = records(400)
    added = [
        (class_sums([(latents[i : i + 1], labels[i : i + 1])], plan) * WEIGHTS).ravel() for i in range(400)
    ]
    most = plan.lattice.longest**2
    if relation == "replace_one":
        apart = [float(np.linalg.norm(a - b)) for a in added[:60] for b in added[60:120]]
        most *= math.sqrt(2)
    else:
        apart = [float(np.linalg.norm(a)) for a in added]
    assert 0.99 * most < max(apart) <= most
    assert plan.noise_std > 0 and bound([plan.event], relation, 1e-5).epsilon.upper <= 1.0


def test_a_record_without_a_class_adds_nothing_where_classes_are_told_apart() -> None:
    latents, _ = records(3)
    others = np.array([-1, NULL, CLASSES], np.int32)
    assert not class_sums([(latents, others)], plan_of()).any()
    whole = class_sums([(latents, np.array([-1, NULL, 2], np.int32))], plan_of(classes=0))
    assert whole.shape == (1, len(ROWS)) and whole[0, -1] == 2 * plan_of().lattice.constant ** 2


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_noise_is_the_plan_s_on_every_block_and_none_is_drawn_twice(classes: int) -> None:
    plan = plan_of(classes=classes)
    drawn = np.stack([noise(NoiseKey.generate(), plan) for _ in range(3000)])
    assert drawn.shape[1:] == plan.cells
    scaled = drawn * WEIGHTS / plan.noise_std
    assert np.abs(scaled.std(axis=0) - 1).max() < 0.08
    flat = scaled.reshape(len(scaled), -1)
    correlations = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlations).max() < 0.1


def test_gaussians_have_the_moments_that_were_released() -> None:
    plan = plan_of(math.inf)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, 20_000).astype(np.int32)
    centres = rng.uniform(-0.4, 0.4, (CLASSES, DIM))
    mixed = rng.standard_normal((CLASSES, DIM, DIM)) * 0.05
    latents = centres[labels] + np.einsum("nij,nj->ni", mixed[labels], rng.standard_normal((20_000, DIM)))
    assert np.linalg.norm(latents, axis=1).max() < 1
    method = method_named("gaussian")
    config = load_config("digits", ["method=gaussian", "privacy.epsilon=.inf"])
    release = Answers.from_plan(plan, class_sums([(latents, labels)], plan), method.told(config, plan))
    points = Gaussians(method.read(release, None), sphere=False).sample(100_000, seed=3)
    for label in range(CLASSES):
        real, drawn = latents[labels == label], points.particles[points.labels == label]
        assert abs(len(drawn) / 100_000 - len(real) / 20_000) < 1e-4
        assert np.abs(drawn.mean(axis=0) - real.mean(axis=0)).max() < 0.005
        assert np.abs(np.cov(drawn.T) - np.cov(real.T)).max() < 0.002


def test_latents_stay_where_latents_are_however_large_the_noise() -> None:
    plan, method = plan_of(0.01), method_named("gaussian")
    config = load_config("digits", ["method=gaussian"])
    for sphere in (False, True):
        release = Answers.from_plan(plan, noise(NoiseKey.generate(), plan), method.told(config, plan))
        norms = np.linalg.norm(Gaussians(method.read(release, None), sphere).sample(500, 0).particles, axis=1)
        assert norms.max() <= 1 and (not sphere or norms.min() > 0.99)


@pytest.mark.parametrize("kind", ["gaussian", "discrete_gaussian"])
def test_the_epsilon_pays_for_a_private_encoder_too(kind: str) -> None:
    config = load_config(
        "digits",
        [
            "method=gaussian",
            f"privacy.noise={kind}",
            "encoder.kind=dp_pca",
            "data.public_fraction=0",
            "data.classes=[0,1,2,3,4,5,6,7,8,9]",
        ],
    )
    plan = make_plan(config, 6, 10, 1500, "r")
    p = config.privacy
    spent = bound([*encoder_events(config), plan.event], p.relation, p.delta).epsilon.upper
    assert 0.99 * p.epsilon < spent <= p.epsilon


def test_noise_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"privacy.epsilon 1e-07 needs more noise on the moments of 3 dimensions"
    ):
        plan_of(1e-7)
    with pytest.raises(UserError, match=r"than privacy.noise discrete_gaussian can draw"):
        ClassMomentsPlan.make(
            PrivacyConfig.model_validate({"noise": "discrete_gaussian"}), Facts(2000, 10, None), 10, "r"
        )


@pytest.mark.parametrize("kind", ["gaussian", "discrete_gaussian"])
def test_a_run_is_made_drawn_from_and_audited(kind: str, tmp_path: Path) -> None:
    keys = ["method=gaussian", "gaussian.samples=90", "encoder.epochs=3", "cluster.executor=local",
            "tracking.enabled=false", f"paths.home={tmp_path / 'home'}", "evaluation.enabled=false",
            f"paths.ledger={tmp_path / 'ledger.sqlite'}", f"privacy.noise={kind}"]  # fmt: skip
    sets = [part for key in keys for part in ("--set", key)]
    code, _, error = run_dpsw("run", "digits", *sets, "--output", tmp_path / "run", "--quiet")
    assert code == 0, error
    report = (tmp_path / "run" / "report.html").read_text()
    assert "First and second moments" in report and "moments of every class" in report
    assert "Synthetic data, method gaussian" in report and "Wasserstein flow" not in report
    code, _, error = run_dpsw(
        "generate", tmp_path / "run", "--num", "90", "--out", tmp_path / "again.parquet"
    )
    assert code == 0, error
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "run" / "samples.parquet").read_bytes()
    (tmp_path / "run" / "release" / "answers.npz").write_bytes(b"")
    code, _, error = run_dpsw("generate", tmp_path / "run", "--num", "9", "--out", tmp_path / "b.csv")
    assert code == 2 and "answers.npz" in error and error.count("\n") == 1
    if kind == "gaussian":
        code, out, error = run_dpsw("audit", "digits", *sets, "--runs", "120", "--json")
        (found,) = json.loads(out)["audits"]
        claimed, lower = found["mu"]["claimed"], found["mu"]["lower"]
        assert code == 0 and 0.25 * claimed < lower <= claimed, (found, error)
    assert method_of(load_config(tmp_path / "run" / "config.yaml")).name == "gaussian"
