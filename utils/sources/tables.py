"""Sources made from tables of the library `datasets`, and from streams of their rows, for both tasks.

A table can be indexed. A stream is read in order by `utils.data.streaming.StreamLoader`: its methods take a row, and the
number that names it.
"""

import functools
import io
import os

import numpy as np

from utils.cli.errors import InputError, first_line
from utils.data.masks import decode_values, fit_image, to_classes
from utils.data.sampling import spread
from utils.data.streaming import place_of
from utils.folders.class_names import MOST_CLASSES, listed_classes
from utils.folders.hold_out import hold_out
from utils.folders.names import few
from utils.images import BadImage, decode_image
from utils.mask_folders.ids import SAMPLE, find_ids
from utils.sources import several_labels
from utils.sources.hub import (
    check_columns,
    encoded_images,
    find_column,
    holds_images,
    holds_labels,
    load_splits,
    open_stream,
)
from utils.sources.hub_files import encoded_image

MOST_NUMBERS = 10**6  # labels that are numbers without names; a larger one is taken for a mistake


class _Table:
    """Rows of a table: all of them, or those whose numbers are in the array `rows`. value_range: as of images.to_rgb.

    columns: its columns of images, the first that of the image itself. Paths in them must lie in the folder `root`; None: in
    the libraries' caches.
    """

    value_range, notes = None, ()

    def __init__(self, table, columns, title, root, rows=None):
        self.table, self.columns, self.title, self.root = encoded_images(table, columns), columns, title, root
        self.rows = np.arange(len(table)) if rows is None else rows

    def __len__(self):
        return len(self.rows)

    def row(self, index):
        """The row as {column: value}."""
        return self.table[int(self.rows[index])]

    def name(self, index, column=0):
        return f"row {self.rows[index]}, column '{self.columns[column]}'"

    def file(self, index):
        """An open file with the image, as it is stored."""
        return io.BytesIO(_bytes_of(self.row(index), self.columns[0], self.root, self.name(index)))


class _Stream:
    """A table that is read in order, of which an epoch has `samples` rows. columns, root: as of `_Table`; beside: others."""

    value_range, notes = None, ()

    def __init__(self, table, samples, columns, title, root, beside=()):
        self.table, self.samples = encoded_images(table, columns, beside), samples
        self.columns, self.title, self.root = columns, title, root

    def __len__(self):
        return self.samples

    def name(self, number, column=0):
        shard, row = place_of(number)
        return f"row {row} of shard {shard}, column '{self.columns[column]}'"


def _bytes_of(row, column, root, name):
    """The bytes of the image in a row. Raises BadImage, which begins with `name`, if there are none."""
    try:
        return encoded_image(row[column], root, name)
    except InputError as error:
        raise BadImage(first_line(error)) from None


# --- recognition ----------------------------------------------------------------------------------------------------


class TableOfImages(_Table):
    """A source of recognition. labels: (N,) int64 of the rows, or (N, C) bool of several."""

    def __init__(self, table, image_column, labels, classes, title, root, rows=None):
        super().__init__(table, (image_column,), title, root, rows)
        self.labels, self.classes = labels, classes

    def read(self, index):
        return decode_image(self.file(index).getvalue(), self.name(index), value_range=self.value_range)

    def encoded(self, index):
        return None if self.value_range else self.file(index).getvalue()

    def part(self, indices):
        """The rows with these places only."""
        part = TableOfImages(
            self.table, *self.columns, self.labels[indices], self.classes, self.title, self.root, self.rows[indices]
        )
        part.notes = self.notes
        return part


class StreamOfImages(_Stream):
    """A stream of recognition. Its labels are numbers below len(classes), or names among them."""

    def __init__(self, table, samples, image_column, label_column, classes, title, root):
        super().__init__(table, samples, (image_column,), title, root, beside=(label_column,))
        self.label_column, self.classes = label_column, classes
        self.label_of = {name: label for label, name in enumerate(classes)}

    def read(self, example, number):
        return decode_image(self.encoded(example, number), self.name(number))

    def encoded(self, example, number):
        return _bytes_of(example, self.columns[0], self.root, self.name(number))

    def label(self, example, number):
        """The label, an int. Raises InputError for one that is no class."""
        value = example[self.label_column]
        label = self.label_of.get(value) if isinstance(value, str) else value
        if not isinstance(label, int) or not 0 <= label < len(self.classes):
            expected = f"one of {len(self.classes)} classes ({few(self.classes)})"
            raise InputError(f"{self.name(number)} has the label {value}; expected {expected}")
        return label


