"""Trials, grids, tables and where they run: the parts of an experiment, each with real runs where one is needed."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import SMALL, small

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.rounding import format_number
from dpsw_ray.cluster import LocalCluster
from dpsw_ray.commands.options import reals
from dpsw_ray.config.run import TrackingConfig
from dpsw_ray.experiment.execute import execute, look_up
from dpsw_ray.experiment.folder import ExperimentFolder
from dpsw_ray.experiment.grid import Grid, make_grid, parse_methods, parse_own
from dpsw_ray.experiment.measures import Figures, choose_measures
from dpsw_ray.experiment.pictures import curves_figure
from dpsw_ray.experiment.record import Recorder
from dpsw_ray.experiment.table import make_table
from dpsw_ray.experiment.trial import Privacy, Trial, TrialResult
from dpsw_ray.pipeline.tracking import open_tracker


def grid(*overrides: str, epsilons: tuple[float, ...] = (1.0, 5.0), seeds: int = 2) -> Grid:
    return make_grid("digits", [*SMALL, *overrides], ("dpswflow-h",), epsilons, seeds, {})


def result(epsilon: float, seed: int, status: str = "finished", **values: float) -> TrialResult:
    trial = Trial(f"m-{epsilon:g}-{seed}", {"method": "m", "epsilon": epsilon}, seed, small())
    if status == "failed":
        return TrialResult(trial, "failed", "It broke.")
    if status == "pending":
        return TrialResult(trial)
    privacy = Privacy(epsilon, 1e-5, "replace_one", "record", "analytic Gaussian", ("sliced histograms",))
    return TrialResult(trial, "finished", figures=Figures(values, {"fid": {"random": 9.0}}), privacy=privacy)


# Grids


def test_a_grid_holds_every_pair_with_every_seed() -> None:
    made = grid("seed=3", epsilons=(0.2, 100.0, math.inf), seeds=2)
    assert [trial.name for trial in made.trials] == [
        "dpswflow-h-0.2-3", "dpswflow-h-100-3", "dpswflow-h-inf-3",
        "dpswflow-h-0.2-4", "dpswflow-h-100-4", "dpswflow-h-inf-4",
    ]  # fmt: skip
    for trial in made.trials:
        assert trial.config.privacy.epsilon == trial.point["epsilon"]
        assert trial.config.seed == trial.seed


def test_trials_are_never_publishable_and_share_encoder_and_judge() -> None:
    made = grid("seed=3")
    for trial in made.trials:
        assert not trial.config.privacy.publishable
        assert (trial.config.encoder_seed, trial.config.evaluation_seed) == (3, 3)
        assert trial.config.cluster.executor == "local" and not trial.config.tracking.enabled
    assert len({trial.shares for trial in made.trials}) == 1


def test_reproducible_noise_differs_from_seed_to_seed() -> None:
    seeds = [trial.config.privacy.noise_seed for trial in grid("privacy.noise_seed=7").trials]
    assert seeds == [7, 7, 8, 8]


def test_a_method_may_have_keys_of_its_own() -> None:
    own = parse_own(["dpswflow-h:release.frames=9", "dpswflow-h:flow.steps=7"])
    made = make_grid("digits", SMALL, ("dpswflow-h",), (1.0,), 1, own)
    assert (made.trials[0].config.release.frames, made.trials[0].config.flow.steps) == (9, 7)
    assert made.config.release.frames == 2


def test_close_epsilons_get_folders_of_their_own() -> None:
    names = {trial.name for trial in grid(epsilons=(1.0, 1.0000001), seeds=1).trials}
    assert names == {"dpswflow-h-1-0", "dpswflow-h-1.0000001-0"}


def test_epsilons_are_compared_in_increasing_order() -> None:
    epsilons = reals("--epsilon", "5, 0.2,inf,1e-1,.inf,5", infinite=True)
    made = grid(epsilons=epsilons, seeds=1)
    assert made.epsilons == (0.1, 0.2, 5.0, math.inf)
    assert [trial.config.privacy.epsilon for trial in made.trials] == [0.1, 0.2, 5.0, math.inf]


@pytest.mark.parametrize(
    "text",
    ["", "nan", "1,,2", "many", "1e400", "1:30", "017", "1_000", "infinity", "-inf", "-.inf", "9" * 400],
)
def test_an_epsilon_that_is_no_plain_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--epsilon takes numbers or inf with commas between them, found '"):
        reals("--epsilon", text, infinite=True)
    with pytest.raises(UserError, match=r"--epsilon takes numbers with commas between them, found '"):
        reals("--epsilon", text or "inf")


@pytest.mark.parametrize("epsilon", [0.0, -1.0])
def test_an_epsilon_that_promises_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(UserError, match=r"--epsilon takes positive numbers or inf, .* found"):
        grid(epsilons=(1.0, epsilon))


def test_a_comparison_of_very_many_trials_is_refused_with_their_number() -> None:
    with pytest.raises(UserError, match="make 200,000,000 trials, and a comparison has at most 10,000"):
        grid(epsilons=(1.0, 2.0), seeds=100_000_000)
    with pytest.raises(UserError, match="--seeds 3 counts up from seed 4294967294 beyond 4294967295"):
        grid("seed=4294967294", seeds=3)


@pytest.mark.parametrize("text", ["", "dpswflow-h,gan"])
def test_an_unknown_method_is_answered_with_the_known_ones(text: str) -> None:
    with pytest.raises(UserError, match=r"--methods takes some of dpswflow-h.*, found '(gan)?'"):
        parse_methods(text)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("release.frames=9", "--for takes METHOD:KEY=VALUE"),
        ("gan:release.frames=9", "--for takes METHOD:KEY=VALUE"),
        ("dpswflow-h:release.frames", "--for takes METHOD:KEY=VALUE"),
        ("dpswflow-h:privacy.epsilon=1", "use --epsilon"),
        ("dpswflow-h:data.split_seed=1", "data.split_seed is the same for all methods"),
        ("dpswflow-h: seed =1", "seed is the same for all methods"),
    ],
)
def test_a_key_that_methods_share_is_not_one_methods_own(option: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_own([option])
    assert words in str(caught.value)


def test_what_the_grid_sets_is_not_taken_from_elsewhere() -> None:
    with pytest.raises(UserError, match=r"--set privacy\.epsilon=1: the grid sets .* use --epsilon"):
        grid("privacy.epsilon=1")


def test_a_config_that_is_wrong_for_a_method_names_it() -> None:
    with pytest.raises(UserError, match=r"^Method dpswflow-h: .*release\.bins must exceed"):
        make_grid("digits", SMALL, ("dpswflow-h",), (1.0,), 1, {"dpswflow-h": ["release.bins=4"]})


# Measures and tables


def test_an_unknown_measure_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        choose_measures("fid,beauty")
    assert str(caught.value) == (
        "--metrics takes some of sliced_w2, sliced_w2_test, fid, kid, precision, recall, density, coverage, inception, "
        "logreg, mlp, cnn, boosted, w1, ks, pearson, spearman, pseudo_logreg, intended, membership, seconds, found "
        "'beauty'."
    )


def test_a_cell_is_mean_and_sample_deviation_of_finished_trials() -> None:
    results = [result(1, 0, fid=2.0), result(1, 1, fid=4.0), result(1, 2, "failed"), result(5, 0, fid=1.0)]
    table = make_table(results, choose_measures("fid,logreg"))
    first, second = table.cells
    spread = first.figures["fid"]
    assert (spread.mean, spread.std, spread.n) == (3.0, pytest.approx(math.sqrt(2)), 2)
    assert second.figures["fid"].std is None
    assert table.baselines["fid"] == {"random": 9.0}
    assert first.seeds == "2 of 3 (1 failed)" and second.seeds == "1"


def test_the_interval_of_a_mean_over_seeds_is_students(tmp_path: Path) -> None:
    from scipy.stats import t

    values = (2.0, 4.0, 4.5)
    results = [result(1, seed, fid=value) for seed, value in enumerate(values)] + [result(5, 0, fid=1.0)]
    table = make_table(results, choose_measures("fid"))
    low, high = t.interval(0.95, 2, 3.5, math.sqrt(1.75 / 3))  # 4.303 times the standard error
    assert table.to_dict()["cells"][0]["figures"]["fid"]["ci"] == pytest.approx([low, high])
    assert f"{3.5} ± {format_number(float(high - low) / 2, 2)}" in table.to_markdown()
    assert table.to_markdown().count("95 % confidence interval of the mean over seeds") == 1
    assert "no confidence interval" not in table.to_markdown()
    table.to_parquet(tmp_path / "table.parquet")
    first, second, baseline = pq.read_table(tmp_path / "table.parquet").to_pylist()
    assert (first["method"], first["epsilon"], first["n"]) == ("m", 1.0, 3)
    assert (first["ci_low"], first["ci_high"]) == (pytest.approx(low), pytest.approx(high))
    assert (second["mean"], second["n"], second["std"], second["ci_low"]) == (1.0, 1, None, None)
    assert (baseline["measure"], baseline["baseline"], baseline["mean"]) == ("fid", "random", 9.0)
    assert baseline["epsilon"] is None
    assert curves_figure(table, "epsilon", "method").startswith(b"\x89PNG")
    alone = make_table([result(1, 0, fid=2.0)], choose_measures("fid"))
    assert (
        alone.to_markdown().count("no confidence interval can be given") == 1
        and "±" not in alone.to_markdown()
    )


def test_what_no_trial_measured_is_a_dash_for_people_and_nothing_for_programs() -> None:
    table = make_table([result(1, 0, fid=2.0), result(5, 0, "pending")], choose_measures("fid,logreg"))
    assert table.to_markdown().splitlines()[2:] == [
        "| m | 1 | 1 | 1e-05 | 2 | – | 1 |",
        "| m | 5 | – | – | – | – | 0 of 1 (1 pending) |",
        "",
        "One seed each: no confidence interval can be given.",
    ]
    first, second = csv.DictReader(io.StringIO(table.to_csv()))
    assert (first["fid"], first["logreg"], first["status"]) == ("2.0", "", "finished")
    assert (second["fid"], second["epsilon_upper"], second["status"]) == ("", "", "pending")
    assert table.to_dict()["trials"][0]["figures"] == {"fid": 2.0, "logreg": None}


def test_the_sentence_of_a_failed_trial_is_in_every_table() -> None:
    table = make_table([result(1, 0, "failed")], choose_measures("fid"))
    assert "* m-1-0: It broke." in table.to_markdown()
    assert "It broke." in table.to_csv()
    assert table.to_dict()["trials"][0]["error"] == "It broke."


# Folders


def test_a_folder_belongs_to_one_experiment_at_a_time(tmp_path: Path) -> None:
    with (
        ExperimentFolder(tmp_path / "c", "compare") as first,
        pytest.raises(UserError, match=r"Another process is working in"),
    ):
        ExperimentFolder(tmp_path / "c", "compare")
    with ExperimentFolder(tmp_path / "c", "compare") as again:
        assert again.id == first.id
    with pytest.raises(UserError, match=r"is the folder of a compare"):
        ExperimentFolder(tmp_path / "c", "tune")


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    for place in (tmp_path, tmp_path / "thesis.txt" / "inside"):
        with pytest.raises(UserError, match=r"^--output "):
            ExperimentFolder(place, "compare")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# Execution


def test_one_trial_makes_what_the_others_share_before_they_begin(home: Path, tmp_path: Path) -> None:
    made = grid(f"paths.home={tmp_path / 'home'}", f"paths.ledger={tmp_path / 'home' / 'ledger.sqlite'}")
    with ExperimentFolder(tmp_path / "c", "compare") as folder:
        known = list(look_up(made.trials, folder).values())
        ended = execute(known, folder, LocalCluster(1))
        first = next(ended)
        assert len(list((tmp_path / "home" / "encoders").iterdir())) == 1
        results = [first, *ended]
        assert [entry.status for entry in results] == ["finished"] * 4
        assert len(list((tmp_path / "home" / "encoders").iterdir())) == 1
        seen = {tuple(entry.figures.values) for entry in results}
        assert seen == {("sliced_w2", "membership", "seconds")}  # evaluation is off
        assert {
            entry.privacy.epsilon <= entry.trial.config.privacy.epsilon for entry in results if entry.privacy
        } == {True}
        assert [entry.status for entry in look_up(made.trials, folder).values()] == ["finished"] * 4
        changed = grid(
            f"paths.home={tmp_path / 'home'}",
            f"paths.ledger={tmp_path / 'home' / 'ledger.sqlite'}",
            "flow.steps=5",
        )
        with pytest.raises(UserError, match=r"holds another run \(flow\.steps is 6 there and 5 here\)"):
            look_up(changed.trials, folder)
        log = folder.log(made.trials[0].name).read_text()
    assert "Training the encoder" in log and "Moving particles" in log


# MLflow


def test_a_tracked_run_with_a_key_goes_on(tmp_path: Path) -> None:
    with open_tracker(TrackingConfig(), tmp_path, "run", key="k1") as first:
        assert not first.complete
    with open_tracker(TrackingConfig(), tmp_path, "run", key="k1") as again:
        assert again.run_id == first.run_id and again.complete
        assert again._client.get_run(again.run_id).info.status == "RUNNING"
    with open_tracker(TrackingConfig(), tmp_path, "run", key="k2") as other:
        assert other.run_id != first.run_id


def test_tracked_trials_nest_and_keep_private_figures_out(tmp_path: Path) -> None:
    done, broken = result(1, 0, sliced_w2=0.123456789, fid=2.5), result(5, 0, "failed")
    with ExperimentFolder(tmp_path / "c", "compare") as folder:
        for _ in range(2):  # the second time as after a crash
            with Recorder(TrackingConfig(), folder, "digits") as recorder:
                recorder.begin({"seeds": "0"})
                for entry in (done, broken):
                    recorder.trial(entry)
        client, parent = recorder.parent._client, recorder.parent.run_id
    experiment = client.get_experiment_by_name("dpsw_ray").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "digits": "FINISHED", "m-1-0": "FINISHED", "m-5-0": "FAILED",
    }  # fmt: skip
    assert len(client.search_runs([experiment])) == 3
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("m-1-0", "m-5-0")} == {parent}
    assert runs["m-1-0"].data.metrics == {"fid": 2.5, "fid/random": 9.0, "epsilon": 1.0, "delta": 1e-5}
    assert runs["m-5-0"].data.tags["error"] == "It broke."
    assert b"0.1234567" not in (tmp_path / "mlflow.db").read_bytes()


def test_a_refused_experiment_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(UserError), ExperimentFolder(tmp_path / "deep" / "c", "compare"):
        raise UserError("no")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError), ExperimentFolder(tmp_path / "deep" / "c", "compare") as folder:
        folder.log("a").parent.mkdir()
        raise UserError("no")
    assert (tmp_path / "deep" / "c" / "logs").exists()
