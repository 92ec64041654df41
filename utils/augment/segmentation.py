"""From (PIL image, mask (H, W) int64 array) to (image (3, H, W) float32, mask (H, W) int64), both moved together.

Masks are never interpolated and are padded with IGNORE, never with class 0. Random numbers come from Python's generator,
so seeding it makes a sample repeatable. What the functions here return can be pickled, for loader workers.
Sources: PyTorch-Encoding, encoding/datasets/base.py; mmsegmentation 0.x, datasets/pipelines/transforms.py.
"""

import functools
import random

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from utils.data.masks import IGNORE

TRIES = 10  # of a crop in which no class may fill too much


def eval_transform(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD):
    """To tensors and normalised; the size stays as it is."""
    return functools.partial(_eval, mean=mean, std=std)


def encoding_transform(
    base_size,
    crop_size,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    *,
    ratio_range=(0.5, 2.0),
    hflip=0.5,
    train=True,
):
    """PyTorch-Encoding's set: mirror, a random long side, padding and a random crop of `crop_size` pixels.

    The long side is a whole number, uniform in `ratio_range` x `base_size` (None: x the image's own, as published for
    COCO); padding goes to the right and below, black before normalisation as published. The mask's padding is IGNORE,
    where the published code has 0, the background of some data sets. With train=False its validation crop: short side
    to `crop_size`, then the centre. crop_size: pixels, or (height, width); with train=False one number only.
    """
    if not train:
        return functools.partial(_encoding_val, crop_size=crop_size, mean=mean, std=std)
    return functools.partial(
        _encoding_train,
        base_size=base_size,
        crop_size=_pair(crop_size),
        mean=mean,
        std=std,
        ratio_range=ratio_range,
        hflip=hflip,
    )


def mmseg_transform(
    crop_size,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    *,
    scale=(2048, 512),
    ratio_range=(0.5, 2.0),
    cat_max_ratio=0.75,
    hflip=0.5,
    distort=True,
):
    """mmsegmentation's set: random scale, crop in which no class fills too much, mirror, distortion, padding.

    The image is made as large as fits into `scale` (long side, short side) x a ratio uniform in `ratio_range`. A crop is
    drawn anew, up to ten times, while its largest class has `cat_max_ratio` of the labelled pixels or more, or is the
    only one. Padding goes to the right and below, with 0 after normalisation. crop_size: pixels, or (height, width).
    """
    return functools.partial(
        _mmseg_train,
        crop_size=_pair(crop_size),
        mean=mean,
        std=std,
        scale=scale,
        ratio_range=ratio_range,
        cat_max_ratio=cat_max_ratio,
        hflip=hflip,
        distort=distort,
    )


# --- the sets -------------------------------------------------------------------------------------------------------


def _eval(image, mask, *, mean, std):
    image, mask = _to_tensors(image, mask)
    return _normalize(image, mean, std), mask[0]


def _encoding_train(image, mask, *, base_size, crop_size, mean, std, ratio_range, hflip):
    image, mask = _mirror(*_to_tensors(image, mask), hflip)
    long_side = max(mask.shape)
    wanted = random.randint(*(int((base_size or long_side) * ratio) for ratio in ratio_range))
    image, mask = _resize(image, mask, _scaled(mask, wanted / long_side))
    image, mask = _pad(image, mask, crop_size)
    image, mask = _crop(image, mask, crop_size, *_corner(mask, crop_size))
    return _normalize(image, mean, std), mask[0]


