"""Images of N bands, as satellites, microscopes and depth cameras write them: TIFF, .npy, and what Pillow opens, as tensors.

What train_recognition.py and train_segmentation.py read with --in_chans N. Values keep their depth: they are scaled by one
range for the data set, as deep greys are, and nothing is rounded to 8 bits.
"""

import contextlib
import functools
import math
import os
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from utils.cli.errors import InputError
from utils.images.formats import open_image

NPY, TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how files of these kinds begin
SHOWN = 3  # bands that a picture shows as red, green and blue
CONTRAST = 4  # standard deviations from black to white in a picture


class Stored(NamedTuple):
    """An image of N bands as its file has it. size: (width, height) in pixels; load: reads the values, (N, H, W) of `dtype`."""

    format: str
    size: tuple
    dtype: np.dtype
    load: functools.partial


@contextlib.contextmanager
def stored(file, bands, upright=True):
    """The `Stored` image of a path or an open file, while it is open; of TIFF and .npy no values are read by that.

    bands: how many are wanted: what Pillow opens is made grey or RGB for 1 and 3 of them. upright: turned by its EXIF
    orientation, which only what Pillow opens has. Raises ValueError for images of another number of bands, of no numbers, and
    of more pixels than Pillow's limit; what the readers raise; and InputError where tifffile is not installed.
    """
    start = _first_bytes(file)
    if start.startswith(NPY):
        values = np.load(file, mmap_mode="r" if isinstance(file, str | os.PathLike) else None, allow_pickle=False)
        order = _order_of(values.shape, bands)
        yield _checked("NPY", values.shape, values.dtype, order, functools.partial(np.asarray, values), bands)
    elif start[:4] in TIFF:
        with _tifffile().TiffFile(file) as tiff:
            first, *others = tiff.series
            if any(other.shape == first.shape for other in others):
                raise ValueError("it has several images of one size, expected one")
            order = [axis for axis, name in enumerate(first.axes) if name not in "YX"]  # pages, channels or samples
            order += [first.axes.index(name) for name in "YX"]
            yield _checked("TIFF", first.shape, first.dtype, order, first.asarray, bands)
    else:
        with open_image(file) as image:
            mode = _mode(image.mode, bands)
            shape = (image.height, image.width, Image.getmodebands(mode))
            deep = {"F": "float32", "I": "int32"}.get(mode, "uint16" if mode.startswith("I;") else "uint8")
            load = functools.partial(_decoded, image, mode, upright)
            yield _checked(image.format, shape, np.dtype(deep), (2, 0, 1), load, bands)


def _first_bytes(file):
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return opened.read(8)
    start = file.read(8)
    file.seek(0)
    return start


def _tifffile():
    try:
        import tifffile
    except ImportError:
        raise InputError("--in_chans reads TIFF files by tifffile, which is not installed: pip install tifffile") from None
    return tifffile


def _mode(mode, bands):
    """The mode in which Pillow is to give an image of `mode`."""
    if mode == "F" or mode.startswith("I"):
        return mode
    if bands in (1, 3):
        return "L" if bands == 1 else "RGB"
    return {"1": "L", "P": "RGB", "PA": "RGBA"}.get(mode, mode)


def _decoded(image, mode, upright):
    image.load()
    values = np.asarray((ImageOps.exif_transpose(image) if upright else image).convert(mode))
    return values if values.ndim == 3 else values[..., None]


def _order_of(shape, bands):
    """The axes of a plain array in the order bands, height, width; without the first for an image of one band."""
    if len(shape) == 2:
        return (0, 1)
    axes = [axis for axis in (2, 0) if len(shape) == 3 and shape[axis] == bands]
    if len(axes) != 1:
        found = " x ".join(map(str, shape))
        wanted = (
            f"height x width x {bands}, or {bands} x height x width" if not axes else "one side only that could be the bands"
        )
        raise ValueError(f"its values have the shape {found}; --in_chans {bands} expects {wanted}")
    return (2, 0, 1) if axes[0] == 2 else (0, 1, 2)


