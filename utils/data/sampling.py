"""Which sample is seen when, and with which random numbers: pure functions of seed, epoch and position.

Nothing here keeps state, so loader workers, processes and a resumed run all see the same samples with the same
augmentation. A `Key` names one use of one sample; the data set is indexed by keys.
"""

import hashlib
import random
import struct
from typing import NamedTuple

import numpy as np
import torch

# What a random number is drawn for. Part of every seed, so that no two uses share a stream.
ORDER, AUGMENT, MIX, MODEL, REPLACE = range(5)


class Key(NamedTuple):
    """One use of one sample. `counts` is False where the sample only fills the last evaluation batch."""

    index: int
    epoch: int = 0
    counts: bool = True


def stream_seed(seed, purpose, *position):
    """63-bit seed of the stream for `purpose` at `position`: unrelated numbers for neighbouring positions."""
    words = struct.pack(f"<{2 + len(position)}q", seed, purpose, *position)
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def seed_everything(seed):
    """Seed Python, NumPy and torch's CPU generator, whose numbers the transforms of timm and torchvision use."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def epoch_order(samples, seed, epoch):
    """Permutation of range(samples) for this epoch: (samples,) int64."""
    generator = torch.Generator().manual_seed(stream_seed(seed, ORDER, epoch))
    return torch.randperm(samples, generator=generator)


def replacement(seed, epoch, index, attempt, samples):
    """The sample that stands in for the broken `index` in this epoch; attempts 1, 2, … give others."""
    return stream_seed(seed, REPLACE, epoch, index, attempt) % samples


class TrainBatches:
    """Batch sampler: lists of `Key`, this process's share of each update, whole updates only.

    An epoch is floor(batches / update_freq) updates; the ragged tail is left out. One update is the same set of
    samples on any number of processes at the same total batch: the processes take turns within it.
    Set `epoch` and `first_update` before iterating; a resumed run sets `first_update` to where it stopped, and a run of
    so many updates sets `last_update` where its last epoch ends early.
    """

    def __init__(self, samples, batch_size, update_freq=1, process=0, processes=1, seed=0):
        self.samples, self.batch_size, self.update_freq = samples, batch_size, update_freq
        self.process, self.processes, self.seed = process, processes, seed
        self.updates = samples // (batch_size * processes) // update_freq
        self.epoch, self.first_update, self.last_update = 0, 0, self.updates

    def __len__(self):
        """Batches of this process in a whole epoch."""
        return self.updates * self.update_freq

    def __iter__(self):
        order = epoch_order(self.samples, self.seed, self.epoch)
        for batch in range(self.first_update * self.update_freq, self.last_update * self.update_freq):
            start = (batch * self.processes + self.process) * self.batch_size
            yield [Key(index, self.epoch) for index in order[start : start + self.batch_size].tolist()]


class EvalBatches:
    """Batch sampler over every sample once, in order, the processes taking turns by batches.

    Every process gets the same number of batches, all of the same size (collectives in the model stay in step, and a
    compiled model sees one shape); what fills them up is marked `counts=False`.
    """

    def __init__(self, samples, batch_size, process=0, processes=1):
        self.samples = samples
        self.batch_size = min(batch_size, -(-samples // processes))
        self.process, self.processes = process, processes

    def __len__(self):
        return -(-self.samples // (self.batch_size * self.processes))

    def __iter__(self):
        for turn in range(len(self)):
            start = (turn * self.processes + self.process) * self.batch_size
            yield [Key(min(i, self.samples - 1), 0, i < self.samples) for i in range(start, start + self.batch_size)]


def image_numbers(batches):
    """The image of each row of an evaluation with these `EvalBatches`, the rows of all processes one after another."""
    starts = [
        (turn * batches.processes + process) * batches.batch_size
        for process in range(batches.processes)
        for turn in range(len(batches))
    ]
    return [start + i for start in starts for i in range(batches.batch_size)]