def _encoding_val(image, mask, *, crop_size, mean, std):
    image, mask = _to_tensors(image, mask)
    short_side = min(mask.shape[1:])
    image, mask = _resize(image, mask, [length * crop_size // short_side for length in mask.shape[1:]])
    image, mask = _crop(image, mask, (crop_size, crop_size), *(round((length - crop_size) / 2) for length in mask.shape[1:]))
    return _normalize(image, mean, std), mask[0]


def _mmseg_train(image, mask, *, crop_size, mean, std, scale, ratio_range, cat_max_ratio, hflip, distort):
    image, mask = _to_tensors(image, mask)
    ratio = random.uniform(*ratio_range)
    long_side, short_side = int(max(scale) * ratio), int(min(scale) * ratio)
    factor = min(long_side / max(mask.shape[1:]), short_side / min(mask.shape[1:]))
    image, mask = _resize(image, mask, _scaled(mask, factor))
    corner = _corner(mask, crop_size)
    for _ in range(TRIES if cat_max_ratio < 1 else 0):
        if _is_mixed(F.crop(mask, *corner, *_inside(mask, crop_size)), cat_max_ratio):
            break
        corner = _corner(mask, crop_size)
    image, mask = _mirror(*_crop(image, mask, crop_size, *corner), hflip)
    image = F.to_dtype(image, torch.float32, scale=True)
    image = _normalize(distort_colours(image) if distort else image, mean, std)
    image, mask = _pad(image, mask, crop_size)
    return image, mask[0]


# --- steps on an image (3, H, W) and a mask (1, H, W) int64 ---------------------------------------------------------


def _to_tensors(image, mask):
    return F.pil_to_tensor(image), torch.from_numpy(mask)[None]


def _normalize(image, mean, std):
    """uint8, or float32 in 0..1, to normalised float32"""
    return F.normalize(F.to_dtype(image, torch.float32, scale=True), mean, std)


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def _mirror(image, mask, probability):
    if random.random() < probability:
        return F.horizontal_flip(image), F.horizontal_flip(mask)
    return image, mask


def _scaled(mask, factor):
    """[height, width] `factor` times as large, in whole pixels, at least one."""
    return [max(1, int(length * factor + 0.5)) for length in mask.shape[1:]]


def _resize(image, mask, size):
    # Nearest, exact: the pixel under the new one's centre, where the bilinear image is; plain nearest is up to half a
    # pixel off.
    return F.resize(image, size, InterpolationMode.BILINEAR), F.resize(mask, size, InterpolationMode.NEAREST_EXACT)


def _inside(mask, crop_size):
    """(height, width) of a crop, which is no larger than what there is."""
    return [min(crop, length) for crop, length in zip(crop_size, mask.shape[1:], strict=True)]


def _corner(mask, crop_size):
    """Random (top, left) of a crop."""
    return [random.randint(0, max(0, length - crop)) for crop, length in zip(crop_size, mask.shape[1:], strict=True)]


def _crop(image, mask, crop_size, top, left):
    size = _inside(mask, crop_size)
    return F.crop(image, top, left, *size), F.crop(mask, top, left, *size)


def _pad(image, mask, size):
    """Both tensors up to `size` (height, width), to the right and below: 0 in the image, IGNORE in the mask."""
    bottom, right = (max(0, wanted - length) for wanted, length in zip(size, mask.shape[1:], strict=True))
    if not (bottom or right):
        return image, mask
    return F.pad(image, [0, 0, right, bottom], fill=0), F.pad(mask, [0, 0, right, bottom], fill=IGNORE)


def _is_mixed(mask, cat_max_ratio):
    """Whether two classes at least are labelled, and none fills `cat_max_ratio` of the labelled pixels or more."""
    pixels = torch.bincount(mask[mask != IGNORE])
    return (pixels > 0).sum() > 1 and pixels.max() / pixels.sum() < cat_max_ratio


def distort_colours(image, brightness=32 / 255, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18 / 180):
    """(3, H, W) float32 in 0..1, distorted: brightness, saturation and hue in this order, each half of the time, and
    contrast, half of the time too, before saturation or after hue.

    As in mmsegmentation's PhotoMetricDistortion, brightness is added, contrast multiplies the values and saturation the S
    of HSV, and hue is turned by up to 18 of OpenCV's 180 steps, which are 36 of 360 degrees. Done in float: the published
    code cuts to whole values after each step.
    """
    if random.random() < 0.5:
        image = (image + random.uniform(-brightness, brightness)).clamp(0, 1)
    early = random.random() < 0.5
    if early:
        image = _scale_contrast(image, contrast)
    if random.random() < 0.5:
        image = scale_saturation(image, random.uniform(*saturation))
    if random.random() < 0.5:
        image = F.adjust_hue(image, random.uniform(-hue, hue))
    return image if early else _scale_contrast(image, contrast)


def _scale_contrast(image, contrast):
    return (image * random.uniform(*contrast)).clamp(0, 1) if random.random() < 0.5 else image


def scale_saturation(image, factor):
    """(3, H, W) float32 in 0..1 with the S of HSV times `factor`, up to 1; hue and V stay as they are.

    With V = max and S = 1 - min / V, the distance of each channel from V grows by the same ratio as S.
    """
    low, value = image.aminmax(dim=0)
    at_most = value / (value - low).clamp_min(1e-12)  # 1 / S
    return value - (value - image) * at_most.clamp_max(factor)
