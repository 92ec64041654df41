"""Which samples are held out, which sample is seen when, and with which random numbers.

All of these are pure functions of seed, epoch and position. So any number of loader workers and processes, and a resumed
run, see the same samples with the same augmentation. A `Key` names one use of one sample; data sets are indexed by keys.
"""

import hashlib
import random
import struct
from typing import NamedTuple

import numpy as np
import torch

from utils.cli.errors import InputError

# What a random number is drawn for. It is part of every seed, so that no two uses have the same numbers.
ORDER, AUGMENT, MIX, MODEL, REPLACE, DRAW = range(6)


class Key(NamedTuple):
    """One use of one sample. `counts` is False if the sample only fills up the last batch of an evaluation. `again`: how often
    the sample came before in this epoch, so that it is augmented otherwise."""

    index: int
    epoch: int = 0
    counts: bool = True
    again: int = 0

    def seed(self, seed):
        """The seed of this use's augmentation in a run with that `seed`."""
        return stream_seed(seed, AUGMENT, self.epoch, self.index, *[self.again] * (self.again > 0))


def stream_seed(seed, purpose, *position):
    """A seed of 63 bits, keyed by whole numbers. Neighbouring positions (epoch, sample, …) have unrelated seeds."""
    words = struct.pack(f"<{2 + len(position)}q", seed, purpose, *position)
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def seed_everything(seed):
    """Seed Python, NumPy and torch's CPU generator, from which the transforms of timm and torchvision draw."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def epoch_order(samples, seed, epoch):
    """The samples in the order of this epoch: a permutation of range(samples), (samples,) int64."""
    generator = torch.Generator().manual_seed(stream_seed(seed, ORDER, epoch))
    return torch.randperm(samples, generator=generator)


class Sampling(NamedTuple):
    """How often the samples of each class come in an epoch, which keeps its length.

    labels: (N,) classes of the samples, or None where `kind` is uniform. kind: "uniform": each sample once; "balanced": each
    class as often as any other; "sqrt": in proportion to the square root of its size. repeats: each sample comes so many times
    in a row, and fewer samples come (Hoffer et al. 2020, repeated augmentation).
    """

    labels: np.ndarray | None = None
    kind: str = "uniform"
    repeats: int = 1

    def order(self, samples, seed, epoch):
        """The samples in the order of this epoch, (samples,) int64."""
        order = epoch_order(samples, seed, epoch)
        if self.kind != "uniform":
            order = self._drawn(samples, seed, epoch)[order]
        return order[: -(-samples // self.repeats)].repeat_interleave(self.repeats)[:samples] if self.repeats > 1 else order

    def _drawn(self, samples, seed, epoch):
        """(samples,): those of each class as often as `kind` wants, as evenly as whole numbers allow."""
        classes, sizes = np.unique(self.labels, return_counts=True)
        shares = sizes ** (0.5 if self.kind == "sqrt" else 0.0)
        edges = np.round(np.cumsum(shares) / shares.sum() * samples).astype(int)
        drawn = []
        for label, wanted in zip(classes, np.diff(edges, prepend=0), strict=True):
            members = np.flatnonzero(self.labels == label)
            generator = np.random.default_rng([seed, DRAW, epoch, int(label)])
            rounds = -(-wanted // len(members))
            drawn.append(np.concatenate([members[:0], *(generator.permutation(members) for _ in range(rounds))])[:wanted])
        return torch.from_numpy(np.concatenate(drawn).astype(np.int64))


def replacement(seed, epoch, index, attempt, samples):
    """The sample that replaces the broken sample `index` in this epoch; attempts 1, 2, … give different ones."""
    return stream_seed(seed, REPLACE, epoch, index, attempt) % samples


def stratified_split(labels, val_split, seed):
    """(training, validation) sorted arrays of indices.

    labels: (N,) whole numbers. val_split: the fraction of each class that is held out, which leaves at least one sample of it
    to train on. Raises InputError if no sample would be held out.
    """
    labels = np.asarray(labels)
    val = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rng = np.random.default_rng([seed, int(label)])
        held_out = min(max(round(len(members) * val_split), 1), len(members) - 1)
        val.append(rng.permutation(members)[:held_out])
    val = np.sort(np.concatenate(val))
    if len(val) == 0:
        raise InputError(f"--val_split {val_split}: {len(labels)} images leave none for validation; add images")
    return np.setdiff1d(np.arange(len(labels)), val), val


def fold_numbers(labels, folds, seed, groups=None):
    """(N,): the fold of each sample, from 0. Each class is shared out evenly, and each group, by its number, as a whole.

    labels: (N,) whole numbers; groups: (N,) the same, None: each sample is one.
    """
    labels, found = np.asarray(labels), np.empty(len(labels), np.int64)
    if groups is None:
        placed = 0
        for label in np.unique(labels):
            members = np.random.default_rng([seed, folds, int(label)]).permutation(np.flatnonzero(labels == label))
            found[members] = (placed + np.arange(len(members))) % folds
            placed += len(members)
        return found
    groups = np.unique(groups, return_inverse=True)[1]
    classes = np.unique(labels, return_inverse=True)[1]
    order = np.random.default_rng([seed, folds]).permutation(groups.max() + 1)
    sizes = np.bincount(groups)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    held, total = np.zeros((folds, classes.max() + 1)), np.zeros(folds)
    for group in order[np.argsort(-sizes[order], kind="stable")]:  # the largest first, which are hardest to place
        counts = np.bincount(classes[members[group]], minlength=held.shape[1])
        fold = min(range(folds), key=lambda number: (held[number] @ counts, total[number], number))
        held[fold] += counts
        total[fold] += sizes[group]
        found[members[group]] = fold
    return found


def spread(count, most):
    """Up to `most` of range(count), evenly spread: a list of ints."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def times_before(order):
    """(N,): how often the sample at each place of an order came before it."""
    order = np.asarray(order)
    by_sample = np.argsort(order, kind="stable")
    first = np.flatnonzero(np.diff(order[by_sample], prepend=-1))  # of each sample's places
    again = np.empty(len(order), np.int64)
    again[by_sample] = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return again


