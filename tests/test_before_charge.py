"""What is known to fail after a charge fails before it: nothing is paid for in vain, and nothing is paid for twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federated_support
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import SMALL, small
from test_errors import small_disk  # noqa: F401

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import read_arrow, write_arrow
from dpsw_ray.base.progress import Progress
from dpsw_ray.config.run import RunConfig
from dpsw_ray.pipeline.plan import ledger_account
from dpsw_ray.pipeline.run import run
from dpsw_ray.privacy.ledger import Ledger

# ruff: noqa: F811 (the fixture)

QUIET = Progress(quiet=True)
ENCODER = (
    "encoder.kind=dp_pca",
    "encoder.latent_dim=4",
    "data.public_fraction=0",
    "data.classes=[0,1,2,3,4,5,6,7,8,9]",
)


def charges(config: RunConfig) -> int:
    ledger, name = Ledger(config.ledger_path), ledger_account(config)
    return len(ledger.entries(name)) if name in {entry.name for entry in ledger.datasets()} else 0


def local(home: Path, *overrides: str) -> RunConfig:
    return small("cluster.executor=local", f"paths.home={home}", *overrides)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A finished run, with the home it was made in."""
    place = tmp_path_factory.mktemp("made")
    config = local(place / "home")
    run(config, place / "run", QUIET)
    return config, place / "run"


@pytest.mark.parametrize(
    "gone", [["release/manifest.json"], ["release/manifest.json", "privacy.json"], ["release"]]
)
def test_a_release_that_is_not_whole_is_not_paid_for_again(
    gone: list[str], made: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, finished = made
    shutil.copytree(finished, tmp_path / "run")
    for name in gone:
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.arrow")}
    spent = charges(config)
    with pytest.raises(
        UserError, match=r"that was paid for in .*release is not whole.*restore .*another --output"
    ):
        run(config, tmp_path / "run", QUIET)
    assert charges(config) == spent
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.arrow")}


def test_moments_that_are_not_whole_are_not_paid_for_again(tmp_path: Path) -> None:
    config = local(tmp_path / "home", *ENCODER)
    run(config, tmp_path / "run", QUIET)
    assert charges(config) == 2
    for name in (
        "release/encoder/manifest.json",
        "release/manifest.json",
        "release/table.arrow",
        "privacy.json",
    ):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(
        UserError, match=r"paid for in .*encoder is not whole: moments.arrow is a part of one"
    ):
        run(config, tmp_path / "run", QUIET)
    assert charges(config) == 2


@pytest.mark.parametrize("gone", ["release/rounds/0001/manifest.json", "release/rounds/0001", "release"])
def test_a_round_that_is_not_whole_is_not_paid_for_again(gone: str, tmp_path: Path) -> None:
    config = federated_support.small(
        tmp_path / "home",
        "method=dpswflow-r",
        "release.rounds=2",
        "release.rate=0.5",
        "privacy.relation=zero_out",
    )
    federated_support.run_federated(config, tmp_path / "run", QUIET)
    spent, path = charges(config), tmp_path / "run" / gone
    assert spent == 2
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"What was paid for in .* is not whole"):
        federated_support.run_federated(config, tmp_path / "run", QUIET)
    assert charges(config) == spent


def cut(chunk: Path) -> None:
    os.truncate(chunk, chunk.stat().st_size // 2)


def emptied(chunk: Path) -> None:
    os.truncate(chunk, 0)


def shortened(chunk: Path) -> None:
    table = read_arrow(chunk)
    write_arrow(chunk, table.slice(0, len(table) - 1), mode=0o600)


def flipped(chunk: Path) -> None:
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)


def removed(chunk: Path) -> None:
    chunk.unlink()


def of_another_dimension(chunk: Path) -> None:
    table = read_arrow(chunk)
    narrow = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(3 * len(table))), 3)
    write_arrow(chunk, pa.table({"latent": narrow, "label": table.column("label")}), mode=0o600)


