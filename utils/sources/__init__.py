"""Where images come from: the registries of published data sets.

To add a data set, write a function (root, train_split="train") -> (training source, validation source) and a line here. What
a source has is written in recognition.py and segmentation.py. This file imports nothing, since the command line reads it.
"""

from typing import NamedTuple


class DataSet(NamedTuple):
    """A published data set.

    load: "module:function"; classes, train_images, val_images: as published; defaults: {flag: value} that it brings;
    downloads: the function downloads what is missing.
    """

    load: str
    title: str
    classes: int
    train_images: int
    val_images: int
    defaults: dict = {}
    downloads: bool = False


_TORCHVISION, _FIELD = "utils.sources.torchvision_sets", "utils.sources.field_sets"

RECOGNITION_SETS = {
    "CIFAR": DataSet(f"{_TORCHVISION}:cifar100", "CIFAR-100", 100, 50_000, 10_000, downloads=True),  # as in ConvNeXt's code
    "CIFAR10": DataSet(f"{_TORCHVISION}:cifar10", "CIFAR-10", 10, 50_000, 10_000, downloads=True),
    "CIFAR100": DataSet(f"{_TORCHVISION}:cifar100", "CIFAR-100", 100, 50_000, 10_000, downloads=True),
    "FLOWERS": DataSet(f"{_TORCHVISION}:flowers", "Flowers102", 102, 2_040, 6_149, downloads=True),
    "PETS": DataSet(f"{_TORCHVISION}:pets", "Oxford-IIIT Pet", 37, 3_680, 3_669, downloads=True),
}

# Epochs and learning rate (for each 256 images of SGD's batch) of PyTorch-Encoding, experiments/segmentation/train.py.
SEGMENTATION_SETS = {
    "ade20k": DataSet(f"{_FIELD}:ade20k", "ADE20K", 150, 20_210, 2_000, {"epochs": 180, "blr": 0.064}),
    "citys": DataSet(f"{_FIELD}:cityscapes", "Cityscapes", 19, 2_975, 500, {"epochs": 240, "blr": 0.064}),
    "coco": DataSet(f"{_FIELD}:coco", "COCO with VOC's classes", 21, 118_287, 5_000, {"epochs": 30, "blr": 0.064}),
    "pascal_aug": DataSet(f"{_FIELD}:pascal_aug", "PASCAL VOC of SBD", 21, 8_498, 2_857, {"epochs": 80, "blr": 0.016}),
    "pascal_voc": DataSet(f"{_FIELD}:pascal_voc", "PASCAL VOC 2012", 21, 1_464, 1_449, {"epochs": 50, "blr": 0.0016}),
    "pcontext": DataSet(f"{_FIELD}:pascal_context", "Pascal Context", 59, 4_998, 5_105, {"epochs": 80, "blr": 0.016}),
    "pets": DataSet(f"{_TORCHVISION}:pets_masks", "Oxford-IIIT Pet", 3, 3_680, 3_669, downloads=True),
}
