"""Where images and masks come from: the built-in scenes, the field's data sets, folders, and the library `datasets`.

A source has `len(source)`, `read(index)` -> (PIL image in RGB, mask (H, W) int64 with IGNORE where a pixel has no class),
`name(index)`, `classes` (names), `palette` ((classes, 3) uint8) and `title`, which says what it is. Each function that
opens data gives (train, val) and raises InputError for folders that are missing and files that have no counterpart.
"""

import difflib
import functools
import io
import json
import os
import pathlib

import numpy as np
import torch

from utils.cli.errors import InputError, choose_one, first_line
from utils.data.bad_samples import in_threads, read_or_replace
from utils.data.masks import IGNORE, class_table, draw_instances, mask_values, read_values, to_classes
from utils.data.sampling import AUGMENT, Key, seed_everything, stream_seed
from utils.data.streaming import place_of
from utils.data.string_list import StringList
from utils.images import BadImage, decode_image, is_image, open_image, read_image
from utils.sources import class_names, palettes
from utils.sources.hub import (
    encoded_image,
    encoded_images,
    find_column,
    holds_images,
    listed_classes,
    load_splits,
    open_stream,
)
from utils.sources.scenes import Scenes

SAMPLE = 200  # samples that are looked at where not everything is
_MOST_CLASSES = 65_535  # ids of 16 bits, of which the last is ignored


class SegmentationDataset(torch.utils.data.Dataset):
    """Indexed by `Key`: (image (3, H, W) float32, mask (H, W) int64); the mask is all IGNORE where the key does not count.

    transform: (PIL image, mask (H, W) int64 array) -> those two tensors. `seed`: for training. The transform's random numbers
    are keyed by it, the epoch and the sample, and a sample whose image (not its mask) is broken is replaced by another; a
    third element says so: the index of the broken sample, or -1. Without a seed, for a transform without chance, a broken
    image raises BadImage.
    """

    def __init__(self, source, transform, seed=None):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return len(self.source)

    def __getitem__(self, key):
        key = key if isinstance(key, Key) else Key(key)
        sample, index = read_or_replace(self.source.read, key, self.seed, len(self))
        if self.seed is not None:
            seed_everything(stream_seed(self.seed, AUGMENT, key.epoch, key.index))
        image, mask = self.transform(*sample)
        mask = mask if key.counts else torch.full_like(mask, IGNORE)
        if self.seed is None:
            return image, mask
        return image, mask, -1 if index == key.index else key.index


class SegmentationStream:
    """What a `streaming.StreamLoader` makes of an example: (image (3, H, W) float32, mask (H, W) int64).

    The transform's random numbers are keyed by `seed`, the epoch and the number of the sample.
    """

    def __init__(self, source, transform, seed):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return self.source.samples

    def __call__(self, example, number, epoch):
        sample = self.source.read(example, number)
        seed_everything(stream_seed(self.seed, AUGMENT, epoch, number))
        return self.transform(*sample)


# --- sources --------------------------------------------------------------------------------------------------------


class Pairs:
    """Image files and mask files side by side.

    tables: value in a mask file -> class id, for files of 8 and of 16 bits (`class_table`).
    """

    def __init__(self, title, images, masks, classes, palette, tables):
        self.title, self.classes, self.palette, self.tables = title, classes, palette, tables
        self.images, self.masks = StringList(images), StringList(masks)

    def __len__(self):
        return len(self.images)

    def read(self, index):
        mask = to_classes(read_values(self.masks[index]), self.tables, self.masks[index])
        path = self.images[index]
        return _fitting(functools.partial(read_image, path), mask.shape, path, self.masks[index]), mask

    def name(self, index):
        return self.images[index]


class CocoInstances:
    """COCO's images, their masks drawn from the instances: of several at a pixel, the first in the file wins."""

    title, classes, palette = "COCO with the classes of VOC", class_names.VOC, palettes.voc_palette(21)

    def __init__(self, samples):
        """samples: [(image path, [height, width, [[class, segmentation], ...]])]"""
        self.images = StringList([path for path, _ in samples])
        self.records = StringList([json.dumps(record) for _, record in samples])  # text: see StringList on objects

    def __len__(self):
        return len(self.images)

    def read(self, index):
        path = self.images[index]
        mask = draw_instances(*json.loads(self.records[index]), path)
        drawn = "drawn in the size that the instances file has"
        return _fitting(functools.partial(read_image, path), mask.shape, path, drawn), mask

    def name(self, index):
        return self.images[index]


