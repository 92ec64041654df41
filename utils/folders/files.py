"""Finding files in folders, and which mask belongs to which image."""

import collections
import os
import pathlib

from utils.cli.errors import InputError
from utils.folders.names import ending as ending_of
from utils.folders.names import few, is_run, missing, why_left_out
from utils.images.formats import is_image


def match(images, masks, names=None, list_file=None):
    """([image paths], [mask paths]) in one order, from two dicts {name: path}.

    Without `names` each name must be in both dicts. With them each of `names`, which stand in `list_file`, must be; others
    are left out. Raises InputError that names the first files without a counterpart.
    """
    wanted, named = (sorted(images), sorted(masks)) if names is None else (names, names)
    if lonely := [images[name] for name in wanted if name in images and name not in masks]:
        raise InputError(f"no mask for {len(lonely)} of {len(wanted)} images: {few(lonely, 3)}{_suffix(lonely, masks)}")
    if lonely := [masks.get(name, name) for name in named if name not in images]:
        what = "masks" if names is None else f"names in {list_file}"
        raise InputError(f"no image for {len(lonely)} of {len(named)} {what}: {few(lonely, 3)}")
    return [images[name] for name in wanted], [masks[name] for name in wanted]


def _suffix(images, masks):
    """What to do where all masks are called as their images with something behind it."""
    name = os.path.splitext(os.path.basename(images[0]))[0]
    longer = [os.path.basename(mask)[len(name) :] for mask in masks if os.path.basename(mask).startswith(name)]
    return f"; if {name}{longer[0]} is its mask, give --mask_suffix {longer[0]}" if len(longer) == 1 and longer[0] else ""


def scan_paths(root):
    """Sorted paths, from `root` on and with slashes, of all images below it but for what `scan_files` leaves out."""
    found = scan_files(root, may_be_empty=True, by_ending=True) if os.path.isdir(root) else {}
    return sorted(os.path.relpath(path, root).replace(os.sep, "/") for path in found.values())


def scan_files(folder, ending=None, may_be_empty=False, suffix="", left_out=None, by_ending=False):
    """{path below `folder` without the ending: path} of all images, or of all files with this ending.

    suffix: that names end with before the ending; files without it are left out, and the keys are without it. Links are
    followed, but not in a circle; hidden files, those of systems and folders of runs are left out. left_out: a Counter that
    counts what is no image. by_ending: a name may have files of several endings, and keys are paths. Raises InputError for two
    files of one name, and for no files at all.
    """
    found, seen, left_out = {}, set(), collections.Counter() if left_out is None else left_out
    for below, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if os.path.realpath(below) in seen:  # links in a circle
            folders.clear()
            continue
        seen.add(os.path.realpath(below))
        if "args.json" in files and is_run(below):
            left_out["runs"] += 1
            folders.clear()
            continue
        left_out.update(why for name in folders if (why := why_left_out(name)))
        folders[:] = [name for name in folders if why_left_out(name) is None]
        for file in sorted(files):
            if (why := why_left_out(file)) or not (file.endswith(ending) if ending else is_image(file)):
                left_out[why or ending_of(file)] += 1
                continue
            path = os.path.join(below, file)
            name = os.path.relpath(path, folder).removesuffix(ending or os.path.splitext(file)[1])
            if not name.endswith(suffix):
                continue
            name = path if by_ending else name.removesuffix(suffix)
            if name in found:
                raise InputError(f"{found[name]} and {path} have the same name; keep one of them")
            found[name] = path
    if not found and not may_be_empty:
        raise InputError(f"{folder}: no such files in it; expected {f'*{ending}' if ending else 'images such as .jpg or .png'}")
    return found


def find_folder(root, below, needed, how):
    """The folder with all that is `needed`: `below` in `root`, or `root` itself if it lies on the way or is that folder.

    Raises InputError that says what is there, what was expected, and `how` to get it.
    """
    for base in candidates(root, below):
        if all((base / name).exists() for name in needed):
            return base
    inside = "" if below == "." else f"{below} with "
    raise InputError(f"--data_path {root}: {there(root)}; expected {inside}{', '.join(needed)}; {how}")


def there(root):
    """What an error says of what is in a folder."""
    root = pathlib.Path(root)
    if not root.is_dir():
        return missing(root)
    return "found " + (few(sorted(entry.name for entry in root.iterdir()), 3) or "nothing in it")


def candidates(root, below):
    """`root` with the whole of `below`, with the end of it, and alone, since users give any folder on the way."""
    parts = pathlib.PurePosixPath(below).parts
    return [pathlib.Path(root).joinpath(*parts[start:]) for start in range(len(parts) + 1)]
