"""Own images for recognition: a folder for each class, in train/ and val/ or in one tree."""

import os
import pathlib

import numpy as np

from utils.cli.arguments import split_flag
from utils.cli.errors import InputError
from utils.data.string_list import StringList
from utils.folders.hold_out import hold_out
from utils.folders.index import index_folder
from utils.folders.names import (
    few,
    left_out_line,
    missing,
    refuse_twice,
    split_folders,
    split_of,
    tables_in,
    test_note,
    why_left_out,
)
from utils.images.formats import is_image
from utils.images.read import AS_STORED, read_bytes, read_image


class Folder:
    """A source of recognition: image files below the folder `root`, `paths` from there on, labels (N,) int64, or
    (N, C) bool where an image may have several.

    reading: images.Reading. left_out: {kind: number}, as of index.Index. whole: it is all that there is, without splits, and is
    to be evaluated: some of it may have been trained on.
    """

    reading, notes, whole = AS_STORED, (), False

    def __init__(self, root, paths, labels, classes, left_out=()):
        self.root, self.title, self.left_out = root, root, dict(left_out)
        self.paths = paths if isinstance(paths, StringList) else StringList(paths)
        self.labels, self.classes = np.asarray(labels, dtype=bool if np.ndim(labels) == 2 else np.int64), classes

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        return read_image(self.name(index), reading=self.reading)

    def encoded(self, index):
        return None if self.reading != AS_STORED else read_bytes(self.name(index))

    def name(self, index):
        return os.path.join(self.root, self.paths[index])

    def file(self, index):
        return self.name(index)

    def part(self, indices):
        """The `Folder` of these images only."""
        part = Folder(self.root, [self.paths[i] for i in indices], self.labels[indices], self.classes, self.left_out)
        part.notes, part.whole = self.notes, self.whole
        return part


def class_folders(
    data_path, eval_data_path=None, val_split=None, seed=0, need_val=True, need_train=True, say=print, group_by=None
):
    """(training, validation) from `data_path` with train/ and val/, from two trees, or from one tree and `val_split`.

    Folders of splits may have any of the names in names.SPLITS, in any capitals; a folder test/ without val/ is validated on,
    which the notes of the training source say. val_split: the fraction of each class that is held out, keyed by `seed`;
    group_by: see `hold_out`. Without `need_val` the validation tree may be missing; the source then has no images. need_train:
    True; None: if there is no training tree, the validation tree, or the one tree there is, stands for both, with its own
    classes; False: it always does. Raises InputError for a folder that is missing or empty, for splits and classes side by
    side, and for classes of the validation tree that the training tree lacks.
    """
    root = pathlib.Path(data_path)
    if not root.is_dir():
        raise InputError(f"--data_path {root}: {missing(root)}")
    root, splits = find_splits(root, say)
    train_root = root / splits.get("train", "")
    held_out = splits.get("val", splits.get("test"))
    if val_split is not None:
        if eval_data_path or "val" in splits:
            raise InputError(f"{split_flag(val_split)}: there is a validation set already; leave one of the two out")
        return hold_out(scan_folder(train_root), val_split, seed, group_by, say)
    val_root = pathlib.Path(eval_data_path) if eval_data_path else root / (held_out or "val")
    alone = need_train is False or (need_train is None and "train" not in splits)
    if alone and (val_root.is_dir() or not (eval_data_path or "train" in splits)):
        val = scan_folder(val_root if val_root.is_dir() else root)
        val.whole = not val_root.is_dir()
        return val, val
    if not val_root.is_dir():
        if eval_data_path:
            raise InputError(f"--eval_data_path {val_root}: {missing(val_root)}")
        if not need_val:
            train = scan_folder(train_root)
            return train, Folder(train.root, [], [], train.classes)
        found = few(sorted(entry.name for entry in root.iterdir() if entry.is_dir())) or "no folders"
        raise InputError(
            f"--data_path {root}: found {found}; expected train/ and val/ with one folder per class in each, "
            "or give --val_split 0.1 to split one tree"
        )
    if "train" not in splits and not eval_data_path:
        raise InputError(f"--data_path {root}: found {held_out}/ and no train/; expected a training folder beside it")
    train = scan_folder(train_root)
    if not eval_data_path and "val" not in splits:
        train.notes = (test_note(held_out),)
    return train, scan_folder(val_root, train.classes)


