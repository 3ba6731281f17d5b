"""How different the users are: figures of private records, for `research/` only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from dpsw_ray.evaluation.pictures import figure_png

__all__ = ["heterogeneity_figure", "statistics"]

_SHOWN = 40


def statistics(offsets: NDArray[np.int64], labels: NDArray[np.int32]) -> dict[str, Any]:
    """Facts of a population.

    Args:
        offsets: array of size [users + 1].
        labels: array of size [n], sorted by user.

    Returns:
        `users`, `records`, quantiles of the records of a user, how many have none, one, more than a hundredth of all;
        `label_distance`: mean over the users of the total variation between its labels' shares and all records';
        `labels_per_user`; and the counts by label of the first users, for the picture.
    """
    counts = np.diff(offsets)
    owners = np.repeat(np.arange(len(counts)), counts)
    known = labels >= 0
    classes = int(labels.max(initial=-1)) + 1
    table = np.zeros((len(counts), max(classes, 1)), dtype=np.int64)
    np.add.at(table, (owners[known], labels[known]), 1)
    some = table.sum(axis=1) > 0
    shares = table[some] / table[some].sum(axis=1, keepdims=True)
    overall = table.sum(axis=0) / max(table.sum(), 1)
    quantiles = {"smallest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}
    return {
        "users": len(counts),
        "records": int(counts.sum()),
        "records_per_user": {name: float(np.quantile(counts, q)) for name, q in quantiles.items()},
        "users_without_records": int((counts == 0).sum()),
        "users_with_one_record": int((counts == 1).sum()),
        "users_with_over_1_percent": int((counts > 0.01 * counts.sum()).sum()),
        "label_distance": float(np.abs(shares - overall).sum(axis=1).mean() / 2) if some.any() else 0.0,
        "labels_per_user": float((table[some] > 0).sum(axis=1).mean()) if some.any() else 0.0,
        "first_users": table[:_SHOWN].tolist(),
        "counts": np.sort(counts)[::-1][:: max(1, len(counts) // 1000)].tolist(),
    }


def heterogeneity_figure(facts: Mapping[str, Any]) -> bytes:
    """Two panels as PNG: records by user in falling order, and the labels of the first users."""
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        counts = np.asarray(facts["counts"], dtype=float)
        left.plot(np.linspace(0, 1, len(counts)), np.maximum(counts, 0.5))
        left.set(
            yscale="log", xlabel="share of users, most records first", ylabel="records", title="Quantity"
        )
        table = np.asarray(facts["first_users"])
        base = np.zeros(len(table))
        for label in range(table.shape[1]):
            right.bar(np.arange(len(table)), table[:, label], bottom=base, width=1.0)
            base += table[:, label]
        right.set(xlabel="the first users", ylabel="records by label", title="Labels")
        return figure_png(figure)
