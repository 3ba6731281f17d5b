from __future__ import annotations

import math
from importlib import resources
from pathlib import Path

import pytest
import yaml

from dpsw_ray.config import RunConfig, load_config
from dpsw_ray.errors import UserError

SHIPPED = sorted(
    entry.name.removesuffix(".yaml")
    for entry in resources.files("dpsw_ray.configs").iterdir()
    if entry.name.endswith(".yaml")
)


def refusal(path: str | Path = "digits", *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def in_file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return refusal(path).removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    (tmp_path / "copy.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "copy.yaml") == config
    assert load_config(f"configs/{name}.yaml") == config


@pytest.mark.parametrize(
    ("data", "fraction"),
    [
        ("{}", 0.2),
        ("{public_fraction: 0.3}", 0.2),
        ("{public_fraction: 0, classes: [a]}", 0.0),
        ("{public_fraction: 0.0, classes: [a], test_fraction: 0.1}", 0.1),
        ("{source: table, path: people.parquet, public_fraction: '0'}", 0.0),
        ("{source: fashion_mnist, public_fraction: 0, classes: [a]}", 0.2),  # it has a test part of its own
    ],
)
def test_where_nothing_is_public_test_records_are_asked_for(
    data: str, fraction: float, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(f"data: {data}\nencoder: {{kind: identity}}\n")
    config = load_config(tmp_path / "a.yaml")
    assert config.data.test_fraction == fraction
    (tmp_path / "b.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "b.yaml") == config


def test_a_config_that_uses_every_kind_of_value_survives_a_round_trip(tmp_path: Path) -> None:
    text = """
    name: wide
    data: {source: table, path: /data/people.parquet, label: income, columns: [age, hours],
           bounds: {age: [0, 120], hours: [0, 1e2]}, classes: [0, 1]}
    encoder: {kind: identity}
    privacy: {epsilon: .inf, delta: 1e-5, noise_seed: 7}
    flow: {step_size: 0.5}
    paths: {home: /srv/dpsw}
    """
    (tmp_path / "a.yaml").write_text(text)
    config = load_config(tmp_path / "a.yaml")
    assert config.data.bounds == {"age": (0.0, 120.0), "hours": (0.0, 100.0)}
    assert config.data.classes == ["0", "1"]
    assert config.privacy.epsilon == math.inf and not config.privacy.publishable
    (tmp_path / "b.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "b.yaml") == config


def test_numbers_are_read_as_people_write_them() -> None:
    config = load_config("digits", ["privacy.delta=1e-5", "flow.particles=1e3", "privacy.epsilon=.inf"])
    assert (config.privacy.delta, config.flow.particles, config.privacy.epsilon) == (1e-5, 1000, math.inf)


def test_set_reaches_every_level_and_reads_yaml() -> None:
    config = load_config(
        "digits",
        ["seed=3", " flow.step_size = 0.5 ", "data.classes=[0, 1]", "tracking.enabled=no", "data.label="],
    )
    assert config.seed == 3
    assert config.flow.step_size == 0.5
    assert config.data.classes == ["0", "1"]
    assert config.tracking.enabled is False and config.data.label is None


def test_the_later_set_wins() -> None:
    assert load_config("digits", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["seed", "=1", "privacy.=1", ".epsilon=1", "privacy..epsilon=1"])
def test_a_set_without_key_or_value_is_refused(override: str) -> None:
    assert refusal("digits", override) == (
        f"--set takes key=value, such as privacy.epsilon=1, found {override!r}."
    )


def test_a_set_value_that_is_no_yaml_is_refused_by_name() -> None:
    assert refusal("digits", "name=[").startswith("--set name: the value '[' is not valid YAML")
    assert refusal("digits", "name=2024-13-45").startswith("--set name: the value '2024-13-45'")


def test_a_set_below_a_single_value_is_refused() -> None:
    assert refusal("digits", "privacy.epsilon.x=1") == (
        "--set privacy.epsilon.x: privacy.epsilon is a single value, it has no key x."
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("privacy.epsilon=0", "privacy.epsilon must be greater than 0, found 0."),
        ("privacy.epsilon=-1", "privacy.epsilon must be greater than 0, found -1."),
        ("privacy.epsilon=abc", "privacy.epsilon must be a number, found 'abc'."),
        ("privacy.epsilon=true", "privacy.epsilon must be a number, found true."),
        ("privacy.epsilon=", "privacy.epsilon must be a number, found nothing."),
        ("privacy.delta=1", "privacy.delta must be less than 1, found 1."),
        (
            "privacy.noise=laplace",
            "privacy.noise must be 'gaussian' or 'discrete_gaussian', found 'laplace'.",
        ),
        ("privacy.delta=.nan", "privacy.delta must be less than 1, found nan."),
        ("encoder.learning_rate=.inf", "encoder.learning_rate must be a finite number, found inf."),
        ("encoder.latent_dim=1", "encoder.latent_dim must be at least 2, found 1."),
        ("release.bins=5000", "release.bins must be at most 4096, found 5000."),
        ("flow.particles=1.5", "flow.particles must be a whole number, found 1.5."),
        ("flow.particles=many", "flow.particles must be a whole number, found 'many'."),
        ("flow.particles=true", "flow.particles must be a number, found true."),
        ("flow.step_size=big", "flow.step_size must be a positive number or auto, found 'big'."),
        (
            "flow.schedule=slow",
            "flow.schedule must be 'auto', 'constant', 'cosine' or 'inverse', found 'slow'.",
        ),
        ("tracking.enabled=perhaps", "tracking.enabled must be true or false, found 'perhaps'."),
        ("name=a/b", "name must consist of letters, digits and . _ - only, found 'a/b'."),
        ("name=..", "name must consist of letters, digits and . _ - only, found '..'."),
        ("data.path=5", "data.path must be a path, found 5."),
        ("data.classes=a", "data.classes must be a list, such as [a, b], found 'a'."),
        ("privacy=5", "privacy must be a section with keys of its own, found 5."),
        (
            "name=[a]",
            "name must be text (in quotes where it looks like something else), found ['a'].",
        ),
    ],
)
def test_wrong_values_are_named(override: str, sentence: str) -> None:
    assert refusal("digits", override) == f"--set {sentence}"


def test_epsilon_that_is_no_number_at_all_is_refused() -> None:
    assert "privacy.epsilon must be" in refusal("digits", "privacy.epsilon=.nan")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: {source: table}", ("data.path is missing", ".parquet")),
        ("data: {bounds: {a: [0, 1]}}", ("data.bounds is for data.source table", "found data.source digits")),
        (
            "data: {source: table, path: a.parquet, bounds: {a: [2, 1]}}",
            ("data.bounds.a must be [low, high] with low < high, found [2, 1].",),
        ),
        (
            "privacy: {noise: discrete_gaussian, noise_seed: 7}",
            ("privacy.noise_seed is for privacy.noise gaussian", "takes no seed", "found 7"),
        ),
        ("data: {public_fraction: 0.8, test_fraction: 0.2}", ("must be below 1", "found 0.8 + 0.2")),
        ("release: {bins: 8, smoothing: 1}", ("release.bins must exceed", "found 8")),
        (
            "data: {source: table, path: a.parquet}",
            ("encoder.kind must be identity, mlp or dp_pca", "found conv."),
        ),
        ("encoder: {kind: vgg64}", ("encoder.kind vgg64 is for 64x64 images", "digits")),
        (
            "encoder: {kind: identity, conditional: true}",
            ("encoder.conditional must be false for encoder.kind identity", "found true."),
        ),
        (
            "encoder: {kind: identity, detail: 10}",
            ("encoder.detail must be 0 for encoder.kind identity", "found 10."),
        ),
        (
            "encoder: {conditional: true, classification: 0.1}",
            ("encoder.classification must be 0 with encoder.conditional true, found 0.1",),
        ),
        (
            "{encoder: {conditional: true}, release: {class_conditional: false}}",
            ("release.class_conditional must be true for encoder.conditional true, found false",),
        ),
        (
            "{method: dpswflow, encoder: {conditional: true}}",
            ("encoder.conditional must be false for method dpswflow, found true", "carry no class"),
        ),
        (
            "{method: dpswgen, encoder: {conditional: true}}",
            ("encoder.conditional must be false for method dpswgen, found true",),
        ),
    ],
)
def test_values_that_do_not_fit_each_other_are_named(
    text: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    sentence = in_file(tmp_path, text)
    assert all(part in sentence for part in parts), sentence


def test_bounds_must_be_pairs(tmp_path: Path) -> None:
    sentence = in_file(tmp_path, "data: {source: table, path: a.parquet, bounds: {a: [1]}}")
    assert "data.bounds.a" in sentence and "must be a pair [low, high]" in sentence


def test_a_misspelt_key_gets_a_suggestion() -> None:
    assert refusal("digits", "privacy.epsilom=1") == (
        "--set privacy.epsilom is an unknown key; did you mean privacy.epsilon."
    )
    assert "did you mean privacy." in refusal("digits", "privcy.epsilon=1")


def test_a_key_of_another_section_gets_a_suggestion() -> None:
    assert "did you mean privacy.epsilon." in refusal("digits", "epsilon=1")
    assert "did you mean encoder.patience or flow.patience." in refusal("digits", "patience=1")


def test_an_unknown_key_without_likeness_lists_the_known_ones() -> None:
    sentence = refusal("digits", "privacy.zzz=1")
    assert sentence.startswith("--set privacy.zzz is an unknown key; privacy has epsilon, delta, relation")


def test_two_wrong_keys_are_both_named_each_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("privacy: {epsilon: 0}\nflow: {steps: none}\n")
    assert refusal(path, "seed=-1") == (
        f"{path}: privacy.epsilon must be greater than 0, found 0. "
        "flow.steps must be a whole number, found 'none'. --set seed must be at least 0, found -1."
    )


def test_a_section_whose_keys_are_commented_out_has_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("privacy:\n  # epsilon: 3\n")
    assert load_config(tmp_path / "a.yaml").privacy == RunConfig().privacy
    (tmp_path / "a.yaml").write_text("")
    assert load_config(tmp_path / "a.yaml") == RunConfig()


def test_damaged_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("privacy:\n\tepsilon: 1\n")
    assert refusal(path) == (
        f"{path} line 2 is not valid YAML: found character '\\t' that cannot start any token; "
        "indent with spaces, never with tabs."
    )
    path.write_text("privacy:\n  epsilon: 1\n  epsilon: 2\n")
    assert refusal(path) == f"{path} line 3 is not valid YAML: the key epsilon is there twice."
    path.write_text("- a\n")
    assert refusal(path) == f"{path} must hold `key: value` lines, found ['a']."
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not a text file" in refusal(path)


def test_a_path_that_is_no_config_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} is a folder, where a YAML config file was expected."
    sentence = refusal(tmp_path / "none.yaml")
    assert "does not exist" in sentence and all(name in sentence for name in SHIPPED)


def test_the_resolved_config_names_every_key() -> None:
    values = yaml.safe_load(RunConfig().to_yaml())
    assert set(values) == set(RunConfig.model_fields)
    assert set(values["privacy"]) == {*RunConfig().privacy.model_dump()}
