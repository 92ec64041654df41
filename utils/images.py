"""Image files and Pillow images of every mode as RGB, and masks of class ids, with the id of pixels that have no class."""

import contextlib
import functools
import io
import os
import re
import stat
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.cli.errors import InputError, first_line

IGNORE = -1  # the class of a mask's pixels that no loss and no metric counts
# Formats that Pillow opens and that hold no photographs; EPS files are programs, which Ghostscript would run.
NO_PHOTOGRAPHS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
PIXELS = "STRATA_MAX_IMAGE_PIXELS"  # in the environment, so that loader workers of any kind know it too


class Reading(NamedTuple):
    """How the images of a data set are read. value_range: (low, high), the values of deep greys (16 or 32 bits, or floats) that
    become black and white; None: those of each image alone. background: (R, G, B) in 0..255, the colour that shows through
    transparent parts; None: what the file has stored there.
    """

    value_range: tuple | None = None
    background: tuple | None = None

    @classmethod
    def of(cls, options):
        """Of an object that has these among its attributes, such as Arguments."""
        values = {name: getattr(options, name) for name in cls._fields}
        return cls(**{name: tuple(value) if value else None for name, value in values.items()})


AS_STORED = Reading()


class BadImage(InputError):
    """An image that cannot be read. Training uses another one instead; elsewhere the message, which names it, ends the run."""


def is_image(name):
    """Whether the ending of a file name is that of an image format that is read."""
    known = formats()
    return Image.registered_extensions().get(os.path.splitext(name)[1].lower()) in known


@functools.cache
def formats():
    """Pillow's names of the image formats that are read: all but NO_PHOTOGRAPHS, and HEIF where pillow-heif is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in Image.ID if name not in NO_PHOTOGRAPHS and name in Image.OPEN)


def open_image(file):
    """Pillow's image of a path or an open file, of one of `formats`; raises what Pillow raises, and ValueError for a TIFF of
    more than a picture, of which Pillow would read a part."""
    image = Image.open(file, formats=formats())
    if image.format == "TIFF":
        try:
            _check_bands(image)
        except Exception:
            image.close()
            raise
    return image


def _check_bands(image):
    tags = image.tag_v2
    bands, extra = tags.get(277, 1), tags.get(338, ())  # SamplesPerPixel, ExtraSamples
    beside = bands - {2: 3, 5: 4, 6: 3, 8: 3}.get(tags.get(262), 1)  # those of RGB, CMYK, YCbCr, Lab, else grey
    if beside > 1 or (beside == 1 and extra and extra[0] not in (1, 2, 999)):  # the kinds of alpha
        raise ValueError(f"it has {bands} bands, expected grey or RGB, with or without transparency")
    for number in range(1, 50):
        try:
            image.seek(number)
        except EOFError:
            break
        if not image.tag_v2.get(254, 0) & 5:  # NewSubfileType: no thumbnail, and no mask of the picture
            raise ValueError("it has several pages, expected one")
    image.seek(0)


def allow_pixels(number):
    """From now on images of up to so many pixels are read, in this process and in workers that it starts."""
    os.environ[PIXELS] = str(number)
    Image.MAX_IMAGE_PIXELS = (number + 1) // 2  # Pillow warns of more than that, and refuses twice as many


if os.environ.get(PIXELS, "").isdigit():
    allow_pixels(int(os.environ[PIXELS]))


def read_image(path, upright=True, reading=AS_STORED):
    """The image file at `path` as a PIL image in RGB. upright: turned by its EXIF orientation. Raises BadImage."""
    with naming(path):
        return _read(_file(path), upright, reading)


def decode_image(data, name, upright=True, reading=AS_STORED):
    """As `read_image`, from the bytes of a file; an error calls it `name`."""
    with naming(name):
        return _read(io.BytesIO(data), upright, reading)


def read_bytes(path):
    """The bytes of the image file at `path`. Raises BadImage, which names the file."""
    with naming(path), open(_file(path), "rb") as file:
        return file.read()


def check_header(path):
    """Raise BadImage if the header of the file at `path` is not that of an image. The pixels are not read."""
    with naming(path), open_image(_file(path)):
        pass


def _file(path):
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder fails, but a pipe would block for ever
        raise ValueError("a pipe or device in place of a file")
    return path


def _read(file, upright, reading):
    with open_image(file) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image) if upright else image, reading)


@contextlib.contextmanager
def naming(name):
    """Within this context, every exception of an image decoder becomes a BadImage that begins with `name`."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"{name} is no image: expected a file that Pillow can read; remove or replace it") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{name} {too_large(error)}") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadImage(f"{name} cannot be read as an image ({reason}); remove or replace it") from None


def too_large(error):
    """What a DecompressionBombError of Pillow's says, and what to do."""
    pixels, limit = re.findall(r"\d+", str(error))[:2]
    return f"has {int(pixels):,} pixels, expected {int(limit):,} at most; --max_image_pixels {pixels} reads it"


def to_rgb(image, reading=AS_STORED):
    """A PIL image of any mode in RGB."""
    if is_deep(image):
        values = np.asarray(image)
        image = Image.fromarray(_to_8_bits(values, reading.value_range or _own_range(values)))
    elif is_transparent(image):
        image = image.convert("RGBA")
        if reading.background is not None:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*reading.background, 255)), image)
    return image.convert("RGB")


def is_transparent(image):
    """Whether a PIL image may have parts that one sees through."""
    return not is_deep(image) and ("transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa"))


def is_deep_colour(image):
    """Whether the colours of a PIL image that was not decoded yet have 16 bits, of which Pillow reads the upper 8."""
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in image.tile)


def is_deep(image):
    """Whether the grey values of a PIL image have more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


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


def _own_range(values):
    """The range of an image of which no data set is known: whole numbers have 12 bits or 16, as most devices write them."""
    low, high = range_of(*extremes(values), whole=values.dtype.kind in "iu")
    is_depth = low == 0 and high <= 65535 and values.dtype.kind in "iu"
    return (0, 4095 if high <= 4095 else 65535) if is_depth else (low, high)


def _to_8_bits(values, value_range):
    """(H, W) uint8 of deep greys; what lies outside of the range is black or white, and what is no number is black."""
    low, high = value_range
    if low == 0 and values.dtype.kind in "iu" and high == 2 ** int(high).bit_length() - 1:
        return (values.astype(np.int64) >> int(high).bit_length() - 8).clip(0, 255).astype(np.uint8)
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


# --- masks on their way to the device -----------------------------------------------------------------------------------


def pack_masks(masks, classes):
    """A tensor of class ids in 0..classes - 1 and IGNORE, int64 -> the same of the fewest bytes, for `unpack_masks`."""
    dtype = next(dtype for dtype in (torch.uint8, torch.int16, torch.int64) if classes <= torch.iinfo(dtype).max)
    return (masks - IGNORE).to(dtype)


def unpack_masks(masks):
    """What `pack_masks` made, on any device -> class ids, int64."""
    return masks.long() + IGNORE