class TableOfMasks:
    """The `rows` of a split of the library `datasets` with an image and a mask column. Paths must lie in the folder `root`."""

    def __init__(self, title, table, image_column, mask_column, rows, root):
        self.title, self.image_column, self.mask_column, self.rows, self.root = title, image_column, mask_column, rows, root
        self.table = encoded_images(table, image_column, mask_column)

    def set_classes(self, classes):
        self.classes, self.palette, self.tables = classes, palettes.voc_palette(len(classes)), _own_tables(len(classes))

    def __len__(self):
        return len(self.rows)

    def read(self, index):
        columns = (self.image_column, self.mask_column)
        return _read_row(self.table[int(self.rows[index])], *columns, self.tables, self.root, self.name(index))

    def values(self, index):
        """What the mask holds, (H, W) uint8 or uint16."""
        return _row_values(self.table[int(self.rows[index])], self.mask_column, self.root, self.name(index))

    def name(self, index):
        return f"{self.title}, row {int(self.rows[index])}, columns '{self.image_column}' and '{self.mask_column}'"


class StreamOfMasks:
    """A split of the library `datasets` that is read in order, `table`; `samples` is how many it has.

    `read(example, number)` and `name(number)` take a row as the stream gives it, and its number: nothing can be looked up.
    """

    def __init__(self, title, table, samples, image_column, mask_column, root):
        self.title, self.samples, self.root = title, samples, root
        self.image_column, self.mask_column = image_column, mask_column
        self.table = encoded_images(table, image_column, mask_column)

    set_classes = TableOfMasks.set_classes

    def read(self, example, number):
        return _read_row(example, self.image_column, self.mask_column, self.tables, self.root, self.name(number))

    def name(self, number):
        shard, row = place_of(number)
        return f"row {row} of shard {shard}, columns '{self.image_column}' and '{self.mask_column}'"


def _read_row(row, image_column, mask_column, tables, root, name):
    """(image, mask (H, W) int64) of a row {column: value}."""
    mask = to_classes(_row_values(row, mask_column, root, name), tables, name)
    try:
        encoded = encoded_image(row[image_column], root, name)
    except InputError as error:
        raise BadImage(str(error)) from None
    return _fitting(functools.partial(decode_image, encoded, name), mask.shape, name, f"column '{mask_column}'"), mask


def _row_values(row, mask_column, root, name):
    try:
        with open_image(io.BytesIO(encoded_image(row[mask_column], root, name))) as image:
            image.load()
            return mask_values(image, name)
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise InputError(f"{name}: the mask cannot be read ({first_line(error)}); replace it") from None


class Counted:
    """Stands in for data that is not here, where only its size matters."""

    def __init__(self, title, images, classes):
        self.title, self.images, self.classes, self.palette = title, images, classes, palettes.voc_palette(len(classes))

    def __len__(self):
        return self.images


def scenes(size=96, seed=0):
    """(train, val): 600 and 150 built-in scenes of handwritten digits, `size` pixels high and wide."""
    return Scenes("train", 600, size, seed), Scenes("val", 150, size, seed)


# --- the field's data sets: each takes the folder it lies in, and train_split "train" or "trainval" (validation too) ----

_ADE_SPLITS = ("training", "validation")
# The ids whose places here are the train ids. Source: cityscapesScripts, helpers/labels.py
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_VOC2012 = "VOCdevkit/VOC2012"
_VOC_TABLE = class_table(range(21), (255,))
# COCO's category ids, the places of which are VOC's classes. Source: PyTorch-Encoding, encoding/datasets/coco.py
_COCO_IDS = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
_COCO_PIXELS = 1000


