"""Scores of image recognition."""

import math
from typing import NamedTuple

import numpy as np

from utils.metrics.calibration import TEMPERATURES, calibrate
from utils.metrics.interval import FEWEST, bootstrap, wilson
from utils.metrics.per_class import Pairs, class_rows, mean, per_class

LOGGED_CLASSES = LISTED_CLASSES = 1000  # up to so many, log.txt has the scores of each, and predictions.csv probabilities


class Answers(NamedTuple):
    """What a model answered in an evaluation, image by image in the order of the source; each column is (N,)."""

    index: np.ndarray  # of the image in its source
    label: np.ndarray
    predicted: np.ndarray  # the likeliest class
    probability: np.ndarray  # of that class, 0..1
    classes: np.ndarray  # () int64: how many the model tells apart
    sureness: np.ndarray = np.zeros((0, 1))  # (N, …): columns of `calibration_columns`, or none
    every: np.ndarray = np.zeros((0, 0))  # (N, classes): the probability of each class, or none

    mistakes_title = "Most confident mistakes: true class → prediction"

    @classmethod
    def of_rows(cls, index, label, predicted, probability, classes, sureness=None, every=None):
        """Columns in any order, as tensors on the CPU."""
        order = np.argsort(np.asarray(index), kind="stable")
        label, predicted = (np.asarray(column, np.int64)[order] for column in (label, predicted))
        probability = np.asarray(probability, np.float64)[order]
        sureness = cls._field_defaults["sureness"] if sureness is None else np.asarray(sureness, np.float64)[order]
        every = cls._field_defaults["every"] if every is None or not np.size(every) else np.asarray(every)[order]
        return cls(np.asarray(index)[order], label, predicted, probability, np.int64(classes), sureness, every)

    @property
    def calibration(self):
        """How sure the model is of what, and the temperature that mends it; see `calibration.calibrate`."""
        return calibrate(self.sureness, self.label == self.predicted)

    def config(self):
        """What config.json says of the weights that gave these answers."""
        return {"temperature": found["temperature"]} if (found := self.calibration) else {}

    @property
    def pairs(self):
        return Pairs.of_labels(self.label, self.predicted, int(self.classes))

    def class_rows(self, names):
        """The rows of classes.json."""
        return class_rows(self.pairs, names, ("precision", "recall", "f1"))

    def image_rows(self, source):
        """The rows of predictions.csv, its head first; source: of the images, with name(index) and `classes`."""
        names, own = source.classes, np.full(len(self.label), np.nan)
        if len(self.sureness):
            own = np.exp(self.sureness[:, 0] - self.sureness[:, 1 + TEMPERATURES.index(1.0)])
        each, every = (names, self.every) if self.every.size else ((), np.zeros((len(self.label), 0)))
        yield "image", "label", "said", "probability", "label_probability", *(f"p_{name}" for name in each)
        columns = (
            column.tolist() for column in (*self[:4], own, self.every if self.every.size else self.label[:, None][:, :0])
        )
        for index, label, said, *numbers, every in zip(*columns, strict=True):
            yield source.name(index), names[label], names[said], *(f"{p:.4f}" for p in (*numbers, *every))

    def mistakes(self, classes, most):
        """[(index, class it was taken for, lines)] of up to `most` wrong answers, the surest first; a line is (before, name,
        after, whether it is the mistake)."""
        wrong = np.flatnonzero(self.label != self.predicted)
        found = []
        for i in wrong[np.argsort(-self.probability[wrong], kind="stable")][:most].tolist():
            said = ("→ ", classes[self.predicted[i]], f", {self.probability[i]:.0%}", True)
            found.append((int(self.index[i]), int(self.predicted[i]), [("", classes[self.label[i]], "", False), said]))
        return found

    def interval(self, metric, scores):
        """(low, high): where the true score lies with 95 % confidence; None where that is not known of this score."""
        if metric == "acc1":
            return wilson(scores["acc1"], scores["images"])
        if metric not in ("balanced_acc", "f1") or len(self.label) < FEWEST:
            return None
        (truth, said, count), key = self.pairs, "recall" if metric == "balanced_acc" else "f1"

        def score(drawn):
            return np.nanmean(getattr(per_class(Pairs(truth, said, drawn), int(self.classes)), key))

        return bootstrap(count, score)


def recognition_scores(rows, answers):
    """Scores of an evaluation, {name: float in per cent; "loss": cross-entropy; "images": their number; "class_…": lists}.

    acc1, acc5: top-1 and top-5; balanced_acc: mean of the classes' recalls, over the classes that occur; f1: mean of their F1,
    over those that occur or are answered; auroc: of two classes, the area under the ROC curve. The means are scikit-learn's.
    rows: (N, 3) float64, one for each image: 1 if its label is the first answer, 1 if it is among the first five, its loss.
    answers: Answers of the same images. A new score is a float, and docs/ADDING.md adds one.
    The sums are exact (fsum), so that the order of the images, which depends on the number of processes, does not matter.
    """
    acc1, acc5, loss = (math.fsum(column) / len(rows) for column in rows.T.tolist())
    classes = per_class(answers.pairs, int(answers.classes))
    scores = {"acc1": 100 * acc1, "acc5": 100 * acc5, "balanced_acc": mean(classes.recall), "f1": mean(classes.f1)}
    if answers.classes == 2 and len(set(answers.label.tolist())) == 2:
        from sklearn.metrics import roc_auc_score

        of_second = np.where(answers.predicted == 1, answers.probability, 1 - answers.probability)
        scores["auroc"] = 100 * float(roc_auc_score(answers.label, of_second))
    scores = {name: round(value, 5) for name, value in scores.items()}
    scores |= {"loss": round(loss, 6), "images": len(rows)}
    if answers.classes <= LOGGED_CLASSES:
        parts = {"precision": classes.precision, "recall": classes.recall, "f1": classes.f1}
        scores |= {f"class_{name}": values.round(3).tolist() for name, values in parts.items()}
    return scores
