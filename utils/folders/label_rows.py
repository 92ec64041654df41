"""One table of --labels as rows: which image each names, its label, its split."""

import collections
import csv
import io
import os
import re
from typing import NamedTuple

from utils.cli.errors import InputError, first_line
from utils.files import read_text
from utils.folders.files import scan_paths
from utils.folders.label_lists import binary_columns, find_labels, lists_of, lists_of_columns, looks_like_lists
from utils.folders.names import few, split_of
from utils.images.formats import is_image

IMAGE = "image image_path path file file_name filename filepath img image_id id name".split()
LABEL = "label labels class target category fine_label cls".split()
SPLIT = ("split", "set", "subset")


class Row(NamedTuple):
    """path: of the image, from the root of the data on; label: a name, or a number without one, or a list of names where an
    image may have several; split: "train", "val" or "test", None where no column says it."""

    path: str
    label: str | int | list
    split: str | None


def read_rows(path, files, image_column, label_column, several, first, alone, say):
    """([`Row`, …], names of the columns that are a label each, or None) of the table `path`; its columns are said.

    files: `Files`. image_column, label_column: None: found by names and values. first: names of columns that are a label each
    in a table before, which this one has to have. alone: as of label_lists.lists_of. Raises InputError for a row without a
    file or a label, for an image that has two rows, for a split that is none, and where two columns may hold the labels.
    """
    columns = read_table(path)
    image = _image_column(path, columns, files, image_column)
    if several:
        label, labels = _several_labels(path, columns, image, label_column, first, alone, say)
    else:
        label = _label_column(path, columns, image, label_column)
        labels = _single_labels(path, label, columns[label], say)
    named = f"columns {few(label)}" if isinstance(label, list) else f"column {label}"
    say(f"labels: images by the column {image or 'without a name'}, labels by the {named}")
    paths = _paths(path, columns[image], files)
    _refuse_twice(path, paths, labels)
    splits = _splits(path, columns, label, say)
    return [Row(*row) for row in zip(paths, labels, splits, strict=True)], label if isinstance(label, list) else None


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


def _several_labels(path, columns, image, wanted, first, alone, say):
    """(names of columns, [names of each row's labels]); of a second table the columns of the first."""
    where = f"--labels {path}"
    if wanted:
        _given(path, columns, wanted, "label")
    found = find_labels(where, columns, [image, *(name for name in columns if name.lower() in SPLIT)], wanted, LABEL)
    if isinstance(found, str):
        return found, lists_of(f"the column {found}", columns[found], say, alone=alone)
    names = first or found
    if lacking := [name for name in names if name not in columns]:
        raise InputError(f"{where}: lacks columns of the first table ({few(lacking)}); found {few(list(columns), 12)}")
    return names, lists_of_columns(where, columns, names)


def _paths(path, values, files):
    """The path that each value of the column of images means. Raises InputError where one means none, or several."""
    split = split_of(os.path.splitext(os.path.basename(path))[0])
    found = [files.find(value, split) if value is not None else [] for value in values]
    if lonely := [value for value, paths in zip(values, found, strict=True) if not paths]:
        raise InputError(f"--labels {path}: no image for {len(lonely):,} of {len(found):,} rows ({few(lonely, 3)})")
    if several := next((paths for paths in found if len(paths) > 1), None):
        raise InputError(f"--labels {path}: {several[0]} and {several[1]} have the same name; write paths into the table")
    return [paths[0] for paths in found]


def _refuse_twice(path, paths, labels):
    """InputError where two rows are of one image."""
    label_of = {}
    for name, value in zip(paths, labels, strict=True):
        if label_of.setdefault(name, value) != value:
            raise InputError(
                f"--labels {path}: {name} has two labels, {label_of[name]} and {value}; expected one of each image"
            )
    if len(label_of) < len(paths):
        raise InputError(f"--labels {path}: {len(paths) - len(label_of):,} images are in it more than once; leave them out")


def _splits(path, columns, label, say):
    """The split of each row, by the first column of splits that knows one; None of each where there is none.

    Raises InputError for a row of another split.
    """
    names = {name.lower(): name for name in columns}
    said = [names[name] for name in SPLIT if name in names and names[name] != label]
    splits = next((found for name in said if any(found := [split_of(str(value)) for value in columns[name]])), None)
    if splits is None:
        if said:
            words = few(sorted({str(value) for value in columns[said[0]]}), 3)
            say(f"note: the column {said[0]} of {path} parts nothing: found {words}; expected train, val or test")
        return [None] * len(next(iter(columns.values())))
    if odd := splits.count(None):
        raise InputError(
            f"--labels {path}: {odd:,} of {len(splits):,} rows are of no known split, in its column of splits; expected train, "
            "val or test in each row"
        )
    return splits
