"""Whole federated runs: exact sums, the same bits for any number of actors, interruptions, thresholds, budgets."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from federated_support import DIGITS, SMALL, Here, run_federated, shards_of, small
from support import RecordingCluster, run_dpsw

import dpsw_ray.pipeline.run as pipeline
from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_arrow
from dpsw_ray.base.progress import Progress
from dpsw_ray.cluster import open_cluster
from dpsw_ray.federated.cohort import Cohort
from dpsw_ray.federated.config import FederatedConfig
from dpsw_ray.federated.mechanism import sums
from dpsw_ray.federated.message import user_message
from dpsw_ray.federated.plan import UserPlan, round_plan
from dpsw_ray.federated.row_mechanism import padded_rows
from dpsw_ray.federated.shares import skellam
from dpsw_ray.federated.worker import UserShard
from dpsw_ray.methods.dpswflow_h.mechanism import cell_blocks
from dpsw_ray.pipeline.plan import ledger_account
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.release.exchange import noisy_answer
from dpsw_ray.slicing.directions import LATTICE
from dpsw_ray.tables.release import Release

QUIET = Progress(quiet=True)


def particles(folder: Path) -> bytes:
    column = read_arrow(folder / "particles.arrow").column("latent").combine_chunks()
    return bytes(column.flatten().to_numpy().tobytes())


def charges(config: FederatedConfig) -> int:
    ledger = Ledger(config.ledger_path)
    names = [entry.name for entry in ledger.datasets()]
    return len(ledger.entries(ledger_account(config))) if ledger_account(config) in names else 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, latents and encoders of this module; ledgers are each test's own."""
    return tmp_path_factory.mktemp("federated")


def forget_charges(home: Path) -> None:
    """Removes the receipts of charges in other tests' ledgers."""
    for receipts in home.glob("datasets/*/.receipts"):
        shutil.rmtree(receipts)


def run_of(home: Path, folder: Path, *overrides: str) -> FederatedConfig:
    forget_charges(home)
    return small(home, f"paths.ledger={folder}/ledger.sqlite", *overrides)


def plain_sum(shard: UserShard, plan: UserPlan) -> np.ndarray:
    """All survivors' messages, made one by one and added up: PRIVATE."""
    total = np.zeros(plan.cells[1:], np.int64)
    for user in np.flatnonzero(plan.cohort.survivors()):
        rows = slice(int(shard.store.offsets[user]), int(shard.store.offsets[user + 1]))
        latents = shard.store.latents[rows] * LATTICE
        total += user_message(
            latents, cell_blocks(shard.store.labels[rows], plan), plan.directions[0], plan.grid, plan.table,
            plan.classes, full_weight_at=plan.full_weight_at, precision=plan.precision,
        )  # fmt: skip
    return total


@pytest.mark.parametrize("partition", ["iid", "shards", "dirichlet", "power_law"])
@pytest.mark.parametrize(
    "keys",
    [
        ["trust=central"],
        ["trust=central", "dropout.rate=0.4"],
        ["trust=distributed", "secagg.threshold=0.3", "dropout.rate=0.3", "stragglers.deadline_s=40"],
        ["trust=distributed", "secagg.threshold=0.3", "secagg.precision=9", "population.full_weight_at=50"],
        ["trust=local", "dropout.rate=0.2"],
        ["trust=central", "population.malformed=0.2"],
    ],
)
def test_the_servers_sum_less_the_noise_is_the_plain_sum(
    home: Path, tmp_path: Path, partition: str, keys: list[str]
) -> None:
    config = run_of(
        home, tmp_path, f"population.partition={partition}", "population.alpha=0.1", "population.users=60",
        "encoder.kind=identity", "privacy.noise_seed=5", *keys,
    )  # fmt: skip
    parts, users = shards_of(config, tmp_path, 3)
    cohort = Cohort.of(config, users, 0)
    plan = round_plan(config, parts[0].store.latents.shape[1], 10, users, cohort, secrets.token_hex(8))
    assert isinstance(plan, UserPlan)
    group = Here(parts)
    group.call("prepare", (plan, 5))
    total = noisy_answer(group, plan, noise_seed=5)[0]
    key = NoiseKey.from_seed(5)
    if config.trust == "central":
        from dpsw_ray.methods.dpswflow_h.mechanism import noise

        drawn = noise(key, plan)
    else:
        cells = int(np.prod(plan.cells))
        drawn = skellam(key.derive(plan.digest().encode()), plan.survivors * plan.share, cells).reshape(
            plan.cells[1:]
        )
    truth = plain_sum(parts[0], plan)
    assert truth.any() and drawn.std() > 0
    released = plan.counts(total) >> (16 - plan.precision)
    assert np.array_equal(released - drawn, truth)
    # What the modulus keeps is all that the server needs.
    if config.trust == "distributed":
        assert np.array_equal(plan.counts(total % (1 << plan.bits)), plan.counts(total))


