"""What a prediction makes of a model's logits: the likeliest classes of an image, or the labels above their thresholds."""

import json
import pathlib
from typing import NamedTuple

from utils.cli.errors import InputError, one_line
from utils.files import csv_cell
from utils.metrics.multilabel import MARK, stored_thresholds

USUAL = 5  # classes of an image


def decision_of(folder, classes, topk=None, unsure=None):
    """Likeliest or AboveThresholds, as config.json in `folder` says; classes: names in the order of the logits; topk: None:
    the USUAL ones. Raises InputError for what goes with one label an image where there are several."""
    config = json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8"))
    if config.get("task") == "multilabel":
        if asked := [flag for flag, value in (("--unsure", unsure), ("--topk", topk)) if value is not None]:
            raise InputError(f"{asked[0]}: {folder} names several labels an image, each above its own threshold; leave it out")
        thresholds = stored_thresholds(folder, len(classes))
        if thresholds is None:
            note = f"note: {folder} has no thresholds in config.json, as best/ of a run has: labels are said from 0.5 on"
            return AboveThresholds(classes, [0.5] * len(classes), note)
        return AboveThresholds(classes, thresholds.tolist())
    temperature = config.get("temperature", 1.0)
    if type(temperature) not in (int, float) or not 0.01 <= temperature <= 100:
        raise InputError(f"{folder}: temperature {one_line(str(temperature))} in config.json; expected a number of 0.01 to 100")
    return Likeliest(classes, min(topk or USUAL, len(classes)), temperature, unsure)


def together(decisions, folders):
    """The decision by the mean of several models' probabilities, each of the same classes in the same order.

    Of labels above thresholds these are the means of the models'. Raises InputError for models of other classes.
    """
    first = decisions[0]
    for decision, folder in zip(decisions[1:], folders[1:], strict=True):
        if type(decision) is not type(first):
            raise InputError(f"{folder} and {folders[0]}: one names several labels an image, the other one; expected alike")
        if decision.classes != first.classes:
            same = sorted(decision.classes) == sorted(first.classes)
            found = "the same classes in another order" if same else f"{len(decision.classes)} other classes"
            raise InputError(f"{folder}: found {found} than {folders[0]}; expected the same ones: their answers are averaged")
    if isinstance(first, AboveThresholds):
        return first._replace(thresholds=[sum(t) / len(t) for t in zip(*(r.thresholds for r in decisions), strict=True)])
    return first


class Likeliest(NamedTuple):
    """The `topk` likeliest classes, at a temperature; see `predict_recognition.predict`."""

    classes: list
    topk: int
    temperature: float
    unsure: float | None
    note = ""
    draws, about = False, "with their likeliest class"  # whether predictions.png is drawn; what it shows

    def probabilities(self, logits):
        """(B, C) float32 of logits (B, C)."""
        return (logits / self.temperature).softmax(1)

    def answers(self, probabilities):
        """Of each image [(label, probability)] from the likeliest down."""
        best = probabilities.topk(self.topk)
        return [list(pair) for pair in map(zip, best.indices.tolist(), best.values.tolist())]

    def likeliest(self, answer):
        """The number of the likeliest class, or of the likeliest of the labels that are said."""
        return answer[0][0]

    @property
    def head(self):
        """Columns of predictions.csv after the image."""
        pairs = [f"{column}_{i}" for i in range(1, self.topk + 1) for column in ("label", "probability")]
        return pairs + ["answer"] * (self.unsure is not None)

    def cells(self, answer):
        """The cells of an answer; [] where the image could not be read."""
        cells = [cell for label, p in answer for cell in (csv_cell(self.classes[label]), f"{p:.8g}")]
        if self.unsure is not None and answer:
            label, p = answer[0]
            cells.append(csv_cell(self.classes[label]) if p >= self.unsure else "unsure")
        return cells

    def shown(self, answer):
        """[(name, probability)] for the table on the console."""
        return [(self.classes[label], p) for label, p in answer]


class AboveThresholds(NamedTuple):
    """The labels whose probability reaches their threshold."""

    classes: list
    thresholds: list
    note: str = ""
    draws, about = True, "with the labels above their thresholds"

    def probabilities(self, logits):
        """(B, C) float64 of logits (B, C)."""
        return logits.double().cpu().sigmoid()

    def answers(self, probabilities):
        """Of each image the probabilities of all classes."""
        return probabilities.tolist()

    def likeliest(self, answer):
        said = [number for number, least in enumerate(self.thresholds) if answer[number] >= least]
        return max(said or range(len(answer)), key=answer.__getitem__)

    @property
    def head(self):
        return ["labels", *(f"p_{name}" for name in self.classes)]

    def cells(self, answer):
        if not answer:
            return []
        return [csv_cell(MARK.join(name for name, _ in self.shown(answer))), *(f"{p:.8g}" for p in answer)]

    def shown(self, answer):
        there = [(name, p) for name, p, least in zip(self.classes, answer, self.thresholds, strict=False) if p >= least]
        return sorted(there, key=lambda pair: -pair[1])
