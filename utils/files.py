"""Files that are whole or absent: written aside, flushed to the disk, then renamed."""

import contextlib
import json
import os
import pathlib


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


def write_text(path, text):
    """Replace a text file in one step."""
    with replace(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=1))


def flush(path):
    """What the file or folder at `path` holds is on the disk after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