def test_actors_and_executors_give_identical_particles(ray_session: None, home: Path, tmp_path: Path) -> None:
    seen = set()
    for executor, actors in (("local", 1), ("local", 3), ("ray", 1), ("ray", 2)):
        folder = tmp_path / f"{executor}-{actors}"
        config = run_of(
            home, folder, "privacy.noise_seed=11", f"cluster.executor={executor}", f"cluster.actors={actors}",
            "cluster.cpus_per_actor=0.5", "trust=distributed", "dropout.rate=0.1", "population.partition=power_law",
        )  # fmt: skip
        seen.add(particles(run_federated(config, folder / "run", QUIET).folder))
    assert len(seen) == 1


def test_a_run_says_that_users_are_protected(home: Path, tmp_path: Path) -> None:
    config = run_of(
        home, tmp_path, "evaluation.enabled=true", "evaluation.research=true", "population.malformed=0.1",
        "tracking.enabled=true",
    )  # fmt: skip
    result = run_federated(config, tmp_path / "run", QUIET)
    privacy = json.loads((result.folder / "privacy.json").read_text())
    assert privacy["unit"] == "user" and privacy["epsilon"]["upper"] <= 10
    assert privacy["ledger"]["name"] == "digits users"
    assert "Each user of the private part" in privacy["statement"]["protects"][0]
    assert "Nothing is promised to whoever is behind a record" in privacy["statement"]["protects"][2]
    assert any("protect single records" in sentence for sentence in privacy["statement"]["not_covered"])
    assert any("server" in sentence for sentence in privacy["statement"]["against"])
    rounds = json.loads((result.folder / "rounds.json").read_text())
    (only,) = rounds["rounds"]
    broken = Cohort.of(config, 40, 0).broken().sum()
    assert only["refused"] == broken == sum(rounds["refused"].values()) > 0
    assert only["survivors"] == 40 - broken
    assert rounds["traffic"]["message"] > 0
    page = (result.folder / "report.html").read_text()
    assert "one user" in page and "Population" in page and "Traffic" in page and "messages refused" in page
    research = json.loads((result.folder / "research" / "metrics.json").read_text())
    assert research["epsilon"] == "inf" and research["population"]["users"] == 40
    assert (result.folder / "research" / "population.png").exists()
    # How many records users have is in research/ only.
    manifest = json.loads((result.folder / "release" / "manifest.json").read_text())
    assert manifest["private_records"] is None and manifest["trust"] == "central"
    assert not any(
        "records_per_user" in (result.folder / name).read_text() for name in ("rounds.json", "report.html")
    )


@pytest.mark.parametrize(
    "keys",
    [
        ["trust=local", "method=dpswflow", "rows=3", "population.partition=power_law"],
        ["method=dpswflow-r", "release.rounds=3", "release.rate=0.5", "privacy.relation=zero_out"],
        ["method=dpswflow-r", "release.rounds=2", "release.rate=0.7", "trust=local"],
        ["privacy.noise=discrete_gaussian"],
    ],
)
def test_every_system_runs_from_users_to_samples(home: Path, tmp_path: Path, keys: list[str]) -> None:
    config = run_of(home, tmp_path, *keys)
    result = run_federated(config, tmp_path / "run", QUIET)
    release = Release.load(result.folder / "release")
    assert release.rounds == config.rounds
    assert result.privacy["unit"] == "user" and result.privacy["epsilon"]["upper"] <= 10
    assert charges(config) == config.rounds
    before = particles(result.folder)
    again = run_federated(config, tmp_path / "run", QUIET)  # read back: the same particles, nothing charged
    assert particles(again.folder) == before and charges(config) == config.rounds


