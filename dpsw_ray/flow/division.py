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

from dpsw_ray.flow.config import FlowConfig

__all__ = ["Division", "divide"]

# About what two cores took; they decide who works, never what comes out.
_PAIR_NS, _COORDINATE_NS = (
    1.0,
    0.21,
)  # of one particle and direction on one core, and of each coordinate of it
_GPU = 50.0  # times as fast as a core, at least
_CALL_S, _WORKER_S = 1.2e-3, 0.5e-3  # of a round trip to all workers, and of each worker in it
_BYTES_S = 1e9  # through the object store and the driver
_STEPS = 10  # in one call, where nothing is exchanged
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
    match config.parallel:
        case "directions":
            return Division("directions", np.array([0, particles]))
        case "particles":
            return Division("particles" if workers > 1 else "classes", _even(particles, workers))
        case "classes":
            return Division("classes", _borders(offsets, workers))
    work = particles * directions * (_PAIR_NS + _COORDINATE_NS * dim) * 1e-9
    work /= _GPU if gpu else threads
    histograms, drifts = 24.0 * classes * directions * bins, 16.0 * particles * dim

    def exchange(size: int, each: float) -> float:
        return _CALL_S + size * (_WORKER_S + each / _BYTES_S)

    borders = _borders(offsets, workers)
    largest = float(np.diff(borders).max()) / particles
    # Seconds of the busiest worker and of exchange in one step; without exchange, many steps go into a call.
    ways = [(Division("classes", borders), work * largest, exchange(len(borders) - 1, 0.0) / _STEPS)]
    ways += [
        (Division("particles", _even(particles, size)), work / size, exchange(size, histograms))
        for size in range(2, min(workers, particles) + 1)
    ]
    if workers > 1:
        whole = Division("directions", np.array([0, particles]))
        ways.append((whole, work / workers, exchange(workers, drifts)))
    alone = work + exchange(1, 0.0) / _STEPS
    worth = [way for way in ways if way[2] <= _SHARE * (way[1] + way[2]) and way[1] + way[2] < alone]
    if worth:
        return min(worth, key=lambda way: way[1] + way[2])[0]
    why = ""
    if workers > 1:
        cheapest = min(seconds for _, _, seconds in ways[1:] or ways)
        why = (
            f"One of {workers} workers moves all particles: a step is about {1e3 * work:.2g} ms of work, and an "
            f"exchange between workers would take about {1e3 * cheapest:.2g} ms (flow.parallel: auto)."
        )
    return Division("classes", np.array([0, particles]), why)


def _even(particles: int, workers: int) -> NDArray[np.int64]:
    return np.linspace(0, particles, min(workers, particles) + 1).astype(np.int64)


def _borders(offsets: NDArray[np.int64], workers: int) -> NDArray[np.int64]:
    """Cuts between classes, nearest to even ones."""
    even = _even(int(offsets[-1]), workers)
    return np.unique(offsets[np.abs(offsets[:, None] - even).argmin(axis=0)])