def find_splits(root, say=print):
    """(the folder with the splits, {split: name of its folder}) of `root`, or of the only folder in it, which archives make.

    A folder that is called like a split, but holds images and no folders, beside folders that are not, is a class (a train
    among cars). Raises InputError for two folders of one split, and for splits beside class folders.
    """
    names = _folders(root)
    inside = split_folders(_folders(root / names[0]))[0] if len(names) == 1 else {}
    if "train" in inside and (len(inside) > 1 or split_of(names[0]) is None):
        root = root / names[0]
        say(f"data: read from {root}, the only folder there")
        names = _folders(root)
    splits, twice = split_folders(names)
    others = [name for name in names if split_of(name) is None]
    if others and len(splits) == 1 and not _folders(root / next(iter(splits.values()))):
        return root, {}
    refuse_twice(root, twice)
    if splits and "train" not in splits and others:
        raise InputError(
            f"{root}: found {few([f'{name}/' for name in splits.values()])} beside the folders {few(others)}; expected class "
            "folders only, or train/ and val/: move the classes to train on into train/"
        )
    if usual := [f"{name}/ as {split}" for split, name in splits.items() if name != split and split != "test"]:
        say(f"data: reads {', '.join(usual)}")
    return root, splits


def _folders(root):
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and why_left_out(entry.name) is None)


def scan_folder(root, classes=None):
    """The `Folder` of a tree with one folder per class. classes: those of the training set, which labels then follow.

    Raises InputError if there are no class folders, if they are splits, if one has no images, or is not among `classes`.
    """
    root = str(root)
    found, images, counts, left_out, inside = index_folder(root)
    if not found:
        images = sum(is_image(name) for name in os.listdir(root))
        tables = [*tables_in(root), *tables_in(os.path.dirname(os.path.abspath(root)))]
        table = f"; if {tables[0]} says what each shows, give --labels {tables[0]}" if tables and images else ""
        raise InputError(f"{root} has {images} images and no folders: expected one folder per class{table}")
    if classes is not None and (extra := sorted(set(found) - set(classes))):
        raise InputError(
            f"{root} has {len(extra)} class{'es' * (len(extra) > 1)} that the training set lacks ({few(extra)}); the training "
            f"set has {few(classes)}"
        )
    if sum(split_of(name) is not None for name in found) > 1:
        raise InputError(
            f"{root}: the folders {few(found)} are splits by their names, not classes; expected one folder per class in "
            "each of train/ and val/"
        )
    if inside:
        (name, splits), *_ = inside.items()
        raise InputError(
            f"{root}: the folder {name} holds {few([f'{split}/' for split in splits])}, which are splits by their names, and "
            f"would be one class; expected a folder per class in train/ and val/, or --data_path {os.path.join(root, name)}"
        )
    if empty := [name for name, count in zip(found, counts, strict=True) if not count]:
        what = f" ({line})" if (line := left_out_line(left_out)) else ""
        what += "; --in_chans N reads arrays of N bands" * (".npy" in left_out)
        raise InputError(
            f"{root}: no images in class folder {few(empty)}: expected files such as .jpg or .png; remove empty folders{what}"
        )
    label_of = {name: label for label, name in enumerate(classes or found)}
    return Folder(root, images, np.repeat([label_of[name] for name in found], counts), classes or found, left_out)


def refuse_one_class(source, folder=None):
    """InputError if all images to train on are of one class. folder: where tables of labels may lie."""
    labels = source.labels if hasattr(source, "part") else None
    several = np.ndim(labels) == 2  # of which one is enough: an image has it, or not
    found = source.classes if labels is None or several else [source.classes[label] for label in np.unique(labels)]
    if len(found) > 1 or several:
        return
    tables = tables_in(folder) if folder else []
    how = f"if {tables[0]} says what each image shows, give --labels {tables[0]}" if tables else "a folder for each class"
    raise InputError(f"{source.title}: found one class, {found[0]}; expected two at least: {how}")
