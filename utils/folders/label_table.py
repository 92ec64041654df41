"""--labels: images in one heap, and a table that says what each shows: CSV, TSV or Parquet."""

import collections
import csv
import io
import os
import re

import numpy as np

from utils.cli.arguments import split_flag
from utils.cli.errors import InputError, first_line
from utils.files import read_text
from utils.folders.class_folders import Folder
from utils.folders.class_names import listed_classes
from utils.folders.files import scan_paths
from utils.folders.hold_out import hold_out
from utils.folders.label_lists import as_matrix, binary_columns, find_labels, lists_of, lists_of_columns, looks_like_lists
from utils.folders.names import few, split_of, test_note
from utils.images.formats import is_image

IMAGE = "image image_path path file file_name filename filepath img image_id id name".split()
LABEL = "label labels class target category fine_label cls".split()
SPLIT = ("split", "set", "subset")


def labelled_images(tables, root, *, image_column=None, label_column=None, val_split=None, seed=0, group_by=None, need_val=True,
                    need_train=True, several=False, say=print):  # fmt: skip
    """(training, validation) `Folder` of the images below `root` by one table of labels, or one for each split.

    A row names an image by its path, of which that from `root` may be a part, or by its name, with the ending or without,
    whatever folder it lies in. The columns are found by their names and values if they are not given, and said. One table is
    parted by a column split, whose values are those of names.SPLITS, or by `val_split`, see `hold_out`; without `need_train`
    it may be validated on as a whole. Of two tables with such a column the first gives its rows of train, the second those of
    val. Rows of the split test choose nothing: they are the validation source's `test`. Raises InputError for rows without a
    file or a label, and where two columns may hold the labels. several: an image may have any number of labels, see
    label_lists.py; the labels of the `Folder` are (N, C) bool then.
    """
    if len(tables) > 2:
        raise InputError(f"--labels: found {len(tables)} tables; expected one, or one to train on and one to validate on")
    if len(tables) == 2 and val_split is not None:
        raise InputError(f"{split_flag(val_split)}: {tables[1]} is a validation set already; leave one of the two out")
    files, parts = Files(root), []
    for path in tables:
        columns = read_table(path)
        image = _image_column(path, columns, files, image_column)
        if several:
            label, labels = _several_labels(path, columns, image, label_column, parts, need_train, say)
        else:
            label = _label_column(path, columns, image, label_column)
            labels = _single_labels(path, label, columns[label], say)
        named = f"columns {few(label)}" if isinstance(label, list) else f"column {label}"
        say(f"labels: images by the column {image or 'without a name'}, labels by the {named}")
        parts.append(_rows(path, columns, image, label, labels, files, say))
    listed = listed_classes(root) or listed_classes(os.path.dirname(os.path.abspath(tables[0])))
    if several:
        classes = listed or parts[0].names or sorted({name for names in parts[0].labels for name in names})
        sources = [
            Folder(str(root), rows.paths, as_matrix(f"--labels {path}", rows.labels, classes), classes)
            for path, rows in zip(tables, parts, strict=True)
        ]
    else:
        classes = _classes(parts[0].labels, listed)
        parts = [_by_class(path, rows, classes, listed) for path, rows in zip(tables, parts, strict=True)]
        sources = [Folder(str(root), rows.paths, np.array(rows.labels), classes) for rows in parts]
    whole = sources[0]
    if unnamed := len(files.paths) - len({path for rows in parts for path in rows.paths}):
        whole.left_out[f"images that {'no table names' if len(tables) == 2 else 'the table does not name'}"] = unnamed
    places = [_places_of_splits(path, rows.splits) for path, rows in zip(tables, parts, strict=True)]
    if len(tables) == 2:
        return _of_two(tables, sources, places, need_train, say)
    places = places[0]
    if "val" in places and val_split is not None:
        raise InputError(
            f"{split_flag(val_split)}: {tables[0]} says what is validated on, in its column of splits; leave it out"
        )
    test = whole.part(places["test"]) if "test" in places else None
    if val_split is not None:
        rest = np.setdiff1d(np.arange(len(whole)), places.get("test", []))
        train, val = hold_out(whole.part(rest), val_split, seed, group_by, say)
    elif "train" in places and len(places) > 1:
        train, val = whole.part(places["train"]), whole.part(places["val" if "val" in places else "test"])
        say(f"data: {tables[0]} says what is validated on, in its column of splits")
        if "val" not in places:
            train.notes, test = (test_note("test"),), None
    elif not need_train:
        whole.whole = True
        return whole, whole
    elif need_val:
        raise InputError(f"--labels {tables[0]}: found one table; give a second one to validate on, or --val_split 0.1")
    else:
        return whole, whole.part(np.array([], np.int64))
    if test is not None and need_train:
        val.test = _said(test, say)
    return train, val


