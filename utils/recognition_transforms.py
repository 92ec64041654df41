"""From a PIL image to the network's input (3, input_size, input_size) float32, for training and for evaluation.

Source: ConvNeXt, datasets.py, build_transform, over timm's create_transform. One difference: at 32 pixels and below,
where that code takes for granted that images have the right size, they are resized to it first.
"""

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
    if input_size <= SMALL:
        transform.transforms[0] = transforms.Compose(
            [_resize_both(input_size), transforms.RandomCrop(input_size, padding=4)]
        )
    return transform


def eval_transform(input_size, *, crop_pct=None, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD):
    """Below 384 pixels: short side to input_size / crop_pct (default 224 / 256), centre crop; from 384 on: warp."""
    if input_size <= SMALL or input_size >= 384:
        steps = [_resize_both(input_size)]
    else:
        short_side = int(input_size / (224 / 256 if crop_pct is None else crop_pct))
        steps = [transforms.Resize(short_side, interpolation=BICUBIC), transforms.CenterCrop(input_size)]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def _resize_both(size):
    return transforms.Resize((size, size), interpolation=BICUBIC)
