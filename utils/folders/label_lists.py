"""Several labels an image, as tables hold them: a column of 0 and 1 for each label, or one column that lists labels."""

import ast
import collections
import re

import numpy as np

from utils.cli.errors import InputError
from utils.folders.names import few

DELIMITERS = "|;,"
SHOWN = 12  # columns or labels that a message names


def find_labels(where, columns, but, wanted=None, usual=()):
    """What holds the labels of a table {name: values}: the name of a column that lists them, or a list of names of columns of
    0 and 1. but: columns that hold something else; wanted: of --label_column; usual: names of columns of labels.

    Raises InputError, which lists the columns, where nothing does, or more than one thing may.
    """
    if wanted:
        return [wanted] if _is_binary(columns[wanted]) else wanted
    rest = {name: values for name, values in columns.items() if name not in but}
    text = [name for name, values in rest.items() if any(isinstance(v, str | list) for v in values) and not _is_binary(values)]
    lists = [name for name in text if delimiter_of(rest[name]) or name.lower() in (*usual, "tags")]
    if len(lists) == 1:
        return lists[0]
    if binary := [name for name, values in rest.items() if _is_binary(values)]:
        return binary
    if len(text) == 1:
        return text[0]
    raise InputError(f"{where}: which column holds the labels? found {few(list(rest) or list(columns), SHOWN)}; expected "
                     "columns of 0 and 1, or one with labels such as cat|dog, named with --label_column")  # fmt: skip


def binary_columns(columns, but=()):
    """Names of the columns of 0 and 1 alone among {name: values}, without those in `but`."""
    return [name for name, values in columns.items() if name not in but and set(map(_bit, values)) == {0, 1}]


def _bit(value):
    """0 or 1 where a cell says it; None for anything else."""
    return {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}.get(str(value))


def _is_binary(values):
    """Whether a column is one of 0 and 1: most cells are, and the rest is a mistake."""
    bits = [_bit(value) for value in values]
    return 2 * sum(bit is not None for bit in bits) > len(bits)


def delimiter_of(values):
    """What parts the labels in a column of text: that of DELIMITERS which most cells have; "" where none has one."""
    counts = {mark: sum(mark in value for value in values if isinstance(value, str)) for mark in DELIMITERS}
    most = max(DELIMITERS, key=counts.get)
    return most if counts[most] else ""


def looks_like_lists(values):
    """The delimiter if a column of single labels is more likely one of lists: some of their parts come in several; else "".
    Of lists as Python writes them it is [."""
    names = {value for value in values if isinstance(value, str)}
    if names and all(name.startswith("[") and name.endswith("]") for name in names):
        return "["
    mark = delimiter_of(names)
    if not mark:
        return ""
    parts = collections.Counter(part for name in names for part in set(split(name, mark)))
    repeated = len(parts) < len(names) if mark == "," else len(parts) <= len(names)
    return mark if repeated and len(names) > 1 else ""


def split(cell, mark):
    """The labels in a cell: text parted by `mark`, a list, or None."""
    if cell is None:
        return []
    parts = cell if isinstance(cell, list | tuple) else str(cell).split(mark) if mark else [str(cell)]
    return [part for part in (str(part).strip() for part in parts) if part]


def lists_of(where, values, say, alone=False):
    """[names of the labels of each row] of a column that lists them; its delimiter is said.

    Raises InputError where each cell holds one label, unless it may stand `alone`: such data needs no --task; and as
    `refuse_bits`.
    """
    values = [_python_list(where, value) if isinstance(value, str) and value.startswith("[") else value for value in values]
    listed = any(isinstance(value, list | tuple) for value in values)
    mark = "" if listed else delimiter_of(values)
    lists = [split(value, mark) for value in values]
    refuse_bits(where, lists)
    if not alone and all(len(names) == 1 for names in lists):
        raise InputError(f"--task multilabel: {where} has one label in each row; leave --task out, or part several by |, as in "
                         "cat|dog")  # fmt: skip
    if mark:
        say(f"labels: {where} lists them, parted by {mark}")
    return lists


def _python_list(where, cell):
    """The list in a cell that is written as Python and pandas do, such as ['cat', 'dog']."""
    try:
        if re.search(r"""['"]\s+['"]""", cell):  # NumPy's, in which Python reads 'cat' 'dog' as one word
            raise ValueError
        return list(ast.literal_eval(cell))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise InputError(f"{where}: found {cell[:60]}; expected a list such as ['cat', 'dog'], or cat|dog") from None


def refuse_bits(where, lists):
    """InputError where all rows say 0 or 1 of as many labels, instead of naming those that they have."""
    rows = [row for row in lists if row]
    alike = len({len(row) for row in rows}) == 1 and all(_bit(value) is not None for row in rows for value in row)
    if alike and any(len(set(row)) < len(row) for row in rows):
        raise InputError(f"{where} holds {len(rows[0])} of 0 and 1 in each row, one for each label; expected the names or "
                         "numbers of the labels that an image has, or a column of 0 and 1 for each label")  # fmt: skip


def lists_of_columns(where, columns, labels):
    """[names of the labels of each row] of columns of 0 and 1. Raises InputError, by row and column, for another value."""
    bits = {name: [_bit(value) for value in columns[name]] for name in labels}
    for name, values in bits.items():
        if None in values:
            row = values.index(None)
            found = "nothing" if columns[name][row] is None else columns[name][row]
            raise InputError(f"{where}: line {row + 2}, column {name} holds {found}; expected 0 or 1")
    return [[name for name, bit in zip(bits, row, strict=True) if bit] for row in zip(*bits.values(), strict=True)]


def as_matrix(where, lists, classes):
    """(N, C) bool: which of the `classes` each row has. Raises InputError for labels that are none of them."""
    place = {name: number for number, name in enumerate(classes)}
    if extra := sorted({name for names in lists for name in names if name not in place}):
        raise InputError(f"{where}: found labels that are no class ({few(extra)}); expected {few(list(classes), SHOWN)}")
    matrix = np.zeros((len(lists), len(classes)), bool)
    for row, names in enumerate(lists):
        matrix[row, [place[name] for name in names]] = True
    return matrix


def strata(labels):
    """(N,) int64: one label that stands for those of each image, by which parts of the data are made in proportion.

    labels: (N,), which stand for themselves; or (N, C) bool: of several the rarest, which is the hardest to share out; images
    without a label are a class of their own.
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return labels
    rare = np.where(labels, labels.sum(0), len(labels) + 1)
    return np.where(labels.any(1), rare.argmin(1), labels.shape[1]).astype(np.int64)
