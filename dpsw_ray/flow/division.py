"""How the flow's work is divided among workers: by directions, by particles or by classes. No particle depends on it.

* `directions`: a worker holds directions with their targets, is handed all particles, and returns the drift along its
  directions: 16 d bytes for every particle, worker and step.
* `particles`: a worker keeps particles. In every step the workers' histograms of projections are added up, and what
  they say is sent back: 24 bytes for every class, direction, bin and worker, however many particles there are.
* `classes`: a worker keeps whole classes, which are flows of their own: nothing is exchanged, and it takes many steps
  at a time. One worker that keeps everything is a case of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.config import FlowConfig

__all__ = ["Division", "divide"]

# Measured on 2 cores by `benchmarks/scale.py`; they decide who works, never what comes out.
_PAIR_NS, _COORDINATE_NS = (
    1.0,
    0.21,
)  # of one particle and direction on one core, and of each coordinate of it
_GPU = 50.0  # times as fast as a core, at least
_CALL_S, _WORKER_S = 1.2e-3, 0.5e-3  # of a round trip to all workers, and of each worker in it
_BYTES_S = 4e8  # through the object store and the driver
_SHARE = 0.2  # of a step that may go into exchanging


@dataclass(frozen=True)
class Division:
    """Who does what.

    Attributes:
        by: `directions`, `particles` or `classes`.
        cuts: for particles and classes: worker w keeps the particles cuts[w] to cuts[w + 1].
        why: one sentence where `auto` left workers without particles, else empty.
    """

    by: str
    cuts: NDArray[np.int64]
    why: str = ""

    @property
    def workers(self) -> int:
        """How many workers keep particles."""
        return len(self.cuts) - 1


def divide(
    config: FlowConfig,
    offsets: NDArray[np.int64],
    *,
    directions: int,
    dim: int,
    bins: int,
    workers: int,
    threads: int = 1,
    gpu: bool = False,
) -> Division:
    """Divides a flow's work; depends on sizes alone, so that the same run is divided alike everywhere.

    Args:
        config: of which `parallel` says how, or `auto`.
        offsets: array of size [C + 1]: class c owns the particles offsets[c] to offsets[c + 1].
        directions: used in one step.
        dim: of the latents.
        bins: of the release's grid.
        workers: how many there are.
        threads: of each.
        gpu: whether each has a GPU.
    """
    particles, classes = int(offsets[-1]), len(offsets) - 1
    even = np.linspace(0, particles, min(workers, particles) + 1).astype(np.int64)
    borders = np.unique(offsets[np.abs(offsets[:, None] - even).argmin(axis=0)])
    whole = np.array([0, particles])
    match config.parallel:
        case "directions":
            return Division("directions", whole)
        case "particles":
            return Division("particles" if workers > 1 else "classes", even)
        case "classes":
            return Division("classes", borders)
    work = particles * directions * (_PAIR_NS + _COORDINATE_NS * dim) * 1e-9
    work /= _GPU if gpu else threads
    call = _CALL_S + _WORKER_S * workers
    histograms = 24.0 * classes * directions * bins * workers / _BYTES_S
    drifts = 16.0 * particles * dim * workers / _BYTES_S
    largest = float(np.diff(borders).max()) / particles
    ways = {  # work of the busiest worker, and seconds of exchange, in one step
        "classes": (Division("classes", borders), work * largest, call / 10),
        "particles": (Division("particles", even), work / workers, call + histograms),
        "directions": (Division("directions", whole), work / workers, call + drifts),
    }
    alone = work + (_CALL_S + _WORKER_S) / 10
    worth = {
        name: busy + exchange
        for name, (_, busy, exchange) in ways.items()
        if exchange <= _SHARE * (busy + exchange) and busy + exchange < alone
    }
    if worth:
        return ways[min(worth, key=lambda name: worth[name])][0]
    if workers == 1:
        return Division("classes", whole)
    return Division(
        "classes",
        whole,
        f"One worker moves all particles: a step is about {1e3 * work:.2g} ms of work, and exchanging between "
        f"{workers} would take about {1e3 * min(way[2] for name, way in ways.items() if name != 'classes'):.2g} ms of each "
        "(flow.parallel: auto).",
    )
