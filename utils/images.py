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


class BadImage(InputError):
    """An image that cannot be read. Training uses another one instead; elsewhere the message, which names it, ends the run."""


def is_image(name):
    """Whether the ending of a file name is that of an image format that is read."""
    return Image.registered_extensions().get(os.path.splitext(name)[1].lower()) in formats()


@functools.cache
def formats():
    """Pillow's names of the image formats that are read: all but EPS, whose files are programs that Ghostscript would run."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS" and name in Image.OPEN)


def open_image(file):
    """Pillow's image of a path or an open file, of one of `formats`; raises what Pillow raises."""
    return Image.open(file, formats=formats())


def read_image(path, upright=True):
    """The image file at `path` as a PIL image in RGB; `upright`: turned by its EXIF orientation. Raises BadImage."""
    with naming(path):
        return _read(_file(path), upright)


def decode_image(data, name, upright=True):
    """As `read_image`, from the bytes of a file; an error calls it `name`."""
    with naming(name):
        return _read(io.BytesIO(data), upright)


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


def _read(file, upright):
    with open_image(file) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image) if upright else image)


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


def to_rgb(image):
    """A PIL image of any mode in RGB. Greys of 16 bits keep their upper 8 bits, where Pillow would clip them to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


# --- masks on their way to the device -----------------------------------------------------------------------------------


def pack_masks(masks, classes):
    """A tensor of class ids in 0..classes - 1 and IGNORE, int64 -> the same of the fewest bytes, for `unpack_masks`."""
    dtype = next(dtype for dtype in (torch.uint8, torch.int16, torch.int64) if classes <= torch.iinfo(dtype).max)
    return (masks - IGNORE).to(dtype)


def unpack_masks(masks):
    """What `pack_masks` made, on any device -> class ids, int64."""
    return masks.long() + IGNORE
