"""What image files say of themselves, looked at in a sample: format, size, mode, depth, orientation."""

import contextlib
import os
from typing import NamedTuple

import numpy as np

from utils.cli.errors import InputError
from utils.data.bad_samples import in_threads
from utils.data.sampling import spread
from utils.images import bands
from utils.images.bands import extremes, range_of
from utils.images.formats import open_image
from utils.images.read import AS_STORED, BadImage, is_deep, is_deep_colour, is_transparent, naming

SAMPLE = 200  # images of a source that are looked at
ORIENTATION = 0x0112  # the tag of EXIF


class Seen(NamedTuple):
    """An image file. size: (width, height) in pixels, as stored; orientation: of EXIF, 1 where there is none; transparent:
    whether one sees through a part of it; low, high: the extreme values of a deep grey, else None; brightest: the largest value
    of colours of 16 bits, as Pillow reads them, 0 to 255, else None.
    """

    format: str
    size: tuple
    mode: str
    orientation: int
    transparent: bool
    low: float | None = None
    high: float | None = None
    brightest: int | None = None


def look(file, name, in_chans=None):
    """`Seen` of a path or an open file; only deep images and those with transparency are decoded. in_chans: of images.Reading.

    Raises BadImage, which begins with `name`.
    """
    if in_chans:
        return _look_at_bands(file, name, in_chans)
    with naming(name), open_image(file) as image:
        deep_colour = is_deep_colour(image)  # which is not to be seen any more when its EXIF data was read
        orientation = image.getexif().get(ORIENTATION, 1)
        transparent = is_transparent(image) and image.convert("RGBA").getextrema()[3][0] < 255
        seen = Seen(image.format, image.size, image.mode, orientation, transparent)
        if is_deep(image):
            low, high = extremes(np.asarray(image))
            return seen._replace(low=low, high=high)
        return seen._replace(brightest=max(high for _, high in image.getextrema()[:3])) if deep_colour else seen


def _look_at_bands(file, name, in_chans):
    with naming(name), bands.stored(file, in_chans) as image:
        low, high = extremes(image.load()) if image.dtype.itemsize > 1 else (None, None)
        return Seen(image.format, image.size, f"{in_chans} x {image.dtype}", 1, False, low, high)


def look_at(source, most=SAMPLE, in_chans=None):
    """{index: `Seen`, or None of one that cannot be read} of up to `most` images of a `source`, evenly spread.

    source: it has `file(index)`, a path or an open file; {} for any other.
    """
    if not hasattr(source, "file") or not len(source):
        return {}
    indices = spread(len(source), most)

    def seen(index):
        try:
            return look(source.file(index), os.path.basename(source.name(index)), in_chans)
        except BadImage:
            return None

    return dict(zip(indices, in_threads(seen, indices), strict=True))


def value_range_of(seen):
    """(black, white) of a data set by what was `seen` of it, as `bands.range_of` has it; None where no image is deep."""
    deep = [one for one in seen if one is not None and one.low is not None]
    if not deep:
        return None
    whole = all(one.mode != "F" and "float" not in one.mode for one in deep)
    return range_of(min(one.low for one in deep), max(one.high for one in deep), whole)


def see(train, val, reading=AS_STORED, say=print):
    """Look at a sample of both sources, which keep it as `seen`; set how they are read, and how masks lie.

    reading: that of the flags, which win over what the images have. say: told how masks lie where EXIF turns images.
    """
    if reading.in_chans and not hasattr(train, "reading"):
        raise InputError(f"--in_chans {reading.in_chans}: {train.title} are photographs in RGB; leave it out")
    for source in dict.fromkeys((train, val)):
        if hasattr(source, "file"):
            source.seen = look_at(source, in_chans=reading.in_chans)
    found = [one for source in (train, val) for one in getattr(source, "seen", {}).values()]
    reading = reading._replace(value_range=reading.value_range or value_range_of(found))
    upright = _masks_upright([source for source in dict.fromkeys((train, val)) if hasattr(source, "mask")], say)
    for source in (train, val, getattr(val, "test", None)):
        if hasattr(source, "reading"):
            source.reading = reading
        if hasattr(source, "mask"):
            source.upright = upright


def _masks_upright(sources, say):
    """Whether masks lie as the images that EXIF turned, by those turned by a quarter, whose sizes tell; True where none is."""
    turned, votes = [], {True: [], False: []}
    for source in sources:
        for index, one in source.seen.items():
            if one is None or one.orientation not in range(2, 9):
                continue
            turned.append(source.name(index))
            if one.orientation > 4 and one.size[0] != one.size[1]:
                with contextlib.suppress(InputError):  # who reads the mask says so
                    votes[source.mask(index).shape != one.size[::-1]].append(turned[-1])
    if not turned:
        return True
    names = ", ".join(os.path.basename(name) for name in turned[:3]) + ", …" * (len(turned) > 3)
    start = f"EXIF turns {len(turned)} of the images looked at ({names})"
    if votes[True] and votes[False]:
        say(f"warning: {start}; {len(votes[True])} of their masks are turned too and {len(votes[False])} are not, by their "
            "sizes: others are taken to be turned; look at samples.png, and save images upright if it is wrong")  # fmt: skip
    elif votes[False]:
        say(f"{start}; {len(votes[False])} masks have the size of the image as it is stored: all images are read as stored")
    elif votes[True]:
        say(f"{start}; {len(votes[True])} masks have the size of the upright image, so that all images are turned")
    else:
        say(f"warning: {start}, and no size tells whether their masks are turned too: they are taken to be; look at "
            "samples.png, and save the images upright if it is wrong")  # fmt: skip
    return not (votes[False] and not votes[True])
