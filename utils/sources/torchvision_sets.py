"""torchvision's data sets: CIFAR-10 and -100, Flowers102 and Oxford-IIIT Pet, downloaded to the folder `root` if missing.

torchvision compares its downloads, and each pickle of CIFAR before it is opened, with checksums of its own. Of several
processes of a machine, let one go first. train_split is "train" or, for masks, "trainval" to train on all images.
"""

import contextlib
import pathlib

import numpy as np

from utils.cli.errors import InputError, first_line
from utils.data.masks import class_table
from utils.folders.class_folders import Folder
from utils.mask_folders.pairs import split_pairs
from utils.sources.built_in import Pictures


def cifar10(root, train_split="train"):
    """50,000 training and 10,000 test images of 32x32 pixels, 10 classes."""
    return _cifar("CIFAR10", root)


def cifar100(root, train_split="train"):
    """As `cifar10`, with 100 classes."""
    return _cifar("CIFAR100", root)


def _cifar(name, root):
    parts = [_open(name, root, train=train) for train in (True, False)]
    return tuple(Pictures(part.data, part.targets, list(part.classes), name) for part in parts)


def flowers(root, train_split="train"):
    """102 flowers: the 2,040 images of train and val to train on, the 6,149 of test to validate on, as in papers."""
    from scipy.io import loadmat

    data, base = _open("Flowers102", root), pathlib.Path(root, "flowers-102")
    split_of, labels = loadmat(base / "setid.mat", squeeze_me=True), loadmat(base / "imagelabels.mat", squeeze_me=True)
    labels = labels["labels"].astype(np.int64) - 1
    sources = []
    for splits in (("trnid", "valid"), ("tstid",)):
        numbers = np.concatenate([np.atleast_1d(split_of[split]) for split in splits])  # from 1
        paths = [f"image_{number:05d}.jpg" for number in numbers]
        sources.append(Folder(str(base / "jpg"), paths, labels[numbers - 1], list(data.classes)))
    return _whole(sources, base)


def pets(root, train_split="train"):
    """37 breeds of cats and dogs: 3,680 images of trainval to train on, 3,669 of test to validate on."""
    base, parts = _pet_lists(root)
    breeds = {label: name for names, labels in parts for name, label in zip(names, labels, strict=True)}
    classes = [breeds.get(label, str(label)).rpartition("_")[0].replace("_", " ") for label in range(max(breeds) + 1)]
    images = str(base / "images")
    return _whole([Folder(images, [f"{name}.jpg" for name in names], labels, classes) for names, labels in parts], base)


def pets_masks(root, train_split="train"):
    """The images of `pets` with masks of three classes: 0 the pet, 1 the background, 2 the border between the two."""
    base, lists = _pet_lists(root)
    parts = [
        (
            [str(base / "images" / f"{name}.jpg") for name in names],
            [str(base / "annotations" / "trimaps" / f"{name}.png") for name in names],
        )
        for names, _ in lists
    ]
    classes, palette = ["pet", "background", "border"], np.array([(213, 94, 0), (0, 0, 0), (240, 228, 66)], np.uint8)
    table = class_table((1, 2, 3), ())
    return split_pairs("Oxford-IIIT Pet", parts, train_split, classes, palette, (table, table))


def _pet_lists(root):
    """(folder, [(names, labels from 0) of the list trainval, of the list test])"""
    _open("OxfordIIITPet", root)
    base, parts = pathlib.Path(root, "oxford-iiit-pet"), []
    for split in ("trainval", "test"):
        path = base / "annotations" / f"{split}.txt"
        try:  # a line is a name, its class, 1 cat or 2 dog, its breed among these; a name may not lead out of the folder
            rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            names, labels = [pathlib.PurePath(row[0]).name for row in rows], [int(row[1]) - 1 for row in rows]
        except (OSError, ValueError, IndexError) as error:
            raise InputError(f"{path} cannot be read ({first_line(error)}); {_again(base)}") from None
        if not labels or min(labels) < 0 or max(labels) >= 1000:
            raise InputError(f"{path}: found {len(labels)} images; expected a name and a class on each line; {_again(base)}")
        parts.append((names, labels))
    return base, parts


def _open(name, root, **kwargs):
    """torchvision's data set, whose checksums fit. Raises InputError if it is not in `root` and cannot be downloaded."""
    import torchvision

    kind = getattr(torchvision.datasets, name)
    with contextlib.suppress(RuntimeError):  # it is not there, or its checksums differ
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
    """The sources. Raises InputError if the first or the last file of one is missing, as after an unpacking that broke off."""
    for source in sources:
        for index in (0, len(source) - 1):
            if not pathlib.Path(source.name(index)).is_file():
                raise InputError(f"{source.name(index)} is missing; {_again(base)}")
    return tuple(sources)


def _again(base):
    return f"remove {base} and run the command again"
