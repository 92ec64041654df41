"""Files that are whole or absent: written aside, flushed to the disk, then renamed; and text of other people's."""

import contextlib
import json
import os
import pathlib
import unicodedata

from utils.cli.errors import InputError, first_line


@contextlib.contextmanager
def replace(path):
    """Within this, write the file at the path that is given; after it, that file takes the place of `path` in one step.

    Raises OSError where that cannot be done; whatever is raised within, the old file stays and nothing is left aside.
    """
    path = pathlib.Path(path)
    aside = path.with_name(f"tmp-{path.name}")
    try:
        yield aside
        flush(aside)
        os.replace(aside, path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def read_text(path, expected):
    """The text of a file in UTF-8, with or without a byte order mark, its lines ended by \\n.

    Raises InputError, which says what was `expected`, for a file that cannot be read and for another encoding.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError:
        with open(path, "rb") as file:
            head = file.read(4)
        coded = "it is UTF-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "perhaps it is Windows-1252"
        raise InputError(f"{path} cannot be read as text in UTF-8 ({coded}); expected {expected}: save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path} cannot be read as text ({reason}); expected {expected}") from None


def write_text(path, text):
    """Replace a text file in one step."""
    with replace(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path, value):
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=1))


def csv_cell(value):
    """`value` as text for a cell of a CSV file that people open: control characters are escaped, and a quote stands before
    what a spreadsheet would run as a formula.
    """
    text = str(value)
    if not text.isprintable():  # a line break is quoted
        odd = {c for c in text if unicodedata.category(c) == "Cc" and c != "\n"}
        text = "".join(c.encode("unicode_escape").decode("ascii") if c in odd else c for c in text)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return text


def flush(path):
    """What the file or folder at `path` holds is on the disk after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
