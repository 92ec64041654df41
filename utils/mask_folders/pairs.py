"""Own images and masks for segmentation, in folders."""

import collections
import functools
import os
from typing import NamedTuple

from utils.cli.arguments import split_flag
from utils.cli.errors import InputError, choose_one
from utils.data.masks import fit_image, own_tables, read_values, to_classes
from utils.data.string_list import StringList
from utils.folders.class_names import MOST_CLASSES, listed_classes
from utils.folders.files import match, scan_files
from utils.folders.hold_out import hold_out
from utils.folders.names import HEIF, few, left_out_line, test_note
from utils.images.read import AS_STORED, read_image
from utils.mask_folders.ids import MaskIds, colour_reader, colours_of, find_ids, refuse_other_palettes
from utils.mask_folders.layouts import base_of, find_layout
from utils.mask_folders.outlines import find_outlines


class Pairs:
    """A source of segmentation: image files and mask files, the mask at each place that of the image there.

    ids: MaskIds, by whose tables the values in mask files become classes. values: path -> those values. upright: whether masks
    are those of images that EXIF turned; reading: images.Reading; left_out: {kind: number} of other files; whole: as of a
    class_folders.Folder.
    """

    reading, upright, left_out, whole = AS_STORED, True, {}, False

    def __init__(self, title, images, masks, ids, values=read_values):
        self.title, self.values = title, values
        self.images, self.masks = StringList(images), StringList(masks)
        self.set_ids(ids)

    def set_ids(self, ids):
        """ids: MaskIds."""
        self.ids, self.classes, self.palette, self.notes = ids, ids.classes, ids.palette, ids.notes

    def __len__(self):
        return len(self.images)

    def read(self, index):
        image, mask = self.images[index], self.masks[index]
        ids = to_classes(self.mask(index), self.ids.tables, mask, self.ids.unknown)
        read = functools.partial(read_image, image, reading=self.reading)
        return fit_image(read, ids.shape, image, mask, self.upright), ids

    def mask(self, index):
        """The values in a mask file, (H, W) uint8 or uint16."""
        if self.values is not read_values:
            return self.values(self.masks[index])
        return read_values(self.masks[index], self.upright)

    def name(self, index):
        return self.images[index]

    def file(self, index):
        return self.images[index]

    def part(self, indices):
        """The `Pairs` of these images only."""
        part = Pairs(self.title, *[[paths[i] for i in indices] for paths in (self.images, self.masks)], self.ids, self.values)
        part.left_out, part.whole = self.left_out, self.whole
        return part


class MaskOptions(NamedTuple):
    """How masks are to be read. suffix: the end of their names; values: {value: name}; colours: [(name, red, green, blue)];
    reduce_zero: 0 is no class; everything: all masks are looked at to count the classes; group_by: see `hold_out`; trained: of
    an evaluation, names of the weights' classes, which the numbers in masks count where there is no classes.txt."""

    suffix: str = ""
    values: dict | None = None
    colours: list | None = None
    reduce_zero: bool = False
    everything: bool = False
    group_by: str | None = None
    trained: list | None = None


DEFAULTS = MaskOptions()


