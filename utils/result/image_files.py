"""The images that --predict names."""

import pathlib

from utils.cli.errors import InputError
from utils.images import is_image


def find_images(images):
    """[(path, name)] of the images below the folder `images`, sorted by path, or of the one file.

    name: the path below that folder, with slashes. Raises InputError where there is no image.
    """
    root = pathlib.Path(images)
    try:
        if root.is_file():
            return [(root, root.name)]
        found = [path for path in sorted(root.rglob("*")) if is_image(path.name)] if root.is_dir() else None
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise InputError(f"--predict {images}: {error.strerror}; expected an image, or a folder of images") from None
    if found is None:
        raise InputError(f"--predict {images}: no such file or folder; expected an image, or a folder of images")
    if not found:
        raise InputError(f"--predict {images}: no images in it; expected an image, or a folder of .jpg, .png or other images")
    return [(path, path.relative_to(root).as_posix()) for path in found]
