"""The one seam to Ray: a cluster of workers that hold plain objects and run their methods.

The rest of the library is written against `Cluster` and `WorkerGroup`; whether the workers are Ray actors or
objects in this process is the config's choice (`cluster.executor`) and changes no result.
"""

from dpsw_ray.cluster.groups import Cluster, LocalCluster, WorkerDied, WorkerGroup
from dpsw_ray.cluster.start import connect, open_cluster

__all__ = ["Cluster", "LocalCluster", "WorkerDied", "WorkerGroup", "connect", "open_cluster"]
