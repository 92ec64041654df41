"""The training and the validation images of train_segmentation.py, with their masks.

A source of segmentation has `len(source)`; `read(index)` -> (image as images.Reading has it, mask (H, W) int64 with IGNORE
where a pixel has no class); `classes`, a list of names; `palette`, (classes, 3) uint8; `name(index)` for messages; and `title`,
which says what it is. Reading raises BadImage for a broken image and InputError for a broken mask.
"""

import numpy as np

from utils.cli.errors import InputError
from utils.data.bad_samples import in_threads
from utils.data.look import see
from utils.data.sampling import spread
from utils.folders.class_names import SAMPLE, check_number
from utils.folders.names import few
from utils.folders.select import in_groups, read_groups, select
from utils.images.formats import read_arrays
from utils.images.read import IGNORE, BadImage, Reading
from utils.mask_folders.layouts import find_layout
from utils.mask_folders.options import mask_options
from utils.mask_folders.outlines import Outlines, find_outlines
from utils.mask_folders.pairs import Pairs, mask_folders, pairs_of
from utils.sources import SEGMENTATION_SETS
from utils.sources.built_in import scenes
from utils.sources.mask_tables import stream_of_masks, tables_of_masks
from utils.sources.published import open_published


def open_segmentation_data(data, *, crop_size, seed, need_val=True, need_train=True, trained=None, dry_run=False, say=print):
    """(training source, validation source); the training source is a stream if `data.streaming`.

    data: utils.cli.segmentation_flags.Data. crop_size: side of the built-in scenes in pixels. seed: decides what --val_split
    holds out. need_val, need_train: of folders, see `mask_folders`; of a data set, see `load_splits`. trained: see
    `MaskOptions`. dry_run: nothing is downloaded, and missing images are counted as published. say: told which folders are
    read, and in an evaluation the notes too. Raises InputError, which says what was found, if there is no such data, or if it
    has another number of classes than --nb_classes.
    """
    if data.in_chans:
        read_arrays()
    options = mask_options(data, trained)
    if data.data_set:
        known, train_split = SEGMENTATION_SETS[data.data_set], data.train_split or "train"
        train, val = open_published(known, data.data_path, train_split, dry_run)
    elif data.data_path:
        train, val = mask_folders(
            data.data_path, need_train, need_val=need_val, val_split=data.val_split, seed=seed, options=options, say=say
        )
    elif data.streaming:
        train, val = stream_of_masks(data.dataset, data.image_column, data.mask_column, data.train_images, options, say)
    elif data.dataset:
        train, val = tables_of_masks(
            data.dataset, data.image_column, data.mask_column, data.val_split, seed, need_train is True, options, say
        )
    else:
        train, val = scenes(crop_size)
    train, val = select(
        train, val, classes=data.classes, max_train_images=data.max_train_images, max_val_images=data.max_val_images, seed=seed,
        say=say,
    )  # fmt: skip
    check_number(data.nb_classes, train.classes)
    if need_train is True and (test := _test_masks(data, train, say)):
        val.test = test
    lines = []
    see(train, val, Reading.of(data), lines.append)
    lines = [*getattr(train, "notes", ()), *lines]
    if need_train is True and lines:
        train.notes = tuple(lines)  # which the report on the data says
    else:
        for line in lines:
            say(line)
    return train, val


def _test_masks(data, train, say):
    """The source that is scored once, after training: of --test_data_path, or of test beside train and val; None."""
    if not (data.test_data_path or data.data_path) or data.data_set or not isinstance(train, Pairs | Outlines):
        return None
    root = data.test_data_path or data.data_path
    layout = find_outlines(root, lambda line: None) if isinstance(train, Outlines) else find_layout(root)
    split = "test" if "test" in layout else "" if data.test_data_path and "" in layout else None
    if split is None and data.test_data_path:
        raise InputError(f"--test_data_path {data.test_data_path}: found no test split; expected images/ and masks/ in it")
    if split is None or not (data.test_data_path or "val" in layout or data.val_split):
        return None
    if isinstance(train, Outlines):
        test = layout[split]
        if not data.classes and (others := [name for name in test.classes if name not in train.classes]):
            raise InputError(f"{root}: the test images have other classes ({few(others)}) than {few(train.classes)}")
        same = {name: [name] for name in train.classes}  # in another order, perhaps, or some of them
        test = in_groups(test, read_groups(data.classes, test.classes, some=True) if data.classes else same, say, "test")
    else:
        test = pairs_of(*layout[split], root, train, data.mask_suffix or "")
    say(f"data: {len(test):,} images of {root}/{split} are scored once, after training, by the best weights")
    return test


def check_sources(train, val):
    """`check_files` of both sources and the test images; a stream to train on cannot be looked at beforehand."""
    if not hasattr(train, "samples"):
        check_files(train, training=True)
    for source in (val, getattr(val, "test", None)):
        if source is not None:
            check_files(source)


def check_files(source, training=False):
    """Read up to SAMPLE samples, evenly spread; returns their number.

    training: broken images are passed over, since training replaces them, unless all are broken. Raises InputError that
    counts and names the samples which cannot be read, or if no mask holds a class.
    """
    if not len(source):  # to validate on, with --disable_eval true
        return 0
    indices = spread(len(source), SAMPLE)

    def count_pixels(index):
        """Pixels of each class, those without a class first; or (message, whether training replaces the sample)."""
        try:
            return np.bincount(source.read(index)[1].ravel() - IGNORE, minlength=len(source.classes) + 1)
        except InputError as error:
            return str(error), isinstance(error, BadImage)

    results = list(in_threads(count_pixels, indices))
    broken = [result for result in results if isinstance(result, tuple)]
    pixels = sum((result for result in results if not isinstance(result, tuple)), np.zeros(len(source.classes) + 1, np.int64))
    if training and len(broken) < len(indices):
        broken = [(message, replaced) for message, replaced in broken if not replaced]
    if broken:
        messages = few([message for message, _ in broken], 3, " | ")
        raise InputError(f"{source.title}: {len(broken)} of {len(indices)} samples looked at cannot be used: {messages}")
    ignored, first, others = pixels[0], pixels[1], pixels[2:].sum()
    if first + others == 0 or (others == 0 and ignored and len(source.classes) > 1):
        found = "no class at all" if first == 0 else f"only {source.classes[0]} and pixels that are ignored"
        raise InputError(
            f"{source.title}: {len(indices)} masks looked at hold {found}; expected the ids 0..{len(source.classes) - 1} "
            f"(in masks of 0 and 255, --mask_values 0={source.classes[0]} 255=NAME makes 255 a class)"
        )
    return len(indices)
