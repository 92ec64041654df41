"""Masks of class ids, (H, W) int64 with IGNORE where a pixel has no class, and the colours in which they are shown.

They are read from mask files of 1, 8 and 16 bits and SBD's .mat files, or drawn from the polygons and run lengths of COCO.
"""

import functools
import io
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.cli.errors import InputError, first_line
from utils.images.formats import open_image
from utils.images.read import IGNORE, size_of, too_large

_MOST_PIXELS = 2**28  # more than Pillow opens
_NO_CLASS = -2  # class id of a value that must not occur
_FREE = -1  # a pixel that no shape covers yet: a shape of class 0 is a hole in those below it
LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")  # formats that change the values of pixels


def class_table(values, ignored):
    """(65536,) int64, indexed by the value in a mask file: its place in `values`, IGNORE if in `ignored`, else _NO_CLASS."""
    table = np.full(65536, _NO_CLASS, np.int64)
    table[list(values)] = np.arange(len(values))
    table[list(ignored)] = IGNORE
    return table


def own_tables(classes, first=0):
    """The `class_table` of masks of 8 bits and that of 16 bits that hold class ids from `first` on, and 255 or 65535 for no
    class, as is what is below `first`."""
    return tuple(class_table(range(first, first + classes), {ignored, *range(first)}) for ignored in (255, 65535))


def to_classes(values, tables, name, unknown=None):
    """Mask (H, W) int64 from the values of a mask file, uint8 or uint16, by the `class_table` of each of the two kinds.

    Values that are no class are marked in `unknown`, (65536,) uint8, and count as no class there; without it they raise
    InputError, which begins with `name`.
    """
    table = tables[values.dtype != np.uint8]
    mask = table[values]
    if mask.size and mask.min() == _NO_CLASS:
        wrong = np.unique(values[mask == _NO_CLASS]).tolist()
        if unknown is not None:
            unknown[wrong] = 1
            mask[mask == _NO_CLASS] = IGNORE
            return mask
        known = np.flatnonzero(table[: np.iinfo(values.dtype).max + 1] != _NO_CLASS)
        some = f"{', '.join(map(str, wrong[:5]))}{', …' if len(wrong) > 5 else ''}"
        raise InputError(f"{name}: the mask holds {some}, which is no class; expected {_ranges(known)}")
    return mask


def unknown_line(sources, gather=list, learned=True):
    """A line about the values that were met in the masks of these sources and are no class of theirs, named once; or "".

    gather: a list of each process to one of all; all processes call it together. learned: of a training, else of an
    evaluation.
    """
    marks = [source.ids.unknown for source in sources if getattr(getattr(source, "ids", None), "unknown", None) is not None]
    found = sorted({*gather([value for mark in marks for value in (mark == 1).nonzero().flatten().tolist()])})
    for mark in marks:
        mark[found] = 2
    if not found:
        return ""
    names = ", ".join(map(str, found[:10])) + ", …" * (len(found) > 10)
    if not learned:
        return f"masks hold {names}, which is none of the classes: these pixels are not scored; --mask_values names classes"
    return (
        f"masks hold {names}, which none of those looked at before did: these pixels are not learned and not scored; name all "
        "classes in classes.txt, or start anew with --check_data true, which counts in all masks"
    )


def _ranges(values):
    """[0, 1, 2, 255] -> "0..2, 255" """
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def read_values(path, upright=True):
    """The values (H, W), uint8 or uint16, of the mask file at `path`, an image or SBD's .mat.

    upright: turned by an EXIF orientation of its own. Raises InputError, which names the file, for one that cannot be read
    and for a lossy format, which changes values.
    """
    if not os.path.isfile(path):  # opening a pipe would block for ever
        raise InputError(f"{path} is no file: expected a mask; replace it")
    return _values(_read_mat if path.endswith(".mat") else functools.partial(_read_image, upright=upright), path, path)


def decode_values(data, name, upright=True):
    """As `read_values`, from the bytes of an image file; an error calls it `name`."""
    return _values(functools.partial(_read_image, upright=upright), io.BytesIO(data), name)


def _values(read, file, name):
    try:
        return read(file, name)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is no image: expected a palette or grey PNG as the mask; replace it") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} {too_large(error)}") from None
    except Exception as error:  # scipy's reader and Pillow raise many kinds for damaged files
        raise InputError(f"{name} cannot be read as a mask ({first_line(error)}); replace it") from None


def _read_image(file, name, upright):
    with open_image(file) as image:
        if image.format in LOSSY or (image.format == "WEBP" and is_lossy_webp(image.fp)):
            raise InputError(
                f"{name} is a {image.format} file, which changes the values of a mask; export the masks again as PNG: a copy "
                "of this file would keep the wrong values"
            )
        image.load()
        return mask_values(ImageOps.exif_transpose(image) if upright else image, name)


def is_lossy_webp(file):
    """Whether an open WebP file holds a lossy picture: a chunk "VP8 ", and not "VP8L"."""
    file.seek(0)
    head = file.read(4096)
    return b"VP8L" not in head and b"VP8 " in head


def _read_mat(path, _name):
    from scipy.io import loadmat

    values = np.asarray(loadmat(path, squeeze_me=True, struct_as_record=False, variable_names="GTcls")["GTcls"].Segmentation)
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.size == 0 or values.min() < 0 or values.max() > 255:
        raise ValueError(f"{values.dtype} values of shape {values.shape}; expected rows of class ids, 0 to 255")
    return values.astype(np.uint8)


