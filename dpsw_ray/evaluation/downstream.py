"""What synthetic records are good for: a model trained on them, and whether they show what they should."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dpsw_ray.evaluation.classifier import Classifier

__all__ = ["intended_class_rate", "logreg_accuracy"]


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
    if len(train_y) == 0 or len(test_y) == 0:
        return float("nan")
    if len(np.unique(train_y)) == 1:
        return float(np.mean(test_y == train_y[0]))
    shift: Any = 0.0
    if train_x.dtype == np.uint8:
        scale: Any = max(float(train_x.max()), 1.0)
    else:
        shift, scale = train_x.mean(axis=0), train_x.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(max_iter=200, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cap on iterations is the protocol, not a failure
        model.fit(((train_x - shift) / scale).astype(np.float32), train_y)
    return float(model.score(((test_x - shift) / scale).astype(np.float32), test_y))


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
