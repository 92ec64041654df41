"""Names that files and folders have: which folders are splits, and what lies beside images and is none of the data."""

import json
import os
import re

from utils.cli.errors import InputError, did_you_mean

# How people call a split, whatever the capitals.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
# Folders that systems and devices make by themselves.
FOREIGN_FOLDERS = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
HEIF = (".heic", ".heif", ".hif")


def split_of(name):
    """The split that a folder's name means, "train", "val" or "test"; None: it is no such name."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def split_folders(names):
    """({split: name}, [(a name, another one of the same split), …]) among the names of folders. The usual name comes first:
    of Train and training, `train` in any capitals is the split."""
    found, twice = {}, []
    for name in sorted(names, key=lambda name: (name.lower() not in SPLITS, name)):
        if split := split_of(name):
            if split in found:
                twice.append((found[split], name))
            found.setdefault(split, name)
    return found, twice


def refuse_twice(folder, twice):
    """InputError where two folders in `folder` are of one split. twice: as of `split_folders`."""
    if twice:
        first, second = twice[0]
        raise InputError(f"{folder}: {first}/ and {second}/ are both the same split by their names; keep one of them")


def why_left_out(name):
    """Under which name a file or folder is counted that lies among the data by its system's doing; None: it is of the data."""
    if name.startswith("._"):
        return "._*"
    if name == ".DS_Store" or name.lower() in ("thumbs.db", "desktop.ini"):
        return name
    if name.lower() in FOREIGN_FOLDERS:
        return f"{name}/"
    return "hidden" if name.startswith(".") else None


def ending(name):
    """How a file that is no image is counted: by its ending, such as ".heic"."""
    return os.path.splitext(name)[1].lower() or "no ending"


def is_run(folder):
    """Whether a training wrote the folder: its args.json holds settings."""
    path = os.path.join(folder, "args.json")
    if not os.path.isfile(path):
        return False
    try:
        with open(path, encoding="utf-8") as file:
            return {"settings", "args"} <= set(json.load(file))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def left_out_line(counts):
    """What was left out, {kind: number}, on one line; "" where nothing was."""
    if not counts:
        return ""
    names = {"hidden": "hidden", "runs": "folders of trainings"}
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count:,} {names.get(kind, kind)}" for kind, count in most_first]
    return f"left out: {', '.join(parts)}"


def test_note(folder):
    """A line for training notes where a test split is validated on."""
    return (
        f"note: {folder}/ is validated on, so that it chooses the best weights, and its score is no test any more; --val_split "
        "0.1 holds out a part of the training images instead, and leaves it alone"
    )


def few(names, most=5, separator=", "):
    """The first `most` names in one text, and … if there are more."""
    return separator.join([*map(str, names[:most]), *["…"] * (len(names) > most)])


def missing(folder):
    """What an error says of a folder (pathlib.Path) that does not exist."""
    near = os.listdir(folder.parent) if folder.parent.is_dir() else []
    return f"no such folder{did_you_mean(folder.name, near)}"


def tables_in(folder):
    """Names of files in `folder` that may say what each image shows: .csv, .tsv and Parquet."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if re.search(r"\.(csv|tsv|parquet)$", name, re.I) and not name.startswith(".")]
