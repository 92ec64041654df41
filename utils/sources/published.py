"""Published data sets: opened as their line in the registry says, or counted by their published numbers in a dry run."""

import os

import numpy as np

from utils.cli.registry import load
from utils.data.masks import voc_palette


def open_published(known, data_path, train_split="train", dry_run=False):
    """(training, validation) sources of a data set in the folder `data_path`; known: its line, utils.sources.DataSet.

    train_split: "train", or "trainval" to train on the validation images too. In a dry run a data set that is missing, or that
    would be downloaded, is counted.
    """
    if dry_run and (known.downloads or not os.path.isdir(data_path)):
        return count_published(known, data_path, train_split)
    return load(known.load)(data_path, train_split)


def count_published(known, data_path, train_split="train"):
    """(training, validation) `Counted` sources with the published numbers of a data set."""
    missing = "" if os.path.isdir(data_path) else f" ({data_path} is not here)"
    train = known.train_images + (known.val_images if train_split == "trainval" else 0)
    title = f"{known.title} by its published size{missing}"
    return Counted(title, train, known.classes), Counted(title, known.val_images, known.classes)


class Counted:
    """A source, of either task, for a dry run: it has a number of images, which cannot be read, and numbered classes."""

    def __init__(self, title, images, classes):
        self.title, self.labels = title, np.zeros(images, np.int64)
        self.classes, self.palette = [str(number) for number in range(classes)], voc_palette(classes)

    def __len__(self):
        return len(self.labels)
