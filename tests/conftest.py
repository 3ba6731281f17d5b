from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ |= {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    # Threads that spin while they wait take the cores from those that work.
    "OMP_WAIT_POLICY": "passive",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers look for test classes by module name, wherever pytest was started.
    "PYTHONPATH": os.pathsep.join(
        filter(
            None,
            [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH")],
        )
    ),
}
os.environ.pop("RAY_ADDRESS", None)

# Files that take minutes come first, so that no worker of pytest-xdist is left alone with one of them at the end.
LONG = ("test_tune_sweep", "test_kills", "test_jobs", "test_compare_command", "test_celeba", "test_run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, latents, caches and the ledger of the whole test session."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPSW_HOME", str(folder))
        patch.delenv("DPSW_LEDGER", raising=False)
        yield folder


@pytest.fixture
def dpsw() -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, standard output, standard error."""
    from support import run_dpsw

    return run_dpsw


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests; `open_cluster` finds it and leaves it running."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=200 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture
def fake_cuda() -> Iterator[None]:
    """Torch has a GPU, whose numbers the CPU holds; see `fake_cuda.py`."""
    from fake_cuda import fake_cuda as pretended

    with pretended():
        yield


@pytest.fixture(params=["real", "fake"])
def cuda(request: pytest.FixtureRequest) -> str:
    """The device `cuda`: a GPU where there is one, and one that is pretended."""
    import torch

    if request.param == "fake":
        request.getfixturevalue("fake_cuda")
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"