def ade20k(root, train_split="train"):
    """ADE20K of the MIT Scene Parsing Benchmark: 150 classes; label 0 is ignored."""
    base = _find(
        root, "ADEChallengeData2016", [f"{kind}/{split}" for kind in ("images", "annotations") for split in _ADE_SPLITS],
        "get ADEChallengeData2016.zip from the site of the MIT Scene Parsing Benchmark and unpack it there",
    )  # fmt: skip
    parts = [match(_scan(base / "images" / split), _scan(base / "annotations" / split)) for split in _ADE_SPLITS]
    palette, table = palettes.voc_palette(150, first=1), class_table(range(1, 151), (0, 255))
    return _pairs("ADE20K", parts, train_split, class_names.ADE20K, palette, table)


def cityscapes(root, train_split="train"):
    """Cityscapes, fine annotations: 19 classes, from the train ids where those files are there, else from the label ids."""
    base = _find(
        root, "cityscapes", [f"{kind}/{split}" for kind in ("leftImg8bit", "gtFine") for split in ("train", "val")],
        "get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from the Cityscapes site, which asks to register, and "
        "unpack both there",
    )  # fmt: skip
    images = [_scan(base / "leftImg8bit" / split, "_leftImg8bit.png") for split in ("train", "val")]
    masks = [_scan(base / "gtFine" / split, "_gtFine_labelTrainIds.png", need=False) for split in ("train", "val")]
    table = class_table(range(19), (255,))
    if any(image.keys() - mask.keys() for image, mask in zip(images, masks, strict=True)):
        masks = [_scan(base / "gtFine" / split, "_gtFine_labelIds.png", need=False) for split in ("train", "val")]
        table = class_table(_CITYSCAPES_IDS, {*range(34), 255} - set(_CITYSCAPES_IDS))
    parts = [match(*part) for part in zip(images, masks, strict=True)]
    return _pairs("Cityscapes", parts, train_split, class_names.CITYSCAPES, palettes.CITYSCAPES, table)


def pascal_voc(root, train_split="train"):
    """PASCAL VOC 2012: 21 classes with the background; 255, the border of objects, is ignored.

    PyTorch-Encoding trains on the list trainval, which holds the validation images too; here that has to be asked for.
    """
    how = "get VOCtrainval_11-May-2012.tar from the site of PASCAL VOC 2012 and unpack it there"
    parts = _listed(root, _VOC2012, ("JPEGImages", "SegmentationClass"), _image_sets("Segmentation"), how)
    return _pairs("PASCAL VOC 2012", parts, train_split, class_names.VOC, palettes.voc_palette(21), _VOC_TABLE)


def pascal_aug(root, train_split="train"):
    """PASCAL VOC with the labels of the Semantic Boundaries Dataset: 21 classes with the background.

    Either that data set as it is (masks in .mat files, its own lists), as in PyTorch-Encoding; or, where it is there, the
    folder SegmentationClassAug in VOC2012, with the list trainaug (or train and aug) and VOC's validation images.
    """
    title = "PASCAL VOC of the Semantic Boundaries Dataset"
    with_png = [base for base in _candidates(root, _VOC2012) if (base / "SegmentationClassAug").is_dir()]
    if with_png:
        train, val = _image_sets("Segmentation", ("trainaug",), ("val",))
        if not (with_png[0] / train[0]).is_file():
            train, _ = _image_sets("Segmentation", ("train", "aug"))
        how = "get VOC 2012, and the list trainaug.txt with its 10,582 names"
        parts = _listed(with_png[0], ".", ("JPEGImages", "SegmentationClassAug"), (train, val), how)
    else:
        how = (
            f"or {_VOC2012}/SegmentationClassAug with PNG masks; get benchmark.tgz of the Semantic Boundaries Dataset from its "
            "authors at Berkeley, and put its folder dataset there"
        )
        parts = _listed(root, "VOCaug/dataset", ("img", "cls"), (("train.txt",), ("val.txt",)), how, ".mat")
    return _pairs(title, parts, train_split, class_names.VOC, palettes.voc_palette(21), _VOC_TABLE)


