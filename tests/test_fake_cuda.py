"""The pretended GPU itself: it refuses what a real one refuses, and gradients arrive on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_cuda import FREE_BYTES, OnCuda, on_cuda
from support import kept, small
from torch import nn

from dpsw_ray.base.progress import Progress
from dpsw_ray.pipeline.generate import generate
from dpsw_ray.pipeline.run import run


@pytest.mark.usefixtures("fake_cuda")
def test_what_cuda_refuses_is_refused() -> None:
    here, there = torch.arange(6.0), torch.arange(6.0).to("cuda")
    assert on_cuda(there, there[1:], there + 1, torch.zeros(3, device="cuda"), torch.ones_like(there))
    assert not isinstance(here, OnCuda) and not isinstance(there.cpu(), OnCuda)
    for wrong in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here[there.long()],
        lambda: there.scatter_add_(0, torch.tensor([1]), there[:1]),
        lambda: nn.Linear(6, 2)(there),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    with pytest.raises(RuntimeError, match="for generator"):
        torch.randperm(6, generator=torch.Generator(), device="cuda")
    for look in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="cuda"):
            look()
    assert (there + torch.tensor(1.0)).cpu().tolist() == [1, 2, 3, 4, 5, 6]  # one number is of no device
    assert there[torch.tensor([5])].item() == 5 and torch.cuda.mem_get_info()[0] == FREE_BYTES
    there[2:4] = torch.tensor([7.0, 8.0])
    assert there.sum().item() == 0 + 1 + 7 + 8 + 4 + 5


@pytest.mark.usefixtures("fake_cuda")
def test_gradients_arrive_on_the_device() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).to("cuda")
    x = torch.randn(8, 3, device="cuda")
    net(x).square().mean().backward()
    assert on_cuda(x, *net.parameters(), *net.buffers())
    assert all(one.grad is not None and on_cuda(one.grad) for one in net.parameters())


@pytest.mark.parametrize("method", ["dpswflow-h", "dpswgen"])
def test_a_whole_run_on_cuda_gives_the_samples_of_the_cpu(
    method: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def samples(name: str) -> pa.Table:
        config = small(
            "cluster.executor=local", f"method={method}", f"paths.home={tmp_path / name}",
            "privacy.noise_seed=1", *kept(["generator.steps=10"], [f"method={method}"]),
        )  # fmt: skip
        run(config, tmp_path / name / "run", Progress(quiet=True))
        return pq.read_table(tmp_path / name / "run" / "samples.parquet")

    expected = samples("cpu")
    request.getfixturevalue("fake_cuda")
    for kernel in (
        "methods.dpswflow_h.mechanism.add_histograms",
        "flow.worker.drift_numba",
        "flow.worker.NumbaBlock",
    ):
        monkeypatch.setattr(f"dpsw_ray.{kernel}", None)
    assert samples("cuda").equals(expected)
    more = tmp_path / "more.parquet"
    generate(tmp_path / "cuda" / "run", more, expected.num_rows, progress=Progress(quiet=True))
    assert pq.read_table(more).equals(expected)
