"""Copies among images: files of equal bytes, and pictures that look alike by a perceptual hash."""

import collections
import hashlib
import io
import itertools
import os

import numpy as np
from PIL import Image

from utils.data.bad_samples import in_threads
from utils.images.formats import open_image

CHUNK = 64  # files that a thread looks at in turn
PART = 4096  # bytes of the beginning and of the end of a file that are compared before all of it
BITS = 3  # of 64 in which the hashes of two pictures that look alike differ at most
PAIRS = 4_000_000  # more are compared by nearly equal hashes only


def equal_groups(files):
    """[[index, …], …] of files with equal bytes, each in order. files: paths, or open files of bytes (io.BytesIO).

    Sizes are compared first, then beginnings and ends, so that few files are read whole. One that cannot be read has no copy.
    """
    groups = [list(range(len(files)))]
    for key in (_size, _ends, _digest):
        wanted = [index for group in groups for index in group]
        parts = [wanted[first : first + CHUNK] for first in range(0, len(wanted), CHUNK)]
        found = in_threads(lambda part, key=key: [_try(key, files[index]) for index in part], parts)
        keys = dict(zip(wanted, itertools.chain.from_iterable(found), strict=True))
        parted = []
        for group in groups:
            same = collections.defaultdict(list)
            for index in group:
                if keys[index] is not None:
                    same[keys[index]].append(index)
            parted += [indices for indices in same.values() if len(indices) > 1]
        groups = parted
    return sorted(groups)


def _try(key, file):
    try:
        return key(file)
    except OSError:
        return None


def _size(file):
    return len(file.getvalue()) if isinstance(file, io.BytesIO) else os.stat(file).st_size


def _ends(file):
    if isinstance(file, io.BytesIO):
        return _digest(file)
    with open(file, "rb") as opened:
        first = opened.read(PART)
        opened.seek(max(os.fstat(opened.fileno()).st_size - PART, 0))
        return hashlib.blake2b(first + opened.read(PART), digest_size=16).digest()


def _digest(file):
    if isinstance(file, io.BytesIO):
        return hashlib.blake2b(file.getvalue(), digest_size=16).digest()
    if os.stat(file).st_size <= 2 * PART:
        return _ends(file)
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def look_alike(files, others):
    """[(index in `files`, index in `others`), …], one at most for each of `others`, of pictures that look alike: the same
    photograph in another size, format or quality. Plain areas, of which many look alike, and what cannot be read are left out.
    """
    hashes, thumbnails, places = zip(*(_hashes(part) for part in (files, others)), strict=True)
    if not len(hashes[0]) or not len(hashes[1]):
        return []
    few = len(hashes[0]) * len(hashes[1]) <= PAIRS
    found = []
    for row, value in enumerate(hashes[1]):
        if few:
            distance = np.bitwise_count(hashes[0] ^ value)
            near = np.flatnonzero(distance <= BITS)
            near = near[np.argsort(distance[near], kind="stable")]
        else:
            near = _nearly_equal(hashes[0], value)
        difference = np.abs(thumbnails[0][near] - thumbnails[1][row]).mean(axis=(1, 2))
        if (difference < 6).any():
            found.append((places[0][near[np.argmax(difference < 6)]], places[1][row]))
    return found


_ONE_BIT = np.concatenate([[0], 1 << np.arange(64, dtype=np.uint64)]).astype(np.uint64)


def _nearly_equal(hashes, value):
    """Indices of the hashes that differ from `value` in one bit at most; hashes are in order here."""
    wanted = _ONE_BIT ^ value
    starts, ends = np.searchsorted(hashes, wanted), np.searchsorted(hashes, wanted, side="right")
    return np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)]).astype(int)


def _hashes(files):
    """(hashes (N,) uint64 in order, thumbnails (N, 16, 16) float32, indices of these files)."""
    found = [(index, one) for index, one in enumerate(in_threads(_hash, files)) if one is not None]
    hashes = np.array([one[0] for _, one in found], np.uint64)
    order = np.argsort(hashes, kind="stable")
    thumbnails = np.array([one[1] for _, one in found], np.float32).reshape(-1, 16, 16)
    return hashes[order], thumbnails[order], [found[place][0] for place in order]


def _hash(file):
    """(whether each of 8 x 8 areas is brighter than its neighbour to the left, as 64 bits; 16 x 16 greys) or None."""
    try:
        with open_image(file) as image:
            image.draft("L", (64, 64))
            grey = image.convert("L")
    except Exception:  # broken, which whoever trains on it says
        return None
    small = np.asarray(grey.resize((16, 16), Image.Resampling.BOX), np.float32)
    if small.std() < 8:
        return None
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).ravel()
    return int(np.packbits(bits).view(">u8")[0]), small
