"""The colours by which images are normalised: (value / 255 - mean) / std in each channel."""

import functools

import torch
from timm.data import constants

from utils.cli.errors import InputError

# The words of --mean and --std, and the names of timm's constants.
NAMED = {"imagenet": "IMAGENET_DEFAULT", "inception": "IMAGENET_INCEPTION", "clip": "OPENAI_CLIP"}


def mean_and_std(settings):
    """(mean, std), three numbers each for red, green and blue in 0..1, of --mean and --std: numbers, or a word of NAMED.

    settings: an Augmentation of either task. Without --std, that of the word in --mean; without both, ImageNet's, or
    Inception's with --imagenet_default_mean_and_std false. Raises InputError for the words that ask for what the start weights
    or the data have, which must be numbers by now.
    """
    default = "imagenet" if getattr(settings, "imagenet_default_mean_and_std", True) else "inception"
    mean = settings.mean or default
    std = settings.std or (mean if isinstance(mean, str) else default)
    return _numbers(mean, "mean"), _numbers(std, "std")


def _numbers(value, flag):
    if not isinstance(value, str):
        return tuple(value)
    if value not in NAMED:
        raise InputError(f"--{flag} {value}: nothing says what it is; expected three numbers, or {', '.join(NAMED)}")
    return tuple(getattr(constants, f"{NAMED[value]}_{flag.upper()}"))


@functools.lru_cache
def as_tensors(mean, std, device):
    """255, mean and std on the device, copied there once. (Dividing by a plain 255, a GPU would multiply by its inverse.)"""
    return [torch.tensor(values, device=device).view(-1, 1, 1) for values in ((255.0,), mean, std)]
