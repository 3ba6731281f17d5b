"""Who holds which records: partitioners, one class each, and what they make of a population."""

from federated.population.base import Partitioner
from federated.population.dirichlet import DirichletPartitioner
from federated.population.iid import IidPartitioner
from federated.population.make import make_partitioner
from federated.population.natural import NaturalPartitioner
from federated.population.power_law import PowerLawPartitioner
from federated.population.shards import ShardsPartitioner

__all__ = [
    "DirichletPartitioner",
    "IidPartitioner",
    "NaturalPartitioner",
    "Partitioner",
    "PowerLawPartitioner",
    "ShardsPartitioner",
    "make_partitioner",
]
