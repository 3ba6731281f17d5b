"""GPUs as Ray sees them: actors are placed on nodes whose GPUs exist in name only, the arithmetic is the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpsw_ray.cluster import LocalCluster
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.flow.solver import solve
from dpsw_ray.methods.registry import load_config

SCRIPT = """
import hashlib, json, os, time
import ray
from ray.cluster_utils import Cluster
from dpsw_ray.cluster import open_cluster
from dpsw_ray.config.run import ClusterConfig
from dpsw_ray.flow.config import FlowConfig
from dpsw_ray.base.errors import UserError
from dpsw_ray.flow.solver import solve
from test_flow import blobs, targets

class Where:
    def __init__(self):
        pass
    def here(self):
        context = ray.get_runtime_context()
        return context.get_node_id(), [int(gpu) for gpu in ray.get_gpu_ids()], os.environ["CUDA_VISIBLE_DEVICES"]

if __name__ == "__main__":
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        machines.add_node(num_cpus=4, num_gpus=2)
    ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
    placed, digest = {}, ""
    for name, keys in {
        "spread": {"actors": 2, "gpus_per_actor": 1, "placement": "spread"},
        "packed": {"actors": 2, "gpus_per_actor": 1, "placement": "packed"},
        "shared": {"actors": 8, "gpus_per_actor": 0.5},
        "none": {"actors": 2},
    }.items():
        while ray.available_resources().get("GPU") != 4:  # what the last actors held comes back by and by
            time.sleep(0.1)
        config = ClusterConfig(cpus_per_actor=1 if name != "shared" else 0.5, timeout_s=60, **keys)
        with open_cluster(config) as cluster:
            placed[name] = cluster.spawn(Where, [{}] * cluster.size).call("here")
            if name == "spread":
                flow = FlowConfig(particles=101, steps=5, parallel="particles")
                made = solve([targets(*blobs())], flow, sphere=True, seed=3, cluster=cluster, gpu=True)
                digest = hashlib.sha256(made.particles.tobytes()).hexdigest()
    try:
        open_cluster(ClusterConfig(actors=3, gpus_per_actor=2, cpus_per_actor=0.5, timeout_s=3))
    except UserError as error:
        refusal = str(error)
    print(json.dumps({"placed": placed, "digest": digest, "refusal": refusal}))
    ray.shutdown()
    machines.shutdown()
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process of its own saw on a head without GPUs and two machines with two each."""
    script = tmp_path_factory.mktemp("cluster") / "gpus.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_spread_and_packed_actors_go_where_they_should(seen: dict[str, Any]) -> None:
    nodes = {name: [node for node, *_ in places] for name, places in seen["placed"].items()}
    assert len(set(nodes["spread"])) == 2
    assert len(set(nodes["packed"])) == 1
    gpus = [tuple(gpus) for _, gpus, _ in seen["placed"]["packed"]]
    assert sorted(gpus) == [(0,), (1,)], "two actors on one machine have a GPU each"


def test_actors_share_gpus_in_fractions(seen: dict[str, Any]) -> None:
    places = [(node, *gpus) for node, gpus, _ in seen["placed"]["shared"]]
    assert len(set(places)) == 4
    assert all(places.count(place) == 2 for place in places)


def test_an_actor_sees_its_own_gpus_only(seen: dict[str, Any]) -> None:
    assert all(visible == str(*gpus) for _, gpus, visible in seen["placed"]["packed"])
    assert all((gpus, visible) == ([], "") for _, gpus, visible in seen["placed"]["none"])


def test_a_gpu_that_is_not_there_computes_what_the_cpu_does(seen: dict[str, Any]) -> None:
    import hashlib

    from test_flow import blobs, targets

    config = FlowConfig(particles=101, steps=5)
    made = solve([targets(*blobs())], config, sphere=True, seed=3, cluster=LocalCluster(1))
    assert seen["digest"] == hashlib.sha256(made.particles.tobytes()).hexdigest()


def test_more_gpus_than_there_are_is_a_sentence(seen: dict[str, Any]) -> None:
    assert seen["refusal"].startswith(
        "cluster.gpus_per_actor: 3 actors with 2 each ask for 6 GPUs, but the Ray cluster has 4; choose at most 1.33"
    )


def test_the_shipped_config_asks_for_a_gpu_each() -> None:
    config = load_config(
        Path(__file__).parents[1] / "configs" / "multi_gpu.yaml", ("data.path=/shared/celeba",)
    )
    assert (config.cluster.actors, config.cluster.gpus_per_actor) == (4, 1.0)
    assert yaml.safe_load(config.to_yaml())["flow"]["parallel"] == "particles"
