"""torchvision's data sets by name: CIFAR-10 and -100, Flowers102 and Oxford-IIIT Pet, downloaded where they are missing.

torchvision compares what it downloads, and each of CIFAR's pickles before it is opened, with checksums of its own.
"""

import contextlib
import pathlib

import numpy as np
from PIL import Image

from utils.cli.errors import InputError, choose_one, first_line
from utils.data.masks import class_table
from utils.sources import recognition as recognition_data
from utils.sources import segmentation as segmentation_data


class Pictures:
    """Images in an array (N, H, W, 3) uint8: a source as in recognition_data."""

    def __init__(self, images, labels, classes, title):
        self.images, self.labels = images, np.asarray(labels, dtype=np.int64)
        self.classes, self.title = classes, title

    def read(self, index):
        return Image.fromarray(self.images[index])

    def encoded(self, index):
        return None

    def name(self, index):
        return f"{self.title}, image {index}"


def cifar10(root):
    """50,000 training and 10,000 test images of 32x32 pixels, 10 classes."""
    return _cifar("CIFAR10", root)


def cifar100(root):
    """The same in 100 classes."""
    return _cifar("CIFAR100", root)


def _cifar(name, root):
    parts = [_open(name, root, train=train) for train in (True, False)]
    return tuple(Pictures(part.data, part.targets, list(part.classes), name) for part in parts)


def flowers(root):
    """102 flowers: the 2,040 images of train and val to train on, the 6,149 of test to validate on, as papers have it."""
    from scipy.io import loadmat

    data, base = _open("Flowers102", root), pathlib.Path(root, "flowers-102")
    split_of, labels = loadmat(base / "setid.mat", squeeze_me=True), loadmat(base / "imagelabels.mat", squeeze_me=True)
    labels = labels["labels"].astype(np.int64) - 1
    sources = []
    for splits in (("trnid", "valid"), ("tstid",)):
        numbers = np.concatenate([np.atleast_1d(split_of[split]) for split in splits])  # from 1
        paths = [f"image_{number:05d}.jpg" for number in numbers]
        sources.append(recognition_data.Folder(str(base / "jpg"), paths, labels[numbers - 1], list(data.classes)))
    return _whole(sources, base)


def pets(root):
    """37 breeds of cats and dogs: 3,680 images of trainval to train on, 3,669 of test to validate on."""
    base, parts = _pet_lists(root)
    breeds = {label: name for names, labels in parts for name, label in zip(names, labels, strict=True)}
    classes = [breeds.get(label, str(label)).rpartition("_")[0].replace("_", " ") for label in range(max(breeds) + 1)]
    sources = [
        recognition_data.Folder(str(base / "images"), [f"{name}.jpg" for name in names], labels, classes)
        for names, labels in parts
    ]
    return _whole(sources, base)


def pets_masks(root, sizes_only=False):
    """(train, val) for segmentation, the images as in `pets`: 0 the pet, 1 the background, 2 the border between them."""
    classes, palette = ["pet", "background", "border"], np.array([(213, 94, 0), (0, 0, 0), (240, 228, 66)], np.uint8)
    if sizes_only:
        title = "Oxford-IIIT Pet by its published size"
        return tuple(segmentation_data.Counted(title, size, classes) for size in _SIZES["PETS"][1:])
    base, parts = _pet_lists(root)
    table = class_table((1, 2, 3), ())
    sources = []
    for names, _ in parts:
        images = [str(base / "images" / f"{name}.jpg") for name in names]
        masks = [str(base / "annotations" / "trimaps" / f"{name}.png") for name in names]
        sources.append(segmentation_data.Pairs("Oxford-IIIT Pet", images, masks, classes, palette, (table, table)))
    return tuple(sources)


def _pet_lists(root):
    """(folder, [(names, labels from 0) of trainval and of test])"""
    _open("OxfordIIITPet", root)
    base, parts = pathlib.Path(root, "oxford-iiit-pet"), []
    for split in ("trainval", "test"):
        path = base / "annotations" / f"{split}.txt"
        try:  # a name, its class, cat or dog, its breed among these; names may not lead out of the folder
            rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            names, labels = [pathlib.PurePath(row[0]).name for row in rows], [int(row[1]) - 1 for row in rows]
        except (OSError, ValueError, IndexError) as error:
            raise InputError(f"{path} cannot be read ({first_line(error)}); {_again(base)}") from None
        if not labels or min(labels) < 0 or max(labels) >= 1000:
            raise InputError(f"{path}: found {len(labels)} images; expected a name and a class on each line; {_again(base)}")
        parts.append((names, labels))
    return base, parts


DATASETS = {"CIFAR10": cifar10, "CIFAR100": cifar100, "CIFAR": cifar100, "FLOWERS": flowers, "PETS": pets}


# data set -> classes, training and validation images
_SIZES = {
    "CIFAR10": (10, 50_000, 10_000), "CIFAR100": (100, 50_000, 10_000), "CIFAR": (100, 50_000, 10_000),
    "FLOWERS": (102, 2_040, 6_149), "PETS": (37, 3_680, 3_669),
}  # fmt: skip


def open_data(name, root, sizes_only=False):
    """(train, val) sources of the data set `name`, one of DATASETS, in the folder `root`; downloaded there if it is missing.

    CIFAR is CIFAR-100, as in ConvNeXt's code. On several processes let one of a machine come first. sizes_only: for a dry
    run, which reads and downloads nothing; the published number of images and classes.
    """
    choose_one(name, DATASETS, "data set")
    if sizes_only:
        classes, *sizes = _SIZES[name]
        return tuple(recognition_data.Counted(f"{name} by its published size", size, classes) for size in sizes)
    return DATASETS[name](str(root))


def _open(name, root, **kwargs):
    """torchvision's data set, which has been checked. InputError where it is neither there nor to be had."""
    import torchvision

    kind = getattr(torchvision.datasets, name)
    with contextlib.suppress(RuntimeError):  # not there, or not as its checksums say
        return kind(root, **kwargs)
    try:
        return kind(root, download=True, **kwargs)
    except Exception as error:  # no network, a full disk, a damaged archive, a checksum
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{name} is not in {root}, or damaged there, and cannot be downloaded ({reason}); put torchvision's files for it "
            "there, or run the command again where there is a network"
        ) from None


def _whole(sources, base):
    """The sources, if the first and the last of their files are there: an unpacking that broke off leaves the rest out."""
    for source in sources:
        for index in (0, len(source.labels) - 1):
            if not pathlib.Path(source.name(index)).is_file():
                raise InputError(f"{source.name(index)} is missing; {_again(base)}")
    return tuple(sources)


def _again(base):
    return f"remove {base} and run the command again"
