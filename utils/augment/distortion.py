"""mmsegmentation's PhotoMetricDistortion: brightness, contrast, saturation and hue, drawn on the host, done on any device.

Brightness, saturation and hue are changed in this order, each half of the time, and contrast, half of the time too, before
saturation or after hue. Brightness is added, contrast multiplies the values and saturation the S of HSV, and hue is turned by
a whole number of OpenCV's 180 steps, -18 to 17, each of which is 2 degrees. Done in float: the published code cuts to whole
values after each step. Source: mmsegmentation 0.x, datasets/pipelines/transforms.py.
"""

import random
from typing import NamedTuple

import torch

# For values in 0..1: what is added, the factors, and what is added to the hue.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, (0.5, 1.5), (0.5, 1.5), range(-18, 18)
HUES = 180  # steps of a full turn, as OpenCV counts them


class Distortion(NamedTuple):
    """What happens to the colours of one image, in this order; None: nothing."""

    brightness: float | None = None  # added
    early_contrast: float | None = None  # a factor
    saturation: float | None = None  # a factor
    hue: float | None = None  # share of a full turn
    late_contrast: float | None = None  # a factor


def draw_distortion():
    """A random Distortion, from Python's generator."""
    brightness = _half_of_the_time(lambda: random.uniform(-BRIGHTNESS, BRIGHTNESS))
    early = random.random() < 0.5
    contrast = _draw_contrast() if early else None
    saturation = _half_of_the_time(lambda: random.uniform(*SATURATION))
    hue = _half_of_the_time(lambda: random.choice(HUE) / HUES)
    return Distortion(brightness, contrast, saturation, hue, None if early else _draw_contrast())


def _draw_contrast():
    return _half_of_the_time(lambda: random.uniform(*CONTRAST))


def _half_of_the_time(draw):
    return draw() if random.random() < 0.5 else None


def distort(image, distortion):
    """(3, H, W) float32 in 0..1 on any device, distorted. Nothing waits for a GPU."""
    brightness, early_contrast, saturation, hue, late_contrast = distortion
    if brightness is not None:
        image = (image + brightness).clamp(0, 1)
    if early_contrast is not None:
        image = (image * early_contrast).clamp(0, 1)
    if saturation is not None:
        image = scale_saturation(image, saturation)
    if hue is not None:
        image = turn_hue(image, hue)
    return image if late_contrast is None else (image * late_contrast).clamp(0, 1)


def scale_saturation(image, factor):
    """(3, H, W) float32 in 0..1 with the S of HSV times `factor`, up to 1; hue and V stay as they are.

    With V = max and S = 1 - min / V, the distance of each channel from V grows by the same ratio as S.
    """
    low, value = image.aminmax(dim=0)
    at_most = value / (value - low).clamp_min(1e-12)  # 1 / S
    return value - (value - image) * at_most.clamp_max(factor)


def turn_hue(image, share):
    """(3, H, W) float32 in 0..1 with its hue turned by this share of a full turn, -0.5..0.5; S and V of HSV stay as they are.

    The bits are those of torchvision's adjust_hue, which copies a table from memory that is not page-locked in each call.
    """
    low, value = image.aminmax(dim=0)
    spread, grey = value - low, value == low
    saturation = spread / value.where(~grey, 1)
    red, green, blue = (value - image) / spread.where(~grey, 1)
    hue = (blue - green).where(value == image[0], (2 + red - blue).where(value == image[1], 4 + green - red))
    hue = ((hue * (1 / 6) + 1).fmod(1) + share).remainder(1) * 6
    sector = hue.floor()
    part = saturation * (hue - sector)  # of the way from one corner of the hexagon of hues to the next
    lowest = ((1 - saturation) * value).clamp(0, 1)
    falling, rising = ((1 - part) * value).clamp(0, 1), ((part + (1 - saturation)) * value).clamp(0, 1)

    def channel(shift):  # over the six sectors red is: highest, falling, lowest twice, rising, highest
        place = (sector + shift).remainder(6)
        highest = value.where((place == 0) | (place == 5), lowest)
        return falling.where(place == 1, rising.where(place == 4, highest))

    return torch.stack([channel(0), channel(4), channel(2)])
