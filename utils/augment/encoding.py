"""The ImageNet transforms of PyTorch-Encoding, with which the published ResNet and ResNeSt rows were trained.

RandAugment, an EfficientNet-style crop, colour jitter and the PCA lighting of AlexNet. Random numbers come from Python
and torch, so seeding both makes a sample repeatable.
Sources: PyTorch-Encoding, encoding/transforms/get_transform.py, transforms.py and autoaug.py; the crop is that of
TensorFlow's sample_distorted_bounding_box, the lighting Krizhevsky et al. 2012, section 4.1.
"""

import math
import random
import re

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from timm.data.random_erasing import RandomErasing
from torchvision import transforms

from utils.augment import timm as timm_transforms
from utils.augment.normalisation import mean_and_std
from utils.cli.errors import InputError
from utils.cli.recognition_flags import aa_is_off

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MARGIN = 32  # pixels: evaluation crops input_size / (input_size + MARGIN) of the short side


def train_transform(settings):
    """PIL image -> (3, S, S) float32, S = settings.input_size. settings: Augmentation; its `aa` is rand-nN-mM or none.

    --color_jitter changes brightness, contrast and saturation; without it, by the published 0.4. What the published set lacks
    (vertical flips, random erasing) is there too, for the flags to take effect. Raises InputError for an interpolation, and
    ValueError for a policy, that the set does not have.
    """
    resample = RESAMPLING.get(settings.train_interpolation)
    if resample is None:
        raise InputError(
            f"--train_interpolation {settings.train_interpolation}: --transforms encoding has {' and '.join(RESAMPLING)}; "
            "choose one of them"
        )
    jitter = 0.4 if settings.color_jitter is None else settings.color_jitter
    steps = [] if aa_is_off(settings.aa) else [RandAugment.from_string(settings.aa)]
    steps += [
        RandomCrop(settings.input_size, settings.scale, settings.ratio, resample),
        transforms.RandomHorizontalFlip(settings.hflip),
        transforms.RandomVerticalFlip(settings.vflip),
        transforms.ColorJitter(jitter, jitter, jitter),
        transforms.ToTensor(),
        Lighting(),
        transforms.Normalize(*mean_and_std(settings)),
    ]
    if settings.reprob:
        steps.append(RandomErasing(settings.reprob, mode=settings.remode, max_count=settings.recount, device="cpu"))
    return transforms.Compose(steps)


def eval_geometry(settings):
    """(crop_pct, crop_mode, interpolation) in timm's terms."""
    if settings.crop_mode not in (None, "center"):
        return timm_transforms.eval_geometry(settings)
    crop_pct = _published_crop(settings.input_size) if settings.crop_pct is None else settings.crop_pct
    return crop_pct, "center", settings.eval_interpolation or "bicubic"


def eval_transform(settings):
    """PIL image -> (3, S, S) float32: the centre crop of `eval_geometry`, resized and normalised; other crops are timm's."""
    crop_pct, crop_mode, interpolation = eval_geometry(settings)
    if crop_mode != "center":
        return timm_transforms.eval_transform(settings)
    crop = CenterCrop(settings.input_size, crop_pct, Image.Resampling[interpolation.upper()])
    return transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize(*mean_and_std(settings))])


def _published_crop(input_size):
    return input_size / (input_size + MARGIN)


class CenterCrop:
    """Square of the share `crop_pct` of the short side, resized to `input_size`."""

    def __init__(self, input_size, crop_pct, resample):
        self.input_size, self.crop_pct, self.resample = input_size, crop_pct, resample

    def __call__(self, image):
        side = self.crop_pct * min(image.size)
        left, top = (round((length - side) / 2) for length in image.size)
        return _cut(image, (left, top, left + side, top + side), self.input_size, self.resample)