def test_a_user_sends_the_same_number_of_rows_whatever_it_has(home: Path, tmp_path: Path) -> None:
    config = run_of(
        home, tmp_path, "population.partition=power_law", "encoder.kind=identity", "population.users=200"
    )
    parts, users = shards_of(config, tmp_path, 1)
    store = parts[0].store
    counts = np.diff(store.offsets)
    assert (counts == 0).any() and (counts == 1).any() and (counts > 20).any()
    places = np.random.default_rng(0).random(users)
    rows = padded_rows(parts[0].store, np.arange(users), places, 4).reshape(users, 4, -1)
    for user in range(users):
        own = {bytes(row) for row in store.latents[store.offsets[user] : store.offsets[user + 1]] * LATTICE}
        sent = [bytes(row) for row in rows[user]]
        if counts[user]:
            assert set(sent) <= own
            assert len(set(sent)) == min(4, len(own)) or counts[user] > len(own)
        else:
            assert not rows[user].any()


def test_below_the_threshold_nothing_is_unmasked_and_nothing_is_charged(home: Path, tmp_path: Path) -> None:
    config = run_of(home, tmp_path, "trust=distributed", "dropout.rate=0.6", "secagg.threshold=0.9")
    calls: list[str] = []
    answer = UserShard.answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserShard, "answer", lambda *args: calls.append("called") or answer(*args))
        with pytest.raises(UserError, match=r"No round was released: at most .* and 36 are needed"):
            run_federated(config, tmp_path / "run", QUIET)
    assert not calls and charges(config) == 0


def test_rounds_below_the_threshold_are_skipped_and_the_others_count(home: Path, tmp_path: Path) -> None:
    keys = (
        "method=dpswflow-r",
        "release.rounds=6",
        "release.rate=1",
        "trust=distributed",
        "dropout.rate=0.3",
    )
    config = run_of(home, tmp_path, *keys, "secagg.threshold=0.7")
    expected = [int(Cohort.of(config, 40, number).survivors().sum()) >= 28 for number in range(6)]
    assert True in expected and False in expected
    result = run_federated(config, tmp_path / "run", QUIET)
    rounds = json.loads((result.folder / "rounds.json").read_text())["rounds"]
    assert [record["outcome"] == "released" for record in rounds] == expected
    assert charges(config) == sum(expected) == Release.load(result.folder / "release").rounds
    assert result.privacy["epsilon"]["upper"] < 10
    followed = [record["epsilon"] for record in rounds if record["outcome"] == "released"]
    assert followed == sorted(followed) and followed[-1] == pytest.approx(result.privacy["epsilon"]["upper"])


def test_the_threshold_is_of_those_who_are_asked(home: Path, tmp_path: Path) -> None:
    keys = ("method=dpswflow-r", "release.rounds=2", "release.rate=0.3", "trust=distributed")
    config = run_of(home, tmp_path, *keys, "dropout.rate=0.1", "population.users=100", "secagg.threshold=0.6")
    result = run_federated(config, tmp_path / "run", QUIET)
    for record in json.loads((result.folder / "rounds.json").read_text())["rounds"]:
        assert record["outcome"] == "released" and record["asked"] < 60  # of 100, who were the measure once
        assert record["threshold"] == math.ceil(0.6 * record["asked"])
    assert result.privacy["epsilon"]["upper"] <= 10
    page = (result.folder / "report.html").read_text()
    assert "skellam" in page and "Skellam noise is whole numbers" in page


def test_more_samples_are_drawn_from_a_stored_release(home: Path, tmp_path: Path) -> None:
    config = run_of(home, tmp_path, *ROUNDS)
    result = run_federated(config, tmp_path / "run", QUIET)
    code, _, err = run_dpsw("generate", result.folder, "--out", tmp_path / "a.parquet", "--num", 60)
    assert code == 0 and not err
    own, more = (pq.read_table(path) for path in (result.folder / "samples.parquet", tmp_path / "a.parquet"))
    assert more.num_rows == 60 and more.schema.equals(own.schema) and charges(config) == 4


