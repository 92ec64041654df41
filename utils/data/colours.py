"""Mean and deviation of the colours of training images, for --mean data."""

import random

import numpy as np
import torch

from utils.cli.errors import InputError
from utils.images.read import BadImage

IMAGES = 500  # that are read


def colours_of(source, mean, std, *, seed):
    """(mean, std) with numbers in place of "data": of each channel, over all pixels of a sample of the images in `source`.

    The sample is drawn by `seed`; each image counts alike, whatever its size, and broken ones are passed over. A word in
    `mean` holds for a missing `std` too. Sources of a dry run, which cannot be read, leave None.
    """
    if "data" not in (mean, std):
        return mean, std
    found = _statistics(source, seed) if hasattr(source, "read") else (None, None)
    follows = std == "data" or (std is None and mean == "data")
    return found[0] if mean == "data" else mean, found[1] if follows else std


def _statistics(source, seed):
    moments = []
    for index in sorted(random.Random(seed).sample(range(len(source)), min(IMAGES, len(source)))):
        try:
            image = source.read(index)
        except BadImage as error:
            reason = error
            continue
        image = image[0] if isinstance(image, tuple) else image
        if isinstance(image, torch.Tensor):  # bands (N, H, W) in 0..1
            pixels = image.flatten(1).T.double().numpy()
        else:
            pixels = np.asarray(image, np.float64).reshape(-1, 3) / 255
        moments.append((pixels.mean(0), (pixels**2).mean(0)))
    if not moments:
        raise InputError(f"none of {min(IMAGES, len(source))} training images could be read, such as: {reason}")
    mean, square = np.mean(moments, 0)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return [round(float(value), 6) for value in mean], [max(round(float(value), 6), 1e-3) for value in deviation]
