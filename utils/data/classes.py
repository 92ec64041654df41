"""Data in the classes of a model: labels and masks are mapped by the names, so that no label is off by one."""

import numpy as np

from utils.cli.errors import InputError, did_you_mean
from utils.images.read import AS_STORED, IGNORE

SHOWN = 5


class InClasses:
    """A source whose labels, or masks, count in `classes`, among which its own are."""

    def __init__(self, source, classes, palette=None):
        number_of = {name: number for number, name in enumerate(classes)}
        self.number = np.array([number_of[name] for name in source.classes] + [IGNORE])  # the last is that of IGNORE, -1
        self.source, self.classes, self.title = source, classes, source.title
        self.reading, self.paths = getattr(source, "reading", AS_STORED), getattr(source, "paths", None)
        if palette is None:
            self.encoded = source.encoded
            if source.labels.ndim == 1:
                self.labels = self.number[source.labels]
            else:  # of several labels: a column for each of the classes
                self.labels = np.zeros((len(source), len(classes)), bool)
                self.labels[:, self.number[:-1]] = source.labels
        else:
            self.palette = np.array(palette, np.uint8)

    def __len__(self):
        return len(self.source)

    def name(self, index):
        return self.source.name(index)

    def read(self, index):
        sample = self.source.read(index)
        return sample if hasattr(self, "labels") else (sample[0], self.number[sample[1]])


def in_classes(source, classes, palette=None, say=print):
    """`source` in the `classes` (names) of the weights. palette: (classes, 3), of a segmentation network.

    The same names in another order are mapped, and so are some of them; both are said. Raises InputError for names that the
    weights do not have.
    """
    own = list(map(str, source.classes))
    if unknown := [name for name in own if name not in set(classes)]:
        near = did_you_mean(unknown[0], classes)
        raise InputError(
            f"{source.title}: {len(unknown)} of {len(own)} classes are none of the weights' ({_few(unknown)}{near}); they have "
            f"{len(classes)}: {_few(classes)}; name the classes of the data as these, or give the --classes of the training"
        )
    if own != classes and (twice := [name for name in own if classes.count(name) > 1]):
        raise InputError(f"{source.title}: the weights have two classes {twice[0]}, so that the data cannot be mapped by name")
    if len(own) < len(classes):
        say(f"classes: the data has {len(own)} of the weights' {len(classes)} ({_few(own)}): scored on these; an answer may be "
            "any of all")  # fmt: skip
    elif own != classes:
        say(f"classes: the data has the weights' {len(classes)} in another order: mapped by name")
    return source if own == classes and palette is None else InClasses(source, classes, palette)


def classes_of(start, source):
    """Names of the classes that the weights answer with: those that they tell; or ImageNet's, where the data has these; or
    those of the data, in whose order they are taken then. start: AsTrained, or None.

    Raises InputError where their numbers differ.
    """
    if start is None or start.classes:
        return source.classes if start is None else start.classes
    if not start.number:
        raise InputError("the weights have no classifier, so that there is nothing to evaluate; train first")
    own = set(map(str, source.classes))
    if names := next((names for names in imagenet_names(start.number) if own <= set(names)), None):
        return names
    if start.number != len(own):
        raise InputError(f"{source.title} has {len(own)} classes ({_few(source.classes)}), the weights {start.number}; a new "
                         "classifier would be scored: train it first")  # fmt: skip
    return source.classes


def imagenet_names(number):
    """The names of ImageNet's classes in the order of timm's weights with this `number` of them: as synsets, such as
    n01440764, and in words; () where no ImageNet has that number."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": number})
    if not subset:
        return ()
    info = ImageNetInfo(subset)
    return info.label_names(), [info.index_to_description(label) for label in range(number)]


def _few(names):
    return ", ".join([*map(str, names[:SHOWN]), *["…"] * (len(names) > SHOWN)])