def pascal_context(root, train_split="train"):
    """Pascal Context: the 59 most frequent classes; 0, all the others, is ignored. Masks as mmsegmentation writes them."""
    how = (
        "get VOCtrainval_03-May-2010.tar from the site of PASCAL VOC 2010 and trainval_merged.json from that of Pascal "
        "Context, and write the masks with mmsegmentation's converter pascal_context.py"
    )
    lists = _image_sets("SegmentationContext")
    parts = _listed(root, "VOCdevkit/VOC2010", ("JPEGImages", "SegmentationClassContext"), lists, how)
    palette, table = palettes.voc_palette(59, first=1), class_table(range(1, 60), (0, 255))
    return _pairs("Pascal Context", parts, train_split, class_names.PASCAL_CONTEXT, palette, table)


def coco(root, train_split="train"):
    """COCO 2017 with the 21 classes of VOC, drawn from the instances; crowds are labelled too.

    Training leaves out images with 1,000 labelled pixels or less, as published; validation keeps all.
    """
    how = "get train2017.zip, val2017.zip and annotations_trainval2017.zip from the COCO site and unpack them there"
    files = [f"annotations/instances_{split}2017.json" for split in ("train", "val")]
    base = _find(root, "coco", files, how)
    splits = []
    for file, split in zip(files, ("train2017", "val2017"), strict=True):
        there = [base / below / split for below in ("images", ".") if (base / below / split).is_dir()]
        if not there:
            raise InputError(f"--data_path {root}: no folder images/{split} or {split} beside annotations; {how}")
        splits.append(_coco_samples(base / file, there[0]))
    train, val = splits
    if _wants_val(train_split):
        train = train + val
    # An area of twice as many settles it, so that most masks need not be drawn.
    train = [
        (path, record)
        for path, record, area in train
        if area > 2 * _COCO_PIXELS or np.count_nonzero(draw_instances(*record, path)) > _COCO_PIXELS
    ]
    if not train:
        raise InputError(f"{base / files[0]}: no image has more than {_COCO_PIXELS} pixels of VOC's classes")
    return CocoInstances(train), CocoInstances([(path, record) for path, record, _ in val])


