from __future__ import annotations

import math
import os
import time
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.family import Family
from dpsw_ray.config.run import RunConfig
from dpsw_ray.federated.config import FEDERATED
from dpsw_ray.methods.dpswflow_h.config import DpswflowHConfig
from dpsw_ray.methods.registry import METHODS, RUNS, load_config, method_named
from dpsw_ray.pipeline import memory

SHIPPED = sorted(
    entry.name.removesuffix(".yaml")
    for entry in resources.files("dpsw_ray").joinpath("configs").iterdir()
    if entry.name.endswith(".yaml")
)


PLAIN = "write plain decimals, such as 1000, 0.5 or 1e-5"


def refusal(path: str | Path = "digits", *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    sentence = str(caught.value)
    assert sentence.isprintable() and len(sentence) < 1000 and sentence.endswith(".")
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
        ("{source: table, path: people.parquet}", 0.0),
        ("{source: table, path: people.parquet, public_fraction: 0.3}", 0.0),
        ("{source: table, path: people.parquet, public_fraction: 0.3, test_fraction: 0.1}", 0.1),
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


def test_a_table_is_private_as_a_whole_unless_somebody_says_otherwise() -> None:
    config = load_config("table", ["data.path=people.parquet"])
    assert (config.data.public_fraction, config.data.test_fraction) == (0.0, 0.0)
    assert load_config("table", ["data.public_fraction=0.2"]).data.public_fraction == 0.2
    assert "data.classes is missing" in refusal("table", "data.label=income")


def test_a_mistake_in_the_data_section_is_told_alone() -> None:
    assert "fraction" not in refusal("table", "data.split_seed=-1")


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
        ("privacy.epsilon=1e400", f"privacy.epsilon must be a number, found '1e400'; {PLAIN}."),
        ("privacy.epsilon=1.0e+400", f"privacy.epsilon must be a number, found '1.0e+400'; {PLAIN}."),
        (f"privacy.epsilon={'9' * 400}", f"privacy.epsilon must be a number, found '{'9' * 79}…'; {PLAIN}."),
        ("privacy.epsilon='1e400'", f"privacy.epsilon must be a number, found '1e400'; {PLAIN}."),
        ("privacy.epsilon=1:30", f"privacy.epsilon must be a number, found '1:30'; {PLAIN}."),
        ("privacy.epsilon=017", f"privacy.epsilon must be a number, found '017'; {PLAIN}."),
        ("privacy.epsilon=0x1F", f"privacy.epsilon must be a number, found '0x1F'; {PLAIN}."),
        ("privacy.epsilon=1_000", f"privacy.epsilon must be a number, found '1_000'; {PLAIN}."),
        ("privacy.epsilon='1_000'", f"privacy.epsilon must be a number, found '1_000'; {PLAIN}."),
        ("privacy.epsilon=inf", "privacy.epsilon must be a number, found 'inf'."),
        ("privacy.epsilon='nan'", "privacy.epsilon must be a number, found 'nan'."),
        ("privacy.epsilon=١", f"privacy.epsilon must be a number, found '١'; {PLAIN}."),
        (
            "privacy.epsilon=1e300",
            "privacy.epsilon must be at most 200, or .inf for no noise and no privacy, found 1e+300.",
        ),
        ("flow.particles=010", f"flow.particles must be a whole number, found '010'; {PLAIN}."),
        ("flow.particles=.inf", "flow.particles must be a whole number, found inf."),
        ("flow.particles=1e12", "flow.particles must be at most 10000000000, found 1000000000000."),
        (
            f"flow.particles={'9' * 5000}",
            f"flow.particles must be a whole number, found '{'9' * 79}…'; {PLAIN}.",
        ),
        ("release.frames=0x10", f"release.frames must be a whole number or auto, found '0x10'; {PLAIN}."),
        ("release.frames=1e400", f"release.frames must be a whole number or auto, found '1e400'; {PLAIN}."),
        (
            "release.frames=1000000000000000",
            "release.frames must be at most 2147483648, found 1000000000000000.",
        ),
        ("release.smoothing=.nan", "release.smoothing must be a number or auto, found '.nan'."),
        ("flow.step_size=1e300", "flow.step_size must be at most 1e+06, found 1e+300."),
        ("flow.step_size=1:30", f"flow.step_size must be a positive number or auto, found '1:30'; {PLAIN}."),
        ("flow.step_size=.nan", "flow.step_size must be a positive number or auto, found '.nan'."),
        ("flow.diffusion=1e300", "flow.diffusion must be at most 1000000, found 1e+300."),
        (
            "encoder.share=1e400",
            f"encoder.share must be a number between 0 and 1, or auto, found '1e400'; {PLAIN}.",
        ),
        ("encoder.learning_rate=1e300", "encoder.learning_rate must be at most 10, found 1e+300."),
        ("seed=9223372036854775808", "seed must be at most 4294967295, found '9223372036854775808'."),
        (
            "evaluation.seed=1e30",
            "evaluation.seed must be at most 4294967295, found '1e30'.",
        ),
        ("privacy.epsilon=", "privacy.epsilon must be a number, found nothing."),
        ("privacy.delta=1", "privacy.delta must be less than 1, found 1."),
        ("privacy.delta=1e-31", "privacy.delta must be at least 1e-30, found 1e-31."),
        (
            "privacy.noise=laplace",
            "privacy.noise must be 'gaussian' or 'discrete_gaussian', found 'laplace'.",
        ),
        ("privacy.delta=.nan", "privacy.delta must be a number, found '.nan'."),
        ("encoder.learning_rate=.inf", "encoder.learning_rate must be at most 10, found inf."),
        ("encoder.latent_dim=1", "encoder.latent_dim must be at least 2, found 1."),
        ("release.bins=5000", "release.bins must be at most 4096, found 5000."),
        ("flow.particles=1.5", "flow.particles must be a whole number, found 1.5."),
        ("flow.particles=many", "flow.particles must be a whole number, found 'many'."),
        ("flow.particles=true", "flow.particles must be a whole number, found true."),
        ("flow.step_size=big", "flow.step_size must be a positive number or auto, found 'big'."),
        (
            "flow.schedule=slow",
            "flow.schedule must be 'auto', 'constant', 'cosine' or 'inverse', found 'slow'.",
        ),
        ("tracking.enabled=perhaps", "tracking.enabled must be true or false, found 'perhaps'."),
        ("name=a/b", "name must consist of letters, digits and . _ - only, found 'a/b'."),
        ("name=..", "name must consist of letters, digits and . _ - only, found '..'."),
        ("data.path=5", "data.path must be a path, found 5."),
        ("data.path=''", "data.path must be a path, found nothing."),
        (
            "data.path=~nosuchuser/x",
            "data.path must be a path, found ~nosuchuser/x: ~nosuchuser is no user of this machine.",
        ),
        (
            f"paths.home=/{'x' * 300}",
            "paths.home must be a path of at most 4096 bytes, 255 for a name in it, found 301 characters.",
        ),
        ("data.name=..", "data.name must consist of letters, digits and . _ - only, found '..'."),
        (f"name={'x' * 300}", f"name must be text of at most 200 characters, found '{'x' * 79}…'."),
        ("tracking.experiment=''", "tracking.experiment must be text of at least 1 character, found ''."),
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


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("generator.hidden=5", "generator.hidden must be a list, such as [a, b], found 5."),
        ("generator.hidden=[]", "generator.hidden must have at least 1 values, found 0."),
    ],
)
def test_wrong_lists_are_named(override: str, sentence: str) -> None:
    assert refusal("digits", "method=dpswgen", override) == f"--set {sentence}"


