"""Image files and Pillow images of every mode, as RGB."""

import contextlib
import functools
import io
import os
import stat

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.cli.errors import InputError, first_line

IGNORE = -1  # the class of a mask's pixels that no loss and no metric counts


class BadImage(InputError):
    """An image that cannot be read: training replaces it, anything else ends with the message, which names it."""


def is_image(name):
    """Whether the file name is that of an image that Pillow opens."""
    return Image.registered_extensions().get(os.path.splitext(name)[1].lower()) in formats()


@functools.cache
def formats():
    """Pillow's names of what is read: all but EPS, a program, which it would have Ghostscript run."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS" and name in Image.OPEN)


def open_image(file):
    """`Image.open` of a path or file, whatever it is, as an image."""
    return Image.open(file, formats=formats())


def read_image(path, upright=True):
    """The image file at `path` as RGB, turned by its EXIF orientation if `upright`. Raises BadImage naming the file."""
    with naming(path):
        return _read(_file(path), upright)


def decode_image(data, name, upright=True):
    """As `read_image`, from the bytes of a file; `name` is what an error calls it."""
    with naming(name):
        return _read(io.BytesIO(data), upright)


def read_bytes(path):
    """What the image file at `path` holds, not decoded. Raises BadImage naming the file."""
    with naming(path), open(_file(path), "rb") as file:
        return file.read()


def check_header(path):
    """Raises BadImage where the file at `path` does not begin as an image does; its pixels are not read."""
    with naming(path), open_image(_file(path)):
        pass


def _file(path):
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder fails by itself; a pipe would be waited for, for ever
        raise ValueError("a pipe or device in place of a file")
    return path


def _read(file, upright):
    with open_image(file) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image) if upright else image)


@contextlib.contextmanager
def naming(name):
    """Within this, whatever an image's decoder raises becomes a BadImage that has the `name`."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"{name} is no image: expected a file that Pillow can read; remove or replace it") from None
    except Exception as error:  # on mangled bytes Pillow raises whatever its decoders stumble over
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadImage(f"{name} cannot be read as an image ({reason}); remove or replace it") from None


def to_rgb(image):
    """Any mode of Pillow's as RGB; 16-bit greys keep their upper 8 bits, which Pillow would clip to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
