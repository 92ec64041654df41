"""Image files and Pillow images of every mode as RGB, and masks of class ids, with the id of pixels that have no class."""

import contextlib
import functools
import io
import os
import stat

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.cli.errors import InputError, first_line

IGNORE = -1  # the class of a mask's pixels that no loss and no metric counts
# Formats that Pillow opens and that hold no photographs; EPS files are programs, which Ghostscript would run.
NO_PHOTOGRAPHS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


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
    """Pillow's image of a path or an open file, of one of `formats`; raises what Pillow raises."""
    return Image.open(file, formats=formats())


def read_image(path, upright=True, value_range=None):
    """The image file at `path` as a PIL image in RGB. upright: turned by its EXIF orientation; value_range: as of `to_rgb`.
    Raises BadImage."""
    with naming(path):
        return _read(_file(path), upright, value_range)


def decode_image(data, name, upright=True, value_range=None):
    """As `read_image`, from the bytes of a file; an error calls it `name`."""
    with naming(name):
        return _read(io.BytesIO(data), upright, value_range)


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


def _read(file, upright, value_range):
    with open_image(file) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image) if upright else image, value_range)


@contextlib.contextmanager
def naming(name):
    """Within this context, every exception of an image decoder becomes a BadImage that begins with `name`."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"{name} is no image: expected a file that Pillow can read; remove or replace it") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadImage(f"{name} cannot be read as an image ({reason}); remove or replace it") from None


def to_rgb(image, value_range=None):
    """A PIL image of any mode in RGB.

    value_range: (low, high), the values of a deep grey (16 or 32 bits, or floats) that become black and white, which is one
    pair for a data set; None: that of this image alone.
    """
    if is_deep(image):
        values = np.asarray(image)
        value_range = value_range or _own_range(values)
        image = Image.fromarray(_to_8_bits(values, value_range))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


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