def test_epsilon_that_is_no_number_at_all_is_refused() -> None:
    assert "privacy.epsilon must be" in refusal("digits", "privacy.epsilon=.nan")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: {source: table}", ("data.path is missing", ".parquet")),
        ("data: {bounds: {a: [0, 1]}}", ("data.bounds is for data.source table", "found data.source digits")),
        (
            "data: {source: table, path: a.parquet, bounds: {a: [-1e308, 1e308]}}",
            ("data.bounds.a.0 must be at least -1e+100", "data.bounds.a.1 must be at most 1e+100"),
        ),
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


@pytest.mark.parametrize("given", ["[1]", "[1, 2, 3]", "5"])
def test_bounds_must_be_pairs(given: str, tmp_path: Path) -> None:
    sentence = in_file(tmp_path, f"data: {{source: table, path: a.parquet, bounds: {{a: {given}}}}}")
    assert sentence == f"data.bounds.a must be a pair [low, high], found {given}."


def test_text_stays_text_whatever_yaml_would_make_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "name: 007\n"
        "data: {classes: [017, 018, 0x1F, 1_000, 1:30, yes, off, 2024-01-31, 1e5, 12345678901234567890, 3]}"
    )
    config = load_config(path)
    assert config.name == "007"
    given = [
        "017",
        "018",
        "0x1F",
        "1_000",
        "1:30",
        "yes",
        "off",
        "2024-01-31",
        "1e5",
        "12345678901234567890",
        "3",
    ]
    assert config.data.classes == given
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert load_config("digits", ["name=2024-13-45"]).name == "2024-13-45"


