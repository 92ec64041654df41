"""What a classifier makes of each class, from counts: of images in recognition, of pixels in segmentation."""

import math
from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """How often each class was taken for each: the pairs (truth, said) that occur, (P,) int64 each, sorted."""

    truth: np.ndarray
    said: np.ndarray
    count: np.ndarray

    @classmethod
    def of_labels(cls, label, predicted, classes):
        """label, predicted: (N,) whole numbers below `classes`."""
        pairs, count = np.unique(np.asarray(label, np.int64) * classes + np.asarray(predicted, np.int64), return_counts=True)
        return cls(*np.divmod(pairs, classes), count)

    @classmethod
    def of_matrix(cls, matrix):
        """matrix: (classes, classes), rows truth, columns prediction."""
        truth, said = np.nonzero(matrix)
        return cls(truth, said, np.asarray(matrix)[truth, said])


class PerClass(NamedTuple):
    """Scores of each class in per cent, (C,) float64, and how many there are, (C,) int64."""

    count: np.ndarray  # that have the class
    predicted: np.ndarray  # that are taken for it
    precision: np.ndarray  # of those taken for the class, the share that has it; NaN where nothing is
    recall: np.ndarray  # of those that have the class, the share that is found; NaN where nothing has it
    f1: np.ndarray  # harmonic mean of the two, which is Dice; NaN for a class in neither
    iou: np.ndarray  # right / (right + missed + wrong); NaN for a class in neither


def per_class(pairs, classes):
    """PerClass of `Pairs`. Equals scikit-learn's precision_recall_fscore_support and jaccard_score."""
    count, predicted = (np.bincount(column, pairs.count, classes).astype(np.int64) for column in (pairs.truth, pairs.said))
    same = pairs.truth == pairs.said
    right = np.bincount(pairs.truth[same], pairs.count[same], classes)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        rates = [100 * right / whole for whole in (predicted, count, (count + predicted) / 2, count + predicted - right)]
    return PerClass(count, predicted, *rates)


def mean(values):
    """The mean of those that are not NaN, summed exactly; NaN where none is."""
    known = [value for value in np.asarray(values, np.float64).tolist() if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def class_rows(pairs, names, keys):
    """classes.json: a dict of each class with its name, `count`, `predicted` and the scores `keys`, null where NaN; and what
    it is most often taken for, if anything: `taken_for`, and the share of the class in per cent, `taken_for_share`."""
    scores = per_class(pairs, len(names))
    rows = [{"name": str(name)} for name in names]
    for key in ("count", "predicted", *keys):
        for row, value in zip(rows, getattr(scores, key).tolist(), strict=True):
            row[key] = None if isinstance(value, float) and math.isnan(value) else value
    wrong = np.flatnonzero(pairs.truth != pairs.said)
    for i in wrong[np.argsort(-pairs.count[wrong], kind="stable")[::-1]]:  # the most frequent one comes last, and stays
        truth, said = pairs.truth[i], pairs.said[i]
        share = 100 * pairs.count[i] / scores.count[truth]
        rows[truth] |= {"taken_for": str(names[said]), "taken_for_share": float(share)}
    return rows
