"""Image files and Pillow images of every mode as RGB, and masks of class ids, with the id of pixels that have no class."""

import contextlib
import io
import os
import re
import stat
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.cli.errors import InputError, first_line
from utils.images import bands
from utils.images.formats import open_image

IGNORE = -1  # the class of a mask's pixels that no loss and no metric counts


class Reading(NamedTuple):
    """How the images of a data set are read. value_range: (low, high), the values of deep greys (16 or 32 bits, or floats) that
    become black and white; None: those of each image alone. background: (R, G, B) in 0..255, the colour that shows through
    transparent parts; None: what the file has stored there. in_chans: N: images are tensors of N bands, see bands.py; None:
    they are PIL images in RGB. show_bands: numbers of the bands that pictures show; None: the first.
    """

    value_range: tuple | None = None
    background: tuple | None = None
    in_chans: int | None = None
    show_bands: tuple | None = None

    @classmethod
    def of(cls, options):
        """Of an object that has these among its attributes, such as Arguments."""
        values = {name: getattr(options, name) for name in cls._fields}
        return cls(**{name: tuple(value) if isinstance(value, list) else value or None for name, value in values.items()})

    def as_config(self):
        """{name: value} of what is set, for config.json."""
        values = self._asdict().items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values if value is not None}


AS_STORED = Reading()


def size_of(image):
    """(width, height) in pixels of an image as `read_image` gives it."""
    return image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])


class BadImage(InputError):
    """An image that cannot be read. Training uses another one instead; elsewhere the message, which names it, ends the run."""


def read_image(path, upright=True, reading=AS_STORED):
    """The image file at `path` as a PIL image in RGB or, with `reading.in_chans`, as a tensor (N, H, W) float32 in 0..1.

    upright: turned by its EXIF orientation. Raises BadImage.
    """
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


def check_header(path, reading=AS_STORED):
    """Raise BadImage if the header of the file at `path` is not that of an image. The pixels are not read."""
    with naming(path):
        if reading.in_chans:
            return bands.check_header(_file(path), reading.in_chans)
        with open_image(_file(path)):
            return None


def _file(path):
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder fails, but a pipe would block for ever
        raise ValueError("a pipe or device in place of a file")
    return path


def _read(file, upright, reading):
    if reading.in_chans:
        return bands.read_bands(file, reading, upright)
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
        image = Image.fromarray(_to_8_bits(values, reading.value_range or bands.own_range(values)))
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
