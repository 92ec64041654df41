"""Where images and labels come from: the built-in digits, class folders, and the library `datasets`.

A source has `read(index)` -> PIL image in RGB, `encoded(index)` -> the bytes of its file, or None where there is no file,
`labels` (N,) int64 array, `classes` list of names, `name(index)`, and `title`, which says what it is. Both raise BadImage.
"""

import contextlib
import difflib
import os
import pathlib
import re

import numpy as np
import torch
from PIL import Image

from utils.cli.errors import InputError, first_line
from utils.data.bad_samples import read_or_replace
from utils.data.sampling import AUGMENT, Key, seed_everything, stream_seed
from utils.data.streaming import place_of
from utils.data.string_list import StringList
from utils.images import BadImage, check_header, decode_image, is_image, naming, read_bytes, read_image
from utils.sources.folder_index import index_folder
from utils.sources.hub import (
    encoded_image,
    encoded_images,
    find_column,
    holds_images,
    listed_classes,
    load_splits,
    open_stream,
)


class RecognitionDataset(torch.utils.data.Dataset):
    """Indexed by `Key`: (what `transform` makes of the image, …, label); label -1 where the key does not count.

    `seed`: for training. The augmentation's random numbers are keyed by it, the epoch and the sample, and a broken image is
    replaced by another with its label; a third element says so: the index of the broken sample, or -1. Without a seed, for
    a transform without chance, a broken image raises BadImage.
    """

    def __init__(self, source, transform, seed=None):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return len(self.source.labels)

    def __getitem__(self, key):
        key = key if isinstance(key, Key) else Key(key)
        seed = None if self.seed is None else stream_seed(self.seed, AUGMENT, key.epoch, key.index)
        parts, index = read_or_replace(lambda index: self._read(index, seed), key, self.seed, len(self))
        label = int(self.source.labels[index]) if key.counts else -1
        return (*parts, label) if seed is None else (*parts, label, -1 if index == key.index else key.index)

    def _read(self, index, seed):
        encoded = self.source.encoded(index) if getattr(self.transform, "takes_bytes", False) else None
        image = self.source.read(index) if encoded is None else encoded
        return transformed(self.transform, image, self.source.name(index), seed)


def transformed(transform, image, name, seed):
    """What `transform` makes of a PIL image, or of the bytes of a file, as a tuple; with these random numbers, if any.

    Raises BadImage, with the `name`, for bytes that cannot be decoded.
    """
    if seed is not None:
        seed_everything(seed)
    with naming(name) if isinstance(image, bytes) else contextlib.nullcontext():
        made = transform(image)
    return made if isinstance(made, tuple) else (made,)


class RecognitionStream:
    """What a `streaming.StreamLoader` makes of an example: (what `transform` makes of the image, …, label).

    The augmentation's random numbers are keyed by `seed`, the epoch and the number of the sample.
    """

    def __init__(self, source, transform, seed):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return self.source.samples

    def __call__(self, example, number, epoch):
        label = self.source.label(example, number)
        look = self.source.encoded if getattr(self.transform, "takes_bytes", False) else self.source.read
        seed = stream_seed(self.seed, AUGMENT, epoch, number)
        return *transformed(self.transform, look(example, number), self.source.name(number), seed), label


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

    def encoded(self, index):
        return None

    def name(self, index):
        return f"digit {index}"


class Folder:
    """One folder per class, images at any depth below it, in any format that Pillow reads."""

    def __init__(self, root, paths, labels, classes):
        self.root, self.title = root, root
        self.paths = paths if isinstance(paths, StringList) else StringList(paths)
        self.labels, self.classes = np.asarray(labels, dtype=np.int64), classes

    def read(self, index):
        return read_image(self.name(index))

    def encoded(self, index):
        return read_bytes(self.name(index))

    def name(self, index):
        return os.path.join(self.root, self.paths[index])


