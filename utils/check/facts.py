"""What is found in the data of a run, as a dict that JSON can hold: the files are looked at in a sample, or all of them."""

import collections
import os

import numpy as np

from utils.data.bad_samples import in_threads
from utils.data.look import look_at
from utils.data.sampling import spread
from utils.folders.copies import equal_groups, look_alike
from utils.images.read import AS_STORED, BadImage

NEAR, MOST_FILES, MOST_ROWS = 100, 200_000, 2_000  # images of each split that are compared by looks, and by bytes
NAMED = 20  # pairs and names that are kept


def find_facts(train, val, everything=False):
    """The facts of a training and a validation source, for `report.describe`.

    everything: all images are read instead of a sample. Sources without files, such as streams, tell their numbers only.
    """
    facts = {"title": train.title, "classes": list(map(str, train.classes)), "everything": everything}
    for split, source in (("train", train), ("val", val)):
        facts[split] = {"images": len(source), **_files(source, everything)}
        if hasattr(source, "labels") and hasattr(source, "file"):
            facts[split] |= _labels(source.labels, len(train.classes))
    left_out = collections.Counter(getattr(train, "left_out", {}))
    if getattr(val, "root", None) != getattr(train, "root", None):  # of two trees, not of a split of one
        left_out.update(getattr(val, "left_out", {}))
    facts |= {"left_out": dict(left_out), "notes": [*getattr(train, "notes", ())]}
    facts |= getattr(train, "reading", AS_STORED).as_config()
    if all(hasattr(source, "file") and len(source) for source in (train, val)) and train is not val:
        facts["copies"] = _copies(train, val, everything)
    return facts


def _labels(labels, classes):
    """How many images each class has; and of several labels an image (N, C), how many images have none."""
    if labels.ndim == 1:
        return {"per_class": np.bincount(labels, minlength=classes).tolist()}
    return {"per_class": labels.sum(0).tolist(), "without_label": int((~labels.any(1)).sum())}


def _files(source, everything):
    """What the images of a source are, by those that were looked at."""
    if not hasattr(source, "file") or not len(source):
        return {}
    in_chans = getattr(source, "reading", AS_STORED).in_chans
    seen = look_at(source, len(source), in_chans) if everything else getattr(source, "seen", None) or look_at(source)
    whole = [one for one in seen.values() if one is not None]
    unreadable = [source.name(index) for index, one in seen.items() if one is None]
    if everything:
        unreadable = [name for name in in_threads(lambda index: _unreadable(source, index), range(len(source))) if name]
    found = {"looked_at": len(seen), "unreadable": len(unreadable), "unreadable_names": unreadable[:NAMED]}
    if whole:
        sizes = sorted((one.size for one in whole), key=lambda size: size[0] * size[1])
        found["sizes"] = [list(sizes[place]) for place in (0, len(sizes) // 2, -1)]
        found["formats"] = dict(collections.Counter(one.format for one in whole).most_common())
        found["modes"] = dict(collections.Counter(one.mode for one in whole).most_common())
        found["turned"] = sum(one.orientation in range(2, 9) for one in whole)
        found["transparent"] = sum(one.transparent for one in whole)
        found["brightest"] = max((one.brightest for one in whole if one.brightest is not None), default=None)
    return found


def _unreadable(source, index):
    """The name of a sample that cannot be read, or None."""
    try:
        source.read(index)
    except BadImage:
        return source.name(index)
    except ValueError as error:  # a mask
        return str(error)


def _copies(train, val, everything):
    """Images of the validation set that are images of the training set, too: equal by bytes, or by their looks.

    equal, near: [[validation image, training image], …], the first of them; of two classes: the same for images of one split
    that are in two classes; compared, compared_by_looks: how many validation images were.
    """
    chosen = [range(len(train)), range(len(val))]
    if len(train) + len(val) > (MOST_FILES if isinstance(train.file(0), str) else MOST_ROWS) and not everything:
        chosen = _some_to_compare(train, val)
    files = [train.file(index) for index in chosen[0]] + [val.file(index) for index in chosen[1]]
    names = [_short(train, index) for index in chosen[0]] + [_short(val, index) for index in chosen[1]]
    labels = [source.labels[i].tobytes() for source, part in ((train, chosen[0]), (val, chosen[1])) for i in part] if hasattr(
        train, "labels") else None  # fmt: skip
    first_val, equal, conflicts = len(chosen[0]), [], []
    for group in equal_groups(files):
        if group[0] < first_val:
            equal += [[names[index], names[group[0]]] for index in group if index >= first_val]
        if labels:
            others = [index for index in group if labels[index] != labels[group[0]]]
            conflicts += [[names[group[0]], names[index]] for index in others[:1]]
    near_of = [range(len(source)) if everything else spread(len(source), NEAR) for source in (train, val)]
    known = {name for name, _ in equal}
    near = [
        [_short(val, near_of[1][b]), _short(train, near_of[0][a])]
        for a, b in look_alike([train.file(i) for i in near_of[0]], [val.file(i) for i in near_of[1]])
    ]
    near = [pair for pair in near if pair[0] not in known]
    return {
        "equal": len(equal), "equal_pairs": equal[:NAMED], "near": len(near), "near_pairs": near[:NAMED],
        "conflicts": len(conflicts), "conflict_pairs": conflicts[:NAMED], "compared": len(chosen[1]),
        "compared_by_looks": len(near_of[1]),
    }  # fmt: skip


def _some_to_compare(train, val):
    """(training, validation) indices, MOST_ROWS at most; of tables, those of equal size in bytes, which may be copies."""
    sizes = [source.sizes() if hasattr(source, "sizes") else None for source in (train, val)]
    if any(found is None for found in sizes):
        return [spread(len(source), MOST_ROWS // 2) for source in (train, val)]
    looked = MOST_ROWS // 2
    while True:
        of_val = np.array(spread(len(val), looked))
        of_train = np.flatnonzero(np.isin(sizes[0], sizes[1][of_val]))
        if len(of_train) + len(of_val) <= MOST_ROWS or looked < 2:
            return [of_train[:MOST_ROWS].tolist(), of_val.tolist()]
        looked //= 2


def _short(source, index):
    """The last three parts of an image's path, or the row of a table."""
    name = source.name(index)
    return name.partition(",")[0] if name.startswith("row ") else "/".join(name.split(os.sep)[-3:])
