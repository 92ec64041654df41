"""The list of the images in a tree with one folder per class, kept so that a second start need not list a million files.

The modification time of a folder changes when an entry is added, removed or renamed. So a kept list is true as long as the
times of all folders are the same. It lies in $XDG_CACHE_HOME/strata (or ~/.cache/strata), never in the data. A list that is
damaged, out of date or of another version is replaced; deleting it is always safe.
"""

import collections
import contextlib
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from utils.cli.errors import InputError
from utils.data.string_list import StringList
from utils.files import replace
from utils.folders.names import ending, is_run, split_folders, why_left_out
from utils.images import formats

VERSION = 2  # of the format of kept lists
WORTH = 5_000  # least number of images that are kept; fewer are listed in no time
SETTLED = 2_000_000_000  # ns; a folder that changed since could change again at the same time (FAT counts in steps of 2 s)
THREADS = 16  # that wait for a network drive; on a local disk they cost nothing


class Index(NamedTuple):
    """classes: sorted names of class folders; images: `class/…/file`, sorted by class and name; counts: (classes,) int64;
    left_out: {kind: number} of what lies among them and is no image of the data, such as {".heic": 20, "hidden": 1}; inside:
    {class folder: its folders that are called as splits}, where there are two at least."""

    classes: list
    images: StringList
    counts: np.ndarray
    left_out: dict
    inside: dict


def index_folder(root):
    """The `Index` of the class folders in `root`, from the kept list if that is true.

    Hidden files and folders, those of systems (names.why_left_out) and folders of runs are left out and counted; links are
    followed, but not in a circle. Raises InputError for a folder that cannot be listed.
    """
    root = os.path.abspath(root)
    endings = formats.endings()
    key = json.dumps([VERSION, root, sorted(endings)])
    file = _cache_file(root, hashlib.sha256(json.dumps([root, sorted(endings)]).encode()).hexdigest()[:24])
    return _load(file, key, root) or _scan(root, endings, file, key)


# --- listing --------------------------------------------------------------------------------------------------------


class _Walk:
    """One walk through the folders below `root`; endings: of image files."""

    def __init__(self, root, endings):
        self.root, self.endings = root, endings
        self.folders = []  # (path from `root` on, times); read before the listing, so that a change meanwhile is seen later
        self.lasting = True  # False after a link to nothing, which may become a folder without a change of the times
        self.left_out = []  # a Counter for each folder
        self.with_runs = set()  # class folders in which runs lie
        self.inside = {}  # as of Index

    def classes(self):
        return sorted(self._list("")[1])

    def images(self, name):
        """Sorted paths, from `root` on, of the images in the class folder `name`."""
        return sorted(self._below(name, set()))

    def _below(self, below, seen):
        real = os.path.realpath(os.path.join(self.root, below))
        if real in seen:  # links in a circle
            return []
        seen.add(real)
        if is_run(os.path.join(self.root, below)):
            self.folders.append((below, _times(os.path.join(self.root, below))))
            self.left_out.append(collections.Counter({"runs": 1}))
            self.with_runs.add(below.partition("/")[0])
            return []
        images, folders = self._list(below)
        images = [f"{below}/{name}" for name in images]
        if "/" not in below and len(splits := split_folders(folders)[0]) > 1:
            self.inside[below] = sorted(splits.values())
        for name in sorted(folders):
            inside = self._below(f"{below}/{name}", seen)
            if not inside and self._is_image(name):  # a folder in place of an image counts as a broken image, which is named
                inside = [f"{below}/{name}"]
            images += inside
        return images

    def _list(self, below):
        """(names of image files, names of folders) in `root/below`."""
        path = os.path.join(self.root, below)
        images, folders, left_out = [], [], collections.Counter()
        try:
            self.folders.append((below, _times(path)))
            with os.scandir(path) as entries:
                for entry in entries:  # the listing tells files from folders; the disk is asked about links only
                    if why := why_left_out(entry.name):
                        left_out[why] += 1
                    elif entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_symlink() and not entry.is_file() and not (below and self._is_image(entry.name)):
                        self.lasting = False
                    elif self._is_image(entry.name):
                        images.append(entry.name)
                    elif below:
                        left_out[ending(entry.name)] += 1
        except OSError as error:
            raise InputError(f"{path} cannot be listed ({error.strerror}): make it readable, or remove it") from None
        if not below:
            left_out["images beside the class folders"] += len(images)
            images = []
        self.left_out.append(left_out)
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
    dropped = [name for name, paths in zip(classes, per_class, strict=True) if not paths and name in walk.with_runs]
    found = [(name, len(paths)) for name, paths in zip(classes, per_class, strict=True) if name not in dropped]
    left_out = {kind: count for kind, count in sum(walk.left_out, collections.Counter()).items() if count}
    index = Index([name for name, _ in found], images, np.array([count for _, count in found], dtype=np.int64), left_out,
                  dict(sorted(walk.inside.items())))  # fmt: skip
    if len(images) >= WORTH and walk.lasting and _telling([times for _, times in walk.folders], now):
        _save(file, key, dict(sorted(walk.folders)), index, dropped)
    return index