def _of_two(tables, sources, places, need_train, say):
    """(training, validation) sources of two tables. places: of the rows of each split, {} where a table says none: else the
    first is trained on those of train, and the second validated on those of val or test. What is left out is said.
    """
    parts, test = [], None
    for path, source, splits, wanted in zip(tables, sources, places, (("train",), ("val", "test")), strict=True):
        taken = next((split for split in wanted if split in splits), None)
        if splits and taken is None:
            raise InputError(f"--labels {path}: found only {few(sorted(splits))} in its column of splits; expected rows of "
                             f"{wanted[0]}; call the column otherwise to take all rows")  # fmt: skip
        if test is None and taken != "test" and "test" in splits and need_train:
            test = _said(source.part(splits.pop("test")), say)
        parts.append(source.part(splits[taken]) if splits else source)
        if rest := sum(len(rows) for split, rows in splits.items() if split != taken):
            say(f"data: {rest:,} rows of {path} are left out, since its column of splits does not call them {taken}")
    if test is not None:
        parts[1].test = test
    return tuple(parts)


def _said(test, say):
    say(f"data: {len(test):,} images of the split test are scored once, after training, by the best weights")
    return test


def read_table(path):
    """{column: list of its values} of a CSV, TSV or Parquet file; columns of whole numbers are numbers, empty cells None.

    Raises InputError for a file that is none, and for one without rows.
    """
    if not os.path.isfile(path):
        raise InputError(f"--labels {path}: no such file; expected a table, .csv, .tsv or .parquet")
    try:
        columns = _read_parquet(path) if path.lower().endswith(".parquet") else _read_text(path)
    except InputError:
        raise
    except Exception as error:  # csv and pyarrow raise many kinds
        raise InputError(f"--labels {path}: no table ({first_line(error)}); expected .csv, .tsv or .parquet") from None
    if not columns or not next(iter(columns.values())):
        raise InputError(f"--labels {path}: found no rows; expected the names of columns on the first line, and an image a row")
    return columns


def _read_parquet(path):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return {name: [_plain(value) for value in table[name].to_pylist()] for name in table.column_names}


def _read_text(path):
    text = read_text(path, "a table, the names of its columns on the first line")
    first = text.partition("\n")[0]
    delimiter = max("\t,;|", key=first.count)
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    head, rows = [name.strip() for name in rows[0]], [row for row in rows[1:] if any(cell.strip() for cell in row)]
    if wrong := next((number for number, row in enumerate(rows, 2) if len(row) != len(head)), 0):
        raise InputError(
            f"--labels {path}: line {wrong} has {len(rows[wrong - 2])} cells, the first line {len(head)} ({few(head)})"
        )
    return {name: _numbers([row[place].strip() for row in rows]) for place, name in enumerate(head)}


def _numbers(cells):
    """Whole numbers where each says all of its cell: 001 and 1_1 are names. None where a cell is empty."""
    whole = all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", cell) for cell in cells if cell)
    return [(int(cell) if whole else cell) if cell else None for cell in cells]


def _plain(value):
    return value if value is None or isinstance(value, str | int | float | list) else str(value)