class RandomCrop:
    """A crop of random aspect ratio (uniform) and random height (uniform between the smallest and largest area).

    After ten draws that do not fit, and where the draw is the whole image, the centre crop of evaluation.
    """

    def __init__(self, input_size, scale, ratio, resample):
        self.input_size, self.scale, self.ratio, self.resample = input_size, scale, ratio, resample
        self.center = CenterCrop(input_size, _published_crop(input_size), resample)

    def box(self, width, height):
        """(left, top, right, bottom) in pixels, or None for the centre crop."""
        smallest, largest = (share * width * height for share in self.scale)
        for _ in range(10):
            ratio = random.uniform(*self.ratio)  # width / height
            low, high = (round(math.sqrt(area / ratio)) for area in (smallest, largest))
            if high * ratio > width:
                high = int((width + 0.5 - 1e-7) / ratio)
                high -= high * ratio > width
            high = min(high, height)
            h = round(random.uniform(min(low, high), high))
            w = round(h * ratio)
            if not smallest <= w * h <= largest or w > width or h > height:
                continue
            if (w, h) == (width, height):
                return None
            x, y = random.randint(0, width - w), random.randint(0, height - h)
            return x, y, x + w, y + h
        return None

    def __call__(self, image):
        box = self.box(*image.size)
        return self.center(image) if box is None else _cut(image, box, self.input_size, self.resample)


def _cut(image, box, size, resample):
    return image.crop(tuple(map(round, box))).resize((size, size), resample)


class Lighting:
    """Adds noise of deviation `std` along the principal components of ImageNet's colours to a (3, H, W) tensor in 0..1."""

    VALUES = torch.tensor([0.2175, 0.0188, 0.0045])
    VECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

    def __init__(self, std=0.1):
        self.std = std

    def __call__(self, image):
        alpha = torch.randn(3) * self.std
        return image + (self.VECTORS @ (alpha * self.VALUES)).view(3, 1, 1)


# --- RandAugment: operation -> (function of image and value, value at strength 0, value at strength 30) -------------


def _signed(value):
    return -value if random.random() > 0.5 else value


def _affine(matrix):
    def apply(image, value):
        value = _signed(value)
        coefficients = [value if entry == "v" else entry for entry in matrix]
        return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)

    return apply


def _solarize_add(image, addition):
    brighter = np.clip(np.asarray(image).astype(np.int64) + int(addition), 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def _posterize(image, bits):
    bits = int(bits)
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def _cutout(image, side):
    width, height = image.size
    left, top = (int(max(0, random.uniform(0, length) - side / 2)) for length in (width, height))
    image = image.copy()
    ImageDraw.Draw(image).rectangle((left, top, min(width, left + side), min(height, top + side)), (125, 123, 114))
    return image


def _enhance(kind):
    return lambda image, value: kind(image).enhance(value)


OPERATIONS = {
    "AutoContrast": (lambda image, _: ImageOps.autocontrast(image), 0, 1),
    "Equalize": (lambda image, _: ImageOps.equalize(image), 0, 1),
    "Invert": (lambda image, _: ImageOps.invert(image), 0, 1),
    "Rotate": (lambda image, degrees: image.rotate(_signed(degrees)), 0, 30),
    "Posterize": (_posterize, 0, 4),
    "Solarize": (lambda image, threshold: ImageOps.solarize(image, threshold), 0, 256),
    "SolarizeAdd": (_solarize_add, 0, 110),
    "Color": (_enhance(ImageEnhance.Color), 0.1, 1.9),
    "Contrast": (_enhance(ImageEnhance.Contrast), 0.1, 1.9),
    "Brightness": (_enhance(ImageEnhance.Brightness), 0.1, 1.9),
    "Sharpness": (_enhance(ImageEnhance.Sharpness), 0.1, 1.9),
    "ShearX": (_affine((1, "v", 0, 0, 1, 0)), 0, 0.3),
    "ShearY": (_affine((1, 0, 0, "v", 1, 0)), 0, 0.3),
    "Cutout": (_cutout, 0, 40),
    "TranslateX": (_affine((1, 0, "v", 0, 1, 0)), 0, 100),
    "TranslateY": (_affine((1, 0, 0, 0, 1, "v")), 0, 100),
}


class RandAugment:
    """`count` operations drawn with replacement, each left out half of the time, of `strength` out of 30.

    The strength is fixed; only Posterize, Solarize and the enhancements do not get stronger with it, as published.
    """

    def __init__(self, count, strength):
        self.count, self.strength = count, strength

    @classmethod
    def from_string(cls, text):
        words = re.fullmatch(r"rand-n(\d+)-m(\d+)", text)
        if not words or int(words[2]) > 30:
            raise ValueError(f"found '{text}', expected none or rand-nN-mM with M up to 30, such as rand-n2-m12")
        return cls(int(words[1]), int(words[2]))

    def __call__(self, image):
        for function, low, high in random.choices(list(OPERATIONS.values()), k=self.count):
            if random.random() <= random.uniform(0.2, 0.8):
                image = function(image, self.strength / 30 * (high - low) + low)
        return image
