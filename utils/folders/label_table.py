"""--labels: images in one heap, and a table that says what each shows: CSV, TSV or Parquet."""

import collections
import os

import numpy as np

from utils.cli.arguments import split_flag
from utils.cli.errors import InputError
from utils.folders.class_folders import Folder
from utils.folders.class_names import listed_classes
from utils.folders.hold_out import hold_out
from utils.folders.label_lists import as_matrix
from utils.folders.label_rows import Files, read_rows
from utils.folders.names import few, test_note


def labelled_images(tables, root, *, image_column=None, label_column=None, val_split=None, seed=0, group_by=None, need_val=True,
                    need_train=True, several=False, say=print):  # fmt: skip
    """(training, validation) `Folder` of the images below `root` by one table of labels, or one for each split.

    A row names an image by its path, of which that from `root` may be a part, or by its name, with the ending or without,
    whatever folder it lies in. The columns are found by their names and values if they are not given, and said. One table is
    parted by a column split, whose values are those of names.SPLITS, or by `val_split`, see `hold_out`; without `need_train`
    it may be validated on as a whole. Of two tables with such a column the first gives its rows of train, the second those of
    val. Rows of the split test choose nothing: they are the validation source's `test`. Raises InputError as
    label_rows.read_rows, for labels that are no class, and where nothing says what is validated on. several: an image may have
    any number of labels, see label_lists.py; the labels of the `Folder` are (N, C) bool then.
    """
    if len(tables) > 2:
        raise InputError(f"--labels: found {len(tables)} tables; expected one, or one to train on and one to validate on")
    if len(tables) == 2 and val_split is not None:
        raise InputError(f"{split_flag(val_split)}: {tables[1]} is a validation set already; leave one of the two out")
    files, parts, names = Files(root), [], None
    for path in tables:
        alone = bool(parts) or not need_train
        rows, names = read_rows(path, files, image_column, label_column, several, names, alone, say)
        parts.append(rows)
    listed = listed_classes(root) or listed_classes(os.path.dirname(os.path.abspath(tables[0])))
    number = _several_numbered if several else _numbered
    classes = listed or names or _classes(parts[0], several)
    parts = [number(path, rows, classes, listed) for path, rows in zip(tables, parts, strict=True)]
    left_out = {}
    if unnamed := len(files.paths) - len({row.path for rows in parts for row in rows}):
        left_out[f"images that {'no table names' if len(tables) == 2 else 'the table does not name'}"] = unnamed

    def source(rows):
        labels = np.reshape([row.label for row in rows], (len(rows), *[len(classes)] * several))
        return Folder(str(root), [row.path for row in rows], labels, classes, left_out)

    if len(tables) == 2:
        train, val, test = map(source, _of_two(tables, parts, say))
    else:
        train, val, test = _of_one(tables[0], parts[0], source, val_split, seed, group_by, need_val, need_train, say)
    if need_train and len(test):
        say(f"data: {len(test):,} images of the split test are scored once, after training, by the best weights")
        val.test = test
    return train, val


def _of_one(path, rows, source, val_split, seed, group_by, need_val, need_train, say):
    """(training, validation, test) sources of the rows of one table; source: makes one of rows."""
    splits = _by_split(rows)
    if val_split is not None:
        if "val" in splits:
            raise InputError(
                f"{split_flag(val_split)}: {path} says what is validated on, in its column of splits; leave it out"
            )
        rest = source([row for row in rows if row.split != "test"])
        return *hold_out(rest, val_split, seed, group_by, say), source(splits["test"])
    if "train" in splits and len(splits) > 1:
        say(f"data: {path} says what is validated on, in its column of splits")
        train = source(splits["train"])
        if "val" in splits:
            return train, source(splits["val"]), source(splits["test"])
        train.notes = (test_note("test"),)
        return train, source(splits["test"]), ()
    whole = source(rows)
    if not need_train:
        whole.whole = True
        return whole, whole, ()
    if need_val:
        raise InputError(f"--labels {path}: found one table; give a second one to validate on, or --val_split 0.1")
    return whole, source([]), ()


def _of_two(tables, parts, say):
    """Rows to train on, to validate on, and of the split test, of two tables: where a column says splits, the first is trained
    on those of train, and the second validated on those of val or test. What is left out is said."""
    chosen, test = [], []
    for path, rows, wanted in zip(tables, parts, (("train",), ("val", "test")), strict=True):
        splits = _by_split(rows)
        taken = next((split for split in wanted if split in splits), None)
        if splits and taken is None:
            raise InputError(f"--labels {path}: found only {few(sorted(splits))} in its column of splits; expected rows of "
                             f"{wanted[0]}; call the column otherwise to take all rows")  # fmt: skip
        chosen.append(splits[taken] if splits else rows)
        if taken != "test" and not test:
            test = splits.pop("test", [])
        if rest := sum(len(rows) for split, rows in splits.items() if split != taken):
            say(f"data: {rest:,} rows of {path} are left out, since its column of splits does not call them {taken}")
    return *chosen, test


def _by_split(rows):
    """{split: its rows}, an empty one for splits that none has; {} where no column names splits."""
    splits = collections.defaultdict(list)
    for row in rows:
        if row.split:
            splits[row.split].append(row)
    return splits


def _classes(rows, several):
    """The names of all labels, in their order; numbers, which have no names, come first."""
    labels = {name for row in rows for name in row.label} if several else {row.label for row in rows}
    return [str(label) for label in sorted(labels, key=lambda label: (isinstance(label, str), label))]


def _numbered(path, rows, classes, listed):
    """The rows in the order of their classes, with labels that are numbers of `classes`. listed: classes.txt names these, of
    which a whole number may be the place. Raises InputError for labels that are no class."""
    by_place = listed and all(isinstance(row.label, int) for row in rows)
    label_of = {name: place for place, name in enumerate(range(len(classes)) if by_place else classes)}
    rows = [row if by_place else row._replace(label=str(row.label)) for row in rows]
    if extra := sorted({str(row.label) for row in rows if row.label not in label_of}):
        raise InputError(f"--labels {path}: found labels that are no class ({few(extra)}); expected {few(classes)}")
    return sorted((row._replace(label=label_of[row.label]) for row in rows), key=lambda row: row.label)


def _several_numbered(path, rows, classes, listed):
    """The rows with labels that are (C,) bool, whether they have each of the `classes`. listed: as of `_numbered`. Raises
    InputError as `as_matrix`."""
    found, places = {name for row in rows for name in row.label}, list(map(str, range(len(classes))))
    by_place = listed and found <= set(places) and not found <= set(classes)
    matrix = as_matrix(f"--labels {path}", [row.label for row in rows], places if by_place else classes)
    return [row._replace(label=labels) for row, labels in zip(rows, matrix, strict=True)]