@pytest.mark.parametrize("damage", [cut, emptied, shortened, flipped, removed, of_another_dimension])
def test_damaged_latents_are_encoded_anew_before_the_charge(
    damage: Callable[[Path], None], made: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, spent = made[0], charges(made[0])
    (chunk,) = config.home.glob("datasets/digits/*/private/latents/*/chunk-000000.arrow")
    before = chunk.read_bytes()
    damage(chunk)
    run(config, tmp_path / "run", QUIET)
    assert chunk.read_bytes() == before and chunk.stat().st_mode & 0o777 == 0o600
    assert charges(config) == spent + 1


def test_latents_without_a_digest_are_those_of_before(made: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config = made[0]
    (chunk,) = config.home.glob("datasets/digits/*/private/latents/*/chunk-000000.arrow")
    whole = chunk.read_bytes()
    write_arrow(chunk, read_arrow(chunk).replace_schema_metadata(None), mode=0o600)
    before = chunk.read_bytes()
    run(config, tmp_path / "run", QUIET)
    assert chunk.read_bytes() == before != whole
    chunk.write_bytes(whole)


@pytest.mark.parametrize("name", ["latents.npy", "labels.npy", "offsets.npy", "ready.json"])
def test_damaged_latents_of_users_are_made_anew_before_the_charge(name: str, tmp_path: Path) -> None:
    config = federated_support.small(tmp_path / "home")
    federated_support.run_federated(config, tmp_path / "a", QUIET)
    (store,) = config.home.glob("datasets/digits/*/private/users/[!.]*")
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    os.truncate(store / name, (store / name).stat().st_size // 2)
    federated_support.run_federated(config, tmp_path / "b", QUIET)
    assert before == {path.name: path.read_bytes() for path in store.iterdir()}
    assert charges(config) == 2


@pytest.mark.parametrize("name", ["spent", "keys", "latents"])
@pytest.mark.parametrize("seed", [(), ("privacy.noise_seed=1",)])
def test_a_private_folder_that_is_a_file_is_noticed_before_the_charge(
    name: str, seed: tuple[str, ...], tmp_path: Path
) -> None:
    config = local(tmp_path / "home", *seed)
    run(config, tmp_path / "a", QUIET)
    (folder,) = config.home.glob("datasets/digits/*/private")
    if (folder / name).exists():
        shutil.rmtree(folder / name)
    (folder / name).write_text("")
    with pytest.raises(UserError, match=r"The operating system refused at .*private"):
        run(config, tmp_path / "b", QUIET)
    assert charges(config) == 1 and not (tmp_path / "b" / "privacy.json").exists()


def test_more_particles_than_memory_are_refused_with_the_number(
    made: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, spent = made[0], charges(made[0])
    flow = config.flow.model_copy(update={"particles": 10**12})
    with pytest.raises(
        UserError, match=r"flow.particles 1,000,000,000,000 would take at least .* GB of memory, and this"
    ):
        run(config.model_copy(update={"flow": flow}), tmp_path / "run", QUIET)
    assert charges(config) == spent and not (tmp_path / "run").exists()


def test_a_release_that_the_disk_has_no_room_for_is_not_charged(
    made: tuple[RunConfig, Path], small_disk: Callable[[str], Path]
) -> None:
    config, disk, spent = made[0], small_disk("2m"), charges(made[0])
    release = config.release.model_copy(update={"frames": 16, "bins": 512})
    with pytest.raises(UserError, match=r"The release needs .* kB|MB in .*, and the disk has .* left"):
        run(config.model_copy(update={"release": release}), disk / "run", QUIET)
    assert charges(config) == spent


def test_a_folder_that_is_not_utf_8(made: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, spent = made[0], charges(made[0])
    with pytest.raises(UserError, match=r"--output must be a path in UTF-8"):
        run(config, tmp_path / os.fsdecode(b"caf\xe9"), QUIET)
    assert charges(config) == spent and not list(tmp_path.iterdir())


def test_a_terminal_that_knows_ascii_only_ends_no_run(tmp_path: Path) -> None:
    config = local(tmp_path / "home")
    keys = (
        *SMALL,
        "cluster.executor=local",
        f"paths.home={tmp_path / 'home'}",
        f"paths.ledger={config.ledger_path}",
    )
    sets = [word for key in keys for word in ("--set", key)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"}
    command = [sys.executable, "-m", "dpsw_ray", "flow", "digits", *sets, "--output", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "Report:" in done.stdout


def test_another_delta_is_refused_before_anything_is_computed(
    made: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config = made[0]
    privacy = config.privacy.model_copy(update={"delta": 1e-6})
    said: list[str] = []

    class Listening(Progress):
        def say(self, message: str) -> None:
            said.append(message)

    other = config.model_copy(
        update={"privacy": privacy, "encoder": config.encoder.model_copy(update={"seed": 77})}
    )
    with pytest.raises(UserError, match=r"is registered in .* with delta 0.0001, found 1e-06"):
        run(other, tmp_path / "run", Listening(quiet=True))
    assert said == [] and not (tmp_path / "run").exists()


def test_an_import_that_fails_pins_nothing(dpsw: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    home, table = tmp_path / "home", tmp_path / "people.parquet"
    words: list[Any] = [
        "table",
        "--set",
        f"paths.home={home}",
        "--set",
        f"paths.ledger={home / 'ledger.sqlite'}",
    ]
    words += ["--set", f"data.path={table}", "--set", "data.name=people"]
    words += ["--set", "data.bounds={a: [0, 400], b: [0, 7]}"]
    code, _, err = dpsw("data", "import", *words)
    assert code == 2 and "people.parquet" in err
    assert not Ledger(home / "ledger.sqlite").rows()
    pq.write_table(pa.table({"a": np.arange(400.0), "b": np.arange(400.0) % 7}), table)
    code, _, err = dpsw(
        "data", "import", *words, "--set", "privacy.relation=zero_out", "--set", "privacy.delta=1e-6"
    )
    assert (code, err) == (0, "")
    (entry,) = Ledger(home / "ledger.sqlite").datasets()
    assert (entry.name, entry.relation, entry.delta) == ("people", "zero_out", 1e-6)
    code, _, err = dpsw("data", "import", *words)  # of another promise
    assert code == 2 and "is registered in" in err
