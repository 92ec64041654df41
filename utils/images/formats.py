"""Which files are images, and opening them: what Pillow reads, but for what holds no photographs or more than a picture."""

import contextlib
import functools
import os

from PIL import Image

# Formats that Pillow opens and that hold no photographs; EPS files are programs, which Ghostscript would run.
NO_PHOTOGRAPHS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_of_arrays = set()  # endings of files of plain arrays, where they are images
PIXELS = "STRATA_MAX_IMAGE_PIXELS"  # in the environment, so that loader workers of any kind know it too


def is_image(name):
    """Whether the ending of a file name is that of an image format that is read."""
    known, ending = formats(), os.path.splitext(name)[1].lower()
    return ending in _of_arrays or Image.registered_extensions().get(ending) in known


def endings():
    """The endings of file names, in small letters, of the image formats that are read."""
    known = formats()  # first, for it makes formats of packages known to Pillow
    return {ending for ending, kind in Image.registered_extensions().items() if kind in known} | _of_arrays


def read_arrays():
    """From now on .npy files are images of this process, too, which --in_chans reads."""
    _of_arrays.add(".npy")


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
        raise ValueError(
            f"it has {bands} bands, expected grey or RGB, with or without transparency; --in_chans N reads N bands"
        )
    for number in range(1, 50):
        try:
            image.seek(number)
        except EOFError:
            break
        if not image.tag_v2.get(254, 0) & 5:  # NewSubfileType: no thumbnail, and no mask of the picture
            raise ValueError("it has several pages, expected one; --in_chans N reads N of them as bands")
    image.seek(0)


def allow_pixels(number):
    """From now on images of up to so many pixels are read, in this process and in workers that it starts."""
    os.environ[PIXELS] = str(number)
    Image.MAX_IMAGE_PIXELS = (number + 1) // 2  # Pillow warns of more than that, and refuses twice as many


if os.environ.get(PIXELS, "").isdigit():
    allow_pixels(int(os.environ[PIXELS]))
