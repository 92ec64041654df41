"""From (PIL image, mask (H, W) int64 array) to (image (3, H, W) float32, mask (H, W) int64), both moved together.

Masks are never interpolated and are padded with IGNORE, never with class 0. Random numbers come from Python's generator,
so seeding it makes a sample repeatable.
Sources: PyTorch-Encoding, encoding/datasets/base.py; mmsegmentation 0.x, datasets/pipelines/transforms.py.
"""

import functools
import random

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from utils.augment.normalisation import mean_and_std
from utils.images import IGNORE

MIRRORED = 0.5  # share of the training images that are mirrored
# Of mmsegmentation's PhotoMetricDistortion, for values in 0..1: what is added, the factors, and what is added to the hue.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, (0.5, 1.5), (0.5, 1.5), range(-18, 18)
HUES = 180  # steps of a full turn, as OpenCV counts them
TRIES = 10  # of a crop in which one class fills too much


def build_transforms(settings):
    """(train, evaluate) of these settings (segmentation_flags.Augmentation): functions of a PIL image in RGB and its mask.

    Both can be pickled, for loader workers.
    """
    train = {"encoding": encoding, "mmseg": mmseg, "none": plain}[settings.transforms]
    return functools.partial(train, settings=settings), functools.partial(plain, settings=settings)


def colours(settings):
    """{"mean": …, "std": …} by which images are normalised, three numbers each."""
    return dict(zip(("mean", "std"), mean_and_std(settings), strict=True))


def plain(image, mask, settings):
    """The image, normalised, and the mask, in the size that they have."""
    image, mask = _to_tensors(image, mask)
    return _normalize(image, settings), mask[0]


def encoding(image, mask, settings):
    """PyTorch-Encoding's set: mirror, a random long side, padding, and a random crop of --crop_size.

    The long side is a whole number, uniform in --ratio_range x --base_size. Padding goes to the right and below, black before
    normalisation as published. The mask's padding is IGNORE, where the published code has 0, the background of some data sets.
    """
    image, mask = _mirror(*_to_tensors(image, mask))
    wanted = random.randint(*(int(settings.base_size * ratio) for ratio in settings.ratio_range))
    image, mask = _resize(image, mask, _scaled(mask, wanted / max(mask.shape)), antialias=True)  # as PIL
    image, mask = _pad(image, mask, settings.crop_size)
    image, mask = _crop(image, mask, settings.crop_size, *_corner(mask, settings.crop_size))
    return _normalize(image, settings), mask[0]


def mmseg(image, mask, settings):
    """mmsegmentation's set: random scale, a crop in which no class fills too much, mirror, distortion, padding.

    The image is made as large as fits into 4 x --base_size (long side) and --base_size (short side), times a ratio uniform in
    --ratio_range. A crop is drawn anew, up to ten times, while its largest class has --cat_max_ratio of the labelled pixels
    or more, or is the only one. Padding goes to the right and below, with 0 after normalisation.
    """
    image, mask = _to_tensors(image, mask)
    ratio = random.uniform(*settings.ratio_range)
    long_side, short_side = int(4 * settings.base_size * ratio), int(settings.base_size * ratio)
    factor = min(long_side / max(mask.shape[1:]), short_side / min(mask.shape[1:]))
    image, mask = _resize(image, mask, _scaled(mask, factor), antialias=False)  # as OpenCV, also where it shrinks
    corner = _corner(mask, settings.crop_size)
    for _ in range(TRIES if settings.cat_max_ratio < 1 else 0):
        if _is_mixed(F.crop(mask, *corner, *_inside(mask, settings.crop_size)), settings.cat_max_ratio):
            break
        corner = _corner(mask, settings.crop_size)
    image, mask = _mirror(*_crop(image, mask, settings.crop_size, *corner))
    image = _normalize(distort_colours(F.to_dtype(image, torch.float32, scale=True)), settings)
    image, mask = _pad(image, mask, settings.crop_size)
    return image, mask[0]


