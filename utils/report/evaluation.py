"""What an evaluation leaves beside a run's weights: which scores, how sure they are, each class, and each image.

evaluation.json, classes.json and predictions.csv are about the same weights: in a run those of the highest score so far, of
the model or of its average. Standard library only.
"""

import csv
import math
import pathlib

from utils.files import csv_cell, replace, write_json
from utils.report.run_files import number, of_type, read_json
from utils.report.scores import score_of, value_of

WORST = 3  # classes that are named
FILES = ("predictions.csv", "classes.json", "evaluation.json")


def write_evaluation(folder, answers, source, scores, metric, **facts):
    """Write FILES about an evaluation, each in one step. Raises OSError where one cannot be written.

    answers: Answers or MaskAnswers; source: of the images, with name(index) and `classes`; scores: {name: value}; metric: the
    score that decides, such as acc1. facts: what else evaluation.json says, such as the epoch.
    """
    folder = pathlib.Path(folder)
    with replace(folder / "predictions.csv") as aside, open(aside, "w", encoding="utf-8", errors="replace", newline="") as file:
        rows = (map(csv_cell, row) for row in answers.image_rows(source))
        csv.writer(file, lineterminator="\n").writerows(rows)
    write_json(folder / "classes.json", answers.class_rows(source.classes))
    scores = scores | {metric: value_of(metric, scores)}
    single = {name: value for name, value in scores.items() if isinstance(value, int | float) and math.isfinite(value)}
    sure = {name: answers.interval(name, scores) for name in single if name in (metric, "acc1", "miou")}
    sure = {name: [round(bound, 2) for bound in bounds] for name, bounds in sure.items() if bounds}
    facts |= {"calibration": answers.calibration} if answers.calibration else {}
    write_json(folder / "evaluation.json", facts | {"metric": metric, "scores": single, "intervals": sure})


def read_evaluation(folder):
    """The content of evaluation.json, as far as it is whole: {"metric": …, "scores": {…}, "intervals": {…}, …} or {}."""
    found = read_json(pathlib.Path(folder) / "evaluation.json", dict)
    scores = {str(name): value for name, value in of_type(found.get("scores"), dict).items() if number(value) is not None}
    metric = of_type(found.get("metric"), str)
    if metric not in scores:
        return {}
    intervals = {}
    for name, bounds in of_type(found.get("intervals"), dict).items():
        bounds = [number(bound) for bound in of_type(bounds, list)]
        if len(bounds) == 2 and None not in bounds:
            intervals[name] = bounds
    return found | {"metric": metric, "scores": scores, "intervals": intervals}


def sure_text(name, evaluation):
    """How sure the score `name` is, in words: 89.0 to 99.1 % with 95 % confidence. "" where that is not known."""
    bounds = evaluation.get("intervals", {}).get(name)
    unit = score_of(f"test_{name}").unit
    return "{:.1f} to {:.1f} ".format(*bounds) + f"{unit} with 95 % confidence" if bounds else ""


def class_key(rows):
    """The score by which classes are compared, and its name: IoU of masks, recall of images, AP of several labels an image."""
    keys = {"iou": "IoU", "ap": "AP"}
    return next(((key, name) for key, name in keys.items() if any(key in row for row in rows)), ("recall", "recall"))


def worst_classes(rows):
    """The rows of classes.json with the lowest score, the lowest first: WORST at most, and none that is without a fault."""
    key, _ = class_key(rows)
    known = [(value, row) for row in rows if (value := number(row.get(key))) is not None and value < 100]
    return [row for _, row in sorted(known, key=lambda pair: pair[0])[:WORST]]


def worst_line(rows):
    """The worst classes on a line; "" where there are none."""
    key, name = class_key(rows)
    parts = []
    for row in worst_classes(rows):
        taken = row.get("taken_for")
        mostly = f", {row['taken_for_share']:.0f} % taken for {taken}" if taken and number(row.get("taken_for_share")) else ""
        parts.append(f"{row.get('name', '')} ({row[key]:.1f} %{mostly})")
    return f"worst classes by {name}: {'; '.join(parts)}" if parts else ""


def read_classes(folder):
    """The rows of classes.json that are whole."""
    return [row for row in read_json(pathlib.Path(folder) / "classes.json", list) if isinstance(row, dict)]
