"""Sources made from tables of the library `datasets`, and from streams of their rows: what both tasks share, and recognition.

A table can be indexed. A stream is read in order by `utils.data.streaming.StreamLoader`: its methods take a row, and the
number that names it.
"""

import functools
import io
import os

import numpy as np

from utils.cli.errors import InputError, first_line
from utils.data.streaming import place_of
from utils.folders.class_names import listed_classes
from utils.folders.hold_out import hold_out
from utils.folders.names import few
from utils.images.read import AS_STORED, BadImage, decode_image
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


class Table:
    """Rows of a table: all of them, or those whose numbers are in the array `rows`. reading: images.Reading.

    columns: its columns of images, the first that of the image itself. Paths in them must lie in the folder `root`; None: in
    the libraries' caches.
    """

    reading, notes = AS_STORED, ()

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
        return io.BytesIO(bytes_of(self.row(index), self.columns[0], self.root, self.name(index)))

    def sizes(self):
        """(N,) int64, the bytes of the image files in the rows, -1 for paths, without reading them; None if that cannot be."""
        import pyarrow.compute

        if self.table._indices is not None:  # rows in another order, of which Arrow would make a copy
            return None
        column = self.table.data.column(self.columns[0]).combine_chunks()
        sizes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(column, "bytes"))
        return np.asarray(sizes.fill_null(-1), np.int64)[self.rows]


class Stream:
    """A table that is read in order, of which an epoch has `samples` rows. columns, root: as of `Table`; beside: others."""

    reading, notes = AS_STORED, ()

    def __init__(self, table, samples, columns, title, root, beside=()):
        self.table, self.samples = encoded_images(table, columns, beside), samples
        self.columns, self.title, self.root = columns, title, root

    def __len__(self):
        return self.samples

    def name(self, number, column=0):
        shard, row = place_of(number)
        return f"row {row} of shard {shard}, column '{self.columns[column]}'"


def bytes_of(row, column, root, name):
    """The bytes of the image in a row. Raises BadImage, which begins with `name`, if there are none."""
    try:
        return encoded_image(row[column], root, name)
    except InputError as error:
        raise BadImage(first_line(error)) from None


# --- recognition ----------------------------------------------------------------------------------------------------


class TableOfImages(Table):
    """A source of recognition. labels: (N,) int64 of the rows, or (N, C) bool of several."""

    def __init__(self, table, image_column, labels, classes, title, root, rows=None):
        super().__init__(table, (image_column,), title, root, rows)
        self.labels, self.classes = labels, classes

    def read(self, index):
        return decode_image(self.file(index).getvalue(), self.name(index), reading=self.reading)

    def encoded(self, index):
        return None if self.reading != AS_STORED else self.file(index).getvalue()

    def part(self, indices):
        """The rows with these places only."""
        part = TableOfImages(
            self.table, *self.columns, self.labels[indices], self.classes, self.title, self.root, self.rows[indices]
        )
        part.notes = self.notes
        return part


class StreamOfImages(Stream):
    """A stream of recognition. Its labels are numbers below len(classes), or names among them."""

    def __init__(self, table, samples, image_column, label_column, classes, title, root):
        super().__init__(table, samples, (image_column,), title, root, beside=(label_column,))
        self.label_column, self.classes = label_column, classes
        self.label_of = {name: label for label, name in enumerate(classes)}

    def read(self, example, number):
        return decode_image(self.encoded(example, number), self.name(number), reading=self.reading)

    def encoded(self, example, number):
        return bytes_of(example, self.columns[0], self.root, self.name(number))

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
    """(training, validation) `TableOfImages` of the data set `name`; the latter has a split test that chose nothing as `test`.

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
    table, root, listed = splits["train"], root_of(name), listed_classes(name)
    columns = columns_of(table, image_column, label_column)
    labels, classes = labels_of(table, columns[1], listed=listed)
    whole = TableOfImages(table, columns[0], labels, classes, name, root)
    whole.notes = notes
    rest = functools.partial(_validation_images, name, columns=columns, classes=classes, listed=listed, labels_of=labels_of)
    train, val = (whole, rest(held_out, splits[held_out])) if held_out else hold_out(whole, val_split, seed, say=say)
    if need_train:
        val.test = test_of(splits, held_out, rest, say)
    return train, val


def test_of(splits, held_out, read, say):
    """read("test", its table), or None where there is no split test, where it is validated on, or cannot be scored."""
    if held_out == "test" or "test" not in splits:
        return None
    try:
        test = read("test", splits["test"])
    except InputError as error:
        return say(f"note: the split test is not scored: {error}")
    say(f"data: {len(test):,} images of the split test are scored once, after training, by the best weights")
    return test


def stream_of_images(name, image_column=None, label_column=None, train_images=None, say=print):
    """(StreamOfImages to train on, TableOfImages to validate on) of the data set `name`; training data is not prepared.

    train_images, say: as of `open_stream`. The classes are those of a ClassLabel column, or of classes.txt in
    the folder, or of all labels if these can be read by themselves, as in Parquet and WebDataset on the disk.
    """
    stream = open_stream(name, train_images, say)
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
    train = StreamOfImages(stream.table, stream.samples, *columns, classes, f"{name}, streamed", root_of(name))
    return train, _validation_images(name, stream.held_out, stream.val_table, columns, classes, listed)


def _validation_images(name, split, table, columns, classes, listed, labels_of=None):
    check_columns(name, table, split, columns)
    labels, _ = (labels_of or _labels)(table, columns[1], classes, listed)
    return TableOfImages(table, columns[0], labels, classes, name, root_of(name))


def root_of(name):
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