# --- steps on an image (3, H, W) and a mask (1, H, W) int64 ---------------------------------------------------------


def _to_tensors(image, mask):
    return F.pil_to_tensor(image), torch.from_numpy(mask)[None]


def _normalize(image, settings):
    """uint8, or float32 in 0..1, to float32, normalised by --mean and --std."""
    return F.normalize(F.to_dtype(image, torch.float32, scale=True), *mean_and_std(settings))


def _mirror(image, mask):
    if random.random() < MIRRORED:
        return F.horizontal_flip(image), F.horizontal_flip(mask)
    return image, mask


def _scaled(mask, factor):
    """[height, width] `factor` times as large, in whole pixels, at least one."""
    return [max(1, int(length * factor + 0.5)) for length in mask.shape[1:]]


def _resize(image, mask, size, antialias):
    # Nearest, exact: the pixel under the new one's centre, where the bilinear image is; plain nearest is up to half a
    # pixel off.
    image = F.resize(image, size, InterpolationMode.BILINEAR, antialias=antialias)
    return image, F.resize(mask, size, InterpolationMode.NEAREST_EXACT)


def _inside(mask, crop_size):
    """(height, width) of a crop, which is no larger than what there is."""
    return [min(crop_size, length) for length in mask.shape[1:]]


def _corner(mask, crop_size):
    """Random (top, left) of a crop."""
    return [random.randint(0, max(0, length - crop_size)) for length in mask.shape[1:]]


def _crop(image, mask, crop_size, top, left):
    size = _inside(mask, crop_size)
    return F.crop(image, top, left, *size), F.crop(mask, top, left, *size)


def _pad(image, mask, size):
    """Both tensors up to `size` pixels, to the right and below: 0 in the image, IGNORE in the mask."""
    bottom, right = (max(0, size - length) for length in mask.shape[1:])
    if not (bottom or right):
        return image, mask
    return F.pad(image, [0, 0, right, bottom], fill=0), F.pad(mask, [0, 0, right, bottom], fill=IGNORE)


def _is_mixed(mask, cat_max_ratio):
    """Whether two classes at least are labelled, and none fills `cat_max_ratio` of the labelled pixels or more."""
    pixels = torch.bincount(mask[mask != IGNORE])
    return (pixels > 0).sum() > 1 and pixels.max() / pixels.sum() < cat_max_ratio


def distort_colours(image):
    """(3, H, W) float32 in 0..1, distorted: brightness, saturation and hue in this order, each half of the time, and
    contrast, half of the time too, before saturation or after hue.

    As in mmsegmentation's PhotoMetricDistortion, brightness is added, contrast multiplies the values and saturation the S
    of HSV, and hue is turned by a whole number of OpenCV's 180 steps, -18 to 17, each of which is 2 degrees. Done in float:
    the published code cuts to whole values after each step.
    """
    if random.random() < 0.5:
        image = (image + random.uniform(-BRIGHTNESS, BRIGHTNESS)).clamp(0, 1)
    early = random.random() < 0.5
    if early:
        image = _scale_contrast(image)
    if random.random() < 0.5:
        image = scale_saturation(image, random.uniform(*SATURATION))
    if random.random() < 0.5:
        image = F.adjust_hue(image, random.choice(HUE) / HUES)
    return image if early else _scale_contrast(image)


def _scale_contrast(image):
    return (image * random.uniform(*CONTRAST)).clamp(0, 1) if random.random() < 0.5 else image


def scale_saturation(image, factor):
    """(3, H, W) float32 in 0..1 with the S of HSV times `factor`, up to 1; hue and V stay as they are.

    With V = max and S = 1 - min / V, the distance of each channel from V grows by the same ratio as S.
    """
    low, value = image.aminmax(dim=0)
    at_most = value / (value - low).clamp_min(1e-12)  # 1 / S
    return value - (value - image) * at_most.clamp_max(factor)
