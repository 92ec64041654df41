"""The images that --predict names, and the files that it writes beside: none is mixed up with another."""

import collections
import pathlib

from PIL.PngImagePlugin import PngInfo

from utils.cli.errors import InputError, one_line
from utils.images.formats import is_image, open_image, read_arrays
from utils.images.read import AS_STORED

MARK = ("Software", "Strata --predict")  # a text in each PNG that is written, by which it is known again
NAMED = 3  # files that a line names


def find_images(images, say=print, reading=AS_STORED):
    """[(path, name)] of the images below the folder `images`, sorted by path, or of the one file.

    name: the path below that folder, with slashes. Hidden files, and what an earlier prediction wrote, are left out, which is
    said. Raises InputError where there is no image.
    """
    if reading.in_chans:
        read_arrays()
    root = pathlib.Path(images)
    try:
        if root.is_file():
            return [(root, root.name)]
        found = [path for path in sorted(root.rglob("*")) if is_image(path.name)] if root.is_dir() else None
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise InputError(f"--predict {images}: {error.strerror}; expected an image, or a folder of images") from None
    if found is None:
        raise InputError(f"--predict {images}: no such file or folder; expected an image, or a folder of images")
    files = [(path, path.relative_to(root).as_posix()) for path in found]
    hidden = [name for _, name in files if any(part.startswith(".") for part in name.split("/"))]
    written = [name for path, name in files if name not in set(hidden) and is_written(path)]
    for names, what in ((hidden, "hidden"), (written, "of an earlier prediction")):
        if names:
            say(f"left out: {len(names)} {what} ({few(names)})")
    left = {*hidden, *written}
    files = [(path, name) for path, name in files if name not in left]
    if not files:
        raise InputError(f"--predict {images}: no images in it; expected an image, or a folder of .jpg, .png or other images")
    return files


def mark():
    """What Pillow writes into a PNG so that `is_written` knows it."""
    info = PngInfo()
    info.add_text(*MARK)
    return info


def is_written(path):
    """Whether --predict wrote the file at `path`: a PNG with the mark."""
    if pathlib.Path(path).suffix.lower() != ".png":
        return False
    try:
        with open_image(path) as image:
            return image.info.get(MARK[0]) == MARK[1]
    except Exception:  # broken, which whoever reads it says
        return False


def png_names(names):
    """A PNG's name for each of the file names, no two alike: a.png of a.jpg, but a.jpg.png where there is another a, too."""
    found = {name: str(pathlib.PurePosixPath(name).with_suffix(".png")) for name in names}
    while True:
        count = collections.Counter(target.lower() for target in found.values())  # some disks tell no A from a
        twice = [name for name, target in found.items() if count[target.lower()] > 1 and target != f"{name}.png"]
        if not twice:
            return [found[name] for name in names]
        found.update({name: f"{name}.png" for name in twice})


def few(names):
    """The first of the names, as text on one line."""
    return ", ".join([*map(one_line, names[:NAMED]), *["…"] * (len(names) > NAMED)])
