"""`dpsw account`: what a newcomer sees, what a program reads, and what happens to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import run_dpsw

CONFIGS = Path(__file__).parents[1] / "configs" / "account"
IID = CONFIGS / "iid_slices.yaml"


def _json(*args: object) -> dict:  # type: ignore[type-arg]
    code, out, err = run_dpsw("account", *args, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)  # type: ignore[no-any-return]


def test_every_accountant_shows_its_interval_and_its_time() -> None:
    found = _json(IID)
    assert 7.89 <= found["epsilon"]["upper"] <= 7.95 and found["accountant"] == "analytic Gaussian"
    assert found["relation"] == "replace_one" and found["events"][0]["kind"] == "sliced_gaussian"
    for name in ("analytic Gaussian", "PRV", "PLD", "RDP"):
        figures = found["by accountant"][name]
        assert set(figures) == {"lower", "estimate", "upper", "seconds"}
        assert figures["lower"] <= figures["estimate"] <= figures["upper"]
        assert figures["lower"] <= found["epsilon"]["upper"] and found["epsilon"]["lower"] <= figures["upper"]


def test_the_literature_s_figures_stand_beside_it_marked_as_what_they_are() -> None:
    literature = _json(IID)["literature, for comparison"]
    assert literature["CLT, classical formula"]["epsilon"] == pytest.approx(10.0, abs=0.01)
    assert literature["CLT, classical formula"]["worth"].startswith("not a guarantee")
    assert literature["Bernstein, analytic Gaussian"]["worth"].startswith("a bound")
    assert "literature, for comparison" not in _json("digits")


def test_a_run_s_config_is_counted_without_opening_its_data() -> None:
    found = _json("digits", "--set", "privacy.epsilon=2")
    assert found["epsilon"]["upper"] <= 2 and found["events"][0]["kind"] == "sliced_histogram"
    assert found["mu"] > 0


def test_discrete_noise_is_counted_by_renyi() -> None:
    found = _json("digits", "--set", "privacy.noise=discrete_gaussian")
    assert found["accountant"] == "RDP" and "not applicable" in found["by accountant"]["PRV"]


def test_sweeps_over_epsilon_and_delta_are_tables() -> None:
    found = _json(IID, "--epsilon", "1,10", "--delta", "1e-6,1e-5")
    noises = [row["noise"][0] for row in found["noise by epsilon"]]
    assert noises == [pytest.approx(22.75, abs=0.05), pytest.approx(3.11, abs=0.01)]
    assert all(0.995 * row["epsilon"] <= row["upper"] <= row["epsilon"] for row in found["noise by epsilon"])
    assert [row["delta"] for row in found["epsilon by delta"]] == [1e-6, 1e-5]
    assert found["epsilon by delta"][0]["lower"] > found["epsilon by delta"][1]["upper"]
    _, out, _ = run_dpsw("account", IID, "--delta", "1e-6,1e-5")
    header, first, second = out[out.index("epsilon by delta:") :].splitlines()[1:4]
    assert header.split() == ["delta", "lower", "estimate", "upper", "accountant"]
    assert first.split()[0] == "1e-06" and second.split()[0] == "1e-05"


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "new" / "curve.png"
    code, out, _ = run_dpsw("account", IID, "--plot", picture)
    assert code == 0 and f"plot: {picture}" in out
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_an_encoder_and_a_release_compose() -> None:
    both = _json(CONFIGS / "dp_sgd_and_slices.yaml")
    assert both["accountant"] == "PRV" and both["mu"] == "no Gaussian mechanism"
    assert len(both["events"]) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("events: []", "events must be a list of at least one section with a kind, found []."),
        ("events: [{kind: laplace}]", "event 1: Unknown privacy event 'laplace'; this version knows"),
        ("events: [{kind: noisy_count, noise: 3}]", "event 1: Privacy event 'noisy_count' has no noise;"),
        (
            "events: [{kind: noisy_count, noise_std: -1}]",
            "noise_std must be 0 or lie between 1e-30 and 1e+30, found -1",
        ),
        (
            "delat: 1e-5\nevents: [{kind: noisy_count, noise_std: 1}]",
            "delat is an unknown key; did you mean delta",
        ),
        (
            "delta: 2\nevents: [{kind: noisy_count, noise_std: 1}]",
            "delta must lie between 0 and 1, found 2.0",
        ),
        (
            "delta: 017\nevents: [{kind: noisy_count, noise_std: 1}]",
            "delta must be a number between 0 and 1, found '017'",
        ),
        (
            "events: [{kind: noisy_count, noise_std: 0x10}]",
            "noise_std must be 0 or lie between 1e-30 and 1e+30, found '0x10'",
        ),
        ("events: [{kind: noisy_count, noise_std: 1e400}]", "noise_std must be 0 or lie between"),
        ("delta: x\nevents: [{kind: noisy_count, noise_std: 1}]", "delta must be a number between 0 and 1"),
        ("relation: swap\nevents: [{kind: noisy_count, noise_std: 1}]", "relation must be one of"),
        (
            "events: [{kind: dp_sgd, sampling: 0.1, noise_multiplier: 1, steps: 5}]",
            "composes under zero_out and add_remove only",
        ),
        (
            "events: [{kind: noisy_count, noise_std: 1}, {kind: noisy_count, noise_std: 1, unit: user}]",
            "same unit",
        ),
    ],
)
def test_mistakes_are_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "events.yaml"
    path.write_text(text)
    code, out, err = run_dpsw("account", path)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert sentence in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--epsilon", "1;2"), "--epsilon takes numbers with commas between them, found '1;2'"),
        (
            ("--epsilon", "1e400"),
            "--epsilon takes numbers with commas between them, found '1e400'; write plain decimals",
        ),
        (("--epsilon", "inf"), "--epsilon takes numbers with commas between them, found 'inf'"),
        (("--delta", "1:30"), "--delta takes numbers with commas between them, found '1:30'"),
        (("--epsilon", "0"), "--epsilon takes positive finite numbers, found 0.0"),
        (("--delta", "2"), "delta must lie between 0 and 1, found 2.0"),
        (("--plot", "curve.pdf"), "--plot takes a name that ends in .png, and curve.pdf ends in .pdf"),
    ],
)
def test_wrong_options_are_one_sentence(options: tuple[str, str], sentence: str) -> None:
    code, out, err = run_dpsw("account", IID, *options)
    assert code == 2 and sentence in err and out == ""


def test_a_list_without_noise_costs_infinity_and_cannot_be_calibrated(tmp_path: Path) -> None:
    path = tmp_path / "events.yaml"
    path.write_text("events: [{kind: noisy_count, noise_std: 0}]")
    assert _json(path)["epsilon"]["upper"] == "inf"
    code, _, err = run_dpsw("account", path, "--epsilon", "1")
    assert code == 2 and "has no noise to scale" in err