def mask_folders(root, need_train=True, *, need_val=True, val_split=None, seed=0, options=DEFAULTS, say=print):
    """(training, validation) from images and masks of the same names, in a layout of layouts.py.

    need_train: True; None: without a training split the validation images, or those without a split, stand for both; False:
    they always do. need_val: else validation images may be missing; the source then has none. val_split: the fraction of the
    images that is held out, keyed by `seed`, where there is no validation split. A mask holds class ids; 255, or 65535 in masks
    of 16 bits, is no class. classes.txt beside the folders names the classes, one a line; else they are counted in a sample.
    Raises InputError for folders that are missing and files without a counterpart.
    """
    drawn = {} if options.values or options.colours else find_outlines(root, say)
    layout = drawn or find_layout(root)
    alone = need_train is False or (need_train is None and "train" not in layout)
    held_out = next((split for split in ("val", "test", *[""] * alone) if split in layout), None)
    if val_split is not None and "val" in layout:
        raise InputError(f"{split_flag(val_split)}: there is a validation set already; leave one of the two out")
    train = "train" if "train" in layout else ""
    without_val = not need_val and val_split is None and held_out is None and train in layout
    if val_split is None and not without_val and (held_out is None or not (alone or train in layout)):
        how = "; or give --val_split 0.1 to hold out a part of them" if train in layout else ""
        found = few(sorted(split or "images without a split" for split in layout)) if drawn else ", ".join(
            f"{images} and {masks}" for images, masks in layout.values())  # fmt: skip
        raise InputError(f"--data_path {root}: found {found}; expected images/train, images/val, masks/train, masks/val{how}")
    splits = (train,) if val_split is not None or without_val else (held_out,) if alone else (train, held_out)
    if drawn:
        sources = [drawn[split] for split in splits]
    else:
        sources = _mask_files(root, base_of(layout), [layout[split] for split in splits], options)
        first = layout[splits[0]]
        if [str(path) for path in first] != [os.path.join(root, kind, splits[0]) for kind in ("images", "masks")]:
            say(f"data: images from {first[0]}, masks from {first[1]}")
    if val_split is None and held_out == "test" and not alone:
        sources[0].notes += (test_note("test"),)
    if val_split is not None:
        return hold_out(sources[0], val_split, seed, options.group_by, say)
    sources[-1].whole = alone and held_out == ""
    return sources[0], sources[0].part([]) if without_val else sources[-1]


def _mask_files(root, base, folders, options):
    """`Pairs` of each of these (folder of images, folder of masks), all with the same classes."""
    left_out = collections.Counter()
    parts = [_pairs(*pair, options.suffix, left_out) for pair in folders]
    values, ids = read_ids([mask for part in parts for mask in part[1]], root, base, options)
    sources = [Pairs(str(root), *part, ids, values) for part in parts]
    for source in sources:
        source.left_out = dict(left_out)
    return sources


def _pairs(images, masks, suffix, left_out):
    try:
        return match(scan_files(images, left_out=left_out), scan_files(masks, suffix=suffix, left_out=left_out))
    except InputError as error:
        if not any(kind in HEIF for kind in left_out):
            raise
        raise InputError(f"{error}; {left_out_line(left_out)}: pip install pillow-heif, or convert them") from None


def pairs_of(images, masks, title, train, suffix):
    """The `Pairs` in these two folders, whose masks mean what those of the source `train` do."""
    return Pairs(str(title), *_pairs(images, masks, suffix, collections.Counter()), train.ids, train.values)


def read_ids(masks, root, base, options):
    """(function of a mask's path -> its values, `MaskIds`) of mask files, by `MaskOptions` and classes.txt in `base`, where the
    masks lie, or in `root`, a folder around it."""
    if options.colours:
        values, names, palette = colour_reader(options.colours)
        return values, MaskIds(names, palette, own_tables(len(names)))
    if not options.values:
        refuse_other_palettes(masks)
    listed = listed_classes(base, MOST_CLASSES) or listed_classes(root, MOST_CLASSES)
    try:
        ids = find_ids(
            read_values, masks, root, listed=listed, named=options.values,
            reduce_zero=options.reduce_zero, everything=options.everything, trained=options.trained,
        )  # fmt: skip
    except InputError as error:
        if "is a picture of mode RGB" not in str(error):
            raise
        colours = colours_of(masks)
        raise InputError(
            f"{error}; the masks hold the colours {'; '.join(colours[:12])}{'; …' * (len(colours) > 12)}: name them in a file, "
            "name,red,green,blue on each line, and give it as --mask_colors"
        ) from None
    return read_values, ids


def split_pairs(title, parts, train_split, classes, palette, tables):
    """(training, validation) `Pairs` from [(images, masks) of each]; train_split "trainval": training has both."""
    train, val = parts
    if with_val(train_split):
        train = [of_train + of_val for of_train, of_val in zip(train, val, strict=True)]
    return tuple(Pairs(title, *part, MaskIds(classes, palette, tables)) for part in (train, val))


def with_val(train_split):
    """Whether the images of the validation set are trained on too: "trainval", not "train"."""
    choose_one(train_split, ("train", "trainval"), "training split")
    return train_split == "trainval"