def test_numbers_are_plain_decimals() -> None:
    for text, value in (
        ("5", 5),
        ("+5", 5),
        ("5.", 5),
        (".5", 0.5),
        ("1e1", 10),
        ("2.5E-1", 0.25),
        ("'3'", 3),
        (".INF", math.inf),
    ):
        assert load_config("digits", [f"privacy.epsilon={text}"]).privacy.epsilon == value
    assert load_config("digits", ["seed=4294967295"]).seed == 4294967295


def test_a_mistake_in_a_section_speaks_of_that_key_alone() -> None:
    assert refusal("fashion_mnist", "data.source=nothing").startswith("--set data.source must be 'digits', ")
    assert (
        refusal("fashion_mnist", "data.public_fraction=2")
        == "--set data.public_fraction must be less than 1, found 2."
    )


def test_keys_that_do_not_fit_are_blamed_on_the_option_that_is_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("encoder: {latent_dim: 4}\n")
    assert refusal(path, "data.source=table").startswith(
        f"{path} with --set data.source: data.path is missing"
    )
    assert refusal(path, "release.bins=8").startswith(
        f"{path} with --set release.bins: release.bins must exceed"
    )
    path.write_text("release: {bins: 8, smoothing: 1}\n")
    assert refusal(path, "seed=3").startswith(f"{path}: release.bins must exceed")


def test_many_mistakes_are_counted_and_long_keys_are_cut(tmp_path: Path) -> None:
    assert in_file(tmp_path, "".join(f"key{i}: 1\n" for i in range(3000))).endswith("2,995 more mistakes.")
    assert "'kkkkk" in in_file(tmp_path, f"? {'k' * 5000}\n: 1\n")
    assert "x\\x1b" not in in_file(tmp_path, "privacy: {epsilon: a}\n")


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
    assert load_config(tmp_path / "a.yaml") == DpswflowHConfig()
    (tmp_path / "a.yaml").write_text("flow:\n  # steps: 3\ngenerator:\n")
    assert load_config(tmp_path / "a.yaml") == DpswflowHConfig()


def test_damaged_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("privacy:\n\tepsilon: 1\n")
    assert refusal(path) == (
        f"{path} line 2 is not valid YAML: found character '\\t' that cannot start any token; "
        "indent with spaces, never with tabs."
    )
    path.write_text("privacy:\n  epsilon: 1\n  epsilon: 2\n")
    assert refusal(path) == f"{path} line 3 is not valid YAML: the key epsilon is there twice."
    path.write_text("a: 1\nb: 'x\x00'\n")
    assert refusal(path) == f"{path} line 2 is not valid YAML: the character U+0000 is not allowed."
    path.write_text("- a\n")
    assert refusal(path) == f"{path} must hold `key: value` lines, and it holds something else."
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not a text file" in refusal(path)