def _times(path):
    """(time of the last change of a folder's entries, of its attributes) in ns. A copy may set back the first of the two."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns


def _telling(times, now):
    """Whether these times would show a change: not if they are too recent, or all the same, as on some network drives."""
    return all(0 < changed < now - SETTLED for changed, _ in times) and len(set(times)) > 1


# --- keeping --------------------------------------------------------------------------------------------------------


def _cache_file(root, name):
    """The path of the kept list of `root`, or None if there is no home folder, or if it lies in the data."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(cache) or os.path.commonpath([cache, root]) == root:
        return None
    return os.path.join(cache, "strata", f"folder-{name}.npz")


def _save(file, key, folders, index, dropped):
    """Keep the list in `file`, if it is not None and can be written. dropped: names of folders that are no classes."""
    if file is None:
        return
    names = StringList(below for below in folders if below)
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with replace(file) as path:
            np.savez(
                path, key=np.array(key), times=np.array(list(folders.values())), counts=index.counts,
                folders=names.data, folder_ends=names.ends, images=index.images.data, image_ends=index.images.ends,
                beside=np.array(json.dumps([index.left_out, dropped, index.inside])),
            )  # fmt: skip


def _load(file, key, root):
    """The `Index` in `file`, or None if there is none, or if it is damaged, out of date or of another folder or version."""
    if file is None or not os.path.isfile(file):
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:  # compares the checksum of each array
            if str(kept["key"]) != key:
                return None
            folders = _names(kept["folders"], kept["folder_ends"])
            images = _names(kept["images"], kept["image_ends"])
            times, counts = kept["times"], kept["counts"]
            left_out, dropped, inside = json.loads(str(kept["beside"]))
        folders = list(folders)
        classes = [below for below in folders if "/" not in below and below not in dropped]
        left_out = {str(kind): int(count) for kind, count in left_out.items()}
        inside = {str(name): [str(split) for split in splits] for name, splits in inside.items()}
        if counts.dtype != np.int64 or counts.shape != (len(classes),) or counts.min() < 0 or counts.sum() != len(images):
            return None
        with ThreadPoolExecutor(THREADS) as pool:
            now = list(pool.map(_times, [root, *(os.path.join(root, below) for below in folders)]))
    except Exception:  # NumPy and zipfile raise many kinds for a damaged file
        return None
    return Index(classes, images, counts, left_out, inside) if np.array_equal(times, now) else None


def _names(data, ends):
    """The StringList of these arrays. Raises ValueError if they are none, or if a name could lead out of the folder.

    Hidden entries are never listed, so that no name, and no part of one, begins with a dot.
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
