"""The field's segmentation data sets in the layouts that they are published in.

Each function takes the folder of the data set, or one above it, and train_split "train" or "trainval" (to train on the images
of the validation set too). It gives (training, validation) sources of segmentation. Each raises InputError, which says how to
get the data, if folders are missing, and names files without a counterpart.
"""

import functools
import json
import os

import numpy as np

from utils.cli.errors import InputError, first_line
from utils.data.masks import class_table, draw_instances, fit_image, voc_palette
from utils.data.string_list import StringList
from utils.folders.files import candidates, find_folder, match, scan_files
from utils.folders.names import few
from utils.images.read import read_image
from utils.mask_folders.pairs import split_pairs, with_val

# --- classes, in the order of their ids -------------------------------------------------------------------------------

# PASCAL VOC 2012, development kit; PyTorch-Encoding's COCO has the same classes.
VOC = (
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, "
    "person, pottedplant, sheep, sofa, train, tvmonitor"
).split(", ")

# The classes with a train id in cityscapesScripts, helpers/labels.py.
CITYSCAPES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, "
    "car, truck, bus, train, motorcycle, bicycle"
).split(", ")

# MIT Scene Parsing Benchmark, objectInfo150.txt; the first of each class's names, as mmsegmentation has them.
ADE20K = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, "
    "seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, "
    "counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, "
    "screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, "
    "stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, "
    "tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, "
    "bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, "
    "plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, "
    "trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic "
    "light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"
).split(", ")

# The 59 most frequent of the 459 labels, in the order of those labels, which is that of the alphabet.
PASCAL_CONTEXT = (
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, ceiling, "
    "chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, keyboard, "
    "light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves, sidewalk, sign, "
    "sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood"
).split(", ")

# --- ADE20K, Cityscapes and PASCAL VOC --------------------------------------------------------------------------------

