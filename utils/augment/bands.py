"""The transforms of images of N bands: from a tensor (N, H, W) float32 to the network's input (N, S, S) float32.

The same crops, flips and erasing as timm's, drawn by torchvision's transforms, which take tensors. Nothing changes colours.
"""

import torch
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import InterpolationMode, v2

from utils.augment import timm as timm_transforms
from utils.augment.normalisation import mean_and_std
from utils.cli.recognition_flags import SMALL

MODES = {"bicubic": ("bicubic",), "bilinear": ("bilinear",), "random": ("bilinear", "bicubic")}

eval_geometry = timm_transforms.eval_geometry


def train_transform(settings):
    """A random crop, flips, normalisation, random erasing. settings: Augmentation."""
    crops = [_crop(settings, InterpolationMode(mode)) for mode in MODES[settings.train_interpolation]]
    steps = [
        v2.RandomChoice(crops) if len(crops) > 1 else crops[0],
        v2.RandomHorizontalFlip(settings.hflip),
        v2.RandomVerticalFlip(settings.vflip),
        v2.Normalize(*mean_and_std(settings)),
    ]
    if settings.reprob:
        steps.append(RandomErasing(settings.reprob, mode=settings.remode, max_count=settings.recount, device="cpu"))
    return v2.Compose(steps)


def _crop(settings, mode):
    size = settings.input_size
    if size <= SMALL:
        return v2.Compose([v2.Resize((size, size), mode, antialias=True), v2.RandomCrop(size, padding=4)])
    return v2.RandomResizedCrop(size, settings.scale, settings.ratio, mode, antialias=True)


def eval_transform(settings):
    """timm's resizing and cropping of `timm.eval_steps`, then normalised."""
    steps = timm_transforms.eval_steps(settings)
    return v2.Compose([*steps, v2.Normalize(*mean_and_std(settings)), torch.Tensor.contiguous])