class Files:
    """The images below a folder, by their paths, names, and names without the ending."""

    def __init__(self, root):
        self.paths = scan_paths(root)
        if not self.paths:
            raise InputError(f"--data_path {root}: no images in it; expected those that --labels names")
        self.known = set(self.paths)
        self.named, self.stems = collections.defaultdict(list), collections.defaultdict(list)
        for path in self.paths:
            name = os.path.basename(path)
            self.named[name].append(path)
            self.stems[os.path.splitext(name)[0]].append(path)

    def find(self, value, split):
        """The paths that `value` of a table may mean, of a split where folders are called like that. Where it has folders, one
        of the two paths ends with the other: data may lie deeper or less deep than the table says, but in no other folder."""
        text = os.path.normpath(str(value)).replace("\\", "/")
        if text in self.known:
            return [text]
        name = os.path.basename(text)
        found = self.named.get(name) or self.stems.get(name) or []
        if name != text:
            bare = name not in self.named  # without the ending
            ends = {path: f"/{os.path.splitext(path)[0] if bare else path}" for path in found}
            found = [path for path, end in ends.items() if end.endswith(f"/{text}") or f"/{text}".endswith(end)]
        of_split = [path for path in found if split and any(split_of(part) == split for part in path.split("/")[:-1])]
        return of_split if len(of_split) == 1 else found


def _image_column(path, columns, files, wanted):
    if wanted:
        return _given(path, columns, wanted, "image")
    lower = {name.lower(): name for name in reversed(columns)}
    usual, fitting = [lower[name] for name in IMAGE if name in lower], []
    for name in [*usual, *(name for name in columns if name not in usual)]:
        some = [value for value in columns[name][:50] if value is not None]
        if some and sum(bool(files.find(value, None)) for value in some) * 2 >= len(some):
            if 2 * sum(is_image(str(value)) for value in some) >= len(some):
                return name
            fitting.append(name)  # by names without the ending, as a number of the row may be by chance
    if fitting:
        return fitting[0]
    some = {name: values[0] for name, values in columns.items()}
    raise InputError(
        f"--labels {path}: no column names images that lie there; found {few([f'{k} ({v})' for k, v in some.items()])}; "
        f"expected names such as {files.paths[0]}; --data_path names the folder with the images"
    )


def _label_column(path, columns, image, wanted):
    if wanted:
        return _given(path, columns, wanted, "label")
    fitting = [
        name
        for name, values in columns.items()
        if name != image
        and name.lower() not in SPLIT
        and all(value is None or isinstance(value, str | int) for value in values)
    ]
    lower = {name.lower(): name for name in reversed(fitting)}
    usual = [lower[name] for name in LABEL if name in lower]
    if usual or len(fitting) == 1:
        return (usual or fitting)[0]
    if len(binary := [name for name in binary_columns(columns, (image,)) if name in fitting]) > 1:
        raise InputError(f"--labels {path}: the columns {few(binary)} hold 0 and 1, as where an image has several labels: give "
                         "--task multilabel, or name the one with the labels by --label_column")  # fmt: skip
    kinds = [f"{name} ({'text' if isinstance(columns[name][0], str) else 'numbers'})" for name in fitting or columns]
    raise InputError(f"--labels {path}: which column holds the labels? found {few(kinds, 12)}; name it with --label_column")


def _given(path, columns, wanted, what):
    if wanted not in columns:
        raise InputError(f"--{what}_column {wanted}: no such column in {path}; found {few(list(columns), 12)}")
    return wanted


def _single_labels(path, label, values, say):
    """The labels of the column `label`. Raises InputError where one is missing, and where they seem to be lists."""
    if mark := looks_like_lists(values):
        example = next(value for value in values if isinstance(value, str) and mark in value)
        hint = f"--labels {path}: the column {label} seems to list labels, such as {example}: --task multilabel reads them"
        if mark != ",":
            raise InputError(f"{hint}; a class that is called so needs another name")
        say(f"warning: {hint}")
    if missing := sum(value is None or value == -1 for value in values):
        raise InputError(
            f"--labels {path}: {missing:,} of {len(values):,} rows have no label in the column {label}; leave them out"
        )
    return values