def test_a_path_that_is_no_config_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} is a folder, where a YAML config file was expected."
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert refusal(path) == f"{path} is a pipe or a device, where a YAML config file was expected."
    (tmp_path / "long.yaml").write_bytes(b"key: 1\n" * 1_500_000)
    assert "long.yaml has more than 1,048,576 bytes" in refusal(tmp_path / "long.yaml")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "its links lead round in a circle" in refusal(tmp_path / "loop")
    assert "~nosuchuser is no user" in refusal("~nosuchuser/a.yaml")
    assert "found 'a\\x00b'" in refusal("a\0b")
    sentence = refusal(tmp_path / "none.yaml")
    assert "does not exist" in sentence and all(name in sentence for name in SHIPPED)


def test_the_resolved_config_names_every_key() -> None:
    for name in METHODS:
        model = method_named(name).Config
        values = yaml.safe_load(model().to_yaml())
        assert set(values) == set(model.model_fields)
        assert set(values["privacy"]) == {*RunConfig().privacy.model_dump()}


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: {{ name }}", "line 1 is not valid YAML: a key must be text; put text that has braces in quotes."),
        ("data: " + "[" * 3000 + "]" * 3000, "line 1 is not valid YAML: more than 32 sections or lists within each"),
        ("name: &a [*a]", "line 1 is not valid YAML: an anchor contains itself."),
        ("data: &a {<<: *a}", "line 1 is not valid YAML: an anchor contains itself."),
        (LAUGHS, "line 6 is not valid YAML: more than 100,000 values"),
        (LAUGHS.replace("[", "{<<: [").replace("]", "]}").replace("x", "{x: 1}"), "more than 100,000 values"),
        ("name: !!python/object:os.system x", "line 1 is not valid YAML: a tag such as !!int has no place"),
        ("privacy: {epsilon: !!int '0x1F'}", "line 1 is not valid YAML: a tag such as !!int has no place"),
        ('name: "a\\0"', "line 1 is not valid YAML: text with a character that cannot be printed."),
        ('data: {path: "\\ud800"}', "line 1 is not valid YAML: text with a character that cannot be printed."),
        ("name: a\n---\nname: b\n", "expected a single document in the stream, but found another document."),
        ("name: *nothing", "line 1 is not valid YAML: found undefined alias 'nothing'."),
        ("5: x", "5 is an unknown key; a config has name, method"),
        ("users: 5", "users is an unknown key; a config has name, method"),
    ],
    ids=range(14),
)  # fmt: skip
def test_yaml_that_is_strange_is_refused_in_a_sentence(text: str, problem: str, tmp_path: Path) -> None:
    started = time.monotonic()
    sentence = in_file(tmp_path, text)
    assert problem.removesuffix(".") in sentence
    assert time.monotonic() - started < 5


def test_yaml_that_is_unusual_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed:\t3\nname: \tx\t# tabs\nflow: {steps:\t5,\tsubset: 7}\n")
    config = load_config(path)
    assert (config.seed, config.name, config.flow.steps, config.flow.subset) == (3, "x", 5, 7)
    path.write_text(
        "flow: &flow {<<: {steps: 4}, <<: {subset: 2}, steps: 5}\nencoder:\n  <<: {batch_size: 9}\n  <<: {epochs: 6}\n"
    )
    config = load_config(path)
    assert (config.flow.steps, config.flow.subset, config.encoder.batch_size, config.encoder.epochs) == (
        5,
        2,
        9,
        6,
    )


def test_an_override_changes_one_key_even_where_an_anchor_is_used_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("encoder: &seeded {seed: 1}\nevaluation: *seeded\n")
    config = load_config(path, ["encoder.seed=5"])
    assert (config.encoder.seed, config.evaluation.seed) == (5, 1)


