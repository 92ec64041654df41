"""The transforms of train_recognition.py, as --transforms and the other augmentation flags ask for them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from utils.augment import bands, encoding, fast, timm
from utils.augment.normalisation import mean_and_std
from utils.cli.errors import input_errors


class Transforms(NamedTuple):
    """train, evaluate: an image, or the bytes of an image file where they have `takes_bytes`, to a sample, which is
    the network's input (C, S, S) float32, or what `collate` takes. collate: of the loader; None: torch's own. finish: (images
    (B, 3, S, S) uint8, erase), as `collate` gives them, to float32 images on their device; None: nothing is left to do. The
    rest is how evaluation sees an image, in timm's terms.
    """

    train: Callable
    evaluate: Callable
    collate: Callable | None
    finish: Callable | None
    mean: tuple
    std: tuple
    crop_pct: float
    crop_mode: str
    interpolation: str


def eval_transform(settings):
    """An image, as `read_image` gives it, -> (C, S, S) float32, as evaluation sees it."""
    if settings.in_chans:
        return bands.eval_transform(settings)
    return (encoding if settings.transforms == "encoding" else timm).eval_transform(settings)


def build_transforms(settings):
    """`Transforms` of these settings (recognition_flags.Augmentation). Raises InputError for an --aa that cannot be read."""
    chosen = bands if settings.in_chans else {"fast": fast, "timm": timm, "encoding": encoding}[settings.transforms]
    with input_errors(f"--aa {settings.aa}: "):
        train = chosen.train_transform(settings)
    mean, std = mean_and_std(settings)
    collate = finish = None
    if chosen is fast:
        collate, finish = fast.collate, functools.partial(fast.finish, mean=mean, std=std)
    return Transforms(train, chosen.eval_transform(settings), collate, finish, mean, std, *chosen.eval_geometry(settings))