class TableOfImages:
    """A split of the library `datasets` with an image and a label column. A path in it must lie in the folder `root`."""

    def __init__(self, table, image_column, labels, classes, title, root, rows=None):
        self.table = encoded_images(table, image_column)
        self.image_column, self.root, self.rows, self.title = image_column, root, rows, title
        self.labels, self.classes = np.asarray(labels, dtype=np.int64), classes

    def _row(self, index):
        return index if self.rows is None else int(self.rows[index])

    def read(self, index):
        return decode_image(self.encoded(index), self.name(index))

    def encoded(self, index):
        try:
            return encoded_image(self.table[self._row(index)][self.image_column], self.root, self.name(index))
        except InputError as error:
            raise BadImage(first_line(error)) from None

    def name(self, index):
        return f"row {self._row(index)}, column '{self.image_column}'"


class StreamOfImages:
    """A split of the library `datasets` that is read in order, `table`; `samples` is how many it has.

    `read(example, number)`, `encoded(example, number)`, `label(example, number)` and `name(number)` take a row as the
    stream gives it, and its number: nothing can be looked up.
    """

    def __init__(self, table, samples, image_column, label_column, classes, title, root):
        self.table = encoded_images(table, image_column, beside=[label_column])
        self.samples, self.image_column, self.label_column = samples, image_column, label_column
        self.classes, self.title, self.root = classes, title, root
        self.label_of = {name: label for label, name in enumerate(classes)}

    def read(self, example, number):
        return decode_image(self.encoded(example, number), self.name(number))

    def encoded(self, example, number):
        try:
            return encoded_image(example[self.image_column], self.root, self.name(number))
        except InputError as error:
            raise BadImage(first_line(error)) from None

    def label(self, example, number):
        value = example[self.label_column]
        label = self.label_of.get(value) if isinstance(value, str) else value
        if not isinstance(label, int) or not 0 <= label < len(self.classes):
            known = f"{', '.join(self.classes[:5])}{', …' if len(self.classes) > 5 else ''}"
            raise InputError(
                f"{self.name(number)} has the label {value}; expected one of {len(self.classes)} classes ({known})"
            )
        return label

    def name(self, number):
        shard, row = place_of(number)
        return f"row {row} of shard {shard}, column '{self.image_column}'"


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
    found, images, counts = index_folder(root)
    if not found:
        images = sum(is_image(name) for name in os.listdir(root))
        raise InputError(f"{root} has {images} images and no folders: expected one folder per class")
    if classes is not None and (extra := sorted(set(found) - set(classes))):
        raise InputError(
            f"{root} has {len(extra)} class{'es' * (len(extra) > 1)} that the training set lacks ({', '.join(extra[:5])}); "
            f"the training set has {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
        )
    if empty := [name for name, count in zip(found, counts, strict=True) if not count]:
        raise InputError(
            f"{root}: no images in class folder {', '.join(empty[:5])}: expected files such as .jpg or .png; "
            "remove empty folders"
        )
    label_of = {name: label for label, name in enumerate(classes or found)}
    return Folder(root, images, np.repeat([label_of[name] for name in found], counts), classes or found)


def hub_table(name, image_column=None, label_column=None, val_split=None, seed=0):
    """(train, val) through the library `datasets`: a Hub name, a folder of Parquet or Arrow files, an imagefolder.

    Columns are found by their type and usual names where they are not given. Raises InputError naming what was found.
    """
    splits, held_out = load_splits(name, val_split)
    table, root = splits["train"], name if os.path.isdir(name) else None
    image_column, label_column = _columns(table, image_column, label_column)
    listed = listed_classes(name)
    labels, classes = _labels(table, label_column, listed=listed)
    if val_split is not None:
        train, val = stratified_split(labels, val_split, seed)
        return tuple(TableOfImages(table, image_column, labels[rows], classes, name, root, rows) for rows in (train, val))
    train = TableOfImages(table, image_column, labels, classes, name, root)
    return train, _held_out(name, splits[held_out], held_out, image_column, label_column, classes, listed)