def _coco_samples(file, folder):
    """[(image path, record as in CocoInstances, the largest instance's area in pixels)] of an instances file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = {entry["id"]: (entry, [], [0]) for entry in content["images"]}
        for instance in content["annotations"]:
            if instance["category_id"] in _COCO_IDS:
                _, shapes, areas = entries[instance["image_id"]]
                shapes.append([_COCO_IDS.index(instance["category_id"]), instance["segmentation"]])
                areas.append(instance.get("area", 0))
        samples = [
            (entry["file_name"], [entry["height"], entry["width"], shapes], max(areas))
            for entry, shapes, areas in entries.values()
        ]
        if not all(isinstance(name, str) for name, _, _ in samples):
            raise TypeError("a file_name is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise InputError(f"{file} is no instances file of COCO's ({type(error).__name__}: {first_line(error)})") from None
    there = set(os.listdir(folder))
    if missing := [name for name, _, _ in samples if name not in there]:  # nor does any name lead out of the folder
        raise InputError(f"{folder} lacks {len(missing)} of the images that {file.name} lists: {_some(missing)}")
    return [(str(folder / name), record, area) for name, record, area in samples]


DATASETS = {
    "ade20k": ade20k,
    "citys": cityscapes,
    "pascal_voc": pascal_voc,
    "pascal_aug": pascal_aug,
    "pcontext": pascal_context,
    "coco": coco,
}

# name -> title, classes, training and validation images
_SIZES = {
    "ade20k": ("ADE20K", class_names.ADE20K, 20_210, 2_000),
    "citys": ("Cityscapes", class_names.CITYSCAPES, 2_975, 500),
    "pascal_voc": ("PASCAL VOC 2012", class_names.VOC, 1_464, 1_449),
    "pascal_aug": ("PASCAL VOC, Semantic Boundaries", class_names.VOC, 8_498, 2_857),
    "pcontext": ("Pascal Context", class_names.PASCAL_CONTEXT, 4_998, 5_105),
    "coco": ("COCO with the classes of VOC, small ones not left out", class_names.VOC, 118_287, 5_000),
}


def open_data(name, root, train_split="train"):
    """(train, val) of the data set `name`, one of DATASETS in any case, in the folder `root`."""
    name = name.lower()
    choose_one(name, DATASETS, "data set")
    return DATASETS[name](root, train_split)


def published_sizes(data_path, name, train_split="train"):
    """(train, val) with the published number of images and classes only, for a dry run without the data set."""
    if name not in _SIZES:
        raise InputError(f"--data_path {data_path}: no such folder; to count without it, name one of {', '.join(_SIZES)}")
    title, classes, train, val = _SIZES[name]
    sizes = (train + val if _wants_val(train_split) else train, val)
    return tuple(Counted(f"{title} by its published size ({data_path} is not here)", size, classes) for size in sizes)


def _pairs(title, parts, train_split, classes, palette, table):
    """(train, val) from the (images, masks) of the two splits."""
    train, val = parts
    if _wants_val(train_split):
        train = [of_train + of_val for of_train, of_val in zip(train, val, strict=True)]
    return tuple(Pairs(title, *part, classes, palette, (table, table)) for part in (train, val))


def _image_sets(folder, train=("train",), val=("val",)):
    return [[f"ImageSets/{folder}/{name}.txt" for name in split] for split in (train, val)]


def _listed(root, below, folders, lists, how, mask_ending=None):
    """The (images, masks) of two splits in the two `folders`, each split named by one or more list files."""
    base = _find(root, below, [*folders, *lists[0], *lists[1]], how)
    images, masks = _scan(base / folders[0]), _scan(base / folders[1], mask_ending)
    parts = []
    for files in lists:
        lines = [line.split() for file in files for line in _lines(base / file)]
        # a line is a name, or the paths of an image and its mask
        names = list(dict.fromkeys(words[0].rpartition("/")[2].removesuffix(".jpg") for words in lines if words))
        if not names:
            raise InputError(f"{base / files[0]}: no names in it; expected one a line")
        parts.append(match(images, masks, names, base / files[0]))
    return parts


def _wants_val(train_split):
    choose_one(train_split, ("train", "trainval"), "training split")
    return train_split == "trainval"


# --- own data -------------------------------------------------------------------------------------------------------


def folder(root):
    """(train, val) from images/{train,val} and masks/{train,val}: palette or grey PNGs of the same names.

    A mask holds class ids; 255, or 65535 in masks of 16 bits, is ignored. classes.txt in `root` names the classes, one a
    line; without it they are "class 0" to the largest id in a sample of the masks.
    """
    root = pathlib.Path(root)
    splits = ("train", "val")
    _find(root, ".", [f"{kind}/{split}" for kind in ("images", "masks") for split in splits], "one mask for each image")
    parts = [match(_scan(root / "images" / split), _scan(root / "masks" / split)) for split in splits]
    names = listed_classes(root, _MOST_CLASSES)
    if names is None:
        masks = parts[0][1] + parts[1][1]
        names = _unnamed_classes(read_values, [masks[index] for index in _spread(len(masks))], root)
    palette, tables = palettes.voc_palette(len(names)), _own_tables(len(names))
    return tuple(Pairs(str(root), *part, names, palette, tables) for part in parts)


def hub_table(name, image_column=None, mask_column=None, val_split=None, seed=0):
    """(train, val) through the library `datasets`: a Hub name, or a folder of Parquet or Arrow files.

    The two columns of images are found by their usual names where they are not given; masks are as for `folder`, their
    classes without names. val_split: hold out this share of the rows, fixed by `seed`, where there is no such split.
    """
    splits, held_out = load_splits(name, val_split)
    table = splits["train"]
    columns = _columns(table, image_column, mask_column)
    if held_out:
        _check_columns(name, splits[held_out], held_out, columns)
        parts = [(split, np.arange(len(split))) for split in (table, splits[held_out])]
    else:
        order = np.random.default_rng(seed).permutation(len(table))
        take = min(max(round(len(table) * val_split), 1), len(table) - 1)
        parts = [(table, np.sort(order[take:])), (table, np.sort(order[:take]))]
    root = name if os.path.isdir(name) else None
    train, val = (TableOfMasks(name, rows_of, *columns, rows, root) for rows_of, rows in parts)
    _set_classes(name, (train, val), [(source, index) for source in (train, val) for index in _spread(len(source))])
    return train, val


def hub_stream(name, image_column=None, mask_column=None, train_images=None):
    """(StreamOfMasks to train on, TableOfMasks to validate on): as `hub_table`, of which training data are not prepared.

    train_images: their number, where it is not written in the data. Without classes.txt the number of classes is that of
    the masks of a sample of the validation set.
    """
    stream = open_stream(name, train_images)
    columns = _columns(stream.table, image_column, mask_column)
    _check_columns(name, stream.val_table, stream.held_out, columns)
    root = name if os.path.isdir(name) else None
    train = StreamOfMasks(f"{name}, streamed", stream.table, stream.samples, *columns, root)
    val = TableOfMasks(name, stream.val_table, *columns, np.arange(len(stream.val_table)), root)
    _set_classes(name, (train, val), [(val, index) for index in _spread(len(val))])
    return train, val


def _columns(table, image_column, mask_column):
    """(image column, mask column): those that are named, or found."""
    image_column = find_column(table, image_column, "image", holds_images, ("image", "img", "pixel_values", "images"))
    usual = "mask label annotation segmentation_map ground_truth segmentation masks labels annotations".split()
    return image_column, find_column(table.remove_columns(image_column), mask_column, "mask", holds_images, usual)


def _check_columns(name, table, split, columns):
    if missing := [column for column in columns if column not in table.column_names]:
        raise InputError(f"--dataset {name}: split {split} has no column '{missing[0]}', as train has")


def _set_classes(name, sources, sample):
    """Give the sources their classes: of classes.txt in the folder `name`, else unnamed ones, by the masks of the sample."""
    classes = listed_classes(name, _MOST_CLASSES)
    if classes is None:
        classes = _unnamed_classes(lambda item: item[0].values(item[1]), sample, f"--dataset {name}")
    for source in sources:
        source.set_classes(classes)


def _unnamed_classes(values_of, sample, where):
    """["class 0", ...] up to the largest value, but the ignored one, in the masks of `sample`."""
    largest = 0
    for values in in_threads(values_of, sample):
        kept = values[values != np.iinfo(values.dtype).max]
        largest = max(largest, int(kept.max(initial=0)))
    if largest == 0:
        raise InputError(
            f"{where}: the masks hold no class but 0 (and 255, which is ignored); write classes as 0, 1, 2, …: 0 and 1 for two"
        )
    return [f"class {number}" for number in range(largest + 1)]


def _own_tables(classes):
    return tuple(class_table(range(classes), (ignored,)) for ignored in (255, 65535))


# --- checks ---------------------------------------------------------------------------------------------------------


def check_files(source, everything=False, progress=None, training=False):
    """Read 200 samples, evenly spread, or everything; the number of samples read.

    Raises InputError with the first names and how many where a file cannot be read, a mask has another size than its
    image or a value that is no class, or no mask holds a class. progress: such as tqdm, wraps the samples. training: broken
    images are passed over, since training replaces them, unless there is nothing else.
    """
    indices = range(len(source)) if everything else _spread(len(source))

    def look(index):
        try:
            return np.bincount(source.read(index)[1].ravel() - IGNORE, minlength=len(source.classes) + 1)
        except InputError as error:
            return str(error), isinstance(error, BadImage)

    results = in_threads(look, indices)
    pixels, wrong = np.zeros(len(source.classes) + 1, np.int64), []
    for result in progress(results, total=len(indices)) if progress else results:
        if isinstance(result, tuple):
            wrong.append(result)
        else:
            pixels += result
    if training and len(wrong) < len(indices):
        wrong = [(message, replaced) for message, replaced in wrong if not replaced]
    if wrong:
        read = f"{len(wrong)} of {len(indices)} samples" + ("" if everything else " looked at")
        raise InputError(f"{source.title}: {read} cannot be used: {_some([message for message, _ in wrong], ' | ')}")
    ignored, first, others = pixels[0], pixels[1], pixels[2:].sum()
    if first + others == 0 or (others == 0 and ignored and len(source.classes) > 1):
        found = "no class at all" if first == 0 else f"only {source.classes[0]} and pixels that are ignored"
        raise InputError(
            f"{source.title}: {len(indices)} masks looked at hold {found}; expected the ids 0..{len(source.classes) - 1} "
            "(write masks of 0 and 255 as 0 and 1)"
        )
    return len(indices)


def _spread(count):
    """Up to SAMPLE indices of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int)).tolist()


