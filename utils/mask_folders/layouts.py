"""Where images and their masks lie: images/train beside masks/train, train/images beside train/masks, or without splits."""

import os
import pathlib

from utils.cli.errors import InputError
from utils.folders.files import there
from utils.folders.names import refuse_twice, split_folders, split_of, why_left_out

IMAGES = ("images", "imgs", "image", "img", "jpegimages", "photos")
MASKS = ("masks", "mask", "labels", "annotations", "annotation", "segmentationclass", "segmentation", "ann_dir")
USUAL = "images/train, images/val, masks/train, masks/val"


def find_layout(root, needed=("train", "val")):
    """{split: (folder of images, folder of masks)} below `root`, or {"": (images, masks)} where there are no splits.

    Names are those of IMAGES, MASKS and names.SPLITS, in any capitals. One folder on the way, which archives make, is passed.
    needed: splits that an error names. Raises InputError where no such folders are there, and for two of one split.
    """
    root = pathlib.Path(root)
    for base in (root, *_only_folder(root)):
        if layout := _layout(base):
            return layout
    usual = ", ".join(f"{kind}/{split}" for kind in ("images", "masks") for split in dict.fromkeys(needed))
    raise InputError(f"--data_path {root}: {there(root)}; expected {usual}; one mask for each image")


def base_of(layout):
    """The folder that images and masks of a `find_layout` lie in, where lists of their classes lie too."""
    split, (images, _) = next(iter(layout.items()))
    return images.parent.parent if split else images.parent


def _only_folder(root):
    names = _folders(root)
    return [root / names[0]] if len(names) == 1 else []


def _layout(base):
    names = _folders(base)
    images, masks = _named(names, IMAGES), _named(names, MASKS)
    if images and masks:
        inside = [_splits(base / name) for name in (images, masks)]
        shared = [split for split in inside[0] if split in inside[1]]
        if shared:
            return {split: (base / images / inside[0][split], base / masks / inside[1][split]) for split in shared}
        return {} if inside[0] or inside[1] else {"": (base / images, base / masks)}
    layout = {}
    for name in names:
        if split := split_of(name):
            kinds = _folders(base / name)
            images, masks = _named(kinds, IMAGES), _named(kinds, MASKS)
            if images and masks:
                if split in layout:
                    raise InputError(f"{base}: two folders of the split {split}; keep one of them")
                layout[split] = (base / name / images, base / name / masks)
    return layout


def _splits(folder):
    """{split: name of its folder} in `folder`."""
    splits, twice = split_folders(_folders(folder))
    refuse_twice(folder, twice)
    return splits


def _named(names, known):
    """The first of the folders that is called as the first of the `known` names; None where none is."""
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in known if name in lower), None)


def _folders(root):
    if not os.path.isdir(root):
        return []
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and why_left_out(entry.name) is None)
