"""The names of classes: classes.txt, numbers of masks, and how many there are."""

import collections
import os

from utils.cli.errors import InputError, one_line
from utils.files import read_text
from utils.folders.names import few

SAMPLE = 200  # masks that are read to count the classes if classes.txt does not list them
MOST_CLASSES = 65_535  # ids in masks of 16 bits; 65535 is no class


def listed_classes(folder, most=1_000_000):
    """The names in classes.txt in `folder`, one a line; None if there is no such file.

    Raises InputError for a file that is no text, has fewer than two names or more than `most`, or a name twice.
    """
    path = os.path.join(folder, "classes.txt")
    if not os.path.isfile(path):
        return None
    names = [one_line(line, 200) for line in read_text(path, "a name on each line").splitlines() if line.strip()]
    if not 2 <= len(names) <= most:
        raise InputError(f"{path}: found {len(names)} names, expected two classes at least, one a line")
    if len(set(names)) < len(names):
        twice = next(name for name, times in collections.Counter(names).items() if times > 1)
        raise InputError(f"{path}: {twice} is in it more than once; expected each class on one line")
    return names


def check_number(nb_classes, classes):
    """Raise InputError if --nb_classes is given and is not the number of the `classes` of the data."""
    if nb_classes not in (None, len(classes)):
        raise InputError(f"--nb_classes {nb_classes}: the data has {len(classes)} classes ({few(classes)}); leave the flag out")
