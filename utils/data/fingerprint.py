"""Tells whether two runs train on the same images, without reading them."""

import hashlib
import os

import numpy as np

from utils.data.sampling import spread

NAMES = 1000  # samples, evenly spread, whose names count


def fingerprint(source):
    """16 letters that depend on the number of samples, their labels and classes, and the file names of up to NAMES of them.

    The folder they lie in does not count, so that data may be moved. A stream is told by its number and classes only.
    """
    told = hashlib.sha256(repr((len(source), list(source.classes))).encode("utf-8", "surrogateescape"))
    if hasattr(source, "labels"):
        told.update(np.ascontiguousarray(source.labels).tobytes())
    if hasattr(source, "read") and not hasattr(source, "samples"):
        for index in spread(len(source), NAMES):
            told.update(os.fsencode(os.path.basename(source.name(int(index)))))
    return told.hexdigest()[:16]
