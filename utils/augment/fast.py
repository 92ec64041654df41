"""timm's training transforms, about twice as fast: uint8 pixels from the loader's workers, the rest per batch on the device.

Crops, flips, RandAugment and erasing are drawn as timm draws them, from the same random numbers in the same order: with
the same seed, `train_transform` here and in timm.py draw the same box, operations and strengths, and their pixels differ by
rounding. What saves the time: of a JPEG file only those rows are decoded that the crop reaches, and large crops at a
fraction of their size; torch resizes uint8 several times faster than Pillow does; the slow operations of RandAugment are
written anew (fast_operations.py); and a batch is normalised and erased at once, on a GPU where there is one.

    worker:  (pixels, erase) = train_transform(settings)(bytes of a file, or a PIL image)
    loader:  images, erase, labels = collate([(pixels, erase, label), …])
    device:  images = finish(images, erase, mean, std)
"""

import io
import random

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import Compose

from utils.augment import timm as timm_transforms
from utils.augment.fast_operations import speed_up
from utils.augment.normalisation import as_tensors
from utils.cli.recognition_flags import SMALL
from utils.images.formats import open_image
from utils.images.read import to_rgb

MODES = {"bicubic": ("bicubic",), "bilinear": ("bilinear",), "random": ("bilinear", "bicubic")}
ORIENTATION = 0x0112  # EXIF tag; 1: upright
END = b"\xff\xd9"  # marker after the last row of a JPEG file
MARGIN = 8  # rows decoded below the crop: smoothing of colours looks at most 4 ahead


def train_transform(settings):
    """A `TrainTransform` that draws what timm.py's draws by the same seed; normalising and erasing are left to `finish`.

    settings: Augmentation. Raises what timm raises for a wrong --aa.
    """
    (crop, *_), changes, _ = timm_transforms.train_steps(settings)
    for step in changes:
        speed_up(step)
    if settings.input_size > SMALL:
        crop = RandomResizedCrop(settings.input_size, settings.scale, settings.ratio, settings.train_interpolation)
    else:
        crop = Compose([opened, crop, _to_tensor])
    erasing = None
    if settings.reprob:
        erasing = RandomErasing(settings.reprob, mode=settings.remode, max_count=settings.recount, device="cpu")
    return TrainTransform(crop, settings.hflip, settings.vflip, changes, erasing)


eval_geometry = timm_transforms.eval_geometry


def eval_transform(settings):
    """Bytes of an image file or a PIL image -> (uint8 (3, S, S), None): after `finish`, timm.py's, bit for bit."""
    transform = Compose([opened, *timm_transforms.eval_steps(settings), _to_tensor, _nothing_erased])
    transform.takes_bytes = True
    return transform


class TrainTransform:
    """Bytes of an image file or a PIL image in RGB -> (uint8 (3, S, S), what `finish` is to erase or None).

    Random numbers come from Python's, NumPy's and torch's default generators. Raises what Pillow raises for a file that it
    cannot read; of damage below the rows that the crop needs, only a missing end is noticed.
    """

    takes_bytes = True

    def __init__(self, crop, hflip, vflip, changes, erasing):
        self.crop, self.hflip, self.vflip, self.changes, self.erasing = crop, hflip, vflip, changes, erasing

    def __call__(self, image):
        pixels = self.crop(image)
        if self.hflip and torch.rand(1) < self.hflip:
            pixels = pixels.flip(2)
        if self.vflip and torch.rand(1) < self.vflip:
            pixels = pixels.flip(1)
        if self.changes:
            image = before = _to_image(pixels)
            for change in self.changes:
                image = change(image)
            pixels = pixels if image is before else _to_tensor(image)
        return pixels, self.erased(pixels.shape)

    def erased(self, shape):
        """What `finish` is to erase from an image (3, H, W) of this shape, or None."""
        if self.erasing is None:
            return None
        erased = Erased(shape)
        self.erasing(erased)
        return erased.parts or None


class Erased:
    """Stands in for an image that timm's RandomErasing works on, and notes where it would put what."""

    dtype = torch.float32

    def __init__(self, shape):
        self.shape, self.parts = shape, []  # (top, left, height, width, values (3, h, w) or (3, 1, 1) float32) each

    def size(self):
        return self.shape

    def __setitem__(self, where, values):
        _, rows, columns = where
        self.parts.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start, values))


# --- decode, crop and resize ----------------------------------------------------------------------------------------


