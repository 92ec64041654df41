"""The images of a tree with one folder per class: listed once, then kept, so that a second start need not list a million files.

A folder's modification time changes when an entry of it is added, removed or renamed; so the list is still true while every
folder that was walked has the times it had. It is kept in $XDG_CACHE_HOME/strata (or ~/.cache/strata), never in the data. A
kept list that is damaged, stale, or of another version is ignored and replaced; deleting it is always safe.
"""

import hashlib
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.cli.errors import InputError
from utils.data.string_list import StringList
from utils.images import is_image

VERSION = 1  # of what a kept list holds
WORTH = 5_000  # images; fewer are listed in no time
SETTLED = 2_000_000_000  # ns; a folder changed since could change again without another time (FAT counts in 2 s)
THREADS = 16  # for the waits of a network drive; on a local disk they cost nothing


class Index(NamedTuple):
    """classes: sorted names of the class folders; images: `class/…/file`, sorted in each class; counts: (classes,) int64."""

    classes: list
    images: StringList
    counts: np.ndarray


def index_folder(root):
    """The `Index` of the class folders in `root`, from the cache where it still holds; hidden files and folders are left out.

    Links are followed, but not in a circle. Raises InputError for a folder that cannot be listed.
    """
    root = os.path.abspath(root)
    endings = frozenset(ending for ending in Image.registered_extensions() if is_image(f"x{ending}"))
    key = json.dumps([VERSION, root, sorted(endings)])
    file = _cache_file(root, hashlib.sha256(json.dumps([root, sorted(endings)]).encode()).hexdigest()[:24])
    return _load(file, key, root) or _scan(root, endings, file, key)


# --- listing --------------------------------------------------------------------------------------------------------


class _Walk:
    """One walk through the folders below `root`: what it has seen besides images."""

    def __init__(self, root, endings):
        self.root, self.endings = root, endings
        self.folders = []  # (below, times); the times are taken before the listing, so that what changes meanwhile shows
        self.lasting = True  # False: a link to nothing, which may become a folder without any change of the times

    def classes(self):
        return sorted(self._list("")[1])

    def images(self, name):
        """Sorted paths, from `root` on, of the images of the class folder `name`."""
        return sorted(self._below(name, set()))

    def _below(self, below, seen):
        real = os.path.realpath(os.path.join(self.root, below))
        if real in seen:  # links in a circle
            return []
        seen.add(real)
        images, folders = self._list(below)
        images = [f"{below}/{name}" for name in images]
        for name in sorted(folders):
            inside = self._below(f"{below}/{name}", seen)
            if not inside and self._is_image(name):  # a folder in place of an image: a broken one, that it be named
                inside = [f"{below}/{name}"]
            images += inside
        return images

    def _list(self, below):
        """(names of image files, names of folders) in `root/below`."""
        path = os.path.join(self.root, below)
        images, folders = [], []
        try:
            self.folders.append((below, _times(path)))
            with os.scandir(path) as entries:
                for entry in entries:  # asks the disk about links only: of the others the listing says what they are
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif below and self._is_image(entry.name):
                        images.append(entry.name)
                    elif entry.is_symlink() and not entry.is_file():
                        self.lasting = False
        except OSError as error:
            raise InputError(f"{path} cannot be listed ({error.strerror}): make it readable, or remove it") from None
        return images, folders

    def _is_image(self, name):
        return os.path.splitext(name)[1].lower() in self.endings


def _scan(root, endings, file, key):
    now, walk = time.time_ns(), _Walk(root, endings)
    classes = walk.classes()
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            per_class = list(pool.map(walk.images, classes))
    except RecursionError:
        raise InputError(f"{root}: folders within folders, a thousand deep; expected one folder per class") from None
    images = StringList(path for paths in per_class for path in paths)
    counts = np.array([len(paths) for paths in per_class], dtype=np.int64)
    if len(images) >= WORTH and walk.lasting and _telling([times for _, times in walk.folders], now):
        folders = dict(sorted(walk.folders))
        _save(file, key, folders, images, counts)
    return Index(classes, images, counts)


def _times(path):
    """(time of the last change of a folder's entries, and of its times themselves: a copy sets back the first), ns."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns


def _telling(times, now):
    """Whether these times would change with the folders: not if they are fresh, or made up, as some network drives do."""
    return all(0 < changed < now - SETTLED for changed, _ in times) and len(set(times)) > 1


# --- keeping --------------------------------------------------------------------------------------------------------


def _cache_file(root, name):
    """Where the list of `root` is kept, or None: no home, or it lies in the data."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(cache) or os.path.commonpath([cache, root]) == root:
        return None
    return os.path.join(cache, "strata", f"folder-{name}.npz")


def _save(file, key, folders, images, counts):
    """Written aside and moved, so that nobody reads half a file; where it cannot be written, it is not kept."""
    if file is None:
        return
    names = StringList(below for below in folders if below)
    aside = None
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(file), prefix="tmp-", delete=False) as target:
            aside = target.name
            np.savez(
                target, key=np.array(key), times=np.array(list(folders.values())), counts=counts,
                folders=names.data, folder_ends=names.ends, images=images.data, image_ends=images.ends,
            )  # fmt: skip
        os.replace(aside, file)
    except OSError:
        if aside is not None and os.path.exists(aside):
            os.unlink(aside)


def _load(file, key, root):
    """The `Index` that `_save` kept, or None where there is none, or a damaged, a stale or another one."""
    if file is None or not os.path.isfile(file):
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:  # checks the sum of each part
            if str(kept["key"]) != key:
                return None
            folders = _names(kept["folders"], kept["folder_ends"])
            images = _names(kept["images"], kept["image_ends"])
            times, counts = kept["times"], kept["counts"]
        folders = list(folders)
        classes = [below for below in folders if "/" not in below]
        if counts.dtype != np.int64 or counts.shape != (len(classes),) or counts.min() < 0 or counts.sum() != len(images):
            return None
        with ThreadPoolExecutor(THREADS) as pool:
            now = list(pool.map(_times, [root, *(os.path.join(root, below) for below in folders)]))
    except Exception:  # a mangled file makes NumPy and zipfile raise whatever they stumble over
        return None
    return Index(classes, images, counts) if np.array_equal(times, now) else None


def _names(data, ends):
    """The StringList of these arrays; ValueError where they are none, or where a name could lead out of the folder.

    Nothing hidden is ever listed, so that "." at the beginning of a name, or of a part of it, is not ours.
    """
    starts = np.concatenate([[0], ends[:-1]])
    if data.dtype != np.uint8 or ends.dtype != np.int64 or ends[-1] != len(data) or (ends <= starts).any():
        raise ValueError("no list of names")
    text = data.tobytes()
    if b"\0" in text or b"/." in text or np.isin(data[starts], np.frombuffer(b"./", np.uint8)).any():
        raise ValueError("a name that leads elsewhere")
    names = StringList(())
    names.data, names.ends = data, ends
    return names