def tables_of_images(
    name, image_column=None, label_column=None, val_split=None, seed=0, need_train=True, say=print, several=False
):
    """(training, validation) `TableOfImages` of the data set `name`.

    Columns are found by their types and usual names if they are not given. val_split: the fraction of each class that is held
    out, keyed by `seed`, if there is no validation split. need_train: as of `load_splits`. several: an image may have any
    number of labels. Raises InputError, which says what was found.
    """
    columns_of, labels_of = _columns_of_images, _labels
    if several:
        columns_of, labels_of = several_labels.columns_of, functools.partial(several_labels.labels_of, say=say)

    def labelled(table):
        """Whether a split has labels at all; those of a competition's test split are hidden."""
        column = columns_of(table, image_column, label_column)[1]
        return any(value is not None and value != -1 for value in table.with_format("arrow")[:][column].to_pylist())

    splits, held_out, notes = load_splits(name, val_split, need_train, labelled)
    table, root, listed = splits["train"], _root(name), listed_classes(name)
    columns = columns_of(table, image_column, label_column)
    labels, classes = labels_of(table, columns[1], listed=listed)
    whole = TableOfImages(table, columns[0], labels, classes, name, root)
    whole.notes = notes
    if held_out:
        return whole, _validation_images(name, splits[held_out], held_out, columns, classes, listed, labels_of)
    return hold_out(whole, val_split, seed, say=say)


def stream_of_images(name, image_column=None, label_column=None, train_images=None):
    """(StreamOfImages to train on, TableOfImages to validate on) of the data set `name`; training data is not prepared.

    train_images: their number, if the data does not tell. The classes are those of a ClassLabel column, or of classes.txt in
    the folder, or of all labels if these can be read by themselves, as in Parquet and WebDataset on the disk.
    """
    stream = open_stream(name, train_images)
    columns = _columns_of_images(stream.table, image_column, label_column)
    listed = listed_classes(name)
    if classes := getattr(stream.table.features[columns[1]], "names", None) or listed:
        classes = list(classes)
    elif (labels := stream.labels(columns[1])) is not None:
        _, classes = _labels(labels, columns[1])
    else:
        raise InputError(
            f"--dataset {name} --streaming: what classes column '{columns[1]}' has is not known without reading all of it; "
            "put classes.txt into the folder, a name a line, or leave out --streaming"
        )
    train = StreamOfImages(stream.table, stream.samples, *columns, classes, f"{name}, streamed", _root(name))
    return train, _validation_images(name, stream.val_table, stream.held_out, columns, classes, listed)


def _validation_images(name, table, split, columns, classes, listed, labels_of=None):
    check_columns(name, table, split, columns)
    labels, _ = (labels_of or _labels)(table, columns[1], classes, listed)
    return TableOfImages(table, columns[0], labels, classes, name, _root(name))


def _root(name):
    """The folder that paths in a data set must lie in; None, the libraries' caches, for one of the Hub."""
    return name if os.path.isdir(name) else None


def _columns_of_images(table, image_column, label_column):
    """(image column, label column)"""
    usual = ("label", "labels", "class", "target", "fine_label", "cls")
    image_column = find_column(table, image_column, "image", holds_images, ("image", "img", "images", "jpg", "png"))
    if label_column is None and not any(map(holds_labels, table.features.values())):
        several_labels.refuse_lists(table)
    return image_column, find_column(table, label_column, "label", holds_labels, usual)


def _labels(table, column, classes=None, listed=None):
    """((N,) int64, class names) of a column of labels: ClassLabel, whole numbers from 0, or names.

    classes: those of the training set, by which the labels are numbered then. listed: the names in classes.txt, the first of
    which is class 0. Raises InputError for a row without a label, and for labels that are no class.
    """
    feature, values = table.features[column], table.with_format("arrow")[:][column].to_pylist()
    if missing := [row for row, value in enumerate(values) if value is None or value == -1]:
        raise InputError(
            f"column '{column}': {len(missing):,} of {len(values):,} rows have no label (None or -1), the first is row "
            f"{missing[0]}; leave them out of the split, or name another --label_column"
        )
    if not values or not holds_labels(feature):
        raise InputError(f"column '{column}': found {len(values)} rows of {feature}; expected names or whole numbers")
    if isinstance(values[0], str):
        names = listed or sorted(set(values))
        if extra := sorted(set(values) - set(names)):
            raise InputError(f"column '{column}': found labels that classes.txt lacks ({few(extra)})")
    else:
        numbers = range(min(max(max(values), 0) + 1, MOST_NUMBERS))
        names = list(getattr(feature, "names", None) or listed or map(str, numbers))
        if wrong := next((row for row, value in enumerate(values, 1) if not 0 <= value < len(names)), 0):
            raise InputError(
                f"column '{column}': row {wrong - 1} has the label {values[wrong - 1]}; expected 0..{len(names) - 1}"
            )
        values = [names[value] for value in values]
    classes = names if classes is None else classes
    label_of = {name: label for label, name in enumerate(classes)}
    if extra := sorted(set(values) - set(label_of)):
        raise InputError(f"the validation split has labels that the training split lacks ({few(extra)})")
    return np.array([label_of[value] for value in values], dtype=np.int64), classes


