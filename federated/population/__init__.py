"""Who holds which records: partitioners, one class each, and what they make of a population."""

from dpsw_ray.federated.population.base import Partitioner
from dpsw_ray.federated.population.dirichlet import DirichletPartitioner
from dpsw_ray.federated.population.iid import IidPartitioner
from dpsw_ray.federated.population.make import make_partitioner
from dpsw_ray.federated.population.natural import NaturalPartitioner
from dpsw_ray.federated.population.power_law import PowerLawPartitioner
from dpsw_ray.federated.population.shards import ShardsPartitioner

__all__ = [
    "DirichletPartitioner",
    "IidPartitioner",
    "NaturalPartitioner",
    "Partitioner",
    "PowerLawPartitioner",
    "ShardsPartitioner",
    "make_partitioner",
]