def hub_stream(name, image_column=None, label_column=None, train_images=None):
    """(StreamOfImages to train on, TableOfImages to validate on): as `hub_table`, of which training data are not prepared.

    train_images: their number, where it is not written in the data. Classes are those of a ClassLabel column, or of
    classes.txt in the folder, or of all labels where these can be read by themselves: Parquet and WebDataset on disk.
    """
    stream = open_stream(name, train_images)
    image_column, label_column = _columns(stream.table, image_column, label_column)
    listed, feature = listed_classes(name), stream.table.features[label_column]
    if classes := getattr(feature, "names", None) or listed:
        classes = list(classes)
    elif (labels := stream.labels(label_column)) is not None:
        _, classes = _labels(labels, label_column)
    else:
        raise InputError(
            f"--dataset {name} --streaming: what classes column '{label_column}' has is not known without reading all of it; "
            "put classes.txt into the folder, a name a line, or leave out --streaming"
        )
    root = name if os.path.isdir(name) else None
    train = StreamOfImages(stream.table, stream.samples, image_column, label_column, classes, f"{name}, streamed", root)
    held_out = stream.held_out
    return train, _held_out(name, stream.val_table, held_out, image_column, label_column, classes, listed)


def _columns(table, image_column, label_column):
    """(image column, label column): those that are named, or found."""
    usual = ("label", "labels", "class", "target", "fine_label", "cls")
    image_column = find_column(table, image_column, "image", holds_images, ("image", "img", "images", "jpg", "png"))
    return image_column, find_column(table, label_column, "label", _holds_labels, usual)


def _held_out(name, table, split, image_column, label_column, classes, listed):
    """The TableOfImages of the validation split."""
    for column in (image_column, label_column):
        if column not in table.column_names:
            raise InputError(f"--dataset {name}: split {split} has no column '{column}', as train has")
    labels, _ = _labels(table, label_column, classes, listed)
    return TableOfImages(table, image_column, labels, classes, name, name if os.path.isdir(name) else None)


def _holds_labels(feature):
    import datasets

    return isinstance(feature, datasets.ClassLabel) or re.fullmatch(r"u?int\d+|string", getattr(feature, "dtype", ""))


_MOST_CLASSES = 10**6


def _labels(table, column, classes=None, listed=None):
    """((N,) int64, class names) of a label column: ClassLabel, whole numbers from 0, or names; checked on `classes`.

    listed: names that classes.txt has for numbers, or in the order that it has them.
    """
    import datasets

    feature, values = table.features[column], table.with_format("arrow")[:][column].to_pylist()
    if None in values:
        raise InputError(f"column '{column}': row {values.index(None)} has no label")
    if not values or not _holds_labels(feature):
        raise InputError(f"column '{column}': found {len(values)} rows of {feature}; expected names or whole numbers")
    if not isinstance(values[0], str) and max(values) >= _MOST_CLASSES:
        raise InputError(f"column '{column}': row {values.index(max(values))} has the label {max(values)}; expected a class")
    if isinstance(feature, datasets.ClassLabel) or (listed and not isinstance(values[0], str)):
        names = list(getattr(feature, "names", listed))
        if min(values, default=0) < 0:
            raise InputError(f"column '{column}': row {values.index(min(values))} has the label {min(values)}")
        if max(values) >= len(names):
            raise InputError(f"column '{column}': row {values.index(max(values))} has the label {max(values)} of {len(names)}")
        values = [names[value] for value in values]
    elif feature.dtype == "string":
        names = listed or sorted(set(values))
        if extra := sorted(set(values) - set(names)):
            raise InputError(f"column '{column}': found labels that classes.txt lacks ({', '.join(extra[:5])})")
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
    """Open up to `count` files, evenly spread, and read their headers: BadImage names the first that is no image."""
    if not isinstance(source, Folder):
        return
    for index in np.unique(np.linspace(0, len(source.labels) - 1, min(count, len(source.labels))).astype(int)):
        check_header(source.name(int(index)))
