"""--task: what an evaluation keeps of each image, and the scores and answers that follow, of one label an image or several."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from utils.metrics.calibration import TEMPERATURES, calibration_columns
from utils.metrics.multilabel import SeveralAnswers, best_thresholds, multilabel_scores, stored_thresholds
from utils.metrics.recognition import LISTED_CLASSES, Answers, recognition_scores

LISTED = 1_000_000  # probabilities that a run writes into predictions.csv each time it finds a better score, within a second


def make_task(name, images=0, classes=0, most=LISTED):
    """The task of this --task, None or multilabel, for so many images to score, of so many classes. Of one label an image the
    answers keep the probability of each class, up to LISTED_CLASSES, where these are `most` numbers at most."""
    return SeveralLabels() if name else OneLabel(images * classes <= most and classes <= LISTED_CLASSES)


class OneLabel(NamedTuple):
    """One label an image. every: the answers keep the probability of each class."""

    every: bool = False
    config = {}  # what config.json says of it

    def columns(self, logits, labels):
        """(B, K) float32, what is to be known of each image. logits: (B, C); labels: (B,) int64, -1 where it does not count."""
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        best = logits.topk(min(5, logits.shape[1])).indices  # (B, 5)
        right, probability = best == labels.unsqueeze(1), logits.softmax(1)
        columns = [labels, right[:, 0], right.any(1), loss, best[:, 0], probability.amax(1)]
        columns = torch.stack([column.float() for column in columns], dim=1)
        return torch.cat([columns, calibration_columns(logits, labels), probability if self.every else probability[:, :0]], 1)

    def scored(self, rows, numbers, classes):
        """(scores, Answers) of all images. rows: (N, K) float64, as `columns` gives them; numbers: (N,) of the images."""
        sureness, every = rows[:, 6:].split([1 + len(TEMPERATURES), rows.shape[1] - 7 - len(TEMPERATURES)], 1)
        answers = Answers.of_rows(numbers, rows[:, 0], rows[:, 4], rows[:, 5], classes, sureness, every)
        return recognition_scores(rows[:, 1:4], answers), answers

    def at(self, folder, classes, say):
        """The same, since nothing was chosen by the weights in a folder; what predictions.csv lacks is said."""
        if not self.every:
            say(f"note: predictions.csv has the likeliest class of each image only: {classes:,} classes are too many for all")
        return self


class SeveralLabels(NamedTuple):
    """Several labels an image, or none. thresholds: (C,) from which on a label is said; None: those of the best F1."""

    thresholds: np.ndarray | None = None
    config = {"task": "multilabel"}

    def columns(self, logits, labels):
        """(B, K) float32. logits: (B, C); labels: (B, C) float32 of 0 and 1, -1 where an image does not count."""
        loss = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none").mean(1, keepdim=True)
        return torch.cat([labels, loss, logits], 1)

    def scored(self, rows, numbers, classes):
        """(scores, SeveralAnswers) of all images, as of OneLabel."""
        labels, loss, logits = (part.numpy() for part in rows.split([classes, 1, classes], 1))
        order = np.argsort(np.asarray(numbers), kind="stable")
        labels, probability = labels[order] > 0, 1 / (1 + np.exp(-logits[order].clip(-700)))
        thresholds = best_thresholds(labels, probability) if self.thresholds is None else self.thresholds
        answers = SeveralAnswers(np.asarray(numbers)[order], labels, probability, thresholds)
        return multilabel_scores(loss[:, 0].tolist(), answers), answers

    def at(self, folder, classes, say):
        """The same with the thresholds that config.json beside the weights has, if it has any, which is said. folder: "" where
        there is none, as of a state."""
        found = stored_thresholds(folder, classes) if folder else None
        where = "chosen on these images, which flatters F1" if found is None else f"those of {folder}"
        say(f"thresholds: {where}")
        return SeveralLabels(found)
