"""Where images and labels come from: the built-in digits, class folders, and the library `datasets`.

A source has `read(index)` -> PIL image in RGB, `labels` (N,) int64 array, `classes` list of names, `name(index)`, and
`title`, which says what it is.
"""

import difflib
import os
import pathlib
import re

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from utils.arguments import InputError
from utils.hub_tables import find_column, holds_images, load_splits
from utils.images import is_image, read_image, to_rgb
from utils.sampling import AUGMENT, Key, seed_everything, stream_seed
from utils.string_list import StringList


class RecognitionDataset(torch.utils.data.Dataset):
    """Indexed by `Key`: (image (3, H, W) float32, label); label -1 where the key does not count.

    `seed`: the augmentation's random numbers are keyed by it, the epoch and the sample; None for a transform
    without chance.
    """

    def __init__(self, source, transform, seed=None):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return len(self.source.labels)

    def __getitem__(self, key):
        key = key if isinstance(key, Key) else Key(key)
        image = self.source.read(key.index)
        if self.seed is not None:
            seed_everything(stream_seed(self.seed, AUGMENT, key.epoch, key.index))
        return self.transform(image), int(self.source.labels[key.index]) if key.counts else -1


# --- sources --------------------------------------------------------------------------------------------------------


class Digits:
    """scikit-learn's handwritten digits: real 8x8 scans (UCI, optdigits), ten classes, shown as RGB."""

    title = "built-in digits"

    def __init__(self, indices):
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.images = (digits.images[indices] * (255 / 16)).round().astype(np.uint8)
        self.labels = digits.target[indices].astype(np.int64)
        self.classes = [str(name) for name in digits.target_names]

    def read(self, index):
        return Image.fromarray(self.images[index]).convert("RGB")

    def name(self, index):
        return f"digit {index}"


class Folder:
    """One folder per class, images at any depth below it, in any format that Pillow reads."""

    def __init__(self, root, paths, labels, classes):
        self.root, self.paths, self.title = root, StringList(paths), root
        self.labels, self.classes = np.asarray(labels, dtype=np.int64), classes

    def read(self, index):
        return read_image(self.name(index))

    def name(self, index):
        return os.path.join(self.root, self.paths[index])


class TableOfImages:
    """A split of the library `datasets` with an image and a label column."""

    def __init__(self, table, image_column, labels, classes, title, rows=None):
        self.table, self.image_column, self.rows, self.title = table, image_column, rows, title
        self.labels, self.classes = np.asarray(labels, dtype=np.int64), classes

    def _row(self, index):
        return index if self.rows is None else int(self.rows[index])

    def read(self, index):
        try:
            return to_rgb(self.table[self._row(index)][self.image_column])
        except (OSError, SyntaxError, ValueError, AttributeError) as error:
            raise InputError(f"{self.name(index)} is no image that Pillow can read ({error})") from None

    def name(self, index):
        return f"row {self._row(index)}, column '{self.image_column}'"


class Counted:
    """Stands in for images that are not here, where only their number matters."""

    def __init__(self, title, images, classes):
        self.title, self.labels = title, np.zeros(images, dtype=np.int64)
        self.classes = [str(number) for number in range(classes)]


# classes -> name, training and validation images. 22K: the fall 2011 release, which ConvNeXt trains on whole.
IMAGENET = {1000: ("ImageNet-1K", 1_281_167, 50_000), 21_841: ("ImageNet-22K", 14_197_122, 0)}


def imagenet_sizes(data_path, nb_classes):
    """(train, val) in the sizes of ImageNet with so many classes, for a dry run without the images."""
    if nb_classes not in IMAGENET:
        raise InputError(
            f"--data_path {data_path}: no such folder; to count without it, give --nb_classes {' or '.join(map(str, IMAGENET))}"
        )
    name, train, val = IMAGENET[nb_classes]
    title = f"{name} by its published size ({data_path} is not here)"
    return Counted(title, train, nb_classes), Counted(title, val, nb_classes)


def digits():
    """(train, val): the fixed, stratified 80/20 split of the digits, the same for every seed."""
    from sklearn.datasets import load_digits

    train, val = stratified_split(load_digits().target, 0.2, seed=0)
    return Digits(train), Digits(val)


def folders(data_path, eval_data_path=None, val_split=None, seed=0, need_val=True):
    """(train, val) from `data_path` with train/ and val/, from two trees, or from one tree and `val_split`.

    Without `need_val`, val may be missing and has no images then. Raises InputError for a folder that is missing or
    empty and for classes in val that train lacks.
    """
    root = pathlib.Path(data_path)
    if not root.is_dir():
        near = difflib.get_close_matches(root.name, os.listdir(root.parent), n=1) if root.parent.is_dir() else []
        raise InputError(f"--data_path {root}: no such folder" + (f", did you mean {near[0]}?" if near else ""))
    has_train = (root / "train").is_dir()
    train_root = root / "train" if has_train else root
    if val_split is not None:
        if eval_data_path or (has_train and (root / "val").is_dir()):
            raise InputError(f"--val_split {val_split}: there is a validation set already; leave one of the two out")
        tree = scan_folder(train_root)
        train, val = stratified_split(tree.labels, val_split, seed)
        return tuple(Folder(tree.root, [tree.paths[i] for i in part], tree.labels[part], tree.classes) for part in (train, val))
    val_root = pathlib.Path(eval_data_path) if eval_data_path else root / "val"
    if not val_root.is_dir():
        if eval_data_path:
            raise InputError(f"--eval_data_path {val_root}: no such folder")
        if not need_val:
            train = scan_folder(train_root)
            return train, Folder(train.root, [], [], train.classes)
        found = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:5]) or "no folders"
        raise InputError(
            f"--data_path {root}: found {found}; expected train/ and val/ with one folder per class in each, "
            "or give --val_split 0.1 to split one tree"
        )
    train = scan_folder(train_root)
    return train, scan_folder(val_root, train.classes)


