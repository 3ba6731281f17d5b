"""Privacy events: what a mechanism did, as parameters, to be counted later under the data set's relation.

An event never stores an epsilon: the same release costs differently under different relations, so cost is
worked out when the relation is known. Every event round-trips through `to_dict` and `event_from_dict`, which
is what the ledger stores.
"""

from dpsw_ray.privacy.events.base import Event, common_unit, compose_costs, event_from_dict
from dpsw_ray.privacy.events.composition import ParallelEvent, SequentialEvent
from dpsw_ray.privacy.events.mechanisms import (
    DiscreteGaussianEvent,
    DpPcaEvent,
    DpSgdEvent,
    GaussianEvent,
    NoisyCountEvent,
    SkellamEvent,
)
from dpsw_ray.privacy.events.parameters import NoiseKind
from dpsw_ray.privacy.events.releases import SampledGaussianEvent, SlicedGaussianEvent, SlicedHistogramEvent
from dpsw_ray.privacy.events.selection import PrivateSelectionEvent

__all__ = [
    "DiscreteGaussianEvent",
    "DpPcaEvent",
    "DpSgdEvent",
    "Event",
    "GaussianEvent",
    "NoiseKind",
    "NoisyCountEvent",
    "ParallelEvent",
    "PrivateSelectionEvent",
    "SampledGaussianEvent",
    "SequentialEvent",
    "SkellamEvent",
    "SlicedGaussianEvent",
    "SlicedHistogramEvent",
    "common_unit",
    "compose_costs",
    "event_from_dict",
]