def _checked(format, shape, dtype, order, load, bands):
    """The `Stored` image of values of this shape; order: their axes, the last two height and width."""
    height, width = (shape[axis] for axis in order[-2:])
    found = math.prod(shape) // max(height * width, 1)
    if found != bands:
        raise ValueError(f"it has {found} bands, and --in_chans says {bands}")
    if dtype.kind not in "buif":
        raise ValueError(f"its values are {dtype}; expected numbers")
    limit = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise ValueError(f"it has {width * height:,} pixels, expected {limit:,} at most; --max_image_pixels reads it")
    return Stored(format, (width, height), dtype, lambda: _in_order(load(), order, bands))


def _in_order(values, order, bands):
    values = values.transpose(order)  # height and width may have changed places by now, as EXIF has them
    return values.reshape(bands, *values.shape[-2:])


def read_bands(file, reading, upright=True):
    """(N, H, W) float32 of a path or an open file; N: `reading.in_chans`. Values from black to white become 0 to 1.

    reading: a Reading; where it has no range of values, each image has its own, as read.py has it for deep greys.
    Numbers of 8 bits always go from 0 to 255. What is no number becomes black. Raises what `stored` raises.
    """
    with stored(file, reading.in_chans, upright) as image:
        return torch.from_numpy(_scaled(image.load(), reading.value_range))


def check_header(file, bands):
    """Raise what `stored` raises for a file that is no image of so many bands, without reading its values."""
    with stored(file, bands):
        pass


def _scaled(values, value_range):
    if values.dtype.itemsize == 1:
        return values.astype(np.float32) / 255
    low, high = value_range or own_range(values)
    finite = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    return (finite - np.float32(low)) / np.float32(high - low)


def extremes(values):
    """(least, largest) of the finite values of an array, as floats; (0, 0) where there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def range_of(low, high, whole):
    """(black, white) for deep greys whose least and largest values are these; whole: they are whole numbers.

    Whole numbers from 0 on have a depth: that of the fewest bits, 8 or more, which hold the largest, such as (0, 4095) of
    12 bits. Floats within 0..1 or 0..255 keep that range. Anything else is spread from the least to the largest.
    """
    if low >= 0 and whole and high < 2**31:
        return 0, 2 ** max(int(high).bit_length(), 8) - 1
    if low >= 0 and high <= 255:
        return 0, 1 if high <= 1 else 255
    return low, max(high, low + 1e-6)


def own_range(values):
    """The range of an image of which no data set is known: whole numbers have 12 bits or 16, as most devices write them."""
    low, high = range_of(*extremes(values), whole=values.dtype.kind in "iu")
    is_depth = low == 0 and high <= 65535 and values.dtype.kind in "iu"
    return (0, 4095 if high <= 4095 else 65535) if is_depth else (low, high)


def to_picture(image, show=None):
    """A PIL image in RGB, to be looked at, of one, or of bands (N, H, W): their means are grey, and CONTRAST deviations go from
    black to white. show: numbers of the bands that are red, green and blue, or of one; None: the first.
    """
    if isinstance(image, Image.Image):
        return image
    image = image[shown_bands(len(image), show)]
    centre, deviation = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True).clamp(1e-6)
    return Image.fromarray(as_picture(((image - centre) / deviation).numpy()))


def as_picture(normalised):
    """(…, 3, H, W) float, of mean 0 and deviation 1 -> (…, H, W, 3) uint8."""
    pixels = np.nan_to_num(0.5 + np.moveaxis(normalised, -3, -1) / CONTRAST)
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def shown_bands(bands, show=None):
    """Numbers of the three bands that a picture of `bands` shows."""
    show = show or (range(SHOWN) if bands >= SHOWN else [0])
    return [*show] if len(show) == SHOWN else [show[0]] * SHOWN


def bands_of(source):
    """Numbers of the three bands that pictures of a `source` show; None where its images are RGB."""
    reading = getattr(source, "reading", None)
    return shown_bands(reading.in_chans, reading.show_bands) if reading and reading.in_chans else None