def test_other_divisions_of_the_same_records_spend_of_the_same_budget(home: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    keys = [(), ("population.seed=1",), ("population.partition=shards",), ("population.users=50",)]
    for number, extra in enumerate(keys):
        config = run_of(home, tmp_path, *extra)
        run_federated(config, tmp_path / f"run{number}", QUIET)
        assert ledger.total("digits users").charges == number + 1
    assert [entry.name for entry in ledger.datasets()] == ["digits users"]


def test_what_is_registered_otherwise_is_refused_before_anything_is_read(home: Path, tmp_path: Path) -> None:
    config = run_of(home, tmp_path, "privacy.delta=1e-6")
    Ledger(config.ledger_path).register("digits users", "replace_one", "user", 1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "dpsw_ray.federated.world.population_data", lambda *_: pytest.fail("the data were opened")
        )
        with pytest.raises(UserError, match="with delta 1e-05, found 1e-06"):
            run_federated(config, tmp_path / "run", QUIET)


def test_rounds_are_reported_without_a_clock(home: Path, tmp_path: Path) -> None:
    stream, now = io.StringIO(), itertools.count()
    config = run_of(home, tmp_path, *ROUNDS)
    run_federated(config, tmp_path / "run", Progress(stream=stream, clock=lambda: 1000.0 * next(now)))
    lines = [line for line in stream.getvalue().splitlines() if "ound" in line]
    assert lines == ["Rounds: charge, sum, noise (4)"] + [
        f"Round {number} of 4: 40 users, released" for number in range(1, 5)
    ]


class Interrupted(UserError):
    pass


def interrupted_at(config: FederatedConfig, folder: Path, number: int) -> None:
    """Runs until round `number` is charged and about to be summed, then dies."""
    answer = UserShard.answer
    begun: list[str] = []

    def dying(self: UserShard, plan: Any, *rest: Any) -> Any:
        if plan.release_id not in begun:
            begun.append(plan.release_id)
        if len(begun) > number:
            raise Interrupted
        return answer(self, plan, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserShard, "answer", dying)
        with pytest.raises(Interrupted):
            run_federated(config, folder, QUIET)


ROUNDS = ("method=dpswflow-r", "release.rounds=4", "release.rate=0.5", "privacy.relation=zero_out")


def test_a_run_interrupted_in_a_round_goes_on_and_charges_nothing_twice(home: Path, tmp_path: Path) -> None:
    config = run_of(home, tmp_path, *ROUNDS)
    interrupted_at(config, tmp_path / "run", 2)
    assert charges(config) == 3  # two stored, one begun
    stored = Release.load(tmp_path / "run" / "release" / "rounds" / "0001").counts
    result = run_federated(config, tmp_path / "run", QUIET)
    assert charges(config) == 4  # the begun one was repeated under its own secret
    assert np.array_equal(Release.load(result.folder / "release").counts[1], stored[0])
    assert result.privacy["epsilon"]["upper"] <= 10


def test_a_begun_round_whose_secret_is_gone_is_charged_again_and_the_budget_stops_the_run(
    home: Path, tmp_path: Path
) -> None:
    config = run_of(home, tmp_path, *ROUNDS)
    interrupted_at(config, tmp_path / "run", 2)
    pending = json.loads((tmp_path / "run" / "release" / "rounds" / "0002" / "pending.json").read_text())
    for key in home.glob(f"datasets/*/*/private/keys/{pending['release_id']}.json"):
        key.unlink()
    result = run_federated(config, tmp_path / "run", QUIET)
    assert charges(config) == 4  # three rounds and the lost one: a fifth charge would pass the budget
    rounds = json.loads((result.folder / "rounds.json").read_text())["rounds"]
    assert [record["outcome"] for record in rounds] == ["released"] * 3 + ["stopped"]
    ledger = Ledger(config.ledger_path)
    # The lost round is in what the run says of itself.
    total = ledger.total(ledger_account(config)).epsilon.upper
    assert rounds[2]["epsilon"] == pytest.approx(total) == pytest.approx(result.privacy["epsilon"]["upper"])
    assert rounds[1]["epsilon"] < rounds[2]["epsilon"]
    assert ledger.total(ledger_account(config)).epsilon.upper <= 10


def test_a_lost_one_shot_round_leaves_no_room(home: Path, tmp_path: Path) -> None:
    config = run_of(home, tmp_path)
    interrupted_at(config, tmp_path / "run", 0)
    for key in home.glob("datasets/*/*/private/keys/*.json"):
        key.unlink()
    with pytest.raises(UserError, match=r"leaves no room under privacy\.epsilon"):
        run_federated(config, tmp_path / "run", QUIET)
    assert charges(config) == 1


def test_a_killed_driver_resumes_to_the_particles_of_an_uninterrupted_run(home: Path, tmp_path: Path) -> None:
    keys = (
        *SMALL,
        *ROUNDS,
        "release.rounds=8",
        f"paths.home={home}",
        "privacy.noise_seed=7",
        "cluster.actors=1",
    )
    config = run_of(
        home, tmp_path / "whole", *ROUNDS, "release.rounds=8", "privacy.noise_seed=7", "cluster.actors=1"
    )
    whole = run_federated(config, tmp_path / "whole" / "run", QUIET)
    command = [sys.executable, "-m", "federated", str(DIGITS), "--output", str(tmp_path / "run")]
    for key in (*keys, f"paths.ledger={tmp_path}/ledger.sqlite"):
        command += ["--set", key]
    root = str(Path(__file__).parents[1])
    # Slow rounds down, so that the kill falls into one of them.
    slow = (
        "import time, runpy, sys; from dpsw_ray.federated.worker import UserShard; f = UserShard.answer\n"
        "def late(*a):\n    time.sleep(0.3); return f(*a)\n"
        "UserShard.answer = late; sys.argv = ['federated', *sys.argv[1:]]\n"
        "runpy.run_module('federated', run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([command[0], "-c", slow, *command[3:]], env=environment, cwd=tmp_path)
    third = tmp_path / "run" / "release" / "rounds" / "0002" / "pending.json"
    deadline = time.monotonic() + 120
    while not third.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert third.exists() and not (tmp_path / "run" / "particles.arrow").exists()
    done = subprocess.run(
        [*command, "--quiet"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert particles(tmp_path / "run") == particles(whole.folder)
    rounds = json.loads((tmp_path / "run" / "rounds.json").read_text())["rounds"]
    assert len(rounds) == 8


def test_another_config_does_not_take_a_begun_run_over(home: Path, tmp_path: Path) -> None:
    config = run_of(home, tmp_path, *ROUNDS)
    interrupted_at(config, tmp_path / "run", 1)
    with pytest.raises(UserError, match="holds another run"):
        run_federated(run_of(home, tmp_path, *ROUNDS, "privacy.epsilon=9"), tmp_path / "run", QUIET)


def test_the_driver_sees_no_users_data_and_no_exact_sum(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clusters: list[RecordingCluster] = []

    def recording(config: Any) -> RecordingCluster:
        clusters.append(RecordingCluster(open_cluster(config)))
        return clusters[-1]

    monkeypatch.setattr(pipeline, "open_cluster", recording)
    config = run_of(home, tmp_path, "trust=distributed", "dropout.rate=0.1", "evaluation.enabled=true")
    run_federated(config, tmp_path / "run", QUIET)
    log = clusters[0].log
    plan = next(args[0] for method, (args, _) in log if method == "answer")
    messages = next(results for method, (_, results) in log if method == "contribute")
    spawned = next(value for method, value in log if method == "UserShard")
    shards = [UserShard(**kwargs) for kwargs in spawned]
    parts = [sums(shard.held(plan, shard.rank, shard.size, None), plan) for shard in shards]
    assert np.array_equal(sum(parts), plain_sum(shards[0], plan))
    for message in messages:
        for exact in (*parts, sum(parts)):
            rest = (message[0] - exact.view(np.uint64)).view(np.int64).astype(np.float64)
            assert np.mean(np.abs(rest) < 2.0**56) < 0.05
    store = shards[0].store
    needles = [row.tobytes() for row in store.latents] + [(row * LATTICE).tobytes() for row in store.latents]
    needles += [
        row.tobytes()
        for part in (*parts, sum(parts))
        for row in part.reshape(-1, plan.grid.bins)
        if row.any()
    ]
    haystacks = {"messages": pickle.dumps(log), "printed": "".join(capfd.readouterr()).encode()}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            haystacks[str(path)] = path.read_bytes()
    for name, hay in haystacks.items():
        assert not any(needle in hay for needle in needles), name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "trust=nobody"], "trust must be"),
        (["--set", "privacy.delta=0.5"], "is not below 1/users"),
        (["--output", str(DIGITS)], "is a file"),
    ],
)
def test_mistakes_end_with_one_sentence_and_exit_code_2(
    home: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    forget_charges(home)
    settings = [
        part
        for key in (*SMALL, f"paths.home={home}", f"paths.ledger={tmp_path}/l")
        for part in ("--set", key)
    ]
    code, _, error = run_dpsw("federated", DIGITS, "--output", tmp_path / "run", *settings, *arguments)
    assert code == 2 and sentence in error
    assert error.startswith("Error: ") and error.count("\n") == 1
    assert not (tmp_path / "run" / "release").exists()