def mask_values(image, name):
    """Values (H, W) of a PIL image: uint8 of 1 bit, 8 bits or a palette, uint16 of a deeper grey.

    Raises InputError, which begins with `name`, for a picture in colours.
    """
    values = np.asarray(image)
    if image.mode in ("RGB", "RGBA") and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]  # a grey saved as colours
    elif image.mode.startswith("I"):
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise InputError(f"{name}: values {values.min()}..{values.max()}; expected class ids in a PNG of 8 or 16 bits")
        return values.astype(np.uint16)
    elif image.mode not in ("1", "L", "P"):
        raise InputError(f"{name} is a picture of mode {image.mode}; expected class ids in a palette or grey PNG")
    return values.astype(np.uint8)


def fit_image(read, shape, name, mask_name, upright=True):
    """The image of the same size as its mask, (H, W) `shape`. read: upright -> image, as `read_image` has it.

    upright: whether the masks of the data set are those of images that their EXIF orientation turned. An image that is turned
    by a quarter is taken the other way if only that fits: some tools that masks are drawn with ignore the orientation. Raises
    InputError, which begins with `name`, if neither fits.
    """
    image = read(upright)
    if size_of(image)[::-1] == shape:
        return image
    other = read(not upright)
    if size_of(other) != size_of(image) and size_of(other)[::-1] == shape:
        return other
    width, height = size_of(image)
    found = f"the image has {width} x {height} pixels, its mask {shape[1]} x {shape[0]}"
    raise InputError(f"{name}: {found}; expected the same size ({mask_name})")


def voc_palette(classes, first=0):
    """(classes, 3) uint8: the colours, RGB, of the ids from `first` on by the rule of PASCAL VOC's development kit.

    The bits of an id, lowest first, go to red, green and blue in turn, and fill each from its highest bit down: id 1 is
    (128, 0, 0), id 2 (0, 128, 0), id 3 (128, 128, 0). Id 0 is black; first=1 leaves black to pixels without a class.
    """
    ids = np.arange(first, first + classes)
    palette = np.zeros((classes, 3), np.uint8)
    for bit in range(24):
        palette[:, bit % 3] |= ((ids >> bit & 1) << 7 - bit // 3).astype(np.uint8)
    return palette


# --- COCO's shapes --------------------------------------------------------------------------------------------------


def draw_instances(height, width, shapes, name):
    """Mask (height, width) int64 of the shapes [[class, segmentation], ...]. The first shape at a pixel wins, the rest is 0.

    A segmentation is a list of polygons [x, y, x, y, ...] in pixels, or run lengths {"size", "counts"}, packed or not.
    Raises InputError, which begins with `name`, for shapes that cannot be drawn.
    """
    if not all(type(side) is int and side > 0 for side in (height, width)) or height * width > _MOST_PIXELS:
        raise InputError(f"{name}: the instances file says {height} x {width} pixels; expected those of an image")
    mask = np.full((height, width), _FREE, np.int64)
    try:
        for label, segmentation in shapes:
            if isinstance(segmentation, dict):
                inside = decode_runs(segmentation["counts"], height, width)
                mask[(mask == _FREE) & inside] = label
                continue
            for polygon in segmentation:
                inside, top = fill_polygon(polygon, height, width)
                band = mask[top : top + len(inside)]
                band[(band == _FREE) & inside] = label
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{name}: an instance's shape cannot be drawn ({first_line(error)})") from None
    return np.where(mask == _FREE, 0, mask)


def fill_polygon(polygon, height, width):
    """(inside (rows, width) bool, first row): pixels whose centre lies in [x, y, x, y, ...], by the even-odd rule."""
    x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
    if not len(x) or not (np.abs([x, y]) < 1e6).all():  # nor is NaN
        raise ValueError("no corners, or corners far outside of any image")
    top, bottom = int(np.clip(y.min(), 0, height)), int(np.clip(np.ceil(y.max()), 0, height))
    centres = np.arange(top, bottom)[:, None] + 0.5  # (rows, 1)
    if len(x) * (bottom - top) > _MOST_PIXELS:
        raise ValueError(f"{len(x):,} corners; no outline has so many")
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    rows, edges = np.nonzero((y <= centres) != (next_y <= centres))  # edges that cross a row of centres
    slope = (next_x - x)[edges] / (next_y - y)[edges]
    crossings = x[edges] + (centres[rows, 0] - y[edges]) * slope
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)  # the first centre to the right
    turns = np.zeros((bottom - top, width + 1), np.int64)
    np.add.at(turns, (rows, columns), 1)
    return turns.cumsum(1)[:, :width] % 2 == 1, top


def decode_runs(counts, height, width):
    """(height, width) bool from run lengths, outside first, column by column; packed into text or not.

    A packed number has five bits in each character, lowest first, above them a bit for "goes on"; the last one's fifth
    is the sign; from the fourth number on it is the difference to the number before the last. Source: COCO API, maskApi.c
    """
    if isinstance(counts, str):
        text, counts, at = counts, [], 0
        while at < len(text):
            number, shift, more = 0, 0, True
            while more:
                code = ord(text[at]) - 48
                if not 0 <= code < 64 or shift > 60:
                    raise ValueError("the packed run lengths are damaged")
                number |= (code & 31) << shift
                more, shift, at = code & 32, shift + 5, at + 1
            if code & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
    if not all(type(count) is int and 0 <= count <= height * width for count in counts) or sum(counts) != height * width:
        raise ValueError(f"run lengths that do not add up to {height} x {width} pixels")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, np.array(counts, np.int64))
    return inside.reshape(width, height).T