def scan_folder(root, classes=None):
    """The `Folder` of a tree with one folder per class; with `classes`, labels follow them and no other may occur."""
    root = str(root)
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        images = sum(is_image(name) for name in os.listdir(root))
        raise InputError(f"{root} has {images} images and no folders: expected one folder per class")
    if classes is not None and (extra := sorted(set(found) - set(classes))):
        raise InputError(
            f"{root} has {len(extra)} class{'es' * (len(extra) > 1)} that the training set lacks ({', '.join(extra[:5])}); "
            f"the training set has {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
        )
    label_of = {name: label for label, name in enumerate(classes or found)}
    paths, labels, empty = [], [], []
    for name in found:
        files = sorted(_image_files(root, name))
        if not files:
            empty.append(name)
        paths += files
        labels += [label_of[name]] * len(files)
    if empty:
        raise InputError(
            f"{root}: no images in class folder {', '.join(empty[:5])}: expected files such as .jpg or .png; "
            "remove empty folders"
        )
    return Folder(root, paths, labels, classes or found)


def _image_files(root, below):
    for entry in os.scandir(os.path.join(root, below)):
        if entry.name.startswith("."):
            continue
        path = os.path.join(below, entry.name)
        if entry.is_dir():
            yield from _image_files(root, path)
        elif is_image(entry.name):
            yield path


def hub_table(name, image_column=None, label_column=None, val_split=None, seed=0):
    """(train, val) through the library `datasets`: a Hub name, a folder of Parquet or Arrow files, an imagefolder.

    Columns are found by their type and usual names where they are not given. Raises InputError naming what was found.
    """
    import datasets

    splits, held_out = load_splits(name, val_split)
    table = splits["train"]
    image_column = find_column(table, image_column, "image", holds_images, ("image", "img", "images", "jpg", "png"))
    label_column = find_column(
        table, label_column, "label", _holds_labels, ("label", "labels", "class", "target", "fine_label", "cls")
    )
    labels, classes = _labels(table, label_column)
    if val_split is not None:
        train, val = stratified_split(labels, val_split, seed)
        table = table.cast_column(image_column, datasets.Image())
        return tuple(TableOfImages(table, image_column, labels[rows], classes, name, rows) for rows in (train, val))
    val_table = splits[held_out]
    for column in (image_column, label_column):
        if column not in val_table.column_names:
            raise InputError(f"--dataset {name}: split {held_out} has no column '{column}', as train has")
    val_labels, _ = _labels(val_table, label_column, classes)
    return tuple(
        TableOfImages(part.cast_column(image_column, datasets.Image()), image_column, part_labels, classes, name)
        for part, part_labels in ((table, labels), (val_table, val_labels))
    )


def _holds_labels(feature):
    import datasets

    return isinstance(feature, datasets.ClassLabel) or re.fullmatch(r"u?int\d+|string", getattr(feature, "dtype", ""))


def _labels(table, column, classes=None):
    """((N,) int64, class names) of a label column: ClassLabel, whole numbers from 0, or names; checked on `classes`."""
    import datasets

    feature, values = table.features[column], table.with_format("arrow")[:][column].to_pylist()
    if None in values:
        raise InputError(f"column '{column}': row {values.index(None)} has no label")
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        if min(values, default=0) < 0:
            raise InputError(f"column '{column}': row {values.index(min(values))} has the label {min(values)}")
        values = [names[value] for value in values]
    elif feature.dtype == "string":
        names = sorted(set(values))
    else:
        if min(values) < 0:
            raise InputError(f"column '{column}': row {values.index(min(values))} has the label {min(values)}")
        names = [str(number) for number in range(max(values) + 1)]
        values = [str(value) for value in values]
    classes = names if classes is None else classes
    index = {name: i for i, name in enumerate(classes)}
    if extra := sorted(set(values) - set(index)):
        raise InputError(f"the validation split has labels that the training split lacks ({', '.join(extra[:5])})")
    return np.array([index[value] for value in values], dtype=np.int64), classes


# --- leaves ---------------------------------------------------------------------------------------------------------


def stratified_split(labels, val_split, seed):
    """(train, val) sorted index arrays; from each class the share `val_split`, but one image at least stays in train."""
    labels = np.asarray(labels)
    val = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rng = np.random.default_rng([seed, int(label)])
        take = min(max(round(len(members) * val_split), 1), len(members) - 1)
        val.append(rng.permutation(members)[:take])
    val = np.sort(np.concatenate(val))
    if len(val) == 0:
        raise InputError(f"--val_split {val_split}: {len(labels)} images leave none for validation; add images")
    return np.setdiff1d(np.arange(len(labels)), val), val


def check_headers(source, count=2000):
    """Open up to `count` files, evenly spread, and read their headers: names the first that is no image."""
    if not isinstance(source, Folder):
        return
    for index in np.unique(np.linspace(0, len(source.labels) - 1, min(count, len(source.labels))).astype(int)):
        path = source.name(int(index))
        try:
            with Image.open(path):
                pass
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise InputError(f"{path} is no image: expected a file that Pillow can read; remove or replace it") from None