def _several_labels(path, columns, image, wanted, parts, need_train, say):
    """(names of columns, [names of each row's labels]); of a second table the columns of the first. parts: `Rows` so far."""
    where = f"--labels {path}"
    if wanted:
        _given(path, columns, wanted, "label")
    found = find_labels(where, columns, [image, *(name for name in columns if name.lower() in SPLIT)], wanted, LABEL)
    if isinstance(found, str):
        return found, lists_of(f"the column {found}", columns[found], say, alone=parts or not need_train)
    names = (parts and parts[0].names) or found
    if lacking := [name for name in names if name not in columns]:
        raise InputError(f"{where}: lacks columns of the first table ({few(lacking)}); found {few(list(columns), 12)}")
    return names, lists_of_columns(where, columns, names)


Rows = collections.namedtuple("Rows", "paths labels splits names")


def _rows(path, columns, image, label, labels, files, say):
    """The `Rows` of a table: paths of images, their labels, the splits that a column says, or None, and where each label has a
    column, `label`, the names of these, else None."""
    split = split_of(os.path.splitext(os.path.basename(path))[0])
    found = [files.find(value, split) if value is not None else [] for value in columns[image]]
    if lonely := [value for value, paths in zip(columns[image], found, strict=True) if not paths]:
        raise InputError(f"--labels {path}: no image for {len(lonely):,} of {len(found):,} rows ({few(lonely, 3)})")
    if several := next((paths for paths in found if len(paths) > 1), None):
        raise InputError(f"--labels {path}: {several[0]} and {several[1]} have the same name; write paths into the table")
    paths = [paths[0] for paths in found]
    label_of = {}
    for name, value in zip(paths, labels, strict=True):
        if label_of.setdefault(name, value) != value:
            raise InputError(
                f"--labels {path}: {name} has two labels, {label_of[name]} and {value}; expected one of each image"
            )
    if len(label_of) < len(paths):
        raise InputError(f"--labels {path}: {len(paths) - len(label_of):,} images are in it more than once; leave them out")
    names = {name.lower(): name for name in columns}
    said = [names[name] for name in SPLIT if name in names and names[name] != label]
    splits = next((found for name in said if any(found := [split_of(str(value)) for value in columns[name]])), None)
    if said and not splits:
        words = few(sorted({str(value) for value in columns[said[0]]}), 3)
        say(f"note: the column {said[0]} of {path} parts nothing: found {words}; expected train, val or test")
    return Rows(paths, labels, splits, label if isinstance(label, list) else None)


def _classes(labels, listed):
    if listed and all(isinstance(value, int) for value in labels):
        return listed
    values = sorted(set(labels), key=lambda value: (isinstance(value, str), value))
    return listed or [str(value) for value in values]


def _places_of_splits(path, splits):
    """{split: (N,) places of its rows}, {} where no column names splits. Raises InputError for a row of another split."""
    if not splits:
        return {}
    if odd := splits.count(None):
        raise InputError(
            f"--labels {path}: {odd:,} of {len(splits):,} rows are of no known split, in its column of splits; expected train, "
            "val or test in each row"
        )
    return {split: np.flatnonzero(np.array(splits) == split) for split in set(splits)}


def _by_class(path, rows, classes, listed):
    """The `Rows` in the order of their classes, with labels that are numbers of `classes`."""
    numbered = listed and all(isinstance(value, int) for value in rows.labels)
    label_of = dict(enumerate(range(len(classes)))) if numbered else {name: label for label, name in enumerate(classes)}
    labels = rows.labels if numbered else [str(value) for value in rows.labels]
    if extra := sorted({str(value) for value in labels if value not in label_of}):
        raise InputError(f"--labels {path}: found labels that are no class ({few(extra)}); expected {few(classes)}")
    labels = [label_of[value] for value in labels]
    order = np.argsort(np.array(labels), kind="stable")
    paths, labels, splits = ([values[i] for i in order] if values else values for values in (rows.paths, labels, rows.splits))
    return rows._replace(paths=paths, labels=labels, splits=splits)
