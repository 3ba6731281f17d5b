"""From the config's words to a partitioner."""

from __future__ import annotations

from dpsw_ray.federated.config import PopulationConfig
from dpsw_ray.federated.population.base import Partitioner
from dpsw_ray.federated.population.dirichlet import DirichletPartitioner
from dpsw_ray.federated.population.iid import IidPartitioner
from dpsw_ray.federated.population.power_law import PowerLawPartitioner
from dpsw_ray.federated.population.shards import ShardsPartitioner

__all__ = ["make_partitioner"]


def make_partitioner(config: PopulationConfig) -> Partitioner:
    """The partitioner of a simulated population; natural keys come with the records."""
    match config.partition:
        case "iid":
            return IidPartitioner(config.users)
        case "shards":
            return ShardsPartitioner(config.users, config.shards)
        case "dirichlet":
            return DirichletPartitioner(config.users, config.alpha)
        case "power_law":
            return PowerLawPartitioner(config.users, config.exponent)
        case "natural":
            raise ValueError("natural keys are read with the records")