class TrainBatches:
    """Batch sampler of training: lists of `Key`, this process's batches of each update.

    An epoch is floor(batches / update_freq) updates; the samples that are left over are left out. An update has the same
    samples on any number of processes at the same total batch: the processes take its batches in turn.
    Set `epoch` and `first_update` before iterating. A resumed run sets `first_update` to where it stopped; a run of a given
    number of updates sets `last_update` in its last epoch.
    """

    def __init__(self, samples, batch_size, update_freq=1, process=0, processes=1, seed=0, sampling=None):
        self.sampling = sampling or Sampling()
        self.samples, self.batch_size, self.update_freq = samples, batch_size, update_freq
        self.process, self.processes, self.seed = process, processes, seed
        self.updates = samples // (batch_size * processes) // update_freq
        self.epoch, self.first_update, self.last_update = 0, 0, self.updates

    def __len__(self):
        """Batches of this process in a whole epoch."""
        return self.updates * self.update_freq

    def __iter__(self):
        order = self.sampling.order(self.samples, self.seed, self.epoch)
        again = times_before(order)
        for batch in range(self.first_update * self.update_freq, self.last_update * self.update_freq):
            start = (batch * self.processes + self.process) * self.batch_size
            part = slice(start, start + self.batch_size)
            yield [Key(i, self.epoch, True, n) for i, n in zip(order[part].tolist(), again[part].tolist(), strict=True)]


class EvalBatches:
    """Batch sampler of evaluation: every sample once, in order. The processes take the batches in turn.

    Every process gets the same number of batches, all of one size, so that collectives in the model stay in step and a
    compiled model sees one shape. Keys that only fill them up have `counts=False`.
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
    """The index of the sample in each row of an evaluation with these `EvalBatches`: a list, process after process."""
    starts = [
        (turn * batches.processes + process) * batches.batch_size
        for process in range(batches.processes)
        for turn in range(len(batches))
    ]
    return [start + i for start in starts for i in range(batches.batch_size)]
