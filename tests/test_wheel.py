"""What is installed: `dpsw_ray` alone, with `tune`, `federated` and `configs` in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution
from pathlib import Path

import pytest

import dpsw_ray

ROOT = Path(__file__).parents[1]
TOP = ("pyproject.toml", "README.md", "LICENSE", "dpsw_ray", "tune", "federated", "configs")


def build(kind: str, source: Path, out: Path) -> Path:
    """The archive that an installer would make of a source tree; nothing is fetched."""
    script = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        version = Distribution.from_name("setuptools").version
    except PackageNotFoundError:
        pytest.skip("setuptools is not installed")
    if int(version.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {version} is older than what builds this")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in TOP:  # a build leaves folders beside the sources
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, checkout)
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from what the sdist holds."""
    with tarfile.open(sdist) as archive:
        source = tmp_path_factory.mktemp("source")
        archive.extractall(source, filter="data")
    wheel = build("wheel", next(source.iterdir()), tmp_path_factory.mktemp("wheel"))
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files(folder: Path) -> set[str]:
    """Of a package, links followed."""
    return {
        str(Path(place, name).relative_to(folder))
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if "__pycache__" not in place
    }


def test_nothing_but_the_package_is_installed(installed: Path) -> None:
    info = next(installed.glob("*.dist-info"))
    assert {path.name for path in installed.iterdir()} == {"dpsw_ray", info.name}
    assert (info / "top_level.txt").read_text().split() == ["dpsw_ray"]
    metadata = PathDistribution(info)
    assert metadata.version == dpsw_ray.__version__
    assert [point.name for point in metadata.entry_points] == ["dpsw"]


def test_every_file_of_the_package_is_installed(installed: Path) -> None:
    found = files(installed / "dpsw_ray")
    assert found == files(ROOT / "dpsw_ray")
    assert found >= {
        "py.typed", "tune/sweep.py", "tune/sweep.html.j2", "federated/world.py", "configs/digits.yaml",
        "configs/tune/digits.yaml", "evaluation/report.html.j2", "experiment/page.css",
    }  # fmt: skip


def test_an_sdist_holds_the_links_as_folders(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    tops = {Path(member.name).parts[1] for member in members if "/" in member.name}
    assert tops == {
        "pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "setup.cfg", "dpsw_ray", "dpsw_ray.egg-info",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "digits"), "epsilon"),
        (("tune", "--help"), "Usage: dpsw tune"),
        (("tune", "no_such_sweep"), "the shipped ones are: digits, fashion_mnist, fresh, frontier."),
        (("federated", "no_such_run"), "the shipped ones are: digits, fashion_mnist, million."),
    ],
)
def test_what_is_installed_runs_without_a_checkout(
    installed: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed), "DPSW_HOME": str(tmp_path / "home")}
    script = (
        "import sys, dpsw_ray, dpsw_ray.cli; assert dpsw_ray.__file__.startswith(sys.argv.pop(1)); "
        "dpsw_ray.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(installed), *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert said in done.stdout + done.stderr
    assert done.returncode == (2 if "no_such" in words[1] else 0)
