"""Scores of image recognition where an image has several labels, or none."""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from utils.cli.errors import InputError
from utils.metrics.interval import FEWEST, bootstrap
from utils.metrics.per_class import mean
from utils.metrics.recognition import LISTED_CLASSES, LOGGED_CLASSES

MOST_DRAWN = 2_000_000  # images x classes up to which a bootstrap is soon done
MARK = "|"  # between the labels of an image, in predictions.csv


class SeveralAnswers(NamedTuple):
    """What a model answered in an evaluation, image by image in the order of the source."""

    index: np.ndarray  # (N,): of the image in its source
    labels: np.ndarray  # (N, C) bool
    probability: np.ndarray  # (N, C) float64, 0..1: of each label, on its own
    thresholds: np.ndarray  # (C,): a label is said from this probability on

    calibration, pairs = {}, None  # not known of several labels

    @property
    def said(self):
        """(N, C) bool"""
        return self.probability >= self.thresholds

    def config(self):
        """What config.json says of the weights that gave these answers."""
        return {"task": "multilabel", "thresholds": self.thresholds.tolist()}

    def class_rows(self, names):
        """The rows of classes.json."""
        columns = per_label(self)
        rows = [{"name": str(name)} for name in names]
        for key, values in columns.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[key] = None if isinstance(value, float) and math.isnan(value) else value
        return rows

    def image_rows(self, source):
        """The rows of predictions.csv, its head first; source: of the images, with name(index) and `classes`. Up to
        LISTED_CLASSES there is a column of probabilities for each."""
        names = np.array(list(map(str, source.classes)), object)
        each = len(names) <= LISTED_CLASSES
        yield "image", "labels", "said", *(f"p_{name}" for name in names if each)
        for index, has, said, probability in zip(self.index.tolist(), self.labels, self.said, self.probability, strict=True):
            numbers = [f"{p:.9g}" for p in probability.tolist()] if each else ()
            yield source.name(index), MARK.join(names[has]), MARK.join(names[said]), *numbers

    def mistakes(self, classes, most):
        """[(index, the label that is wrong or missed, lines)] of up to `most` images with the worst of them, the worst first; a
        line is (before, name, after, whether it is the mistake)."""
        wrong = np.where(self.said != self.labels, np.where(self.labels, 1 - self.probability, self.probability), -1.0)
        places = [place for place in np.argsort(-wrong.max(1), kind="stable")[:most] if wrong[place].max() >= 0]
        found = []
        for place in places:
            label = int(wrong[place].argmax())
            names = ", ".join(str(classes[number]) for number in np.flatnonzero(self.labels[place])) or "no label"
            before = "missed: " if self.labels[place, label] else "wrong: "
            shown = [("", names, "", False), (before, str(classes[label]), f", {self.probability[place, label]:.0%}", True)]
            found.append((int(self.index[place]), label, shown))
        return found

    mistakes_title = "Most confident mistakes: labels, and in red what is wrong or missed"

    def interval(self, metric, scores):
        """(low, high): where the true score lies with 95 % confidence, by drawing images; None: not known of this score."""
        images, classes = self.labels.shape
        if metric != "map" or images < FEWEST or images * classes > MOST_DRAWN:
            return None
        ranked = [_ranked(*columns) for columns in zip(self.labels.T, self.probability.T, strict=True) if columns[0].any()]

        def score(drawn):
            with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no positive was drawn
                return 100 * np.nanmean([_area(*_counted(*ranking, drawn)) for ranking in ranked])

        return bootstrap(np.ones(images, np.int64), score) if ranked else None


