"""The training and the validation images of train_recognition.py.

A source of recognition has `len(source)`; `read(index)` -> an image as images.Reading has it; `encoded(index)` -> the bytes of
its file, or None if there is no file; `labels`, (N,) int64, or (N, C) bool where an image may have several; `classes`, a list
of names; `name(index)` for messages; and `title`, which says what it is. Both reading methods raise BadImage. Own data have
`file(index)`, a path or an open file, too, `part(indices)`, the source of these samples only, `notes`, lines to say, and
`left_out`, {kind: number} of what lies beside the images.
"""

import os
import pathlib

from utils.cli.errors import InputError
from utils.data.look import see
from utils.data.sampling import spread
from utils.folders.class_folders import Folder, class_folders, find_splits, refuse_one_class, scan_folder
from utils.folders.class_names import check_number
from utils.folders.label_table import labelled_images
from utils.folders.select import in_groups, read_groups, select
from utils.images.formats import read_arrays
from utils.images.read import Reading, check_header
from utils.sources import RECOGNITION_SETS, DataSet
from utils.sources.built_in import digits
from utils.sources.published import count_published, open_published
from utils.sources.tables import stream_of_images, tables_of_images

# For a dry run without the images. 22K is the release of fall 2011, on all of which ConvNeXt trains.
IMAGENET = (
    DataSet("utils.folders.class_folders:class_folders", "ImageNet-1K", 1000, 1_281_167, 50_000),
    DataSet("utils.folders.class_folders:class_folders", "ImageNet-22K", 21_841, 14_197_122, 0),
)


def open_recognition_data(data, *, seed, need_val=True, need_train=True, dry_run=False, say=print):
    """(training source, validation source); the training source is a stream if `data.streaming`.

    data: utils.cli.recognition_flags.Data. seed: decides what --val_split holds out. need_val: class folders without a
    validation set are refused. need_train: of class folders, see `class_folders`; of a data set, see
    `load_splits`. dry_run: nothing is downloaded, and missing images are counted as published. say: told which folders are
    read. Raises InputError, which says what was found, if there is no such data, if it has one class to train on, or another
    number of classes than --nb_classes.
    """
    if data.in_chans:
        read_arrays()
    if data.data_set in RECOGNITION_SETS:
        train, val = open_published(RECOGNITION_SETS[data.data_set], data.data_path, dry_run=dry_run)
    elif data.data_path and dry_run and not os.path.isdir(data.data_path):
        train, val = _imagenet(data.data_path, data.nb_classes)
    elif data.labels:
        train, val = labelled_images(
            data.labels, data.data_path, image_column=data.image_column, label_column=data.label_column,
            val_split=data.val_split, seed=seed, group_by=data.group_by, need_val=need_val,
            need_train=need_train is True, several=bool(data.task), say=say,
        )  # fmt: skip
    elif data.data_path:
        train, val = class_folders(
            data.data_path, data.eval_data_path, data.val_split, seed, need_val, need_train, say, data.group_by
        )
    elif data.streaming:
        train, val = stream_of_images(data.dataset, data.image_column, data.label_column, data.train_images, say)
    elif data.dataset:
        train, val = tables_of_images(
            data.dataset, data.image_column, data.label_column, data.val_split, seed, need_train is True, say, bool(data.task)
        )
    else:
        train, val = digits()
    train, val = select(
        train, val, classes=data.classes, max_train_images=data.max_train_images, max_val_images=data.max_val_images, seed=seed,
        say=say,
    )  # fmt: skip
    if need_train is True:
        refuse_one_class(train, None if data.labels else data.data_path)
        val.test = _test_images(data, train.classes, say) or getattr(val, "test", None)
    check_number(data.nb_classes, train.classes)
    see(train, val, Reading.of(data))
    return train, val


def _test_images(data, classes, say):
    """The source that is scored once, after training: of --test_data_path, or of test/ beside train/ and val/; None."""
    path = data.test_data_path
    if not path and data.data_path and not (data.labels or data.data_set in RECOGNITION_SETS) and os.path.isdir(data.data_path):
        root, splits = find_splits(pathlib.Path(data.data_path), lambda line: None)
        if "test" in splits and ("val" in splits or data.val_split or data.eval_data_path):
            path = root / splits["test"]
    if not path:
        return None
    test = scan_folder(path, None if data.classes else classes)
    if data.classes:
        test = in_groups(test, read_groups(data.classes, test.classes, some=True), say, "test")
    say(f"data: {len(test):,} images of {path} are scored once, after training, by the best weights")
    return test


def _imagenet(data_path, nb_classes):
    """(training, validation) in the numbers of the ImageNet with so many classes."""
    for known in IMAGENET:
        if known.classes == nb_classes:
            return count_published(known, data_path)
    wanted = " or ".join(str(known.classes) for known in IMAGENET)
    raise InputError(f"--data_path {data_path}: no such folder; to count without it, give --nb_classes {wanted}")


def check_sources(_, val):
    """`check_headers` of the validation and the test images; training replaces broken ones."""
    for source in (val, getattr(val, "test", None)):
        check_headers(source)


def check_headers(source, most=2000):
    """Read the headers of up to `most` files, evenly spread. Raises BadImage, which names the first file that is no image."""
    if isinstance(source, Folder):
        for index in spread(len(source), most):
            check_header(source.name(index), source.reading)