ADE_SPLITS = ("training", "validation")
VOC_2012, VOC_2010 = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
VOC_TABLE = class_table(range(21), (255,))
# The label ids of the 19 classes, in the order of the train ids, and their colours. cityscapesScripts, helpers/labels.py
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_PALETTE = np.array(
    [
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
        (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ],
    dtype=np.uint8,
)  # fmt: skip
# COCO's category ids in the order of VOC's classes, 0 for the background. PyTorch-Encoding, encoding/datasets/coco.py
COCO_IDS = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
COCO_PIXELS = 1000  # an image with so many labelled pixels, or fewer, is not trained on


def ade20k(root, train_split="train"):
    """ADE20K of the MIT Scene Parsing Benchmark: 150 classes. Label 0 is no class."""
    base = find_folder(
        root, "ADEChallengeData2016", [f"{kind}/{split}" for kind in ("images", "annotations") for split in ADE_SPLITS],
        "get ADEChallengeData2016.zip from the site of the MIT Scene Parsing Benchmark and unpack it there",
    )  # fmt: skip
    parts = [match(scan_files(base / "images" / split), scan_files(base / "annotations" / split)) for split in ADE_SPLITS]
    table = class_table(range(1, 151), (0, 255))
    return split_pairs("ADE20K", parts, train_split, ADE20K, voc_palette(150, first=1), (table, table))


def cityscapes(root, train_split="train"):
    """Cityscapes with fine annotations: 19 classes. Masks of train ids are read if all are there, else those of label ids."""
    base = find_folder(
        root, "cityscapes", [f"{kind}/{split}" for kind in ("leftImg8bit", "gtFine") for split in ("train", "val")],
        "get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from the Cityscapes site, which asks to register, and "
        "unpack both there",
    )  # fmt: skip

    def masks_of(ending):
        return [scan_files(base / "gtFine" / split, f"_gtFine_{ending}.png", may_be_empty=True) for split in ("train", "val")]

    images = [scan_files(base / "leftImg8bit" / split, "_leftImg8bit.png") for split in ("train", "val")]
    masks, table = masks_of("labelTrainIds"), class_table(range(19), (255,))
    if any(image.keys() - mask.keys() for image, mask in zip(images, masks, strict=True)):
        masks, table = masks_of("labelIds"), class_table(CITYSCAPES_IDS, {*range(34), 255} - set(CITYSCAPES_IDS))
    parts = [match(*part) for part in zip(images, masks, strict=True)]
    return split_pairs("Cityscapes", parts, train_split, CITYSCAPES, CITYSCAPES_PALETTE, (table, table))


def pascal_voc(root, train_split="train"):
    """PASCAL VOC 2012: 21 classes with the background. 255, the border of objects, is no class.

    PyTorch-Encoding trains on the list trainval, which holds the validation images too; here that has to be asked for.
    """
    how = "get VOCtrainval_11-May-2012.tar from the site of PASCAL VOC 2012 and unpack it there"
    parts = _listed(root, VOC_2012, ("JPEGImages", "SegmentationClass"), _image_sets("Segmentation"), how)
    return _voc_pairs("PASCAL VOC 2012", parts, train_split)


def pascal_aug(root, train_split="train"):
    """PASCAL VOC with the labels of the Semantic Boundaries Dataset (SBD): 21 classes with the background.

    If there is a folder SegmentationClassAug in VOC2012, its masks are read, with the list trainaug (or train and aug) and the
    validation images of VOC. Otherwise SBD itself is read, masks in .mat files and its own lists, as PyTorch-Encoding does.
    """
    with_png = [base for base in candidates(root, VOC_2012) if (base / "SegmentationClassAug").is_dir()]
    if with_png:
        train, val = _image_sets("Segmentation", ("trainaug",), ("val",))
        if not (with_png[0] / train[0]).is_file():
            train, _ = _image_sets("Segmentation", ("train", "aug"))
        how = "get VOC 2012, and the list trainaug.txt with its 10,582 names"
        parts = _listed(with_png[0], ".", ("JPEGImages", "SegmentationClassAug"), (train, val), how)
    else:
        how = (
            f"or {VOC_2012}/SegmentationClassAug with PNG masks; get benchmark.tgz of the Semantic Boundaries Dataset from its "
            "authors at Berkeley, and put its folder dataset there"
        )
        parts = _listed(root, "VOCaug/dataset", ("img", "cls"), (("train.txt",), ("val.txt",)), how, ".mat")
    return _voc_pairs("PASCAL VOC of the Semantic Boundaries Dataset", parts, train_split)


def pascal_context(root, train_split="train"):
    """Pascal Context: the 59 most frequent classes, in masks as mmsegmentation writes them. 0, any other class, is ignored."""
    how = (
        "get VOCtrainval_03-May-2010.tar from the site of PASCAL VOC 2010 and trainval_merged.json from that of Pascal "
        "Context, and write the masks with mmsegmentation's converter pascal_context.py"
    )
    lists = _image_sets("SegmentationContext")
    parts = _listed(root, VOC_2010, ("JPEGImages", "SegmentationClassContext"), lists, how)
    table = class_table(range(1, 60), (0, 255))
    return split_pairs("Pascal Context", parts, train_split, PASCAL_CONTEXT, voc_palette(59, first=1), (table, table))


def _voc_pairs(title, parts, train_split):
    return split_pairs(title, parts, train_split, VOC, voc_palette(21), (VOC_TABLE, VOC_TABLE))


def _image_sets(folder, train=("train",), val=("val",)):
    """(list files of training, of validation) in VOC's folder ImageSets."""
    return [[f"ImageSets/{folder}/{name}.txt" for name in split] for split in (train, val)]


def _listed(root, below, folders, lists, how, mask_ending=None):
    """[(images, masks) of training, of validation] in the two `folders`; each of the two is named by one or more list files."""
    base = find_folder(root, below, [*folders, *lists[0], *lists[1]], how)
    images, masks = scan_files(base / folders[0]), scan_files(base / folders[1], mask_ending)
    parts = []
    for files in lists:
        lines = [line.split() for file in files for line in _lines(base / file)]
        # A line is a name, or the paths of an image and its mask.
        names = list(dict.fromkeys(words[0].rpartition("/")[2].removesuffix(".jpg") for words in lines if words))
        if not names:
            raise InputError(f"{base / files[0]}: no names in it; expected one a line")
        parts.append(match(images, masks, names, base / files[0]))
    return parts


def _lines(path):
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as text ({first_line(error)}); expected a name on each line") from None


# --- COCO -----------------------------------------------------------------------------------------------------------


class CocoInstances:
    """A source of segmentation: images of COCO, whose masks are drawn from its instances when they are read.

    Of several instances at a pixel the first in the file wins. samples: [(image path, [height, width, [[class, segmentation],
    …]])], the record as `utils.data.masks.draw_instances` takes it.
    """

    title, classes, palette = "COCO with the classes of VOC", VOC, voc_palette(21)

    def __init__(self, samples):
        self.images = StringList([path for path, _ in samples])
        self.records = StringList([json.dumps(record) for _, record in samples])  # text, for the sake of memory: see StringList

    def __len__(self):
        return len(self.images)

    def read(self, index):
        path = self.images[index]
        mask = draw_instances(*json.loads(self.records[index]), path)
        drawn = "drawn in the size that the instances file has"
        return fit_image(functools.partial(read_image, path), mask.shape, path, drawn), mask

    def name(self, index):
        return self.images[index]


def coco(root, train_split="train"):
    """COCO 2017 with the 21 classes of VOC, drawn from the instances; crowds are labelled too.

    Training leaves out images with COCO_PIXELS labelled pixels or fewer, as published; validation has all images.
    """
    how = "get train2017.zip, val2017.zip and annotations_trainval2017.zip from the COCO site and unpack them there"
    files = [f"annotations/instances_{split}2017.json" for split in ("train", "val")]
    base = find_folder(root, "coco", files, how)
    splits = []
    for file, split in zip(files, ("train2017", "val2017"), strict=True):
        there = [base / below / split for below in ("images", ".") if (base / below / split).is_dir()]
        if not there:
            raise InputError(f"--data_path {root}: no folder images/{split} or {split} beside annotations; {how}")
        splits.append(_coco_samples(base / file, there[0]))
    train, val = splits
    if with_val(train_split):
        train = train + val
    # One instance of twice as many pixels is enough, so that most masks need not be drawn.
    train = [
        (path, record)
        for path, record, area in train
        if area > 2 * COCO_PIXELS or np.count_nonzero(draw_instances(*record, path)) > COCO_PIXELS
    ]
    if not train:
        raise InputError(f"{base / files[0]}: no image has more than {COCO_PIXELS} pixels of VOC's classes")
    return CocoInstances(train), CocoInstances([(path, record) for path, record, _ in val])


def _coco_samples(file, folder):
    """[(image path, record as in CocoInstances, area of the largest instance in pixels)] of an instances file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = {entry["id"]: (entry, [], [0]) for entry in content["images"]}
        for instance in content["annotations"]:
            if instance["category_id"] in COCO_IDS:
                _, shapes, areas = entries[instance["image_id"]]
                shapes.append([COCO_IDS.index(instance["category_id"]), instance["segmentation"]])
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
    if lacking := [name for name, _, _ in samples if name not in there]:  # nor does any name lead out of the folder
        raise InputError(f"{folder} lacks {len(lacking)} of the images that {file.name} lists: {few(lacking, 3)}")
    return [(str(folder / name), record, area) for name, record, area in samples]
