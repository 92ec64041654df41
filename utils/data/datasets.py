"""What a DataLoader or a StreamLoader makes samples with: a source of images and the transform that augments them.

The random numbers of a transform are keyed by seed, epoch and sample. So a sample is augmented alike by any number of
loader workers and processes, and after a resume.
"""

import contextlib

import numpy as np
import torch

from utils.data.bad_samples import read_or_replace
from utils.data.sampling import AUGMENT, Key, seed_everything, stream_seed
from utils.images.read import AS_STORED, IGNORE, naming, pack_masks


class RecognitionDataset(torch.utils.data.Dataset):
    """Indexed by `Key`: (what `transform` makes of the image, …, label). The label is -1 if the key does not count; of several
    labels it is (C,) float32, 1 for each that the image has.

    source: as utils/sources/recognition.py describes. transform: PIL image, or the bytes of its file if
    `transform.takes_bytes`, -> a tensor, or a tuple of things. seed: given for training; the tuple then ends with the index
    of the broken image that another one, with its label, replaces, or -1. Without a seed a broken image raises BadImage.
    """

    def __init__(self, source, transform, seed=None):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return len(self.source)

    def __getitem__(self, key):
        key = key if isinstance(key, Key) else Key(key)
        seed = None if self.seed is None else key.seed(self.seed)
        parts, index = read_or_replace(lambda index: self._read(index, seed), key, self.seed, len(self))
        label = self.source.labels[index]
        label = int(label) if label.ndim == 0 else label.astype(np.float32)
        label = label if key.counts else label * 0 - 1
        return (*parts, label) if seed is None else (*parts, label, -1 if index == key.index else key.index)

    def _read(self, index, seed):
        encoded = self.source.encoded(index) if getattr(self.transform, "takes_bytes", False) else None
        image = self.source.read(index) if encoded is None else encoded
        return transformed(self.transform, image, self.source.name(index), seed)


class RecognitionStream:
    """Makes the samples of a `streaming.StreamLoader`: (example, number, epoch) -> (what `transform` makes of it, …, label).

    source: a stream, such as utils.sources.tables.StreamOfImages. transform: as of RecognitionDataset.
    """

    def __init__(self, source, transform, seed):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return len(self.source)

    def __call__(self, example, number, epoch):
        label = self.source.label(example, number)
        takes_bytes = getattr(self.transform, "takes_bytes", False) and self.source.reading == AS_STORED
        read = self.source.encoded if takes_bytes else self.source.read
        seed = stream_seed(self.seed, AUGMENT, epoch, number)
        return *transformed(self.transform, read(example, number), self.source.name(number), seed), label


def transformed(transform, image, name, seed):
    """What `transform` makes of a PIL image, or of the bytes of a file, as a tuple. seed: of its random numbers, or None.

    Raises BadImage, which begins with `name`, for bytes that cannot be decoded.
    """
    if seed is not None:
        seed_everything(seed)
    with naming(name) if isinstance(image, bytes) else contextlib.nullcontext():
        made = transform(image)
    return made if isinstance(made, tuple) else (made,)


class SegmentationDataset(torch.utils.data.Dataset):
    """Indexed by `Key`: (what `transform` makes of the image, …, mask (H, W) as images.pack_masks has it). The mask is all
    IGNORE if the key does not count.

    source: as utils/sources/segmentation.py describes. transform: (PIL image, mask (H, W) int64 array) -> (…, mask tensor).
    seed: given for training; the tuple then ends with the index of the sample whose broken image another sample replaces, or
    -1. Without a seed a broken image raises BadImage; a broken mask always raises InputError.
    """

    def __init__(self, source, transform, seed=None):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return len(self.source)

    def __getitem__(self, key):
        key = key if isinstance(key, Key) else Key(key)
        sample, index = read_or_replace(self.source.read, key, self.seed, len(self))
        if self.seed is not None:
            seed_everything(key.seed(self.seed))
        *parts, mask = self.transform(*sample)
        mask = pack_masks(mask if key.counts else torch.full_like(mask, IGNORE), len(self.source.classes))
        return (*parts, mask) if self.seed is None else (*parts, mask, -1 if index == key.index else key.index)


class SegmentationStream:
    """Makes the samples of a `streaming.StreamLoader`: (example, number, epoch) -> (…, packed mask) as of SegmentationDataset.

    source: a stream, such as utils.sources.mask_tables.StreamOfMasks. transform: as of SegmentationDataset.
    """

    def __init__(self, source, transform, seed):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self):
        return len(self.source)

    def __call__(self, example, number, epoch):
        sample = self.source.read(example, number)
        seed_everything(stream_seed(self.seed, AUGMENT, epoch, number))
        *parts, mask = self.transform(*sample)
        return *parts, pack_masks(mask, len(self.source.classes))
