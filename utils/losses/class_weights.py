"""How much each class counts in a loss: by its share of the training data, from a file, or as the user says."""

import concurrent.futures
import json
import pathlib

import numpy as np

from utils.cli.errors import InputError, did_you_mean
from utils.images.read import BadImage

BETA = 0.999  # of effective_num
SHOWN = 5  # classes that a message names
METHODS = ("auto", "inv_freq", "effective_num")


def class_weights(words, classes, count, say=print):
    """(C,) float64, or None without `words`, those of --class_weights.

    classes: their names; count: a function that gives how many images or pixels of each class there are to train on, (C,), or
    of several labels how many images have each and how many have not, (C, 2); it is called where a method needs it; say: takes
    a line. Raises InputError for what is no class and for what is no weight.
    """
    if not words:
        return None
    if words[0] in METHODS:
        if len(words) > 1:
            raise InputError(f"--class_weights {' '.join(words)}: expected {words[0]} alone")
        return _said(by_counts(words[0], count()), classes, say)
    if len(words) == 1 and "=" not in words[0]:
        pairs, where = _of_file(words[0]), f"--class_weights {words[0]}"
    else:
        pairs, where = dict(word.rpartition("=")[::2] for word in words), "--class_weights"
    names, weights = list(map(str, classes)), np.ones(len(classes))
    for name, text in pairs.items():
        if name not in names:
            near = did_you_mean(name, names) or f"; the classes are {', '.join(names[:SHOWN])}" + ", …" * (len(names) > SHOWN)
            raise InputError(f"{where}: {name or text} is no class of the data{near}")
        try:
            weights[names.index(name)] = float(text)
        except (ValueError, TypeError):
            raise InputError(f"{where}: found {text} as the weight of {name}; expected a number") from None
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise InputError(f"{where}: found weights {weights.tolist()}; expected numbers of at least 0, one above 0")
    return _said(weights, classes, say)


def by_counts(method, count):
    """(C,) float64 with mean 1, where count is (C,): how often each class occurs.

    inv_freq: 1 / count, as timm's compute_class_weights; auto: its square root; effective_num: (1 - beta) / (1 - beta^count)
    (Cui et al. 2019). A class that does not occur counts as if it came once, which no loss sees. Of (C, 2): the weight of those
    that have a label by that of those that have not.
    """
    count = np.maximum(np.asarray(count, np.float64), 1)
    weights = (1 - BETA) / (1 - BETA**count) if method == "effective_num" else count ** (-0.5 if method == "auto" else -1.0)
    return weights / weights.mean() if weights.ndim == 1 else weights[:, 0] / weights[:, 1]


def count_labels(source):
    """(C,): images of each class in a source of recognition; of several labels (C, 2): that have each, and have it not.
    InputError where it does not tell, as a stream."""
    if not hasattr(source, "labels"):
        raise InputError("--class_weights by shares needs the labels of all images, which a stream tells one by one; give "
                         "name=weight or a file")  # fmt: skip
    if source.labels.ndim == 2:
        return np.stack([source.labels.sum(0), (~source.labels).sum(0)], 1)
    return np.bincount(source.labels[source.labels >= 0], minlength=len(source.classes))


def count_pixels(source, most=2000):
    """(C,): pixels of each class in up to `most` masks of a source of segmentation, evenly spread."""
    if not hasattr(source, "read") or not hasattr(source, "name"):
        raise InputError("--class_weights by shares reads masks first, which --streaming cannot; give name=weight or a file")
    chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), most)).astype(int)).tolist()
    classes = len(source.classes)

    def count(index):
        try:
            mask = np.asarray(source.read(index)[1])
        except BadImage:  # of which training will tell
            return np.zeros(classes, np.int64)
        return np.bincount(mask[(mask >= 0) & (mask < classes)].ravel(), minlength=classes)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return sum(pool.map(count, chosen))


def _said(weights, classes, say):
    """The weights, after a line with the smallest and the largest of them."""
    low, high = int(np.argmin(weights)), int(np.argmax(weights))
    say(f"class weights: {weights[low]:.3g} ({classes[low]}) to {weights[high]:.3g} ({classes[high]})")
    return weights


def _of_file(path):
    try:
        pairs = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, dict):
        near = did_you_mean(path, METHODS) or f"; expected {', '.join(METHODS)}, such a file, or name=weight"
        raise InputError(f"--class_weights {path}: neither a method nor a JSON file of {{name: weight}}{near}")
    return {str(name): weight for name, weight in pairs.items()}
