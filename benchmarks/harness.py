"""What the benchmarks share: machine facts, generated latents, paired timings, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

__all__ = ["facts", "finish", "mixture", "paired", "parser", "show"]


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options.add_argument("--quick", action="store_true", help="smaller and fewer: to see that it runs")
    return options


def facts(**more: Any) -> dict[str, Any]:
    """What a reader needs to judge a timing."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    packages = ("numpy", "numba", "torch", "pot", "ray")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        **more,
    }


def mixture(
    records: int, dim: int = 8, classes: int = 10, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Generated latents that look like an autoencoder's: three lumps per class on the unit sphere.

    Returns:
        Array of size [records, dim] and labels of size [records].
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, 3, dim))
    centres /= np.linalg.norm(centres, axis=2, keepdims=True)
    labels = rng.integers(0, classes, records).astype(np.int32)
    latents = centres[labels, rng.integers(0, 3, records)] + 0.2 * rng.standard_normal((records, dim))
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    return latents, labels


def paired(
    sides: dict[str, Callable[[], object]], rounds: int, budget_s: float = 0.2
) -> dict[str, list[float]]:
    """Times the sides in turn, round by round, so that what disturbs the machine disturbs all of them.

    Args:
        sides: what to time, by name; each is called once before, to compile and warm up.
        rounds: number of rounds.
        budget_s: within a round a side repeats for about this long.

    Returns:
        Seconds of every call, by side.
    """
    for side in sides.values():
        side()
    repeats = {name: max(1, min(50, int(budget_s / _timed(side)))) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].extend(_timed(side) for _ in range(repeats[name]))
    return times


def _timed(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints a table: the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


def finish(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Prints the machine's facts, and writes everything to `--json`."""
    known = facts(quick=arguments.quick)
    packages = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    print(
        f"{known['processor']}, {known['cores']} cores, load {known['load']}; Python {known['python']}, {packages}"
    )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": known, **figures}, indent=2) + "\n")
