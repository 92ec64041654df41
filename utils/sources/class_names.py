"""What classes are called: those of the field's segmentation data sets, in the order of their ids, and those of own data."""

import collections
import os

import numpy as np

from utils.cli.errors import InputError, first_line, one_line
from utils.data.bad_samples import in_threads

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


# --- own data -------------------------------------------------------------------------------------------------------


def listed_classes(folder, most=1_000_000):
    """The names in classes.txt in `folder`, one a line; None if there is no such file.

    Raises InputError for a file that is no text, has fewer than two names or more than `most`, or a name twice.
    """
    path = os.path.join(folder, "classes.txt")
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            names = [one_line(line, 200) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as text ({first_line(error)}); expected a name on each line") from None
    if not 2 <= len(names) <= most:
        raise InputError(f"{path}: found {len(names)} names, expected two classes at least, one a line")
    if len(set(names)) < len(names):
        twice = next(name for name, times in collections.Counter(names).items() if times > 1)
        raise InputError(f"{path}: {twice} is in it more than once; expected each class on one line")
    return names


def numbered_classes(values_of, masks, where):
    """["class 0", "class 1", …] up to the largest value in the masks. The largest value of their dtype counts as no class.

    values_of: one of `masks` -> (H, W) uint8 or uint16. Raises InputError, which begins with `where`, if all are class 0.
    """
    largest = 0
    for values in in_threads(values_of, masks):
        kept = values[values != np.iinfo(values.dtype).max]
        largest = max(largest, int(kept.max(initial=0)))
    if largest == 0:
        raise InputError(
            f"{where}: the masks hold no class but 0 (and 255, which is ignored); write classes as 0, 1, 2, …: 0 and 1 for two"
        )
    return [f"class {number}" for number in range(largest + 1)]


def check_number(nb_classes, classes):
    """Raise InputError if --nb_classes is given and is not the number of the `classes` of the data."""
    if nb_classes not in (None, len(classes)):
        raise InputError(f"--nb_classes {nb_classes}: the data has {len(classes)} classes ({few(classes)}); leave the flag out")


def few(names, most=5, separator=", "):
    """The first `most` names in one text, and … if there are more."""
    return separator.join([*map(str, names[:most]), *["…"] * (len(names) > most)])
