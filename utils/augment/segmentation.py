"""From (image, mask (H, W) int64 array) to (image (C, H, W) uint8 or float32, `Rest`, mask (H, W) int64), moved together.

What is left to do with the pixels, the rest, is done by `finish` for a whole batch on its device: a batch in uint8 is a quarter
of one in float32 on its way there. Masks are never interpolated and are padded with IGNORE, never with class 0. Random
numbers come from Python's generator, so seeding it makes a sample repeatable.
Sources: PyTorch-Encoding, encoding/datasets/base.py; mmsegmentation 0.x, datasets/pipelines/transforms.py.
"""

import functools
import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from utils.augment.distortion import Distortion, distort, draw_distortion
from utils.augment.normalisation import as_tensors, mean_and_std
from utils.cli.errors import InputError
from utils.images.read import IGNORE, unpack_masks

MIRRORED = 0.5  # share of the training images that are mirrored
TRIES = 10  # of a crop in which one class fills too much


class Rest(NamedTuple):
    """What is left to do with the pixels of one image beside normalising them."""

    size: tuple  # pixels (H, W) at the top left that are no padding of 0 after normalisation
    distortion: Distortion | None = None


class Transforms(NamedTuple):
    """train, evaluate: functions of an image and its mask, see the top, which can be pickled for loader workers.
    batches: options of loaders.build_loaders, by which it makes batches of what they give.
    """

    train: Callable
    evaluate: Callable
    batches: dict


def build_transforms(settings):
    """`Transforms` of these settings (segmentation_flags.Augmentation)."""
    chosen = {"encoding": encoding, "mmseg": mmseg, "eomt": eomt, "none": plain}[settings.transforms]
    batches = {"collate": collate, "eval_collate": collate_sizes}
    batches |= {"finish": functools.partial(finish, **colours(settings)), "finish_labels": unpack_masks}
    return Transforms(functools.partial(chosen, settings=settings), plain, batches)


def colours(settings):
    """{"mean": …, "std": …} by which images are normalised, three numbers each."""
    return dict(zip(("mean", "std"), mean_and_std(settings), strict=True))


def finish(images, rests, mean, std):
    """(B, C, H, W) on any device -> float32, distorted, normalised and padded, in the images' memory format.

    images: uint8, or bands in 0..1, float32. rests: the `Rest` of each image. Nothing waits for a GPU.
    """
    _, mean, std = as_tensors(tuple(mean), tuple(std), images.device)
    finished = torch.zeros_like(images, dtype=torch.float32)
    for image, result, ((height, width), distortion) in zip(images, finished, rests, strict=True):
        inside = image[:, :height, :width]
        if not inside.is_floating_point():
            inside = inside.float().mul_(1 / 255)  # as torchvision's to_dtype, to the last bit
        if distortion is not None:
            inside = distort(inside, distortion)
        torch.sub(inside, mean, out=result[:, :height, :width]).div_(std)
    return finished


def collate(samples):
    """[(image, Rest, mask, …)] -> [images (B, 3, H, W), Rests, masks (B, H, W), …]. InputError for images of several sizes."""
    if len(sizes := {tuple(mask.shape) for _, _, mask, *_ in samples}) > 1:
        (height, width), (other_height, other_width) = sorted(sizes)[:2]
        raise InputError(
            f"a batch with images of {width} x {height} and of {other_width} x {other_height} pixels: --transforms none keeps "
            "sizes; use --transforms encoding or mmseg, which crop, or --batch_size 1"
        )
    images, rests, *others = zip(*samples, strict=True)
    return [default_collate(images), rests, *map(default_collate, others)]


def collate_sizes(samples):
    """[(image, Rest, mask)] -> [images, Rests, masks, sizes]: as `collate`, of images of any sizes.

    Smaller ones are padded to the right and below; sizes: (B, 2) int64, height and width of what is no padding.
    """
    sizes = torch.tensor([mask.shape for _, _, mask in samples])
    height, width = sizes.amax(0).tolist()

    def padded(tensor):
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]))

    images, rests, masks = zip(*samples, strict=True)
    return [default_collate([*map(padded, images)]), rests, default_collate([*map(padded, masks)]), sizes]


def of_one_size(images, masks, sizes, singly=False):
    """Batches of images and masks without the padding of `collate_sizes`: one, or image by image where sizes differ.

    singly: image by image in any case.
    """
    if (sizes == sizes[0]).all() and not singly:
        return [(images, masks)]
    return [(images[i : i + 1, :, :h, :w], masks[i : i + 1, :h, :w]) for i, (h, w) in enumerate(sizes.tolist())]


def plain(image, mask, settings=None):
    """The image and the mask, in the size that they have."""
    return _sample(*_to_tensors(image, mask))


def encoding(image, mask, settings):
    """PyTorch-Encoding's set: mirror, a random long side, padding, and a random crop of --crop_size.

    The long side is a whole number, uniform in --ratio_range x --base_size. Padding goes to the right and below, black before
    normalisation as published. The mask's padding is IGNORE, where the published code has 0, the background of some data sets.
    """
    image, mask = _of_random_size(image, mask, settings)
    image, mask = _pad(image, mask, settings.crop_size)
    return _sample(*_crop(image, mask, settings.crop_size, *_corner(mask, settings.crop_size)))


def eomt(image, mask, settings):
    """EoMT's set: as PyTorch-Encoding's, and the colours distorted as mmsegmentation's; padding is 0 after normalisation.

    Published: brightness is multiplied, contrast is taken about the mean grey, and padding is black. Source: tue-mps/eomt,
    datasets/transforms.py.
    """
    image, mask = _of_random_size(image, mask, settings)
    image, mask = _crop(image, mask, settings.crop_size, *_corner(mask, settings.crop_size))
    rest = Rest(tuple(mask.shape[1:]), draw_distortion())
    return _sample(*_pad(image, mask, settings.crop_size), rest)


def _of_random_size(image, mask, settings):
    """Mirrored or not, with a long side of a whole number of pixels, uniform in --ratio_range x --base_size."""
    image, mask = _mirror(*_to_tensors(image, mask))
    wanted = random.randint(*(int(settings.base_size * ratio) for ratio in settings.ratio_range))
    return _resize(image, mask, _scaled(mask, wanted / max(mask.shape)), antialias=True)  # as PIL


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
    rest = Rest(tuple(mask.shape[1:]), draw_distortion())
    return _sample(*_pad(image, mask, settings.crop_size), rest)


# --- steps on an image (3, H, W) and a mask (1, H, W) int64 ---------------------------------------------------------


def to_tensor(image):
    """An image, as `read_image` gives it, (C, H, W): uint8, or bands in 0..1, float32."""
    return image if isinstance(image, torch.Tensor) else F.pil_to_tensor(image)


def _to_tensors(image, mask):
    return to_tensor(image), torch.from_numpy(mask)[None]


def _sample(image, mask, rest=None):
    return image, rest or Rest(tuple(mask.shape[1:])), mask[0]


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
