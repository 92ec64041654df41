"""From a PIL image to the network's input (3, input_size, input_size) float32, for training and for evaluation.

Source: ConvNeXt, datasets.py, build_transform, over timm's create_transform. One difference: at 32 pixels and below,
where that code takes for granted that images have the right size, they are resized to it first.
"""

from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import transforms

SMALL = 32  # pixels; up to here images are padded and cropped instead of cropped and resized
BICUBIC = transforms.InterpolationMode.BICUBIC


def train_transform(
    input_size,
    *,
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    hflip=0.5,
    vflip=0.0,
    color_jitter=None,
    aa=None,
    interpolation="bicubic",
    reprob=0.0,
    remode="pixel",
    recount=1,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
):
    """Random crop, flips, RandAugment or colour jitter, normalisation, random erasing.

    `aa` is a string of timm's such as rand-m9-mstd0.5-inc1; where it is given, `color_jitter` is left out.
    """
    transform = create_transform(
        input_size,
        is_training=True,
        scale=scale,
        ratio=ratio,
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        auto_augment=aa,
        interpolation=interpolation,
        re_prob=reprob,
        re_mode=remode,
        re_count=recount,
        mean=mean,
        std=std,
    )
    for step in transform.transforms:
        _let_posterize_keep_no_bits(step)
    if input_size <= SMALL:
        transform.transforms[0] = transforms.Compose([_resize_both(input_size), transforms.RandomCrop(input_size, padding=4)])
    return transform


def _let_posterize_keep_no_bits(step):
    """timm's Posterize asks Pillow for 0 bits at the ends of its range: a black image, and from Pillow 13 on an error."""
    policies = getattr(step, "policy", None) or [getattr(step, "ops", ())]
    for op in (op for policy in policies for op in policy):
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize


def _posterize(image, bits, **_):
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def eval_geometry(input_size, crop_pct=None):
    """(crop_pct, crop_mode) in timm's terms: up to 32 and from 384 pixels the whole image is warped, else centre crop."""
    if input_size <= SMALL or input_size >= 384:
        return 1.0, "squash"
    return (224 / 256 if crop_pct is None else crop_pct), "center"


def eval_transform(input_size, *, crop_pct=None, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD):
    """Below 384 pixels: short side to input_size / crop_pct (default 224 / 256), centre crop; from 384 on: warp."""
    crop_pct, crop_mode = eval_geometry(input_size, crop_pct)
    if crop_mode == "squash":
        steps = [_resize_both(input_size)]
    else:
        steps = [
            transforms.Resize(int(input_size / crop_pct), interpolation=BICUBIC),
            transforms.CenterCrop(input_size),
        ]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def _resize_both(size):
    return transforms.Resize((size, size), interpolation=BICUBIC)
