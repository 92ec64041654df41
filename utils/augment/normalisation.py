"""The colours by which images are normalised: (value / 255 - mean) / std in each channel."""

from timm.data import constants


def mean_and_std(settings):
    """(mean, std) of --imagenet_default_mean_and_std, three numbers each for red, green and blue in 0..1."""
    if settings.imagenet_default_mean_and_std:
        return constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD
    return constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD
