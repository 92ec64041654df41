"""ConvNeXt's transforms by timm: from a PIL image in RGB to the network's input (3, S, S) float32, S = --input_size.

A new augmentation flag takes two places: the flag, in `add_augmentation_flags` (utils/cli/recognition_flags.py), and its use,
in `train_steps` below, as settings.NAME. A step that changes colours goes into `changes`; fast.py takes its own from there.

Source: ConvNeXt, datasets.py, build_transform, over timm's create_transform. One difference: at 32 pixels and below,
where that code takes for granted that images have the right size, they are resized to it first.
"""

from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision import transforms

from utils.augment.normalisation import mean_and_std
from utils.cli.recognition_flags import LARGE, SMALL, aa_is_off

BICUBIC = transforms.InterpolationMode.BICUBIC


def train_transform(settings):
    """Random crop, flips, RandAugment or colour jitter, normalisation, random erasing. settings: Augmentation.

    Raises what timm raises for a wrong --aa: ValueError, AssertionError and others.
    """
    return transforms.Compose([step for part in train_steps(settings) for step in part])


def train_steps(settings):
    """Three lists of transforms: (crop and flips, changes), of PIL images, and (to a tensor, normalised and erased)."""
    mean, std = mean_and_std(settings)
    parts = create_transform(
        settings.input_size,
        is_training=True,
        separate=True,
        scale=settings.scale,
        ratio=settings.ratio,
        hflip=settings.hflip,
        vflip=settings.vflip,
        color_jitter=settings.color_jitter,
        auto_augment=None if aa_is_off(settings.aa) else settings.aa,
        interpolation=settings.train_interpolation,
        re_prob=settings.reprob,
        re_mode=settings.remode,
        re_count=settings.recount,
        mean=mean,
        std=std,
    )
    crop_and_flips, changes, to_input = (part.transforms for part in parts)
    if settings.input_size <= SMALL:
        size = settings.input_size
        crop_and_flips[0] = transforms.Compose([_resize_both(size), transforms.RandomCrop(size, padding=4)])
    for step in changes:
        _let_posterize_keep_no_bits(step)
    return crop_and_flips, changes, to_input


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


def eval_geometry(settings):
    """(crop_pct, crop_mode, interpolation) in timm's terms: what the settings say; where they name no crop_mode, up to 32 and
    from 384 pixels the whole image is warped, else centre crop.
    """
    interpolation = settings.eval_interpolation or "bicubic"
    if settings.crop_mode is None and not SMALL < settings.input_size < LARGE:
        return 1.0, "squash", interpolation
    crop_mode = settings.crop_mode or "center"
    crop_pct = settings.crop_pct or (224 / 256 if crop_mode == "center" else 1.0)
    return crop_pct, crop_mode, interpolation


def eval_transform(settings):
    """`eval_steps`, then a tensor, normalised."""
    return transforms.Compose([*eval_steps(settings), transforms.ToTensor(), transforms.Normalize(*mean_and_std(settings))])


def eval_steps(settings):
    """timm's list of transforms of PIL images: resized so that S / crop_pct pixels are the short side (center), both sides
    (squash) or the long side (border), and cut to S x S, or filled up with the mean.
    """
    crop_pct, crop_mode, interpolation = eval_geometry(settings)
    mean, _ = mean_and_std(settings)
    view = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation, "mean": mean}
    return create_transform(settings.input_size, is_training=False, normalize=False, **view).transforms[:-1]


def _resize_both(size):
    return transforms.Resize((size, size), interpolation=BICUBIC)
