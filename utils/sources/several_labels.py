"""Several labels an image in tables of the library `datasets`: a column of lists of classes or names, or of text."""

import numpy as np

from utils.cli.errors import InputError
from utils.folders.label_lists import as_matrix, lists_of, refuse_bits
from utils.folders.names import few
from utils.sources.hub import find_column, holds_images, holds_labels

USUAL = ("labels", "label", "tags", "classes", "categories", "targets")


def holds_lists(feature):
    """Whether a column of this type holds lists of labels: of ClassLabel, whole numbers or names."""
    inner = getattr(feature, "feature", None) or (feature[0] if isinstance(feature, list) and feature else None)
    return inner is not None and holds_labels(inner)


def refuse_lists(table):
    """InputError if a column holds lists of labels, which --task multilabel reads."""
    if lists := [name for name, feature in table.features.items() if holds_lists(feature)]:
        raise InputError(f"column '{lists[0]}' holds lists of labels, several an image: give --task multilabel")


def columns_of(table, image_column, label_column):
    """(image column, column of lists of labels). Raises InputError where there is none."""
    image_column = find_column(table, image_column, "image", holds_images, ("image", "img", "images", "jpg", "png"))
    fits = holds_lists if any(map(holds_lists, table.features.values())) else holds_labels  # text, which may list them
    return image_column, find_column(table, label_column, "label", fits, USUAL)


def labels_of(table, column, classes=None, listed=None, say=print):
    """((N, C) bool, class names) of a column of lists; None and [] are images without a label. Raises InputError
    for other labels than these, and as `refuse_bits`.

    classes: those of the training set, by which labels are taken then. listed: the names in classes.txt.
    """
    feature, values = table.features[column], table.with_format("arrow")[:][column].to_pylist()
    where = f"column '{column}'"
    if holds_lists(feature):
        refuse_bits(where, values)
        inner = getattr(feature, "feature", None) or feature[0]
        names = getattr(inner, "names", None) or (listed if inner.dtype.startswith(("int", "uint")) else None)
        lists = [[_name(label, names, f"{where}, row {row}") for label in labels or ()] for row, labels in enumerate(values)]
    else:
        names, lists = listed, lists_of(where, values, say)
    found = {name for labels in lists for name in labels}
    if classes is None:
        classes = list(names or sorted(found, key=lambda name: (int(name) if name.isdigit() else -1, name)))
    elif extra := sorted(found - set(classes)):
        raise InputError(f"the validation split has labels that the training split lacks ({few(extra)})")
    return as_matrix(where, lists, classes), classes


def _name(value, names, where):
    """The name of a label that is a number below len(names), or a name. Raises InputError for another one."""
    if isinstance(value, str) or names is None:
        return str(value)
    if not isinstance(value, int | np.integer) or not 0 <= value < len(names):
        raise InputError(f"{where} has the label {value}; expected 0..{len(names) - 1}")
    return names[value]