# --- folders and names ----------------------------------------------------------------------------------------------


def match(images, masks, names=None, where=None):
    """([image paths], [mask paths]) in order, from two dicts {name: path}.

    All of them, and then each name must occur in both; or the `names` that the list file `where` asks for.
    """
    wanted, named = (sorted(images), sorted(masks)) if names is None else (names, names)
    if missing := [images[name] for name in wanted if name in images and name not in masks]:
        raise InputError(f"no mask for {len(missing)} of {len(wanted)} images: {_some(missing)}")
    if missing := [masks.get(name, name) for name in named if name not in images]:
        what = "masks" if names is None else f"names in {where}"
        raise InputError(f"no image for {len(missing)} of {len(named)} {what}: {_some(missing)}")
    return [images[name] for name in wanted], [masks[name] for name in wanted]


def _scan(folder, ending=None, need=True):
    """{path below `folder` without its ending: path} of the files with this ending, or of all images; some, if `need`."""
    found, seen = {}, set()
    for below, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if os.path.realpath(below) in seen:  # links in a circle
            folders.clear()
            continue
        seen.add(os.path.realpath(below))
        for file in sorted(files):
            if file.startswith(".") or not (file.endswith(ending) if ending else is_image(file)):
                continue
            path = os.path.join(below, file)
            name = os.path.relpath(path, folder).removesuffix(ending or os.path.splitext(file)[1])
            if name in found:
                raise InputError(f"{found[name]} and {path} have the same name; keep one of them")
            found[name] = path
    if need and not found:
        raise InputError(f"{folder}: no such files in it; expected {f'*{ending}' if ending else 'images such as .jpg or .png'}")
    return found