def test_a_folder_that_is_called_like_a_shipped_config_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("mnist").name == "mnist"
    assert (
        refusal(tmp_path / "mnist") == f"{tmp_path}/mnist is a folder, where a YAML config file was expected."
    )


def test_paths_in_the_environment_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, wanted in (
        ("DPSW_HOME", lambda: RunConfig().home),
        ("DPSW_LEDGER", lambda: RunConfig().ledger_path),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "~nosuchuser/x")
            with pytest.raises(
                UserError, match=f"environment's {variable} must be a path, found ~nosuchuser/x"
            ):
                wanted()


def numbers(kind: Any) -> bool:
    """Whether a field's type is a number, or one of several things of which one is."""
    return kind in (int, float) or any(
        numbers(part) for part in get_args(kind) if get_origin(kind) is not dict
    )


@pytest.mark.parametrize(
    ("family", "method"),
    [(family, method) for family in (RUNS, FEDERATED) for method in family.methods],
    ids=lambda value: value if isinstance(value, str) else value.folder or "records",
)
def test_every_number_of_a_config_has_bounds_on_both_sides(family: Family[RunConfig], method: str) -> None:
    """What is unbounded ends in a crash somewhere: 1e300 as a step, 1e12 particles, a seed of 400 digits."""
    model = family.config(method)
    chosen = ["trust=local"] if method == "dpswflow" and family is FEDERATED else []
    sections = {"": model, **{f"{key}.": field.annotation for key, field in model.model_fields.items()}}
    keys = [
        f"{prefix}{key}"
        for prefix, section in sections.items()
        for key, field in getattr(section, "model_fields", {}).items()
        if numbers(field.annotation) and key != "hidden"
    ]
    assert len(keys) >= 30
    for key in keys:
        for value in ("1e300", "-1e300"):
            with pytest.raises(UserError, match=f"--set {key} must be"):
                family.load("digits", [f"method={method}", *chosen, f"{key}={value}"])


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (("flow.particles=1e10",), "flow.particles 10,000,000,000 would take at least 4,000.0 GB"),
        (("release.frames=1e8",), "release.frames 100,000,000 would take at least"),
        (
            ("method=dpswflow", "release.directions=2e9"),
            "release.directions 2,000,000,000 would take at least",
        ),
        (
            (
                "method=dpswflow-r",
                "release.sampling=poisson",
                "privacy.relation=zero_out",
                "release.rounds=1e7",
            ),
            "release.frames 4 times release.rounds 10,000,000 would take at least",
        ),
        (("method=dpswgen", f"generator.hidden=[{', '.join(['65536'] * 32)}]"), "generator.hidden [65536, "),
        (
            ("method=dpswgen", "generator.batch_size=1e7", "generator.hidden=[65536, 2]"),
            "generator.batch_size 10,000,000",
        ),
        (("cluster.actors=10000",), "cluster.actors 10,000 on one machine would take at least 1,572.9 GB"),
    ],
)
def test_what_cannot_fit_this_machine_is_refused_with_both_numbers(
    overrides: tuple[str, ...], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory, "machine_memory", lambda: 8_000_000_000)
    with pytest.raises(UserError) as caught:
        memory.check_memory(load_config("digits", overrides))
    sentence = str(caught.value)
    assert sentence.startswith(what) and sentence.endswith(
        "of memory, and this machine has 8.0 GB: choose fewer."
    )


def test_what_runs_every_day_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 8_000_000_000)
    for name in SHIPPED:
        if name != "multi_gpu":  # a million particles with their 64x64 pictures
            memory.check_memory(load_config(name))
    assert memory.machine_memory() > 1 << 28


def test_a_process_does_the_work_of_a_bounded_number_of_actors() -> None:
    sentence = refusal("digits", "cluster.executor=local", "cluster.actors=10000")
    assert "cluster.actors must be at most 256 with cluster.executor local, found 10000" in sentence
