"""What synthetic records are good for: a model trained on them, and whether they show what they should."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.encoders.scaling import column_statistics, power_of_two, standardised

if TYPE_CHECKING:
    from dpsw_ray.evaluation.classifier import Classifier

__all__ = ["boosted_accuracy", "intended_class_rate", "logreg_accuracy"]


def logreg_accuracy(
    train_x: NDArray[Any],
    train_y: NDArray[np.integer[Any]],
    test_x: NDArray[Any],
    test_y: NDArray[np.integer[Any]],
) -> float:
    """Accuracy on test records of a logistic regression trained on (synthetic) records.

    Images (uint8) are scaled by the training records' largest value, tables standardised by their mean and
    standard deviation. Records labelled -1 are left out. `nan` where nothing is left to train or test on.

    Args:
        train_x: records [n, *shape].
        train_y: labels [n].
        test_x: real test records [m, *shape].
        test_y: labels [m].
    """
    from sklearn.linear_model import LogisticRegression

    train_x, train_y = _labelled(train_x, train_y)
    test_x, test_y = _labelled(test_x, test_y)
    if (settled := _without_model(train_y, test_y)) is not None:
        return settled
    if train_x.dtype == np.uint8:
        brightest = max(float(train_x.max()), 1.0)
        train_x, test_x = train_x / brightest, test_x / brightest
    else:
        scaling = column_statistics(train_x)
        train_x, test_x = standardised(train_x, *scaling), standardised(test_x, *scaling)
    model = LogisticRegression(max_iter=200, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cap on iterations is the protocol, not a failure
        model.fit(train_x.astype(np.float32), train_y)
    return float(model.score(test_x.astype(np.float32), test_y))


def boosted_accuracy(
    train_x: NDArray[Any],
    train_y: NDArray[np.integer[Any]],
    test_x: NDArray[Any],
    test_y: NDArray[np.integer[Any]],
    seed: int,
) -> float:
    """Accuracy on test records of gradient-boosted trees (scikit-learn's histogram version) trained on others.

    Args:
        train_x: records [n, *shape].
        train_y: labels [n]; those labelled -1 are left out.
        test_x: real test records [m, *shape].
        test_y: labels [m].
        seed: of the hold-out that more than 10,000 records stop early by.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    train_x, train_y = _labelled(train_x, train_y)
    test_x, test_y = _labelled(test_x, test_y)
    if (settled := _without_model(train_y, test_y)) is not None:
        return settled
    if train_x.dtype != np.uint8:  # thresholds are means of values, whose sums must not overflow
        unit = power_of_two(np.abs(train_x).max(axis=0))
        train_x, test_x = train_x / unit / 4, np.clip(test_x / 4 / unit, -1.0, 1.0)
    model = HistGradientBoostingClassifier(random_state=seed)
    if np.bincount(train_y)[np.unique(train_y)].min() < 2:
        model.set_params(early_stopping=False)  # its hold-out takes one of every class
    return float(model.fit(train_x, train_y).score(test_x, test_y))


def _without_model(train_y: NDArray[Any], test_y: NDArray[Any]) -> float | None:
    """The accuracy where there is nothing to learn or to test on, or a single class; None otherwise."""
    if len(train_y) == 0 or len(test_y) == 0:
        return float("nan")
    return float(np.mean(test_y == train_y[0])) if (train_y == train_y[0]).all() else None


def intended_class_rate(
    classifier: Classifier, images: NDArray[Any], labels: NDArray[np.integer[Any]]
) -> float:
    """Share of records [n, *shape] that the classifier puts into the class [n] they were generated for."""
    labelled = labels >= 0
    if not labelled.any():
        return float("nan")
    return float(np.mean(classifier.predict(images[labelled]) == labels[labelled]))


def _labelled(records: NDArray[Any], labels: NDArray[np.integer[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The labelled records as rows [n, values], and their labels."""
    keep = labels >= 0
    return records[keep].reshape(int(keep.sum()), math.prod(records.shape[1:])), labels[keep]