def _lines(path):
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as text ({first_line(error)}); expected a name on each line") from None


def _candidates(root, below):
    """`root` with the whole of `below`, with its end, and alone: users give any folder on the way."""
    parts = pathlib.PurePosixPath(below).parts
    return [pathlib.Path(root).joinpath(*parts[start:]) for start in range(len(parts) + 1)]


def _find(root, below, needed, how):
    """The folder with all that is `needed`: below `root`, or `root` itself."""
    for base in _candidates(root, below):
        if all((base / name).exists() for name in needed):
            return base
    root = pathlib.Path(root)
    if root.is_dir():
        found = "found " + (_some(sorted(entry.name for entry in root.iterdir())) or "nothing in it")
    else:
        near = difflib.get_close_matches(root.name, os.listdir(root.parent), n=1) if root.parent.is_dir() else []
        found = "no such folder" + (f", did you mean {near[0]}?" if near else "")
    inside = "" if below == "." else f"{below} with "
    raise InputError(f"--data_path {root}: {found}; expected {inside}{', '.join(needed)}; {how}")


def _some(items, separator=", "):
    return separator.join(map(str, items[:3])) + (separator + "…" if len(items) > 3 else "")


def _fitting(read, shape, name, mask_name):
    """The image that `read(upright)` gives, if its size is that of the mask (H, W)."""
    image = read(True)
    if image.size[::-1] == shape:
        return image
    stored = read(False)  # masks drawn by tools that do not look at the EXIF orientation
    if stored.size != image.size and stored.size[::-1] == shape:
        return stored
    found = f"the image has {image.width} x {image.height} pixels, its mask {shape[1]} x {shape[0]}"
    raise InputError(f"{name}: {found}; expected the same size ({mask_name})")