class RandomResizedCrop:
    """timm's RandomResizedCropAndInterpolation from encoded bytes or a PIL image, to uint8 (3, size, size)."""

    def __init__(self, size, scale, ratio, interpolation):
        self.size, self.scale, self.ratio, self.modes = size, scale, ratio, MODES[interpolation]

    def __call__(self, image):
        data, image = (image, opened(image, load=False)) if isinstance(image, bytes) else (None, image)
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
        mode = self.choose_mode()
        box, reduce = (left, top, left + width, top + height), 1
        if data and image.format == "JPEG":
            image, reduce = read_part(data, image, box, 2 * self.size)
        if reduce > 1:  # here the box has fractions, which torch does not take
            box = tuple(edge / reduce for edge in box)
            return _to_tensor(image.resize((self.size, self.size), Image.Resampling[mode.upper()], box))
        crop = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)  # (3, h, w) uint8
        return torch.nn.functional.interpolate(crop[None], (self.size, self.size), mode=mode, antialias=True)[0]

    def choose_mode(self):
        return random.choice(self.modes) if len(self.modes) > 1 else self.modes[0]


def opened(image, load=True):
    """A PIL image, upright and in RGB, of encoded bytes; without `load`, JPEG in RGB that is upright is left undecoded."""
    if not isinstance(image, bytes):
        return image
    image = open_image(io.BytesIO(image))
    if not load and image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1:
        return image
    image.load()
    return to_rgb(ImageOps.exif_transpose(image))


def read_part(data, image, box, enough):
    """(PIL image, reduce): the JPEG `image`, opened from `data`, such that as little as possible is decoded for the `box`.

    Rows below the box are left out. Where the box stays at least `enough` pixels wide and high, libjpeg decodes at 1 / reduce
    of the size, by a smaller inverse transform: the box divided by `reduce` (2, 4 or 8) is then what is to be cut out.
    """
    left, top, right, bottom = box
    reduce = max(part for part in (1, 2, 4, 8) if part == 1 or min(right - left, bottom - top) >= part * enough)
    rows = bottom + MARGIN * reduce
    whole = END in data[-1024:]  # otherwise it may be cut short, which only decoding all of it tells
    if whole and rows < image.height and (shorter := first_rows(data, rows)):
        image = Image.open(io.BytesIO(shorter))
    if reduce > 1:
        image.draft("RGB", (image.width // reduce, image.height // reduce))
    return image, reduce


def first_rows(data, rows):
    """The JPEG file in `data` with only its first `rows` rows: its height is overwritten, and decoders stop there.

    None where the frame is not a sequential one; a progressive file has its rows spread over all of it.
    Source: ITU-T T.81, B.1.1.4 (segments) and B.2.2 (the frame's header).
    """
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xFF):  # up to the scan, if it is well-formed
        if data[at + 1] in (0xC0, 0xC1):
            return data[: at + 5] + rows.to_bytes(2, "big") + data[at + 7 :]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _to_tensor(image):
    """PIL image in RGB -> uint8 (3, H, W)."""
    return torch.from_numpy(np.stack(image.split()))


def _to_image(pixels):
    return Image.merge("RGB", [Image.fromarray(channel) for channel in pixels.numpy()])


def _nothing_erased(pixels):
    return pixels, None


# --- batches --------------------------------------------------------------------------------------------------------


def collate(samples):
    """[(pixels, erase, …)] -> [images (B, 3, S, S) uint8, erase, …], the other elements as torch's default_collate does.

    erase: a list of (image in the batch, top, left, height, width, values), plain numbers that stay on the CPU whatever
    moves the batch to a device, and the values themselves, float32, in one row.
    """
    pixels, erase, *others = zip(*samples, strict=True)
    boxes, values = [], []
    for number, parts in enumerate(erase):
        for *box, value in parts or ():
            boxes.append((number, *box, value.numel()))
            values.append(value.flatten())
    noise = torch.cat(values) if values else torch.empty(0)
    collated = (torch.utils.data.default_collate(other) for other in others)
    return [torch.utils.data.default_collate(pixels), (boxes, noise), *collated]


def finish(images, erase, mean, std):
    """uint8 (B, 3, S, S) on any device -> float32, normalised and erased, in the images' memory format.

    erase: from `collate`. The same operations in the same order as torchvision's ToTensor and Normalize, then
    timm's RandomErasing, so that the bits are the same. Nothing waits for a GPU.
    """
    full, mean, std = as_tensors(tuple(mean), tuple(std), images.device)
    finished = torch.empty_like(images, dtype=torch.float32)
    # On a CPU one by one, since an image stays in the cache for all three steps.
    parts = zip(images, finished, strict=True) if images.device.type == "cpu" else [(images, finished)]
    for part, result in parts:
        torch.div(part, full, out=result).sub_(mean).div_(std)
    boxes, noise = erase
    noise, start = noise.to(images.device, non_blocking=images.device.type != "mps"), 0
    # Box by box, whose numbers the host knows: a mask would be another pass over all pixels of the batch.
    for number, top, left, height, width, count in boxes:
        values = noise[start : start + count].view(3, *((height, width) if count > 3 else (1, 1)))
        finished[number, :, top : top + height, left : left + width] = values
        start += count
    return finished
