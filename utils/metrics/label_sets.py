"""Accuracy where an image may have several right labels, such as ImageNet's reassessed ones (Beyer et al. 2020, ReaL)."""

import collections
import json
import pathlib

import numpy as np

from utils.cli.errors import InputError


def label_set_scores(path, answers, source):
    """{"sets_acc1": share in per cent of the images whose answer is among their labels, "sets_images": how many have labels}.

    path: a JSON file, a list with one list of labels for each image in the order of their file names, as the published
    real.json, or of the rows of a source without file names; or {file name: labels}, or {path: labels}, from the source's
    folder on. A label is the name of a class, or its number. Images without labels do not count. answers: Answers; source: of
    the images, with `classes` and, of files, `paths`. Raises InputError for a file that does not fit, and for a file name that
    several images have.
    """
    sets, files = _read(path), getattr(source, "paths", None)
    paths = [source.name(int(index)) if files is None else files[int(index)] for index in answers.index]
    names = paths if files is None else [pathlib.PurePath(name).name for name in paths]
    by_path = isinstance(sets, dict) and all(name in sets for name in paths)
    if not by_path and (twice := [name for name, count in collections.Counter(names).items() if count > 1]):
        raise InputError(f"--label_sets {path}: {len(twice):,} file names are of several images ({twice[0]}); expected "
                         f"{{path: labels}} of all images, such as {paths[names.index(twice[0])]}")  # fmt: skip
    names = paths if by_path else names
    if isinstance(sets, list):
        if len(sets) != len(names):
            raise InputError(f"--label_sets {path}: found {len(sets):,} sets of labels for {len(names):,} images; expected "
                             "one each")  # fmt: skip
        order = range(len(names)) if files is None else np.argsort(np.array(names), kind="stable").tolist()
        found = dict(zip(order, sets, strict=True))
    else:
        if missing := [name for name in names if name not in sets]:
            raise InputError(f"--label_sets {path}: found no labels for {missing[0]} and {len(missing) - 1} more images; an "
                             "empty list leaves an image out")  # fmt: skip
        found = {place: sets[name] for place, name in enumerate(names)}
    number_of = {str(name): number for number, name in enumerate(source.classes)}
    right = []
    for place, labels in found.items():
        if labels:
            right.append(int(answers.predicted[place]) in {_number(path, label, number_of) for label in labels})
    if not right:
        raise InputError(f"--label_sets {path}: no image has a label; expected lists of class names or numbers")
    return {"sets_acc1": round(100 * sum(right) / len(right), 5), "sets_images": len(right)}


def _read(path):
    try:
        sets = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "no JSON"
        raise InputError(f"--label_sets {path}: {reason}; expected a JSON file") from None
    values = sets.values() if isinstance(sets, dict) else sets if isinstance(sets, list) else [None]
    if not all(isinstance(labels, list) for labels in values):
        raise InputError(f"--label_sets {path}: expected a list of labels for each image, or {{file name: labels}}")
    return sets


def _number(path, label, number_of):
    number = number_of.get(str(label), label)
    if type(number) is not int or not 0 <= number < len(number_of):
        expected = f"expected names of the {len(number_of)} classes, or numbers"
        raise InputError(f"--label_sets {path}: found the label {label}; {expected}")
    return number
