"""The scores of a run by their names in log.txt: what they are called, their units, and the lines that tell them.

A score that is not in SCORES is told by its own name, as per cent. Standard library only.
"""

import math
from typing import NamedTuple

from utils.metrics.interval import wilson

FEW = 1000  # images; the score of fewer is told with how sure it is in each epoch


class Score(NamedTuple):
    name: str
    short: str  # in a line of numbers
    unit: str = "%"  # "" for a loss
    decimals: int = 4  # of an exact result

    @property
    def falls(self):
        """Whether less is better."""
        return not self.unit

    @property
    def title(self):
        """Name and unit: mean IoU, %"""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def text(self, value, decimals=None):
        """`value` with its unit, and as many decimals as are worth reading where none are given: 91.26 %"""
        decimals = (2 if self.unit else 4) if decimals is None else decimals
        return f"{value:.{decimals}f} {self.unit}".rstrip()


SCORES = {
    "test_acc1": Score("top-1 accuracy", "top-1", decimals=5),
    "test_miou": Score("mean IoU", "mIoU"),
    "test_map": Score("mean average precision", "mAP", decimals=5),
    "test_acc5": Score("top-5 accuracy", "top-5", decimals=5),
    "test_balanced_acc": Score("balanced accuracy", "balanced"),
    "test_f1": Score("macro F1", "F1"),
    "test_sets_acc1": Score("accuracy by sets of labels", "by sets of labels"),
    "test_f1_micro": Score("micro F1", "micro F1"),
    "test_auroc": Score("area under the ROC curve", "AUROC"),
    "test_dice": Score("mean Dice", "Dice"),
    "test_pixacc": Score("pixel accuracy", "pixel accuracy"),
    "test_macc": Score("mean accuracy", "mean accuracy"),
    "test_pixacc+miou": Score("mean of pixel accuracy and mean IoU", "(pixel accuracy + mIoU) / 2"),
    "test_loss": Score("validation loss", "loss", unit="", decimals=6),
    "train_loss": Score("training loss", "train loss", unit=""),
}
BEST_BY = {
    "recognition": "test_acc1",
    "segmentation": "test_miou",
    "multilabel": "test_map",
}  # the score that decides which weights are the best


def score_of(name):
    """The Score of this name in log.txt; where SCORES has none, one that is called by the name itself."""
    text = name.removeprefix("test_").replace("_", " ")
    return SCORES.get(name) or Score(text, text)


def scores_of(record):
    """{name in log.txt: Score}: SCORES, and whatever else a record of log.txt has that is named test_… and no whole number."""
    names = [key.removesuffix("_ema") for key, value in record.items() if key.startswith("test_") and isinstance(value, float)]
    return SCORES | {name: score_of(name) for name in names}


def is_told(name, classes):
    """Whether a score, by its name in log.txt without test_, tells anything of so many classes: five are all among five."""
    return name != "acc5" or classes > 5


def value_of(metric, scores):
    """The score `metric` of an evaluation, {name in log.txt without test_: value}; of names that a + joins, their mean."""
    parts = [scores[name] for name in metric.split("+")]
    return sum(parts) / len(parts)


def is_better(metric, value, best, loss=math.nan, best_loss=math.nan):
    """Whether a `value` of the score `metric` is better than the best so far, None where there is none. NaN never is.

    loss, best_loss: of the two; of equal values the one with the lower loss is better.
    """
    if value == best:
        return loss < best_loss
    falls = score_of(f"test_{metric}").falls
    return value < (math.inf if best is None else best) if falls else value > (-math.inf if best is None else best)


def epoch_line(record, epochs, best, metric):
    """A line about an epoch: its loss and score, and the best score so far.

    record: as in log.txt; epochs: how many the run has; best: {name in log.txt: value}; metric: the score that decides, such
    as acc1.
    """
    text = f"epoch {record['epoch'] + 1}/{epochs}: train loss {record['train_loss']:.4f}"
    score = score_of(f"test_{metric}")
    for key, short in ((f"test_{metric}", score.short), (f"test_{metric}_ema", "EMA")):
        if key in record:
            low, high = record.get(f"{key}_interval", (math.nan, math.nan))
            sure = f" ± {(high - low) / 2:.0f}" if high > low else ""
            text += f", {short} {score.text(record[key])}{sure} (best {best.get(key, 0):.{2 if score.unit else 4}f})"
    return text


def result_lines(title, scores, classes=()):
    """Lines about an evaluation: the scores, and of a segmentation the IoU of each of the `classes`.

    scores: as evaluation gives them: {name in log.txt without test_: value}, with the number of images or classes.
    """
    known = scores_of({f"test_{name}": value for name, value in scores.items()})
    known = {name: score for key, score in known.items() if (name := key.removeprefix("test_")) in scores}
    number = len(scores.get("class_recall", ())) or math.inf  # of classes; of many there is no list
    known = {name: score for name, score in known.items() if is_told(name, number)}
    parts = [f"{score.short} {score.text(scores[name], score.decimals)}" for name, score in known.items()]
    if "classes" in scores:
        parts[0] += f" of {scores['classes']} classes"
    if "images" in scores:
        parts.append(f"{scores['images']} images")
        if "acc1" in scores and scores["images"]:
            parts[-1] += " (top-1 {:.1f} to {:.1f} % with 95 % confidence)".format(*wilson(scores["acc1"], scores["images"]))
    ious = zip(classes, scores.get("iou", ()), strict=False)
    lines = [f"  {name}: " + ("does not occur" if math.isnan(iou) else f"{iou:.2f}") for name, iou in ious]
    return [f"{title}: {', '.join(parts)}", *lines]
