"""Files of a finished run that are empty, cut, changed or something else: one sentence, and nothing is written over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import done, run_dpsw

from dpsw_ray.config.run import RunConfig
from dpsw_ray.privacy.ledger import Ledger

FLOW = (
    "flow", "digits", "--set", "encoder.epochs=2", "--set", "flow.steps=3", "--set", "flow.particles=50",
    "--set", "evaluation.enabled=false", "--set", "tracking.enabled=false", "--set", "cluster.executor=local",
    "--set", "data.name=damaged", "--quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run in a home of this module's own: where the digits are divided already, they have no second name."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPSW_HOME", str(folder.with_name("home")))
        done(*FLOW, "--output", folder)
        yield folder


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.rindex(b"0") if b"0" in content else -9] ^= 1
    path.write_bytes(content)


def _nested(path: Path) -> None:
    path.write_bytes(b'{"a":' * 100_000)


def _digits(path: Path) -> None:
    path.write_bytes(b'{"format": ' + b"9" * 5_000 + b"}")


def _bytes(path: Path) -> None:
    path.write_bytes(b'{"format": "\xff\xfe\x00"}')


def _list(path: Path) -> None:
    path.write_bytes(b"[1, 2]")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGES = (_empty, _cut, _changed, _nested, _digits, _bytes, _list, _folder, _pipe, _circle)
EVALUATE = (
    "config.yaml", "privacy.json", "metrics.json", "particles.arrow", "samples.parquet", "encoder/encoder.json",
    "encoder/weights.pt", "release/manifest.json", "release/table.arrow",
)  # fmt: skip
GENERATE = tuple(name for name in EVALUATE if "/" in name or name == "config.yaml")
UNDERSTOOD = {("config.yaml", _changed), ("config.yaml", _cut)}
"""A config is written for people, who may change it: it carries no digest."""


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("command", "names"),
    [("evaluate", EVALUATE), ("generate", GENERATE), ("flow", GENERATE)],
)
def test_damage_is_one_sentence_and_nothing_is_written_over(
    finished: Path, tmp_path: Path, command: str, names: tuple[str, ...], damage: Callable[[Path], None]
) -> None:
    charges = Ledger(RunConfig().ledger_path).total("damaged").charges
    for number, name in enumerate(names):
        if (name, damage) in UNDERSTOOD:
            continue
        folder = tmp_path / str(number)
        shutil.copytree(finished, folder)
        damage(folder / name)
        before = _content(folder)
        arguments: tuple[object, ...] = (command, folder)
        if command == "generate":
            arguments = (*arguments, "--out", tmp_path / "out.csv", "--num", 10)
        elif command == "flow":
            arguments = (*FLOW, "--output", folder)
        code, out, err = run_dpsw(*arguments)
        assert (code, out) == (2, ""), (name, code, out, err)
        assert err.startswith("Error: ") and err.count("\n") == 1 and len(err) < 500, (name, err)
        assert "Interrupted" not in err and "remove" not in err and "delete" not in err, (name, err)
        assert _content(folder) == before, name
        assert not (tmp_path / "out.csv").exists()
        shutil.rmtree(folder)
    assert Ledger(RunConfig().ledger_path).total("damaged").charges == charges


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_release_that_was_begun_is_not_begun_again_by_damage(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    pending = folder / "release" / "pending.json"
    for name in ("manifest.json", "table.arrow"):
        (folder / "release" / name).unlink()
    pending.write_text('{"release_id": "00000000"}')
    if damage is _changed:
        return  # another id, which nobody can tell from a right one
    damage(pending)
    charges = Ledger(RunConfig().ledger_path).total("damaged").charges
    code, out, err = run_dpsw(*FLOW, "--output", folder)
    assert (code, out) == (2, "") and err.startswith("Error: ") and err.count("\n") == 1, err
    assert "pending.json" in err
    assert Ledger(RunConfig().ledger_path).total("damaged").charges == charges