# --- segmentation ---------------------------------------------------------------------------------------------------


class _Masks:
    """What a table and a stream of masks have in common. `set_ids` has to be called before anything is read.

    upright: whether masks are those of images that EXIF turned."""

    upright = True

    def set_ids(self, ids):
        """ids: MaskIds."""
        self.ids, self.classes, self.palette = ids, ids.classes, ids.palette
        self.notes = tuple(dict.fromkeys((*self.notes, *ids.notes)))

    def _read(self, row, place):
        """(PIL image, mask (H, W) int64) of a row; place: its index or number."""
        image_name, mask_name = self.name(place), self.name(place, 1)
        mask = to_classes(self._values(row, place), self.ids.tables, mask_name, self.ids.unknown)
        encoded = _bytes_of(row, self.columns[0], self.root, image_name)
        read = functools.partial(decode_image, encoded, image_name, value_range=self.value_range)
        return fit_image(read, mask.shape, image_name, mask_name, self.upright), mask

    def _values(self, row, place):
        name = self.name(place, 1)
        return decode_values(encoded_image(row[self.columns[1]], self.root, name), name, self.upright)


class TableOfMasks(_Masks, _Table):
    """A source of segmentation."""

    def read(self, index):
        return self._read(self.row(index), index)

    def mask(self, index):
        """The values of the mask, (H, W) uint8 or uint16."""
        return self._values(self.row(index), index)

    def part(self, indices):
        """The rows with these places only."""
        part = TableOfMasks(self.table, self.columns, self.title, self.root, self.rows[indices])
        part.set_ids(self.ids)
        return part


class StreamOfMasks(_Masks, _Stream):
    """A stream of segmentation."""

    def read(self, example, number):
        return self._read(example, number)


def tables_of_masks(
    name, image_column=None, mask_column=None, val_split=None, seed=0, need_train=True, options=None, say=print
):
    """(training, validation) `TableOfMasks` of the data set `name`; masks are as of `folders.mask_folders`.

    Columns are found by their types and usual names if they are not given. val_split: the fraction of the rows that is held
    out, keyed by `seed`, if there is no validation split. need_train: as of `load_splits`. options: MaskOptions, or None.
    """
    splits, held_out, notes = load_splits(name, val_split, need_train)
    table = splits["train"]
    columns = _columns_of_masks(table, image_column, mask_column)
    if held_out:
        check_columns(name, splits[held_out], held_out, columns)
    tables = [table, splits[held_out]] if held_out else [table]
    sources = [TableOfMasks(table, columns, name, _root(name)) for table in tables]
    sources[0].notes = notes
    sources = _with_classes(name, sources, sources, options)
    return sources if held_out else hold_out(sources[0], val_split, seed, say=say)


def stream_of_masks(name, image_column=None, mask_column=None, train_images=None):
    """(StreamOfMasks to train on, TableOfMasks to validate on) of the data set `name`; training data is not prepared.

    train_images: their number, if the data does not tell. Without classes.txt the classes are those of validation masks.
    """
    stream = open_stream(name, train_images)
    columns = _columns_of_masks(stream.table, image_column, mask_column)
    check_columns(name, stream.val_table, stream.held_out, columns)
    train = StreamOfMasks(stream.table, stream.samples, columns, f"{name}, streamed", _root(name))
    val = TableOfMasks(stream.val_table, columns, name, _root(name))
    return _with_classes(name, (train, val), [val])


def _columns_of_masks(table, image_column, mask_column):
    """(image column, mask column)"""
    image_column = find_column(table, image_column, "image", holds_images, ("image", "img", "pixel_values", "images"))
    usual = "mask label annotation segmentation_map ground_truth segmentation masks labels annotations".split()
    return image_column, find_column(table.remove_columns(image_column), mask_column, "mask", holds_images, usual)


def _with_classes(name, sources, readable, options=None):
    """The sources with `MaskIds`: those of classes.txt, or counted in SAMPLE masks of each table in `readable`."""
    masks = [(source, index) for source in readable for index in spread(len(source), len(source))]
    if not (options and options.everything):
        masks = [(source, index) for source in readable for index in spread(len(source), SAMPLE)]
    ids = find_ids(
        lambda mask: mask[0].mask(mask[1]), masks, f"--dataset {name}", listed=listed_classes(name, MOST_CLASSES),
        named=options and options.values, reduce_zero=bool(options and options.reduce_zero), everything=True,
        of=sum(map(len, readable)),
    )  # fmt: skip
    for source in sources:
        source.set_ids(ids)
    return tuple(sources)
