"""Image files and Pillow images of every mode, as RGB."""

import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.arguments import InputError


def is_image(name):
    """Whether the file name is that of an image that Pillow opens."""
    return Image.registered_extensions().get(os.path.splitext(name)[1].lower()) in Image.OPEN


def read_image(path):
    """The image file at `path` as RGB, upright by its EXIF orientation. Raises InputError naming the file."""
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise InputError(f"{path} is no image: expected a file that Pillow can read; remove or replace it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}); remove or replace it") from None


def to_rgb(image):
    """Any mode of Pillow's as RGB; 16-bit greys keep their upper 8 bits, which Pillow would clip to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