def multilabel_scores(losses, answers):
    """Scores of an evaluation, {name: float in per cent; "loss": binary cross-entropy; "images", "classes": their numbers;
    "class_…": lists}.

    map: mean over the classes of average precision, which is scikit-learn's. f1, f1_micro: at the thresholds of the answers,
    mean of the classes' F1, and that of all labels together. Classes without a positive, which other data may not know, are
    left out of all three, and `classes` is the number of the others. losses: (N,) of the same images. Sums are exact,
    whatever the order of the images.
    """
    columns, occurs = per_label(answers), answers.labels.any(0)
    said, labels = answers.said[:, occurs], answers.labels[:, occurs]
    right, all_said, all_there = (int(part.sum()) for part in (said & labels, said, labels))
    scores = {"map": mean(columns["ap"]), "f1": mean(columns["f1"][occurs])}
    scores["f1_micro"] = 200 * right / (all_said + all_there) if all_said + all_there else math.nan
    scores |= {"loss": round(math.fsum(losses) / len(losses), 6), "images": len(losses)}
    scores["classes"] = int(occurs.sum())
    if answers.labels.shape[1] <= LOGGED_CLASSES:
        scores |= {f"class_{name}": columns[name].round(3).tolist() for name in ("ap", "precision", "recall", "f1")}
    return scores


def per_label(answers):
    """{name: (C,)} of each class: count of images that have it, count `predicted` that are said to, and in per cent ap (average
    precision), f1, precision and recall at the threshold; NaN where that is not known; and the threshold, 0..1."""
    labels, said = answers.labels, answers.said
    count, predicted, right = labels.sum(0), said.sum(0), (labels & said).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN
        rates = [100 * right / whole for whole in ((count + predicted) / 2, predicted, count)]
    ap = [100 * average_precision(*columns) for columns in zip(labels.T, answers.probability.T, strict=True)]
    names = ("count", "predicted", "ap", "f1", "precision", "recall", "threshold")
    return dict(zip(names, (count, predicted, np.array(ap), *rates, answers.thresholds), strict=True))


def average_precision(label, probability):
    """The mean of the precision at each positive, 0..1; NaN without a positive. label: (N,) bool; probability: (N,)."""
    return _area(*_counted(*_ranked(label, probability))) if label.any() else math.nan


def best_thresholds(labels, probability):
    """(C,): the threshold of each class at which its F1 is highest on these images, rounded; 0.5 where none has it.

    It lies in the middle of the two probabilities that it parts, so that rounding elsewhere moves no image across.
    """
    found = np.full(labels.shape[1], 0.5)
    for place in np.flatnonzero(labels.any(0)):
        order, last, label = _ranked(labels[:, place], probability[:, place])
        right, said = _counted(order, last, label)
        best = last[np.argmax(2 * right / (said + label.sum()))]
        sorted_down = np.append(probability[order, place], 0.0)
        found[place] = (sorted_down[best] + sorted_down[best + 1]) / 2
    return np.clip(found.round(6), 1e-6, 1 - 1e-6)


def _ranked(label, probability):
    """(order (N,) of the images, the most probable first; last (K,): the last place of each probability; labels (N,) in that
    order)."""
    order = np.argsort(-probability, kind="stable")
    last = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
    return order, last, label[order]


def _counted(order, last, label, times=None):
    """(K,) twice: positives, and images, down to each probability. times: (N,) how often each image counts; None: once."""
    times = np.ones(len(order), np.int64) if times is None else times[order]
    return np.cumsum(times * label)[last], np.cumsum(times)[last]


def _area(right, said):
    """Average precision of what `_counted` gives: precision, weighted by the steps of the recall."""
    return float((np.diff(right, prepend=0) * (right / np.maximum(said, 1))).sum() / right[-1])


def stored_thresholds(folder, classes):
    """(C,) thresholds that config.json in a folder has for so many classes, or None. Raises InputError for odd ones."""
    try:
        config = json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    found = config.get("thresholds") if isinstance(config, dict) else None
    if found is None:
        return None
    numbers = isinstance(found, list) and all(type(value) in (int, float) and 0 <= value <= 1 for value in found)
    if not numbers or len(found) != classes:
        raise InputError(f"{folder}: thresholds in config.json; expected {classes} numbers of 0 to 1")
    return np.array(found, np.float64)
